# SPDX-License-Identifier: MIT
"""The ticket of a call of a batch handler: its events and their ids, one for one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from procbus.core.locks import Lock
from procbus.core.ticket import Ticket
from tests.parts import delivery_to, subscription_of


@given(st.lists(st.integers(1, 8), unique=True, min_size=1))
def test_ids_are_in_the_order_of_the_events_in_whatever_order_these_come(ids: list[int]) -> None:
    subscription = subscription_of()
    ticket = Ticket(Lock(), subscription, lambda _: None, ())
    ticket.admit([delivery_to(subscription, f"event {number}", number) for number in ids])

    assert ticket.together is not None
    told, events = ticket.together
    assert list(told) == ids
    assert events == [f"event {number}" for number in ids]
