"""The estimated cost of sending an event away."""

import pickle
import threading
import time
from typing import Any

import pytest

from procbus.advice.transport_cost import weigh, weigh_delivery
from procbus.core.meter import Meter


def handle(event: Any) -> None: ...


class Endless:
    """Pickles for ever."""

    def __reduce__(self) -> Any:
        return (Endless, (), None, iter(lambda: "x" * 1_000, None))


class Unwilling:
    def __reduce__(self) -> Any:
        raise TypeError("no")


class Buffer:
    """Has a large buffer, as an array does."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (Buffer, (0,), {"data": pickle.PickleBuffer(self.data)})


def test_more_to_pickle_weighs_more():
    little, much = (min(weigh(each) for _ in range(20)) for each in (1, list(range(10_000))))
    assert 0 < little < much


def test_endless_pickling_is_weighed_in_a_few_milliseconds():
    assert weigh(Endless()) >= 0.003


def no_time() -> float:
    """A clock that leaves out the time that the machine takes to pickle."""
    return 0.0


@pytest.mark.parametrize("large", [b"x" * 50_000_000, "x" * 50_000_000, Buffer(50_000_000)])
def test_large_buffers_weigh_as_much_as_it_takes_to_copy_them(large: Any):
    assert weigh(large, no_time) == pytest.approx(0.01, rel=0.001)


def test_a_small_buffer_goes_through_the_pipe():
    assert 1e-6 < weigh(Buffer(1_000), no_time) < 2e-6


def test_waiting_weighs_nothing():
    class Slow:
        def __reduce__(self) -> Any:
            time.sleep(0.05)
            return (int, ())

    assert weigh(Slow()) < 0.05


def test_object_that_only_the_codec_pickles_is_weighed_by_it():
    assert weigh(lambda: 1) > 0


def test_object_that_cannot_be_pickled_is_an_error():
    with pytest.raises(TypeError):
        weigh(threading.Lock())


def test_weighing_a_delivery_notes_its_transport():
    meter = Meter()
    meter.to_weigh = 2
    weigh_delivery(meter, handle, [1, 2, 3], "result")
    assert meter.to_weigh == 1
    assert meter.obstacle == ""
    meter.note_run(1.0, 0.1, 0.1)
    assert meter.evidence("io", False, 0.0).transport_s > 0


@pytest.mark.parametrize(
    ("function", "event", "result", "what"),
    [
        (handle, threading.Lock(), None, "its events cannot travel to a worker (TypeError"),
        (handle, 1, threading.Lock(), "its results cannot travel"),
        (handle, Unwilling(), 1, "its events cannot travel"),
    ],
)
def test_an_obstacle_is_named(function: Any, event: Any, result: Any, what: str):
    meter = Meter()
    weigh_delivery(meter, function, event, result)
    assert meter.obstacle is not None
    assert what in meter.obstacle
    weigh_delivery(meter, handle, 1, 1)
    assert meter.obstacle, "one that could not travel is enough"


def test_a_handler_that_cannot_travel_is_an_obstacle():
    lock, meter = threading.Lock(), Meter()
    weigh_delivery(meter, lambda event: lock, 1, 1)
    assert meter.obstacle is not None
    assert meter.obstacle.startswith("the handler cannot travel")


def test_two_threads_that_weigh_at_once_do_not_make_it_go_on_for_ever():
    meter = Meter()
    meter.to_weigh = 1
    weigh_delivery(meter, handle, 1, 1)
    weigh_delivery(meter, handle, 1, 1)
    assert meter.to_weigh <= 0
