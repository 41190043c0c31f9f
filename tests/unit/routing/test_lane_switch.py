"""A handler that moves from one lane to the other."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from procbus.core.delivery import Delivery
from procbus.core.handler import Handler
from procbus.core.subscription import Subscription
from procbus.routing.lane_switch import LaneSwitch
from tests.parts import FakeLane, delivery_to, handler_of


class Sides:
    """A switch between two lanes that run nothing."""

    def __init__(self, **options: Any) -> None:
        self.lanes = {"io": FakeLane(), "cpu": FakeLane()}
        self.asked: list[str] = []
        self.switch = LaneSwitch(handler_of(kind="auto", **options), self.lane_of)

    def lane_of(self, handler: Handler) -> Any:
        self.asked.append(handler.kind)
        return self.lanes[handler.kind]

    def publish(self, event: Any, subscription: Subscription | None = None) -> Delivery:
        subscription = self.switch.current if subscription is None else subscription
        delivery = delivery_to(subscription, event)
        subscription.put(delivery)
        return delivery

    def events(self, kind: str) -> list[Any]:
        return [d.receipt.event for d in self.lanes[kind].queued if d.receipt is not None]


def settle(delivery: Delivery) -> None:
    """As the settlement does with a delivery that has a gate."""
    delivery.subscription.lane.release(delivery)


def same(event: Any) -> Any:
    return event


def test_auto_handler_starts_on_threads_and_needs_no_process():
    sides = Sides()
    sides.publish(1)
    assert sides.events("io") == [1]
    assert sides.asked == ["io"]
    assert sides.switch.current.handler.auto


def test_after_a_move_events_go_to_the_other_lane_and_back():
    sides = Sides()
    for event in range(4):
        sides.publish(event)
        sides.switch.move("because")
    assert (sides.events("io"), sides.events("cpu")) == ([0, 2], [1, 3])
    assert sides.asked == ["io", "cpu"]


def test_both_sides_are_of_one_handler():
    sides = Sides(name="it", timeout=5)
    before = sides.switch.current.handler
    sides.switch.move("it computes")
    after = sides.switch.current
    assert after.decided == "it computes"
    assert (before.kind, after.handler.kind) == ("io", "cpu")
    assert (before.name, before.function, before.timeout, before.topics) == (
        after.handler.name,
        after.handler.function,
        after.handler.timeout,
        after.handler.topics,
    )
    assert before.number != after.handler.number, "workers know it by its own"
    assert [side.handler.kind for side in sides.switch.sides()] == ["cpu", "io"]


def test_old_measurements_of_a_lane_do_not_count_after_a_return():
    sides = Sides()
    first = sides.switch.current
    first.meter.note_run(1.0, 0.1, 0.1)
    sides.switch.move("")
    assert first.meter.runs == 1
    sides.switch.move("")
    assert sides.switch.current is first
    assert first.meter.runs == 0


def test_with_a_key_the_new_lane_waits_for_the_old_one():
    sides = Sides(key=same)
    first, second = sides.publish("a"), sides.publish("b")
    sides.switch.move("")
    sides.publish("a")
    sides.publish("c")
    settle(first)
    assert sides.events("cpu") == []
    settle(second)
    assert sides.events("cpu") == ["a", "c"]
    sides.publish("d")
    assert sides.events("cpu") == ["a", "c", "d"]


def test_with_a_limit_the_new_lane_waits_for_the_old_one():
    sides = Sides(concurrency=1)
    first = sides.publish("a")
    sides.switch.move("")
    sides.publish("b")
    assert sides.events("cpu") == []
    settle(first)
    assert sides.events("cpu") == ["b"]


def test_without_key_or_limit_a_handler_may_run_on_both_lanes():
    sides = Sides()
    sides.publish("a")
    sides.switch.move("")
    sides.publish("b")
    assert sides.events("cpu") == ["b"]


def test_delivery_routed_before_a_move_ends_on_the_new_side():
    sides = Sides(key=same)
    old = sides.switch.current
    sides.switch.move("")
    delivery = sides.publish("a", old)
    assert sides.events("cpu") == ["a"]
    assert delivery.subscription is sides.switch.current
    settle(delivery)
    sides.switch.move("")
    sides.publish("b")
    assert sides.events("io") == ["b"]


def test_a_retry_stays_on_its_side():
    sides = Sides(key=same, retries=1)
    delivery = sides.publish("a")
    sides.switch.move("")
    delivery.subscription.lane.step_aside(delivery)
    delivery.subscription.lane.put_again(delivery)
    assert sides.lanes["io"].aside == [delivery]
    assert sides.lanes["io"].again == [delivery]
    assert not delivery.subscription.lane.is_running(delivery)


def test_held_delivery_can_be_withdrawn():
    sides = Sides(key=same)
    first = sides.publish("a")
    sides.switch.move("")
    held = sides.publish("b")
    assert held.subscription.lane.withdraw(held)
    assert held.subscription.published == 1, "no lane counted it"
    settle(held)
    settle(first)
    assert sides.events("cpu") == []
    sides.publish("c")
    assert sides.events("cpu") == ["c"]


@given(st.lists(st.sampled_from(["publish", "move", "settle"]), max_size=80))
def test_order_is_kept_and_both_sides_are_never_busy_at_once(steps: list[str]):
    sides = Sides(key=same)
    published = 0
    order: list[int] = []  # in which they got into a lane
    running: list[Delivery] = []

    def look() -> None:
        for lane in sides.lanes.values():
            for delivery in lane.queued:
                assert delivery.receipt is not None
                order.append(delivery.receipt.event)
                running.append(delivery)
            lane.queued.clear()
        assert len({delivery.subscription.handler.kind for delivery in running}) <= 1
        assert order == list(range(len(order)))

    for step in steps:
        if step == "publish":
            sides.publish(published)
            published += 1
        elif step == "move":
            sides.switch.move("")
        elif running:
            settle(running.pop(0))
        look()
    while running:
        settle(running.pop(0))
        look()
    assert len(order) == published
