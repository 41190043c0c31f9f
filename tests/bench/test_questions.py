"""The benchmarks' machinery. No test here says anything about speed."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from bench import __main__ as bench_main
from bench import (
    casualties,
    contenders,
    growth,
    hangs,
    large_contenders,
    large_stream,
    large_work,
    neighbour,
    payload_sizes,
    questions,
    random_deaths,
    report,
    results,
    runner,
    work,
)
from bench.contenders import Contender
from bench.model import LIMIT, OPTIONAL, PROCBUS, Question, Row, Settings, Target
from procbus import EventBus
from tests.processes import alive_after

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(workers=2, spins_per_ms=1_000, scale=0.02)
SPEED = Row("speed", "events/s", (Target(2, at_least=True, against="other"),))
DELAY = Row("delay", "s", (Target(0.5, at_least=False, unit="s"),))


def never_called(_settings: Settings) -> dict[str, float]:
    raise AssertionError("samples are taken in processes of their own")


QUESTION = Question(
    name="made_up",
    asks="Which way?",
    rows=(SPEED, DELAY),
    contenders={PROCBUS: never_called, LIMIT: never_called, "other": never_called},
)


def ask(question: Question, rounds: int, **replaced: Any) -> runner.Answer:
    """Ask without a listener, with parts of `runner.ask` replaced."""
    answer = runner.Answer(question)
    runner.ask(answer, SETTINGS, rounds, lambda *_: None, lambda _: None, **replaced)
    return answer


@pytest.fixture(scope="module")
def quick_results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """Asks for a quick run of one question, as a user would start it; gives its JSON file."""
    folder = tmp_path_factory.mktemp("bench")

    @cache
    def results(name: str) -> Any:
        file = folder / f"{name}.json"
        done = subprocess.run(
            [sys.executable, "-m", "bench", "--quick", "--only", name, "--json", str(file)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return json.loads(file.read_text())

    return results


# Some start 64 workers, and some wait for a peer's task that will never end.
@pytest.mark.bench
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", questions.NAMES)
def test_a_quick_run_has_every_figure_of_every_contender(quick_results, name: str) -> None:
    question = questions.load(name)
    for module in question.needs:
        pytest.importorskip(module)
    found = quick_results(name)["questions"][name]
    assert found["errors"] == []
    assert set(found["rows"]) == {row.name for row in question.rows}
    answered = set()
    for row in question.rows:
        figures = found["rows"][row.name]
        assert figures["unit"] == row.unit
        assert all(len(found["runs"]) == 1 for found in figures["contenders"].values())
        answered |= set(figures["contenders"])
        for target, shown in zip(row.targets, figures["targets"], strict=True):
            assert shown["target"] == target.text()
            missing = target.against in found["not_installed"]  # then there is no ratio
            assert (shown["reached"] is None) == missing
            assert missing or isinstance(shown["reached"], bool)
    assert answered == set(question.contenders) - set(found["not_installed"])
    assert set(found["not_installed"]) <= {*OPTIONAL, *question.not_here}


@pytest.mark.bench
def test_results_name_their_machine(quick_results) -> None:
    results = quick_results("tiny_io")
    machine = results["machine"]
    assert platform.python_version() in machine["python"]
    assert {"date", "command", "processor", "cores", "libraries", "load_before", "load_after"} <= (
        machine.keys()
    )
    assert results["settings"]["workers"] >= 1


@pytest.mark.bench
def test_no_task_of_others_is_lost_or_run_twice_when_workers_die(quick_results) -> None:
    """These are counts, not speed: they hold on any machine."""
    for name in ("crash_table", "random_deaths"):
        rows = quick_results(name)["questions"][name]["rows"]
        ours = {row: rows[row]["contenders"][PROCBUS]["runs"] for row in rows}
        deaths = 1 if name == "crash_table" else random_deaths.DEATHS
        assert ours.pop(casualties.FAILED) == [deaths]
        assert ours.pop(casualties.FINISHED)[0] >= 195
        assert set(map(tuple, ours.values())) == {(0,)}, ours


def test_every_module_with_a_question_is_registered() -> None:
    files = [path for path in (ROOT / "bench").glob("*.py") if "QUESTION = " in path.read_text()]
    assert {path.stem for path in files} == set(questions.NAMES)
    assert [questions.load(name).name for name in questions.NAMES] == list(questions.NAMES)


def test_procbus_is_asked_every_question_and_has_a_limit_or_says_why_not() -> None:
    for question in map(questions.load, questions.NAMES):
        named = [*question.contenders, *(row.name for row in question.rows)]
        assert any(name.startswith(PROCBUS) for name in named)
        assert (LIMIT in question.contenders) == bool(question.limit)


def test_every_question_about_the_gil_and_of_peers_has_a_limit_beside_it() -> None:
    without = {name for group in questions.GROUPS.values() for name in group} - {
        name for name in questions.NAMES if questions.load(name).limit
    }
    assert without == {"crash_table"}  # whose limit is the number of tasks, in its targets


def test_a_group_stands_for_its_questions_each_once() -> None:
    assert questions.expanded(["tiny_io", "peers", "convoy"]) == [
        *("tiny_io", "tiny_cpu", "latency", "crash_table", "pending_memory", "startup"),
        "convoy",
    ]


def test_every_ratio_is_against_a_contender_of_its_question() -> None:
    for question in map(questions.load, questions.NAMES):
        for row in question.rows:
            for target in row.targets:
                assert target.against is None or target.against in question.contenders


def test_counts_of_events_are_scaled_as_requested(
    tmp_path: Path,
) -> None:
    asked = []

    def ask_all(names: Sequence[str], found: results.Results, repeat: int | None) -> list[Any]:
        asked.append((names, found.settings.scale, repeat))
        return []

    main = partial(bench_main.main, ask_all=ask_all)
    arguments = ["--only", "large_stream", "--json", str(tmp_path / "results.json")]
    main(arguments)
    main([*arguments, "--scale", "10", "--repeat", "1"])
    main([*arguments, "--scale", "10", "--quick"])
    quick = bench_main.QUICK_SCALE
    names = ["large_stream"]
    assert asked == [(names, 1.0, None), (names, 10.0, 1), (names, quick, 1)]


def test_listing_names_every_question(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_main.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(questions.NAMES)


def test_a_round_asks_each_contender_once_and_rounds_begin_with_different_ones() -> None:
    asked = []

    def take(_question: Question, contender: str, _settings: Settings) -> dict[str, float]:
        asked.append(contender)
        return {"speed": 1.0}

    answer = ask(QUESTION, rounds=3, take=take)
    rounds = [asked[0:3], asked[3:6], asked[6:9]]
    assert all(sorted(names) == sorted(QUESTION.contenders) for names in rounds)
    assert len({names[0] for names in rounds}) == 3
    assert answer.figures(SPEED, PROCBUS) == [1.0, 1.0, 1.0]


def test_a_failed_sample_is_reported_and_the_others_count() -> None:
    def take(_question: Question, contender: str, _settings: Settings) -> dict[str, float]:
        if contender == "other":
            raise runner.SampleFailed("it fell over")
        return {"speed": 4.0}

    answer = ask(QUESTION, rounds=1, take=take)
    assert answer.errors == ["other, round 1: it fell over"]
    assert answer.figures(SPEED, PROCBUS) == [4.0]
    assert answer.is_reached(SPEED, SPEED.targets[0]) is None


def test_a_peer_that_is_not_installed_is_named_and_not_an_error() -> None:
    question = replace(QUESTION, contenders={**QUESTION.contenders, "mpire": never_called})
    answer = ask(question, rounds=1, take=lambda *_: {"speed": 1.0}, find=lambda _name: None)
    assert answer.not_installed == ["mpire"]
    assert answer.errors == []
    assert answer.figures(SPEED, "mpire") == []


def test_ratios_are_taken_within_a_round_and_their_median_is_judged() -> None:
    answer = runner.Answer(
        QUESTION,
        rounds=[
            {PROCBUS: {"speed": 30.0, "delay": 0.1}, "other": {"speed": 10.0}},
            {PROCBUS: {"speed": 8.0, "delay": 0.9}, "other": {"speed": 2.0}},
            {PROCBUS: {"speed": 7.0, "delay": 0.7}, "other": {"speed": 7.0}},
        ],
    )
    (ratio,), (bound,) = SPEED.targets, DELAY.targets
    assert answer.against(SPEED, ratio) == [3.0, 4.0, 1.0]
    assert answer.is_reached(SPEED, ratio) is True
    assert answer.against(DELAY, bound) == [0.1, 0.9, 0.7]
    assert answer.is_reached(DELAY, bound) is False
    row = results.row_to_json(answer, SPEED)
    assert row["contenders"] == {
        PROCBUS: {"runs": [30.0, 8.0, 7.0], "median": 8.0, "min": 7.0, "max": 30.0},
        "other": {"runs": [10.0, 2.0, 7.0], "median": 7.0, "min": 2.0, "max": 10.0},
    }
    assert report.target_cells(answer, SPEED) == ("3 x", "≥ 2 x other", "[green]yes[/]")


def test_a_sample_that_takes_too_long_is_killed_and_says_so() -> None:
    question = replace(questions.load("tiny_io"), time_limit=0.001)
    with pytest.raises(runner.SampleFailed, match=r"not done after 0\.001 s"):
        runner.take_sample(question, LIMIT, SETTINGS)


def test_a_sample_that_raises_fails_with_its_last_line() -> None:
    with pytest.raises(runner.SampleFailed, match="exit code 1: KeyError: 'nobody'"):
        runner.take_sample(questions.load("tiny_io"), "nobody", SETTINGS)


def test_processes_that_a_sample_leaves_behind_are_killed() -> None:
    leaver = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'],"
    leaver += " stdin=subprocess.PIPE).pid, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", leaver],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        left = psutil.Process(int(process.stdout.readline()))
        runner.end_group(process)
        process.wait(60)
    assert alive_after([left], 10) == []
    runner.end_group(process)  # nothing left to kill is no error


def test_semaphores_of_killed_processes_alone_are_removed() -> None:
    # A pid is used again, and an earlier process that had it may have left semaphores behind.
    old = set(runner.SHARED_MEMORY.glob("sem.loky-*"))
    maker = "import sys, subprocess; from loky.backend import get_context\n"
    maker += "kept = get_context('loky').Semaphore(1); print(flush=True)\n"
    maker += "if sys.argv[1:]: subprocess.run([sys.executable, '-c', sys.argv[1]])\n"
    maker += "input()"
    process = subprocess.Popen(
        [sys.executable, "-c", maker, maker],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    others = Path(f"/dev/shm/sem.loky-{os.getpid()}-of-this-test")
    others.touch()
    try:
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            process.stdout.readline()  # the line of its child
            made = {name for pid in runner.members(process.pid) for name in names_of(pid)}
            made -= old
            runner.end_group(process)
            process.wait(60)
        assert len(made) == 2
        assert [name for name in made if name.exists()] == []
        assert others.exists()
    finally:
        others.unlink(missing_ok=True)


def names_of(pid: int) -> list[Path]:
    return list(runner.SHARED_MEMORY.glob(f"sem.loky-{pid}-*"))


def test_question_sets_its_rounds_unless_the_command_does() -> None:
    asked = []

    def ask(answer: runner.Answer, _settings: Settings, rounds: int, *_: object) -> None:
        asked.append((answer.question.name, rounds))

    found = results.Results(Path("not written"), {}, SETTINGS)
    bench_main.ask_all(["tiny_io", "crash_table"], found, None, ask=ask)
    bench_main.ask_all(["tiny_io", "crash_table"], found, 2, ask=ask)
    assert asked == [("tiny_io", 5), ("crash_table", 1), ("tiny_io", 2), ("crash_table", 2)]


def test_the_same_tasks_die_in_every_round_and_in_every_way() -> None:
    deaths = casualties.random_deaths(2_000, 5, seed=3)
    assert deaths == casualties.random_deaths(2_000, 5, seed=3)
    assert deaths != casualties.random_deaths(2_000, 5, seed=4)
    assert len(deaths) == 5
    assert set(deaths.values()) == set(casualties.HOWS)
    plot = casualties.Plot("nobody", 2, 2_000, deaths, 1, 10.0, "begun")
    assert {str(task.number): task.how for task in plot.tasks() if task.how} == deaths
    assert [task.number for task in plot.tasks()] == list(range(2_000))


def test_processes_of_a_scene_in_a_new_session_are_found_and_killed() -> None:
    environment = {**os.environ, casualties.MARK: "of this test"}
    wait = [sys.executable, "-c", "print(flush=True); input()"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(wait, env=environment, start_new_session=True, **pipes) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        found = [each.pid for each in casualties.marked("of this test")]
        assert casualties.marked("of another") == []
        casualties.end_all("of this test")
        process.wait(60)
    assert found == [process.pid]
    assert casualties.marked("of this test") == []


def test_a_scene_without_counts_says_why() -> None:
    plot = casualties.Plot("nobody", 2, 10, {}, 1, 1.0, "begun")
    with pytest.raises(RuntimeError, match="nobody gave no counts: KeyError: 'nobody'"):
        casualties.play(plot)


def test_neighbours_work_is_counted_while_the_other_was_away() -> None:
    ended = [(float(at), pid) for at, pid in enumerate([1, 2, 1, 1, 3, 3, 1])]
    held, killed = neighbour.Window(), neighbour.Window()
    neighbour.Turn(False, 2, began_at=1.5, ended_at=3.5, new_pid=None).add_to(held, ended)
    assert held == neighbour.Window(seconds=2.0, events=2)  # at 2 and 3
    neighbour.Turn(True, 2, began_at=1.5, ended_at=None, new_pid=3).add_to(killed, ended)
    assert killed == neighbour.Window(seconds=2.5, events=2)  # until 4, the first of the new one


@pytest.mark.parametrize("how", [hangs.LOOP, hangs.SLEEP])
def test_a_hang_says_when_it_began_and_ends_where_it_may(how: str, tmp_path: Path) -> None:
    event = hangs.Hang(how, str(tmp_path / "hang"), seconds=0.01)
    assert hangs.began(event) is None
    before = time.monotonic()
    hangs.hang(event)
    begun = hangs.began(event)
    assert begun is not None
    assert before <= begun[0] <= time.monotonic() - 0.01
    assert begun[1] == os.getpid()


def test_growth_leaves_a_record_of_how_large_it_was(tmp_path: Path) -> None:
    event = growth.Growth(str(tmp_path / "record"), rate=1e12, noted_bytes=1, most_bytes=1)
    assert growth.grow(event) == growth.STEP_BYTES
    grown = growth.read_growth(event)
    assert grown.allocated == growth.STEP_BYTES
    assert grown.peak > growth.STEP_BYTES
    assert 0 < grown.above_at <= time.monotonic()


def test_a_stream_keeps_few_under_way_and_gives_the_results_in_order() -> None:
    under_way, most = set(), 0

    def submit(event: int) -> int:
        nonlocal most
        under_way.add(event)
        most = max(most, len(under_way))
        return event

    def result(handle: int) -> int:
        under_way.remove(handle)
        return -handle

    contender = Contender(submit, result, lambda: None)
    found = large_contenders.stream(contender, iter(range(10)), pending=3)
    assert found == [-number for number in range(10)]
    assert (most, under_way) == (3, set())


def test_bus_sends_an_event_to_several_handlers_at_once_and_peers_one_by_one() -> None:
    with (
        contenders.procbus(large_work.length, 1) as bus,
        large_contenders.fan_of(PROCBUS, bus, large_work.length, 1, 3) as to_handlers,
    ):
        assert to_handlers(b"four") == [4, 4, 4]
    submitted: list[bytes] = []

    def submit(event: bytes) -> bytes:
        submitted.append(event)
        return event

    peer = Contender(submit, len, lambda: None)
    with large_contenders.fan_of("peer", peer, large_work.length, 1, 3) as to_handlers:
        assert to_handlers(b"four") == [4, 4, 4]
    assert submitted == [b"four"] * 3


def test_calls_to_warm_up_are_not_among_the_times() -> None:
    calls: list[int] = []
    found = large_work.times(lambda: calls.append(1), repeats=2, warm_up=3)
    assert len(calls) == 5
    assert len(found) == 2
    assert min(found) >= 0


def test_memory_grows_from_the_first_tenth_to_the_last() -> None:
    mb = large_work.MB
    assert large_stream.growth([5 * mb] * 2 + [9 * mb] * 16 + [7 * mb] * 2) == 2
    assert large_stream.growth([5 * mb] * 2 + [9 * mb] * 16 + [4 * mb] * 2) == 0


def test_the_memory_of_blocks_is_found() -> None:
    with EventBus([], cpu_workers=1, shared_memory_limit="64 MiB") as bus:
        bus.subscribe(bytes, large_work.length, kind="cpu")
        assert bus.publish(bytes(1 << 20)).result() == 1 << 20
        assert 1 << 20 <= large_stream.shared_bytes(bus) <= 64 << 20
    assert large_stream.own_bytes() > 0


def test_sizes_match_the_page_and_are_smaller_in_a_quick_run() -> None:
    rows = [payload_sizes.row_of(size) for size in payload_sizes.SIZES]
    assert (rows[0], rows[10], rows[-1]) == ("1 KiB", "1 MiB", "256 MiB")
    largest = payload_sizes.SIZES[-1]
    assert payload_sizes.size_in(largest, replace(SETTINGS, scale=1.0)) == largest
    assert payload_sizes.size_in(largest, SETTINGS) < largest


def test_event_counts_scale_but_never_vanish() -> None:
    assert Settings(2, 1, scale=1.0).count(5_000) == 5_000
    assert Settings(2, 1, scale=0.1).count(5_000) == 500
    assert Settings(2, 1, scale=0.001).count(5_000) == 20
    assert Settings(2, 1, scale=0.001).count(5) == 5


@pytest.mark.parametrize(
    ("figure", "shown"),
    [(0.01234, "0.0123"), (1.5, "1.5"), (42.42, "42.4"), (318.2, "318"), (123456.0, "123,456")],
)
def test_figures_are_shown_with_the_digits_that_count(figure: float, shown: str) -> None:
    assert report.short(figure) == shown


def test_spin_is_counted_in_iterations_and_calibrated_to_a_positive_number() -> None:
    assert work.spins_per_ms(tries=3) >= 1
    assert work.spin(10) == work.spin(10) != work.spin(11)


def test_samples_are_started_by_a_module_that_reads_plain_arguments() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.sample", "tiny_io", LIMIT, json.dumps(SETTINGS.to_json())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=150,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(done.stdout.splitlines()[-1])["tiny io handler"] > 0


def test_a_value_that_misses_the_bound_by_less_than_rounds_differ_counts_as_equal() -> None:
    most = Target(1, at_least=False, against="peer", equal=0.01)
    least = Target(1, at_least=True, against="peer", equal=0.01)

    assert most.is_reached_by(1.009)
    assert not most.is_reached_by(1.011)
    assert least.is_reached_by(0.991)
    assert not least.is_reached_by(0.989)
    assert most.text() == "≤ 1 x peer (within 1 % is equal)"
