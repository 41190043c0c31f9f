"""The cost of one worker's handlers, passed on to their meters."""

import pickle
from collections.abc import Mapping

from procbus.core.subscription import OVERHEAD_S, Subscription
from procbus.pool.child.usage import Sums
from procbus.pool.parent_end import Costs
from procbus.pool.wire import Tag
from tests.parts import FakeLane, delivery_to, subscription_of


def message_of(sums: Mapping[int, tuple[float, ...]]) -> bytes:
    return Tag.MEASURED.value + pickle.dumps(sums)


def transport_s(subscription: Subscription) -> float:
    subscription.meter.note_run(1.0, 0.1, 0.1)
    return subscription.meter.evidence("cpu", False, 0.0).transport_s


def test_sums_of_a_worker_reach_their_handler():
    lane = FakeLane()
    subscription = subscription_of(lane, kind="cpu")
    costs = Costs()
    costs.know(subscription)
    sums = {
        subscription.handler.number: tuple(Sums(4, 0.4, 0.2, 0.04, 0.08, 0.02)),
        10**9: (1,) * 6,
    }
    assert costs.take_in(message_of(sums))
    evidence = subscription.meter.evidence("cpu", False, 0.0)
    assert evidence.runs == 4
    assert abs(evidence.wall_s - 0.095) < 1e-9
    assert abs(evidence.cpu_s - 0.045) < 1e-9
    assert abs(evidence.children_s - 0.01) < 1e-9
    assert abs(evidence.wait_s.high - 0.03) < 1e-9, "the time without a core is no waiting"
    assert 0.02 < evidence.wait_s.low < 0.03, "and some more of it may not show"
    assert lane.stirred == 1


def test_sums_of_a_handler_that_is_forgotten_go_nowhere():
    subscription, costs = subscription_of(kind="cpu"), Costs()
    costs.know(subscription)
    costs.forget([subscription.handler.number])
    assert costs.take_in(message_of({subscription.handler.number: (1,) * 6}))
    assert subscription.meter.runs == 0


def test_other_messages_of_a_worker_are_left_alone():
    assert not Costs().take_in(Tag.HELLO.value + b"17")


def test_sending_and_receiving_are_divided_among_the_deliveries():
    subscription, costs = subscription_of(kind="cpu"), Costs()
    deliveries = [delivery_to(subscription) for _ in range(4)]
    costs.note_sent(deliveries, 1, 0.04)
    costs.note_received(deliveries[0], 2, 0.04)
    assert abs(transport_s(subscription) - 0.03) < 1e-9


def test_cost_of_sending_for_several_handlers_is_not_split():
    one, other, costs = subscription_of(kind="cpu"), subscription_of(kind="cpu"), Costs()
    costs.note_sent([delivery_to(one), delivery_to(other)], 2, 0.04)
    assert transport_s(one) == transport_s(other) == 0


def test_several_kinds_of_deliveries_may_have_one_handler():
    subscription, costs = subscription_of(kind="cpu"), Costs()
    costs.note_sent([delivery_to(subscription), delivery_to(subscription)], 2, 0.04)
    assert abs(transport_s(subscription) - 0.02) < 1e-9


def test_time_for_an_event_and_its_result_counts_for_the_next_batches():
    subscription, costs = subscription_of(kind="cpu"), Costs()
    subscription.note_run(0.001)
    assert subscription.expected_s() == 0.001 + OVERHEAD_S
    deliveries = [delivery_to(subscription) for _ in range(4)]
    # Each result takes 2 ms to encode; before the third run the worker paused.
    times = [(0.0, 0.001, 0), (0.003, 0.004, 0), (0.906, 0.907, 0), (0.909, 0.910, 0)]
    for _ in range(50):
        costs.note_sent(deliveries, 1, 0.02)
        costs.note_received(deliveries[0], 4, 0.004, times)
    assert abs(subscription.before_s - 0.005) < 1e-4
    assert abs(subscription.expected_s() - 0.004) < 1e-4


def test_definitions_that_are_sent_once_do_not_count_for_the_next_batches():
    subscription, costs = subscription_of(kind="cpu"), Costs()
    costs.note_sent([delivery_to(subscription)], 1, 0.02, anew=True)
    assert subscription.before_s == 0.0


def test_one_slow_result_makes_the_next_batches_smaller_for_a_short_while():
    subscription = subscription_of(kind="cpu")
    subscription.note_after(0.1)
    for _ in range(6):
        subscription.note_after(1e-6)
    assert subscription.expected_s() < 2 * OVERHEAD_S
