"""Resources of real workers: one for each, closed with it, opened again after its death."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from procbus import DeliveryState, EventBus, WorkerDied, current, resource, use
from tests.integration.conftest import Run
from tests.integration.helpers import PATIENCE_S, Tally

#: The file that resources note their steps in; an environment variable, for each worker has it.
TALLY = "PROCBUS_TEST_TALLY"


def note(step: str) -> None:
    Tally(os.environ[TALLY]).note(step)


@pytest.fixture
def steps(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> Tally:
    monkeypatch.setenv(TALLY, tally.path)
    return tally


@resource
def model() -> Iterator[int]:
    note(f"open {os.getpid()} {threading.get_ident()} {current().worker.number}")
    yield os.getpid()
    note(f"close {os.getpid()} {threading.get_ident()} -")


@resource
def user(of: int = use(model)) -> Iterator[int]:
    note(f"open-user {of}")
    yield of
    note(f"close-user {of}")


def work(event: int, of: int = use(model)) -> tuple[int, int, int]:
    if event < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return of, os.getpid(), current().worker.number


def other(event: int, of: int = use(user), also: int = use(model)) -> tuple[int, int]:
    return of, also


def words(tally: Tally) -> list[list[str]]:
    return [line.split() for line in tally.lines()]


def by_step(tally: Tally, step: str) -> list[list[str]]:
    return [each for each in words(tally) if each[0] == step]


def test_each_worker_process_opens_one_and_closes_it_at_the_end(steps: Tally) -> None:
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("work", work, kind="cpu")
        bus.subscribe("other", other, kind="cpu")
        for _ in range(50):
            bus.publish("work", 1)
            bus.publish("other", 1)
        assert bus.drain(PATIENCE_S)
        of, pid, _ = bus.publish("work", 1).result(PATIENCE_S)
        assert of == pid != os.getpid()
    opened, closed = by_step(steps, "open"), by_step(steps, "close")
    assert sorted(each[1] for each in opened) == sorted(each[1] for each in closed)
    assert len({each[1] for each in opened}) == len(opened), "one for each, whoever uses it"
    for pid in {each[1] for each in by_step(steps, "open-user")}:
        mine = [each[0] for each in words(steps) if each[1] == pid]
        assert mine == ["open", "open-user", "close-user", "close"]


def test_worker_that_is_replaced_closes_its_resources(steps: Tally) -> None:
    with EventBus([], cpu_workers=1, max_events_per_worker=5) as bus:
        bus.subscribe("work", work, kind="cpu")
        for _ in range(15):
            bus.publish("work", 1).result(PATIENCE_S)
    opened, closed = by_step(steps, "open"), by_step(steps, "close")
    assert len(opened) >= 3
    assert [each[1] for each in opened] == [each[1] for each in closed]


def test_replacement_of_a_dead_worker_opens_its_own_and_has_its_number(steps: Tally) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("work", work, kind="cpu")
        first = bus.publish("work", 1).result(PATIENCE_S)
        with pytest.raises(WorkerDied):
            bus.publish("work", -1).result(PATIENCE_S)
        second = bus.publish("work", 1).result(PATIENCE_S)
        bus.dead_letters.clear()
    assert first[:2] != second[:2]
    assert first[2] == second[2] == 0
    assert [each[1] for each in by_step(steps, "close")] == [str(second[0])], "a killed one cannot"


def test_numbers_of_cpu_workers_begin_at_0(steps: Tally) -> None:
    with EventBus([], cpu_workers=3) as bus:
        bus.subscribe("meet", meet, kind="cpu")
        receipts = [bus.publish("meet", 3) for _ in range(3)]
        assert sorted(each.result(PATIENCE_S) for each in receipts) == [0, 1, 2]


def meet(count: int) -> int:
    """Return the number of the worker once that many workers are here."""
    note(f"here {current().worker.number}")
    from tests.waits import eventually

    eventually(lambda: len(by_step(Tally(os.environ[TALLY]), "here")) >= count)
    return current().worker.number


def environment(_: int) -> tuple[int, str | None]:
    return current().worker.number, os.environ.get("PROCBUS_TEST_GPU")


def kill_worker(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_worker_env_sets_variables_of_each_worker_and_of_its_replacement(steps: Tally) -> None:
    with EventBus(
        [], cpu_workers=2, worker_env=lambda number: {"PROCBUS_TEST_GPU": f"gpu{number}"}
    ) as bus:
        bus.subscribe("env", environment, kind="cpu")
        bus.subscribe("kill", kill_worker, kind="cpu")
        bus.subscribe("meet", meet, kind="cpu")
        receipts = [bus.publish("meet", 2) for _ in range(2)]
        assert sorted(each.result(PATIENCE_S) for each in receipts) == [0, 1]
        for _ in range(3):
            for _ in range(20):
                number, found = bus.publish("env", 1).result(PATIENCE_S)
                assert found == f"gpu{number}"
            with pytest.raises(WorkerDied):
                bus.publish("kill", 1).result(PATIENCE_S)
        bus.dead_letters.clear()
    assert "PROCBUS_TEST_GPU" not in os.environ


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda number: {"A": number}, "worker_env must return a dict of strings"),
        (lambda number: {}[number], "worker_env failed for worker 0: KeyError"),
        (lambda number: {"A=B": "1"}, "'A=B': '1' cannot be an environment variable"),
        (lambda number: {"A": "1\0"}, "cannot be an environment variable"),
        (lambda number: {"": "1"}, "its name is empty"),
    ],
)
def test_worker_env_that_fails_fails_the_deliveries_and_says_why(made: Any, says: str) -> None:
    with EventBus([], cpu_workers=1, worker_env=made) as bus:
        bus.subscribe("env", environment, kind="cpu")
        with pytest.raises(WorkerDied, match=says):
            bus.publish("env", 1).result(PATIENCE_S)
        bus.dead_letters.clear()


@resource(eager=True)
def early() -> Iterator[str]:
    note(f"open-early {current().worker.number}")
    yield "early"
    note("close-early -")


def use_early(event: int, given: str = use(early)) -> str:
    note("handler -")
    return given


@pytest.mark.parametrize("cpu", ["processes", "threads"])
def test_eager_resource_is_opened_when_the_worker_starts(steps: Tally, cpu: Any) -> None:
    from tests.waits import eventually

    with EventBus([], cpu_workers=1, cpu=cpu) as bus:
        bus.subscribe("early", use_early, kind="cpu")
        bus.start()
        eventually(lambda: by_step(steps, "open-early") == [["open-early", "0"]])
        assert bus.publish("early", 1).result(PATIENCE_S) == "early"
    assert [each[0] for each in words(steps)] == ["open-early", "handler", "close-early"]


@resource(eager=True)
def broken() -> Iterator[str]:
    yield from []


def use_broken(event: int, given: str = use(broken)) -> str:
    return given


def test_eager_resource_that_fails_is_logged_and_fails_the_events_that_need_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("broken", use_broken, kind="cpu")
        receipt = bus.publish("broken", 1)
        with pytest.raises(RuntimeError, match="didn't yield") as raised:
            receipt.result(PATIENCE_S)
        bus.dead_letters.clear()
    assert any("broken" in note and "use_broken" in note for note in raised.value.__notes__)
    assert "the eager resource tests.integration.test_resources.broken could not be" in caplog.text


# Threads of the script.


@pytest.mark.parametrize(("kind", "options"), [("io", {}), ("cpu", {"cpu": "threads"})])
def test_each_thread_opens_one_and_closes_it_itself(
    steps: Tally, kind: Any, options: dict[str, Any]
) -> None:
    with EventBus([], cpu_workers=3, io_workers=3, **options) as bus:
        bus.subscribe("meet", meet_with_model, kind=kind)
        receipts = [bus.publish("meet", 3) for _ in range(3)]
        assert sorted(each.result(PATIENCE_S) for each in receipts) == [0, 1, 2]
    opened, closed = by_step(steps, "open"), by_step(steps, "close")
    assert len(opened) == 3
    assert {each[2] for each in opened} == {each[2] for each in closed}, "in the same threads"


def meet_with_model(count: int, of: int = use(model)) -> int:
    return meet(count)


def test_bus_has_one_for_all_its_threads_and_its_loop() -> None:
    steps: list[str] = []

    @resource(scope="bus")
    def shared() -> Iterator[list[int]]:
        steps.append("open")
        yield []
        steps.append("close")

    def on_thread(event: int, given: list[int] = use(shared)) -> int:
        return id(given)

    async def on_loop(event: int, given: list[int] = use(shared)) -> int:
        return id(given)

    with EventBus([], io_workers=4) as bus:
        bus.subscribe("t", on_thread)
        bus.subscribe("t", on_loop)
        receipts = [bus.publish("t", 1) for _ in range(100)]
        found = {each for receipt in receipts for each in receipt.results(PATIENCE_S)}
        assert len(found) == 1
        assert steps == ["open"]
    assert steps == ["open", "close"]


def test_connection_of_a_thread_is_opened_used_and_closed_there(tmp_path: Path) -> None:
    @resource
    def database() -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(tmp_path / "rows.db", timeout=PATIENCE_S)
        yield connection
        connection.close()  # sqlite3 refuses that in another thread

    with sqlite3.connect(tmp_path / "rows.db") as connection:
        connection.execute("create table rows (number integer)")
    connection.close()

    def store(event: int, db: sqlite3.Connection = use(database)) -> None:
        with db:
            db.execute("insert into rows values (?)", (event,))

    with EventBus([], io_workers=4) as bus:
        bus.subscribe("row", store)
        for number in range(100):
            bus.publish("row", number)
    with sqlite3.connect(tmp_path / "rows.db") as connection:
        assert connection.execute("select count(*) from rows").fetchone() == (100,)
    connection.close()


# The event loop.


def test_async_resource_is_opened_and_closed_in_one_task_of_the_loop() -> None:
    steps: list[tuple[str, Any, str]] = []

    def step(name: str) -> None:
        steps.append((name, asyncio.current_task(), threading.current_thread().name))

    @resource(scope="bus")
    async def client() -> AsyncIterator[str]:
        step("open")
        await asyncio.sleep(0)
        yield "client"
        await asyncio.sleep(0)
        step("close")

    async def fetch(event: int, given: str = use(client)) -> str:
        return given

    with EventBus([]) as bus:
        bus.subscribe("t", fetch)
        receipts = [bus.publish("t", 1) for _ in range(100)]
        assert {each.result(PATIENCE_S) for each in receipts} == {"client"}
    assert [(name, thread) for name, _, thread in steps] == [
        ("open", "procbus-loop"),
        ("close", "procbus-loop"),
    ]
    assert steps[0][1] is steps[1][1]


def test_async_resource_outlives_the_timeout_of_the_handler_that_opened_it() -> None:
    opening, go_on = threading.Event(), asyncio.Event()

    @resource(scope="bus")
    async def client() -> AsyncIterator[str]:
        opening.set()
        await go_on.wait()
        yield "client"

    async def fetch(event: int, given: str = use(client)) -> str:
        return given

    async def release(event: int) -> None:
        go_on.set()

    with EventBus([]) as bus:
        bus.subscribe("t", fetch, timeout=0.2)
        bus.subscribe("go.on", release)
        with pytest.raises(TimeoutError):
            bus.publish("t", 1).result(PATIENCE_S)
        assert opening.is_set()
        bus.publish("go.on", 1).result(PATIENCE_S)
        assert bus.publish("t", 1).result(PATIENCE_S) == "client"
        bus.dead_letters.clear()


def test_async_resource_that_a_handler_cancels_with_all_tasks_is_opened_anew() -> None:
    steps: list[str] = []

    @resource(scope="bus")
    async def client() -> AsyncIterator[int]:
        steps.append("open")
        try:
            yield len(steps)
        finally:
            steps.append("close")

    async def fetch(event: int, given: int = use(client)) -> int:
        return given

    async def cancel_all(event: int) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others)

    with EventBus([]) as bus:
        bus.subscribe("t", fetch)
        bus.subscribe("cancel", cancel_all)
        assert bus.publish("t", 1).result(PATIENCE_S) == 1
        bus.publish("cancel", 1).result(PATIENCE_S)
        assert bus.publish("t", 1).result(PATIENCE_S) == 3
    assert steps == ["open", "close", "open", "close"]


def test_async_resource_that_fails_to_open_fails_each_delivery_and_is_tried_again() -> None:
    failing = [True]

    @resource(scope="bus")
    async def client() -> AsyncIterator[str]:
        if failing:
            raise OSError("no network")
        yield "client"

    async def fetch(event: int, given: str = use(client)) -> str:
        return given

    with EventBus([]) as bus:
        bus.subscribe("t", fetch)
        with pytest.raises(OSError, match="no network") as raised:
            bus.publish("t", 1).result(PATIENCE_S)
        assert any("client" in note and "fetch" in note for note in raised.value.__notes__)
        failing.clear()
        assert bus.publish("t", 1).result(PATIENCE_S) == "client"
        bus.dead_letters.clear()


def test_eager_async_resource_is_opened_when_the_loop_starts() -> None:
    opened = threading.Event()

    @resource(scope="bus", eager=True)
    async def client() -> AsyncIterator[str]:
        opened.set()
        yield "client"

    async def fetch(event: int, given: str = use(client)) -> str:
        return given

    async def plain(event: int) -> None: ...

    with EventBus([]) as bus:
        bus.subscribe("t", fetch)
        bus.subscribe("plain", plain)
        bus.publish("plain", 1).result(PATIENCE_S)
        assert opened.wait(PATIENCE_S)


# Other ways to run a handler.


def in_batch(events: list[int], of: int = use(model)) -> list[int]:
    return [of for _ in events]


async def in_batch_async(events: list[int], of: int = use(model)) -> list[int]:
    return [of for _ in events]


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_batch_handler_has_resources(steps: Tally, kind: Any) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("t", in_batch, kind=kind, batch=10)
        receipts = [bus.publish("t", number) for number in range(35)]
        assert bus.drain(PATIENCE_S)
        assert len({each.result(PATIENCE_S) for each in receipts}) == 1 or kind == "io"
    assert len(by_step(steps, "open")) == len(by_step(steps, "close"))


def test_async_batch_handler_has_resources(steps: Tally) -> None:
    with EventBus([]) as bus:
        bus.subscribe("t", in_batch_async, batch=10)
        receipts = [bus.publish("t", number) for number in range(35)]
        assert bus.drain(PATIENCE_S)
        assert {each.result(PATIENCE_S) for each in receipts} == {os.getpid()}
    assert len(by_step(steps, "open")) == len(by_step(steps, "close")) == 1


def test_map_gives_resources(steps: Tally) -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("t", work, kind="cpu")
        assert len({of for of, _, _ in bus.map(work, range(20))}) == 1
    assert len(by_step(steps, "open")) == len(by_step(steps, "close")) == 1


@resource
def slow() -> Iterator[str]:
    import time

    time.sleep(0.5)
    yield "slow"


def use_slow(event: int, given: str = use(slow)) -> str:
    return given


def test_opening_in_a_worker_process_does_not_count_in_the_timeout() -> None:
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("t", use_slow, kind="cpu", timeout=0.2)
        assert bus.publish("t", 1).result(PATIENCE_S) == "slow"


def test_resources_of_a_script_are_closed_at_sigterm(run: Run, tmp_path: Path) -> None:
    script = f"""
        import os, signal
        from collections.abc import AsyncIterator, Iterator
        from procbus import EventBus, resource, subscribe, use

        def note(line):
            with open({str(tmp_path / "steps")!r}, "a") as file:
                file.write(line + "\\n")

        @resource
        def model() -> Iterator[str]:
            note("open model")
            yield "model"
            note("close model")

        @resource(scope="bus")
        async def client() -> AsyncIterator[str]:
            note("open client")
            yield "client"
            note("close client")

        @subscribe("t", kind="cpu")
        def work(event, given: str = use(model)):
            return given

        @subscribe("t")
        async def fetch(event, given: str = use(client)):
            return given

        bus = EventBus(cpu_workers=1, on_sigterm="finish")
        print(bus.publish("t", 1).results(60), flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    """
    run(script)
    steps = (tmp_path / "steps").read_text().split("\n")
    assert sorted(filter(None, steps)) == [
        "close client",
        "close model",
        "open client",
        "open model",
    ]


def test_closing_that_fails_in_a_worker_process_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR), EventBus([], cpu_workers=1) as bus:
        bus.subscribe("t", use_stuck, kind="cpu")
        assert bus.publish("t", 1).result(PATIENCE_S) == "stuck"
    assert "the resource tests.integration.test_resources.stuck failed to close" in caplog.text


@resource
def stuck() -> Iterator[str]:
    yield "stuck"
    raise OSError("still in use")


def use_stuck(event: int, given: str = use(stuck)) -> str:
    return given


@resource
def counted() -> Iterator[str]:
    note(f"open-counted {os.getpid()}")
    yield str(os.getpid())
    note(f"close-counted {os.getpid()}")


def may_die(event: int, of: str = use(counted)) -> str:
    assert of == str(os.getpid())
    if event < 0:
        note(f"killed {os.getpid()}")
        os.kill(os.getpid(), signal.SIGKILL)
    return of


@pytest.mark.slow
def test_each_worker_opens_once_and_closes_once_unless_it_is_killed(steps: Tally) -> None:
    rng = random.Random(7)
    with EventBus([], cpu_workers=3, max_events_per_worker=20) as bus:
        bus.subscribe("t", may_die, kind="cpu", retries=0)
        receipts = [bus.publish("t", -1 if rng.random() < 0.02 else n) for n in range(600)]
        assert bus.drain(PATIENCE_S)
        for receipt in receipts:
            [delivery] = receipt.deliveries
            assert delivery.state is not DeliveryState.PENDING
        bus.dead_letters.clear()
    opened = Counter(each[1] for each in by_step(steps, "open-counted"))
    ended = Counter(each[1] for each in words(steps) if each[0] in ("close-counted", "killed"))
    assert set(opened.values()) == {1}
    assert opened == ended
