"""Reports of a distant worker."""

from typing import Any

from procbus.pool.dask.remote_state import RemoteState
from procbus.system.cooperative import in_turn
from procbus.system.footprint import Footprint
from tests.parts import BOUND_S


class Line:
    """Answers at once, or never."""

    def __init__(self, answer_s: float = BOUND_S) -> None:
        self.said: list[dict[str, Any]] = []
        self.state = RemoteState(self.say, answer_s=answer_s)
        self.answers: list[dict[str, Any]] = []

    def say(self, **message: Any) -> None:
        self.said.append(message)
        for answer in self.answers:
            self.state.take(answer)


def test_running_delivery_has_its_start_by_both_clocks() -> None:
    line = Line()
    line.state.ahead_s = 10.0

    assert line.state.take({"say": "at", "at": [3, 1, 2.5]})

    assert line.state.at == ((3, 1, 12.5), (3, 1, 2.5))
    line.state.forget()
    assert line.state.at is None


def test_messages_for_the_companion_are_left() -> None:
    line = Line()

    assert not line.state.take({"say": "data", "data": b""})
    assert line.state.take({"say": "pid", "pid": 7})
    assert line.state.pid == 7


def test_answer_goes_to_its_question() -> None:
    line = Line()
    line.answers = [{"say": "stack", "stack": "in f"}]

    assert in_turn([line.state.ask(do="stack")]) == [{"say": "stack", "stack": "in f"}]
    assert line.said == [{"do": "stack"}]


def test_a_process_that_is_halted_too_late_goes_on() -> None:
    line = Line(answer_s=0.0)

    assert in_turn([line.state.ask(do="halt")]) == [None]
    line.state.take({"say": "halted", "still": True, "stack": ""})

    assert line.said == [{"do": "halt"}, {"do": "resume"}]


def test_memory_is_watched_for_the_reported_delivery_alone() -> None:
    line = Line()
    line.state.ahead_s = 10.0
    at = (3, 1, 12.5)

    assert line.state.watch(at, 100) is None
    assert line.said == []
    line.state.take({"say": "at", "at": [3, 1, 2.5]})
    assert line.state.watch(at, 100) is None
    assert line.state.watch((3, 2, 12.5), 100) is None
    assert line.state.watch(at, 100) is None
    assert line.said == [{"do": "watch", "at": (3, 1, 2.5), "limit": 100}], "said once"

    assert line.state.take({"say": "above", "at": [3, 1, 2.5], "memory": [90, 20, 1]})
    assert line.state.watch(at, 100) == Footprint(90, 20, 1)

    line.state.take({"say": "at", "at": [3, 2, 4.5]})
    assert line.state.watch(at, 100) is None
    assert line.state.watch((3, 2, 14.5), 50) is None, "this delivery was not reported"
    assert line.said[1:] == [{"do": "watch", "at": (3, 2, 4.5), "limit": 50}]
