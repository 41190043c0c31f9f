# SPDX-License-Identifier: MIT
"""The listeners of one bus: who listens to which moment."""

from types import SimpleNamespace
from typing import Any

import pytest

from procbus import Listener, OptionError, Settled
from procbus.core.listeners import MOMENTS, Listeners, tell


def listening(listeners: Listeners) -> list[str]:
    return [moment for moment in MOMENTS if getattr(listeners, moment)]


def test_protocol_has_a_method_for_each_moment():
    assert sorted(MOMENTS) == sorted(name for name in vars(Listener) if not name.startswith("_"))


def test_only_moments_that_an_object_has_methods_for_are_heard():
    class Slow(Listener):
        def settled(self, moment: Settled) -> None: ...

    listeners = Listeners()
    first = listeners.add(Slow())
    assert listening(listeners) == ["settled"]
    second = listeners.add(SimpleNamespace(accepted=print, worker_ended=print, other=1))
    assert listening(listeners) == ["accepted", "settled", "worker_ended"]
    assert listeners.publishing
    assert repr(second) == "<Listening to accepted, worker_ended>"
    first.stop()
    first.stop()
    assert listening(listeners) == ["accepted", "worker_ended"]
    with second:
        pass
    assert listening(listeners) == []
    assert not listeners.publishing


@pytest.mark.parametrize(
    ("listener", "message"),
    [
        (SimpleNamespace(setled=print), "did you mean settled?"),
        (print, "listens to nothing: give it one of the methods published, accepted"),
        (type("Mine", (Listener,), {}), r"make one, listen\(Mine\(\)\)"),
        (type("Mine", (Listener,), {})(), "listens to nothing"),
    ],
)
def test_object_without_a_method_for_any_moment_is_refused(listener: object, message: str):
    with pytest.raises(OptionError, match=message):
        Listeners().add(listener)


def test_listeners_are_called_in_the_order_of_their_adding_whatever_one_raises(caplog):
    told: list[Any] = []

    def broken(_: object) -> None:
        raise SystemExit(3)

    listeners = Listeners()
    for hear in (told.append, broken, lambda moment: told.append(-moment)):
        listeners.add(SimpleNamespace(settled=hear))
    for moment in (1, 2):
        tell(listeners.settled, moment)
    assert told == [1, -1, 2, -2]
    (record,) = caplog.records
    assert "the listener SimpleNamespace.settled raised (logged once" in record.getMessage()


def test_interruption_by_the_user_is_raised_after_the_other_listeners():
    told: list[Any] = []

    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    listeners = Listeners()
    for hear in (interrupt, told.append):
        listeners.add(SimpleNamespace(settled=hear))
    with pytest.raises(KeyboardInterrupt):
        tell(listeners.settled, 1)
    assert told == [1]
