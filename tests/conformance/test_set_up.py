"""The user's set-up of a worker process: once, before the first delivery; and its faults."""

import functools
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from procbus.codec.encoder import encode_alone
from procbus.core.errors import ProcbusError
from procbus.pool.interface import SetUpFailed, Worker, WorkerGone
from procbus.pool.loky import LokyPool
from procbus.system.cooperative import in_turn
from tests.conformance import handlers
from tests.conformance.conftest import MakePool
from tests.conformance.drive import Gate, deliveries, run, values
from tests.parts import BOUND_S, in_thread


@contextmanager
def worker_with(make: MakePool, init: Callable[[], object]) -> Iterator[Worker]:
    worker = make(1, encode_alone(init)).start(lambda _: None)
    try:
        yield worker
    finally:
        worker.kill()
        worker.stop()


def test_set_up_runs_once_before_the_first_delivery(
    make_set_up_pool: MakePool, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def note(line: object) -> None:
        with log.open("a") as file:
            file.write(f"{line}\n")

    with worker_with(make_set_up_pool, functools.partial(note, "set up")) as worker:
        assert log.read_text() == "set up\n", "it is done by the time that the worker is given"
        for _ in range(2):
            run(worker, deliveries(note, "first", "second"))

    assert log.read_text().split("\n")[:3] == ["set up", "first", "second"]
    assert log.read_text().count("set up") == 1


def test_handlers_see_the_set_up_of_a_module(make_set_up_pool: MakePool) -> None:
    with worker_with(make_set_up_pool, functools.partial(handlers.keep, "a model")) as worker:
        assert values(run(worker, deliveries(handlers.what_is_kept, 1))) == ["a model"]


def test_each_worker_of_a_pool_is_set_up(make_process_pool: MakePool) -> None:
    pool = make_process_pool(2, encode_alone(functools.partial(handlers.keep, "a model")))
    workers = [pool.start(lambda _: None) for _ in range(2)]
    try:
        for worker in workers:
            assert values(run(worker, deliveries(handlers.what_is_kept, 1))) == ["a model"]
    finally:
        for worker in workers:
            worker.kill()
            worker.stop()


def fail() -> None:
    raise FileNotFoundError("no model.bin here")


def leave() -> None:
    raise SystemExit("no model.bin here")


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("mute")


def fail_without_a_word() -> None:
    raise Mute


@pytest.mark.parametrize(
    ("init", "said"),
    [
        (fail, "FileNotFoundError: no model.bin here"),
        (leave, "SystemExit: no model.bin here"),
        (fail_without_a_word, "Mute: (its message cannot be read)"),
    ],
)
def test_failed_set_up_is_reported_with_its_reason_as_hopeless(
    make_set_up_pool: MakePool, init: Callable[[], Any], said: str
) -> None:
    launched: list[Worker] = []

    with pytest.raises(SetUpFailed) as caught:
        make_set_up_pool(1, encode_alone(init)).start(launched.append)

    gone = caught.value
    assert gone.hopeless
    assert gone.last_words.ran_s is None
    error = gone.__cause__
    assert isinstance(error, ProcbusError)
    assert str(error) == f"worker_init failed: {said}"
    assert "Traceback" in "".join(traceback.format_exception(error.__cause__))
    [worker] = launched
    assert worker.running() is None
    worker.kill()
    worker.stop()


class Unloadable:
    """Travels there, and does not arrive."""

    def __reduce__(self) -> tuple[Any, ...]:
        return fail, ()

    def __call__(self) -> None:
        raise AssertionError("it did not arrive")


def test_set_up_that_cannot_be_loaded_is_reported_too(make_process_pool: MakePool) -> None:
    with pytest.raises(SetUpFailed) as caught:
        make_process_pool(1, encode_alone(Unloadable())).start(lambda _: None)

    assert "no model.bin here" in str(caught.value.__cause__)


def test_process_that_dies_in_its_set_up_is_not_hopeless(make_process_pool: MakePool) -> None:
    with pytest.raises(WorkerGone) as caught:
        make_process_pool(1, encode_alone(functools.partial(handlers.exit_at_once, 3))).start(
            lambda _: None
        )

    assert not isinstance(caught.value, SetUpFailed)
    assert not caught.value.hopeless
    assert caught.value.exit_code == 3


def test_a_worker_is_known_and_gives_way_before_it_is_ready() -> None:
    seen: list[tuple[int | None, int]] = []

    def look(worker: Worker) -> None:
        assert worker.pid is not None
        seen.append((worker.pid, os.getpriority(os.PRIO_PROCESS, worker.pid)))

    worker = LokyPool(1, nice=10).start(look)
    worker.stop()

    assert seen == [(worker.pid, os.getpriority(os.PRIO_PROCESS, 0) + 10)]


def test_worker_tells_since_when_and_where_it_is_in_its_set_up(
    make_set_up_pool: MakePool, tmp_path: Path
) -> None:
    gate = Gate(tmp_path)
    launched: list[Worker] = []
    init = encode_alone(functools.partial(handlers.hold, gate.path))
    # The thread that starts a worker lives as long as the worker.
    starter = in_thread(lambda: make_set_up_pool(1, init).start(launched.append).stop())
    gate.wait_begun()
    [worker] = launched
    deadline = time.monotonic() + BOUND_S
    while (since := worker.set_up_since()) is None:  # one far away says it a moment later
        assert time.monotonic() < deadline
    assert 0 < since <= time.monotonic()
    # Again until it has it: one far away has little time to write it.
    while not (stack := in_turn([worker.ask_stack()])[0]):
        assert time.monotonic() < deadline
    gate.open()
    starter.join(BOUND_S)

    assert "in hold" in stack
    assert worker.set_up_since() is None
