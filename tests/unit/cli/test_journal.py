# SPDX-License-Identifier: MIT
"""`procbus journal`: its output and its effects, with and without a bus that has the journal."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from contextlib import closing, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus
from procbus.cli.main import main

BOUND_S = 60.0


class Refused(Exception):
    pass


def fail(number: int) -> None:
    raise Refused(f"no {number} \x1b[31m")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal with one dead letter and one finished delivery that had an id."""
    path = tmp_path / "run.db"
    with EventBus([], journal=path) as bus:
        bus.subscribe("fails", fail, name="fails")
        bus.subscribe("works", abs, name="works")
        bus.publish("fails", 4)
        bus.publish("works", 5, id="five")
    return path


def run(*arguments: object) -> int:
    return main(["journal", *map(str, arguments)])


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_status_counts_by_handler(path: Path, capsys: pytest.CaptureFixture[str]):
    status = run_json(capsys, "status", path)
    assert status["owner"] is None
    assert status["given_ids"] == 1
    assert {n: {s: c for s, c in h.items() if c} for n, h in status["handlers"].items()} == {
        "fails": {"dead": 1},
        "works": {"succeeded": 1},
    }
    assert run("status", path) == 0
    table = capsys.readouterr().out
    assert "no bus has it" in table
    assert "fails" in table
    assert "works" in table


def test_list_filters_by_state_and_handler(path: Path, capsys: pytest.CaptureFixture[str]):
    every = run_json(capsys, "list", path)
    assert [(line["id"], line["state"]) for line in every] == [
        ("1:fails", "dead"),
        ("2:works", "succeeded"),
    ]
    assert [each["handler"] for each in run_json(capsys, "list", path, "--state", "dead")] == [
        "fails"
    ]
    assert [each["id"] for each in run_json(capsys, "list", path, "--handler", "w*")] == ["2:works"]
    assert run("list", path, "--limit", 1) == 0
    shown = capsys.readouterr().out
    assert "1:fails" in shown
    assert "2:works" not in shown
    assert "--limit shows more than 1" in shown


def test_list_gives_each_delivery_one_line_for_any_id(capsys: Any, tmp_path: Path):
    path = tmp_path / "run.db"
    with EventBus([], journal=path, keep="all") as bus:
        bus.subscribe("works", abs, name="works")
        bus.publish("works", 5, id="two\nlines")
    assert run("list", path) == 0
    _, head, line, _ = capsys.readouterr().out.split("\n")[:4]
    assert head.split()[:3] == ["id", "state", "attempts"]
    assert line.endswith("two\\nlines")
    assert line.index("succeeded") == head.index("state")


def test_show_tells_the_failure_and_sends_no_commands_to_the_terminal(
    path: Path, capsys: pytest.CaptureFixture[str]
):
    (shown,) = run_json(capsys, "show", path, "1:fails")
    assert shown["outcomes"][0]["kind"] == "raised"
    assert "Refused: no 4" in shown["outcomes"][0]["text"]
    assert shown["event"]["bytes"] > 0
    assert run("show", path, 1) == 0
    text = capsys.readouterr().out
    assert "def fail" in text or "in fail" in text
    assert "\x1b" not in text


class Runs:
    """Runs something when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_show_and_export_run_no_code_of_the_file(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ran = tmp_path / "ran"
    hostile = pickle.dumps(Runs(ran))
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE dead SET outcomes = ?", (hostile,))
        database.execute("UPDATE events SET data = ?", (hostile,))
    for command in ("status", "list", "show", "export"):
        assert run(command, path, *(["1"] if command == "show" else [])) == 0
    text = capsys.readouterr().out
    assert "attempt 1: unreadable" in text
    assert text.count("posix.mkdir") > 2
    assert not ran.exists()
    assert run("show", path, "1", "--unpickle") == 0
    assert ran.exists()


def test_show_names_the_parts_of_an_event_and_loads_it_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run.db"
    with EventBus([], journal=path, keep="all") as bus:
        bus.subscribe("where", abs, name="works")
        bus.publish("where", Fraction(1, 3))
    assert run("show", path, "1") == 0
    assert "fractions.Fraction" in capsys.readouterr().out
    assert run("show", path, "1", "--unpickle") == 0
    assert "Fraction(1, 3)" in capsys.readouterr().out
    (shown,) = run_json(capsys, "show", path, "1")
    assert shown["event"]["names"] == ["fractions.Fraction"]
    assert "repr" not in shown["event"]


@pytest.mark.parametrize(
    "outcomes",
    [
        pickle.dumps(3),
        pickle.dumps([3]),
        pickle.dumps([{}]),
        pickle.dumps([{"kind": []}]),
        b"",
        b"\x80\x05",
        random.Random(7).randbytes(100),
    ],
)
def test_outcomes_that_no_bus_wrote_are_described(
    path: Path, capsys: pytest.CaptureFixture[str], outcomes: bytes
):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE dead SET outcomes = ?", (outcomes,))
    (shown,) = run_json(capsys, "show", path, "1:fails")
    assert shown["outcomes"][0]["kind"] == "unreadable"
    assert run("show", path, "1:fails") == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "99"], "has no delivery 99"),
        (["show", "zzz"], "is no delivery"),
        (["retry"], "give the ids of dead letters, or --all"),
    ],
)
def test_impossible_command_says_why(
    path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
):
    action, *rest = arguments
    assert run(action, path, *rest) == 2
    assert says in capsys.readouterr().err


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("status", tmp_path / "none.db") == 2
    assert "there is no journal" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_retry_has_the_next_bus_run_a_dead_letter(path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("retry", path, "1:fails") == 0
    assert "1 dead letters will be run again at the next start" in capsys.readouterr().out
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe("fails", ran.append, name="fails")
    assert ran == [4]


def test_retry_has_a_running_bus_run_a_dead_letter(path: Path, capsys: pytest.CaptureFixture[str]):
    ran = threading.Event()
    with EventBus([], journal=path) as bus:
        bus.subscribe("fails", lambda _: ran.set(), name="fails")
        assert bus.drain(BOUND_S)
        assert len(bus.dead_letters) == 1
        visited = subprocess.run(
            [sys.executable, "-m", "procbus", "journal", "retry", str(path), "--all"],
            capture_output=True,
            text=True,
            check=True,
            timeout=BOUND_S,
        )
        assert "by the bus that is running" in visited.stdout
        assert ran.wait(BOUND_S)
        assert len(bus.dead_letters) == 0
    assert run_json(capsys, "list", path, "--state", "dead") == []


def test_purge_forgets_finished_deliveries_and_their_ids(
    path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run("purge", path, "--older-than", "1 day") == 0
    assert len(run_json(capsys, "list", path)) == 2
    assert run("purge", path) == 0
    assert [each["state"] for each in run_json(capsys, "list", path)] == ["dead"]
    assert run("purge", path, "--dead") == 0
    status = run_json(capsys, "status", path)
    assert (status["handlers"], status["events"], status["given_ids"]) == ({}, 0, 0)
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe("works", ran.append, name="works")
        bus.publish("works", 5, id="five")
    assert ran == [5]


def test_export_has_a_line_for_each_delivery(path: Path, capsys: pytest.CaptureFixture[str]):
    assert run("export", path, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["id"] for line in lines] == ["1:fails", "2:works"]
    assert bytes.fromhex(lines[0]["event"]["pickle"])
    assert lines[1]["event"] == {"kept": False}


def test_deliveries_of_several_pages_are_listed_once_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run.db"
    with EventBus([], journal=path, keep="all") as bus:
        bus.subscribe(int, abs, name="abs")
        bus.subscribe(object, repr, name="repr")
        for number in range(700):
            bus.publish(number)
    listed = run_json(capsys, "list", path, "--limit", 9_999)
    assert len(listed) == len({each["id"] for each in listed}) == 1_400


def test_records_of_a_dead_bus_are_seen_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run.db"
    script = """
        import os, sys, threading
        from procbus import EventBus
        bus = EventBus([], journal=sys.argv[1])
        bus.subscribe("slow", lambda n: threading.Event().wait(60), name="slow")
        bus.publish("slow", 1)
        os.kill(os.getpid(), 9)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(path)], timeout=BOUND_S, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert [each["state"] for each in run_json(capsys, "list", path)] == ["pending"]
    assert os.listdir(tmp_path) == ["run.db"]
    ran: list[int] = []
    with EventBus([], journal=path) as bus:
        bus.subscribe("slow", ran.append, name="slow")
    assert ran == [1]


def test_jobs_are_listed_and_open_deliveries_name_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "run.db"
    began, go_on = threading.Event(), threading.Event()

    def wait(number: int) -> None:
        began.set()
        go_on.wait(BOUND_S)

    bus = EventBus([], journal=path, io_workers=1)
    bus.subscribe("number", wait, name="wait")
    with suppress(Refused), bus:
        with bus.job("done", id="first"):
            pass
        with bus.job("cut short"):
            bus.publish("number", 1)
            bus.publish("number", 2)
            assert began.wait(BOUND_S)
            threading.Timer(0.05, go_on.set).start()
            raise Refused
    jobs = run_json(capsys, "jobs", path)
    assert [(job["id"], job["state"], job["pending"]) for job in jobs] == [
        ("first", "done", 0),
        ("cut short", "block open", 1),
    ]
    assert jobs[1]["succeeded"] == 1
    assert run("jobs", path) == 0
    assert "block open" in capsys.readouterr().out
    assert [each["jobs"] for each in run_json(capsys, "show", path, 2)] == [["cut short"]]
    assert run("show", path, 2) == 0
    assert "jobs: cut short" in capsys.readouterr().out


def test_journal_of_an_older_procbus_has_no_jobs(path: Path, capsys: pytest.CaptureFixture[str]):
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            "DROP TABLE jobs; DROP TABLE owned; DROP TABLE schedules; PRAGMA user_version = 1"
        )
    assert run_json(capsys, "show", path, 1)[0]["jobs"] == []
    assert run_json(capsys, "jobs", path) == []
