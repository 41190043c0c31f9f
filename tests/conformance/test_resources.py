"""Resources of a worker: opened before the first delivery that needs them, closed with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from procbus import current, resource, use
from procbus.core.outcome import OutcomeKind
from procbus.pool.interface import Worker
from tests.conformance.conftest import MakePool
from tests.conformance.drive import deliveries, run, values


@resource
def noted() -> Iterator[list[str]]:
    """The steps so far; the last one goes to the file that the handler names."""
    steps = ["open"]
    yield steps
    Path(steps[1]).write_text("closed")


def step(path: str, steps: list[str] = use(noted)) -> int:
    if len(steps) == 1:
        steps.append(path)
    steps.append("used")
    return steps.count("used")


def step_too(path: str, steps: list[str] = use(noted)) -> int:
    return step(path, steps)


def test_handlers_of_a_worker_share_a_resource_which_it_closes(
    make_pool: MakePool, tmp_path: Path
) -> None:
    path = tmp_path / "end"
    worker = make_pool(1).start(lambda _: None)
    try:
        assert values(run(worker, deliveries(step, str(path), str(path)))) == [1, 2]
        assert values(run(worker, deliveries(step_too, str(path)))) == [3]
        assert not path.exists()
    finally:
        worker.stop()
    assert path.read_text() == "closed"


def test_each_worker_has_its_own(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool(2)
    workers = [pool.start(lambda _: None, place) for place in range(2)]
    try:
        for worker in workers:
            assert values(run(worker, deliveries(step, str(tmp_path / "end")))) == [1]
        assert [values(run(each, deliveries(number_here, 0))) for each in workers] == [[0], [1]]
    finally:
        for worker in workers:
            worker.stop()


def number_here(_: int) -> int:
    return current().worker.number


def test_resource_by_value_is_one_for_all_handlers(worker: Worker, tmp_path: Path) -> None:
    @resource
    def made() -> Iterator[list[int]]:
        yield []

    def first(event: int, given: list[int] = use(made)) -> int:
        given.append(event)
        return len(given)

    def second(event: int, given: list[int] = use(made)) -> int:
        return first(event, given)

    assert values(run(worker, deliveries(first, 5, 5))) == [1, 2]
    assert values(run(worker, deliveries(second, 5))) == [3]


def test_resource_that_fails_to_open_fails_the_delivery_and_is_tried_again(
    worker: Worker, tmp_path: Path
) -> None:
    door = str(tmp_path / "door")

    @resource
    def shaky() -> Iterator[str]:
        if not Path(door).exists():
            raise OSError("not there")
        yield "here"

    def enter(event: int, given: str = use(shaky)) -> str:
        return given

    batch = deliveries(enter, 1, 2)
    failed = run(worker, batch)
    assert [each.kind for each, _ in failed] == [OutcomeKind.RAISED, OutcomeKind.RAISED]
    for outcome, _ in failed:
        assert isinstance(outcome.error, OSError)
        [note] = outcome.error.__notes__
        assert "while opening the resource" in note
        assert "shaky" in note
        assert "enter" in note
    Path(door).touch()
    assert values(run(worker, deliveries(enter, 1))) == ["here"]


def test_resource_of_the_event_is_opened_for_each_attempt(worker: Worker, tmp_path: Path) -> None:
    log = tmp_path / "log"

    @resource(scope="event")
    def transaction() -> Iterator[None]:
        with log.open("a") as file:
            try:
                yield
            except ValueError:
                file.write("rollback ")
                raise
            file.write("commit ")

    def store(event: int, given: None = use(transaction)) -> int:
        if event < 0:
            raise ValueError("negative")
        return event

    outcomes = [outcome for outcome, _ in run(worker, deliveries(store, 1, -1, 2))]

    assert [each.kind for each in outcomes] == [
        OutcomeKind.SUCCEEDED,
        OutcomeKind.RAISED,
        OutcomeKind.SUCCEEDED,
    ]
    assert log.read_text() == "commit rollback commit "


def test_resource_of_the_bus_has_no_place_in_a_worker_process(coding_worker: Worker) -> None:
    @resource(scope="bus")
    def shared() -> list[int]:
        return []

    def work(event: int, given: list[int] = use(shared)) -> None: ...

    [(outcome, _)] = run(coding_worker, deliveries(work, 1))

    assert 'give it scope="worker"' in str(outcome.error)


@pytest.mark.parametrize("swallows", [False, True])
def test_error_of_a_handler_stays_as_it_is(worker: Worker, swallows: bool) -> None:
    @resource(scope="event")
    def tidy() -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            if not swallows:
                raise RuntimeError("while tidying up") from error

    def fail(event: int, given: None = use(tidy)) -> None:
        raise ValueError("of the handler")

    [(outcome, _)] = run(worker, deliveries(fail, 1))

    assert repr(outcome.error) == "ValueError('of the handler')"
