"""The interpreter ends while a bus is open: published events run, and the exit code is right."""

import sys

import pytest

from tests.integration.conftest import Run
from tests.matrix import quick_first

# https://docs.python.org/3/whatsnew/3.12.html: no thread and no process can be started any more.
needs_new_threads = pytest.mark.xfail(
    sys.version_info[:2] == (3, 12),
    reason="Python 3.12 starts no thread once the script has ended",
    strict=True,
)

HANDLERS = """
import asyncio, os, sys
from procbus import EventBus
out = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def note(line):
    fd = os.open("ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{line}\\n".encode())
    os.close(fd)

bus = EventBus([], cpu_workers=2)

@bus.subscribe("cpu", kind="cpu")
def in_worker(n):
    note(f"cpu {n}")

@bus.subscribe("io")
def in_thread(n):
    note(f"io {n}")

@bus.subscribe("async")
async def in_loop(n):
    await asyncio.sleep(0)
    note(f"async {n}")

@bus.subscribe("cascade", kind="cpu")
def cascade(n):
    from procbus import current
    note(f"cascade {n}")
    current().publish("io", n)
    if n:
        current().publish("cascade", n - 1)
"""


def ran(run: Run, script: str, tmp_path) -> tuple[int, str, list[str]]:
    ended = run(HANDLERS + script)
    return ended.code, ended.err, sorted((tmp_path / "ran").read_text().splitlines())


@pytest.mark.parametrize("topic", quick_first(["cpu", "io", "async"], 2))
def test_events_published_right_before_the_end_run(run: Run, tmp_path, topic: str) -> None:
    script = f"for n in range(20): bus.publish({topic!r}, n)"
    assert ran(run, script, tmp_path) == (0, "", sorted(f"{topic} {n}" for n in range(20)))


def test_events_that_handlers_publish_after_the_scripts_end_run(run: Run, tmp_path) -> None:
    expected = [f"{what} {n}" for what in ("cascade", "io") for n in range(6)]
    assert ran(run, 'bus.publish("cascade", 5)', tmp_path) == (0, "", expected)


def test_exception_at_top_level_ends_the_script_with_1_and_published_events_run(
    run: Run, tmp_path
) -> None:
    script = (
        'for t in ("cpu", "io", "async"): bus.publish(t, 0)\nraise RuntimeError("of the script")'
    )
    code, err, lines = ran(run, script, tmp_path)
    assert (code, lines) == (1, ["async 0", "cpu 0", "io 0"])
    assert err.strip().endswith("RuntimeError: of the script")


def test_sys_exit_keeps_its_code_and_published_events_run(run: Run, tmp_path) -> None:
    script = 'for t in ("cpu", "io", "async"): bus.publish(t, 0)\nsys.exit(7)'
    assert ran(run, script, tmp_path) == (7, "", ["async 0", "cpu 0", "io 0"])


def test_several_open_buses_are_all_finished(run: Run, tmp_path) -> None:
    script = """
others = [EventBus([], cpu_workers=1) for _ in range(2)]
for number, other in enumerate(others):
    other.subscribe("cpu", in_worker, kind="cpu")
    other.publish("cpu", f"of bus {number}")
bus.publish("io", 0)
"""
    assert ran(run, script, tmp_path) == (0, "", ["cpu of bus 0", "cpu of bus 1", "io 0"])


@needs_new_threads
def test_a_worker_that_dies_after_the_end_of_the_script_is_replaced(run: Run, tmp_path) -> None:
    script = """
import logging
logging.getLogger("procbus").setLevel(logging.CRITICAL)
one = EventBus([], cpu_workers=1)
@one.subscribe("die", kind="cpu")
def die(n):
    import signal
    note("dies")
    os.kill(os.getpid(), signal.SIGKILL)
one.subscribe("cpu", in_worker, kind="cpu")
one.publish("die", 0)
one.publish("cpu", 1)
"""
    assert ran(run, script, tmp_path) == (0, "", ["cpu 1", "dies"])


def test_a_bus_made_and_used_in_a_thread_is_finished(run: Run, tmp_path) -> None:
    script = """
import threading
def work():
    own = EventBus([], cpu_workers=1)
    own.subscribe("cpu", in_worker, kind="cpu")
    own.subscribe("io", in_thread)
    own.publish("cpu", "from a thread")
    own.publish("io", "from a thread")
thread = threading.Thread(target=work)
thread.start()
thread.join()
"""
    assert ran(run, script, tmp_path) == (0, "", ["cpu from a thread", "io from a thread"])


def test_a_bus_under_asyncio_run_gives_results_and_is_finished(run: Run, tmp_path) -> None:
    script = """
async def main():
    async with EventBus([], cpu_workers=1) as own:
        own.subscribe("cpu", in_worker, kind="cpu")
        own.subscribe("double", lambda n: 2 * n, kind="cpu")
        assert await (await own.apublish("double", 21)) == 42
        await own.apublish("cpu", 1)
    await bus.apublish("cpu", 2)
    await bus.apublish("async", 3)
asyncio.run(main())
"""
    assert ran(run, script, tmp_path) == (0, "", ["async 3", "cpu 1", "cpu 2"])


def test_publishing_in_an_exit_hook_says_that_the_bus_is_closed(run: Run, tmp_path) -> None:
    script = """
import atexit
from procbus import BusClosed
def late():
    try:
        bus.publish("cpu", "late")
    except BusClosed:
        note("refused")
atexit.register(late)
bus.publish("cpu", "in time")
"""
    assert ran(run, script, tmp_path) == (0, "", ["cpu in time", "refused"])


def test_a_bus_that_was_never_used_costs_nothing_at_exit(run: Run, tmp_path) -> None:
    assert ran(run, "", tmp_path) == (0, "", [])


def test_a_started_bus_without_events_ends(run: Run, tmp_path) -> None:
    assert ran(run, "bus.start()", tmp_path) == (0, "", [])


@pytest.mark.parametrize("topic", quick_first(["cpu", "io", "async"]))
def test_a_handler_that_publishes_for_an_idle_lane_at_the_end_never_hangs(
    run: Run, tmp_path, topic: str
) -> None:
    """A delivery whose lane cannot start any more fails, and says so."""
    kind = "io" if topic == "cpu" else "cpu"
    script = f"""
from procbus import current
def forward(n):
    current().publish({topic!r}, n)
bus.subscribe("forward", forward, kind={kind!r})
bus.publish("forward", 1)
"""
    ended = run(HANDLERS + script)
    assert ended.code == 0
    if (tmp_path / "ran").read_text():
        assert (tmp_path / "ran").read_text() == f"{topic} 1\n"
    else:
        assert sys.version_info[:2] == (3, 12)
        assert "can't create new thread" in ended.err or "no worker process" in ended.err


@pytest.mark.parametrize("kind", ["cpu", "io"])
@pytest.mark.parametrize("used", quick_first([True, False]))
def test_an_executor_takes_no_call_once_the_script_has_ended(
    run: Run, kind: str, used: bool
) -> None:
    ended = run(
        f"""
        import atexit
        from procbus import executor

        def last():
            try:
                pool.submit(abs, -3)
            except RuntimeError as error:
                print(error)

        atexit.register(last)
        pool = executor({kind!r}, max_workers=1)
        if {used}:
            pool.submit(abs, -2).result()
        """
    )
    assert ended.check().startswith("cannot schedule new futures after shutdown")


def test_bus_closed_by_the_end_of_the_script_says_so_to_later_publishers(run: Run) -> None:
    ended = run(
        """
        import atexit, textwrap
        from procbus import BusClosed, EventBus

        bus = EventBus(handlers=[])
        bus.subscribe("n", print)

        @atexit.register
        def late():
            try:
                bus.publish("n", "late")
            except BusClosed as error:
                print("the script has ended" in str(error))

        bus.publish("n", "in time").result(20)
        """
    )

    assert (ended.out, ended.err, ended.code) == ("in time\nTrue\n", "", 0)
