# SPDX-License-Identifier: MIT
"""The tree of a job: each event, its deliveries, and the events that their handlers published."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from procbus.core.delivery import Delivery
from procbus.core.receipt import Receipt


class Leaf:
    """One delivery in a tree. At the end of the delivery, only a line of text is kept of it."""

    __slots__ = ("_delivery", "_end", "handler")

    def __init__(self, delivery: Delivery) -> None:
        self.handler = delivery.handler.name
        self._delivery: Delivery | None = delivery
        self._end = ""

    def end(self) -> None:
        """Note that the delivery is settled."""
        if self._delivery is not None:
            self._end = _told(self._delivery)
            self._delivery = None

    def line(self) -> str:
        """The handler, with the state and the times of its delivery."""
        delivery = self._delivery
        return f"{self.handler}: {self._end if delivery is None else _told(delivery)}"


class Node:
    """One event in a tree."""

    __slots__ = ("event_id", "label", "leaves", "parent")

    def __init__(self, receipt: Receipt, by: str) -> None:
        self.event_id = receipt.id
        self.label = receipt.topic or type(receipt.event).__qualname__
        #: The event and the handler that published it.
        self.parent = receipt.parent_id, by
        self.leaves: list[Leaf] = []


def _told(delivery: Delivery) -> str:
    text = f"{delivery.state.value}, waited {delivery.queued_s:.3g} s"
    if (run_s := delivery.run_s) is not None:
        text += f", ran {run_s:.3g} s"
    return text


def drawn(nodes: Mapping[int, Node]) -> Iterator[str]:
    """Draw the tree of these events, line by line. No recursion: a chain of events may be long."""
    children: dict[tuple[int | None, str], list[Node]] = {}
    roots: list[Node] = []
    for node in nodes.values():
        parent = nodes.get(node.parent[0] or 0)
        if parent is not None and any(leaf.handler == node.parent[1] for leaf in parent.leaves):
            children.setdefault(node.parent, []).append(node)
        else:
            roots.append(node)
    waiting: list[tuple[str, str, Node | tuple[Node, Leaf]]] = _rows("", roots)
    while waiting:
        before, own, thing = waiting.pop()
        if isinstance(thing, Node):
            yield f"{before}{own}event #{thing.event_id}, {thing.label}"
            below: Iterable[Node | tuple[Node, Leaf]] = [(thing, leaf) for leaf in thing.leaves]
        else:
            node, leaf = thing
            yield f"{before}{own}{leaf.line()}"
            below = children.get((node.event_id, leaf.handler), ())
        waiting += _rows(before + ("   " if own == "└─ " else "│  "), list(below))


def _rows(
    before: str, things: Iterable[Node | tuple[Node, Leaf]]
) -> list[tuple[str, str, Node | tuple[Node, Leaf]]]:
    """The events or deliveries below one line, the last first, in the order of a stack."""
    rows = [(before, "├─ ", thing) for thing in things]
    if rows:
        rows[-1] = (before, "└─ ", rows[-1][2])
    return rows[::-1]
