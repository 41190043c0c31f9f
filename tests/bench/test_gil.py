"""The parts of the questions about the GIL work as they say; speed is not tested here."""

from __future__ import annotations

import asyncio
import gzip
import os
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import (
    client,
    in_process,
    interpreters,
    io_work,
    log_job,
    log_set,
    pipelines,
    ways,
)
from bench import index_job as handlers
from bench.index_job import FileFound
from bench.io_scaling import bare_asyncio, procbus_async
from bench.model import Settings
from tests.matrix import quick_first

SETTINGS = Settings(workers=2, spins_per_ms=1_000, scale=0.02)


def double(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("way", quick_first([*ways.WAYS.values(), ways.one_by_one], 2))
def test_every_way_runs_the_handler_on_every_event(way: Callable[..., Any]) -> None:
    with way(double, 2) as contender:
        contender.run(range(50))
        if way is not ways.thread_bus:  # which has no results
            assert contender.result(contender.submit(21)) == 42


@pytest.mark.parametrize("way", [ways.serial, ways.thread_bus, ways.procbus_io])
def test_a_handler_that_fails_fails_the_sample(way: Callable[..., Any]) -> None:
    with way(lambda number: 1 // number, 2) as contender, pytest.raises(ZeroDivisionError):
        contender.run([1, 0, 1])


@pytest.mark.parametrize("name", ["procbus io", "blinker", "bubus", "pyee"])
def test_peers_in_this_process_take_every_event(name: str) -> None:
    pytest.importorskip(name.partition(" ")[0])
    seen: list[int] = []
    with in_process.IN_PROCESS[name](seen.append, 2) as contender:
        contender.run(range(120))
        contender.result(contender.submit(120))
    assert sorted(seen) == list(range(121))


def test_the_server_gives_the_answer_that_was_asked_for() -> None:
    with io_work.server([b"nothing", b"all" * 30_000], answer_s=0.0) as port:
        assert client.fetch(port, 0) == b"nothing"
        assert client.fetch(port, 1) == b"all" * 30_000


def test_both_ways_to_ask_the_server_get_its_whole_answer() -> None:
    with io_work.server() as port:
        assert io_work.request(port) == len(io_work.ANSWER)
        assert asyncio.run(io_work.async_request(port)) == len(io_work.ANSWER)


def test_an_answer_that_is_not_whole_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="3 bytes came instead of 4096"):
        io_work.check(3)


@pytest.mark.parametrize("way", [bare_asyncio, procbus_async])
def test_no_more_coroutines_run_at_a_time_than_the_maximum(way: Callable[..., Any]) -> None:
    under_way: set[int] = set()
    most: list[int] = []

    async def wait(number: int) -> None:
        under_way.add(number)
        most.append(len(under_way))
        await asyncio.sleep(0)
        under_way.remove(number)

    with way(wait, 3) as contender:
        contender.run(range(30))
    assert len(most) == 30
    assert max(most) <= 3


def test_files_are_written_read_and_removed(tmp_path: Path) -> None:
    assert io_work.write_and_read(str(tmp_path)) == len(io_work.FILE)
    assert list(tmp_path.iterdir()) == []


def test_every_line_of_a_log_is_counted() -> None:
    packed = log_set.make_log(3)
    assert packed == log_set.make_log(3) != log_set.make_log(4)
    counted = log_job.counted(log_job.LogFetched(3, packed))
    lines = gzip.decompress(packed).decode().splitlines()
    assert sum(counted.requests.values()) == len(lines) == log_set.LINES
    assert counted.size == sum(int(line.rpartition(" ")[2]) for line in lines)


@pytest.mark.parametrize("job", quick_first(pipelines.JOBS.values()), ids=["index", "logs"])
@pytest.mark.parametrize("way", pipelines.CONTENDERS.values(), ids=list(pipelines.CONTENDERS))
def test_every_way_does_the_whole_job(way: Callable[..., None], job: Callable[..., Any]) -> None:
    with job(6) as ready:
        way(ready, SETTINGS)
        ready.finished()  # raises unless all of it is stored


@pytest.mark.parametrize("job", quick_first(pipelines.JOBS.values()), ids=["index", "logs"])
def test_a_job_that_lost_something_is_an_error(job: Callable[..., Any]) -> None:
    with job(3) as ready:
        ready.steps[-1].handler(ready.whole(ready.events[0]))
        with pytest.raises(RuntimeError):
            ready.finished()


def test_a_file_that_cannot_be_read_is_stored_as_skipped(tmp_path: Path) -> None:
    found = handlers.read_and_measure(FileFound(str(tmp_path / "gone.py"), "index"))
    assert type(found).__name__ == "FileSkipped"


def test_interpreters_are_found_by_their_answer_and_failing_shims_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "pyenv"
    for place, script in (
        (tmp_path / "bin" / "python3.15t", "echo 'not set' >&2; exit 127"),
        (root / "versions" / "3.15.0t" / "bin" / "python3.15t", "echo 3.15t"),
        (tmp_path / "bin" / "python3.15", "echo 3.14"),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(f"#!/bin/sh\n{script}\n")
        place.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(root))
    found = interpreters.find("3.15t", tmp_path)
    assert found == str(root / "versions" / "3.15.0t" / "bin" / "python3.15t")
    assert interpreters.find("3.15", tmp_path) is None


def test_interpreter_that_somebody_names_comes_first_and_half_made_environments_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def program(*place: str) -> str:
        file = tmp_path.joinpath(*place)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\necho 3.15\n")
        file.chmod(0o755)
        return str(file)

    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    half_made = program(".venv-3.15", "bin", "python")
    assert half_made not in interpreters.candidates("3.15", tmp_path)
    (tmp_path / ".venv-3.15" / "installed-test").touch()
    assert interpreters.find("3.15", tmp_path) == half_made
    named = program("mine", "python")
    monkeypatch.setenv(interpreters.NAMED, os.pathsep.join(["/gone/python", named]))
    assert interpreters.find("3.15", tmp_path) == named


def test_this_interpreter_is_known_by_its_answer() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    version += "t" if sysconfig.get_config_var("Py_GIL_DISABLED") else ""
    assert interpreters.is_one(sys.executable, version)
    assert not interpreters.is_one(sys.executable, "3.99")
