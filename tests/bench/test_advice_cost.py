"""The benchmark of the advice's cost removes the measuring, and restores it afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from bench.advice_cost import OWN, WITH, WITHOUT, Switch, opened, switch_of_parent
from bench.bare import without
from bench.work import nap
from tests.parts import BOUND_S

SEEN: list[str] = []


def note(what: str) -> str:
    SEEN.append(what)
    return what


class Counting:
    """The measurements in the ways that procbus takes them."""

    def run(self, event: int) -> int:
        began = note("begin")
        if began or event > 10:
            note("head")
        try:
            result = event + 1
        except TypeError:
            note("never")
            raise
        finally:
            if result > 1:
                began += note("end")
        return result


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


def test_statements_that_name_a_hook_are_left_out_and_the_others_are_not() -> None:
    bare = without(Counting.run, "began", "note")
    assert bare(Counting(), 1) == 2
    assert SEEN == []
    assert Counting().run(1) == 2
    assert SEEN == ["begin", "head", "end"]


def test_a_hook_that_is_not_there_is_an_error() -> None:
    with pytest.raises(LookupError, match=r"Counting\.run has no ended any more"):
        without(Counting.run, "note", "ended")


def test_a_switch_exchanges_a_function_and_puts_it_back() -> None:
    own = Counting.run
    switch = Switch((Counting, "run", ("began", "note")))
    for form, seen in ((WITH, 3), (WITHOUT, 0), (WITHOUT, 0), (WITH, 3), (OWN, 3)):
        switch.turn(form)
        assert Counting().run(1) == 2
        assert len(SEEN) == seen
        SEEN.clear()
    assert Counting.run is own


def test_procbus_has_the_hooks_and_has_them_again_afterwards() -> None:
    def functions() -> list[Any]:
        return [getattr(owner, name) for owner, name in switch.exchanged]

    switch = switch_of_parent()
    own = functions()
    switch.turn(WITHOUT)
    bare = functions()
    switch.turn(OWN)
    assert functions() == own
    assert all(one is not other for one, other in zip(own, bare, strict=True))


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_bus_measures_only_when_switched_on(kind: str) -> None:
    with opened(nap, kind, workers=1) as (bus, turn):
        for form in (WITHOUT, WITH, WITHOUT):
            turn(form)
            for receipt in [bus.publish(0.005) for _ in range(5)]:
                receipt.result(BOUND_S)
    [advice] = bus.advice()
    assert (advice.evidence.ran, advice.evidence.runs) == (15, 5)
