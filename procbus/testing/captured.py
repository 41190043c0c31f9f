# SPDX-License-Identifier: MIT
"""The events that were published on a bus, for assertions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

from procbus.core.receipt import Receipt
from procbus.core.topic import topics_in
from procbus.dispatch.choosing import is_of

#: Maximum of events that are shown when an assertion fails.
_SHOWN = 20


class Captured(Sequence[Receipt]):
    """Receipts of events, in the order of their publishing. Immutable.

    Example:
        ```python
        from procbus.testing import InlineBus

        bus = InlineBus(handlers=[])
        bus.publish("order.paid", 17)
        bus.publish("order.sent", 17)
        assert len(bus.published) == 2
        assert bus.published.of("order.paid").events == [17]
        ```
    """

    def __init__(self, receipts: Sequence[Receipt]) -> None:
        self._receipts = tuple(receipts)

    def of(self, *topics: type | str, where: Callable[[Any], bool] | None = None) -> Captured:
        """Select the events that a handler of these topics would take.

        Args:
            *topics: classes, and dotted strings with `*` and `#` as in subscriptions; none for all.
            where: a function of the event that says whether it is wanted.

        Raises:
            TopicError: a topic is malformed.
        """
        named = topics_in(list(topics)) if topics else ()
        return Captured(
            [
                receipt
                for receipt in self._receipts
                if (not named or any(is_of(receipt, topic) for topic in named))
                and (where is None or where(receipt.event))
            ]
        )

    @property
    def events(self) -> list[Any]:
        """The events."""
        return [receipt.event for receipt in self._receipts]

    @overload
    def __getitem__(self, index: int) -> Receipt: ...

    @overload
    def __getitem__(self, index: slice) -> Captured: ...

    def __getitem__(self, index: int | slice) -> Receipt | Captured:
        """One receipt, or a slice of them."""
        if isinstance(index, slice):
            return Captured(self._receipts[index])
        return self._receipts[index]

    def __len__(self) -> int:
        """The number of events."""
        return len(self._receipts)

    def __iter__(self) -> Iterator[Receipt]:
        """Each receipt in turn."""
        return iter(self._receipts)

    def __repr__(self) -> str:
        """One line for each event, for a failed assertion."""
        if not self._receipts:
            return "<nothing published>"
        lines = [f"  {each.id}: {_said(each)}" for each in self._receipts[:_SHOWN]]
        if len(self) > _SHOWN:
            lines.append(f"  and {len(self) - _SHOWN} more")
        return "\n".join([f"<{len(self)} published:", *lines]) + ">"


def _said(receipt: Receipt) -> str:
    topic = "" if receipt.topic is None else f"{receipt.topic!r}, "
    origin = (
        "" if receipt.parent_id is None else f" (by the handlers of event #{receipt.parent_id})"
    )
    return f"{topic}{receipt.event!r}{origin}"
