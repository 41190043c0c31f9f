# SPDX-License-Identifier: MIT
"""The gate of a handler: the order by key, and the limit on deliveries at once.

A delivery passes the gate before it is ready for a worker, and returns its place once it is
settled. The state belongs to one lane, and the lane's lock guards it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from procbus.core.delivery import Delivery
from procbus.core.handler import Handler
from procbus.core.user_key import Exactly, UserKey


class Token:
    """Stands for all user keys that are equal, so that no user key is compared under the lock."""

    __slots__ = ("gone", "key", "users")

    def __init__(self, key: UserKey) -> None:
        #: The first of the keys.
        self.key = key
        #: Number of deliveries that have this token.
        self.users = 0
        #: Whether the token no longer stands for its keys.
        self.gone = False


class Gate:
    """The gate of one handler on one bus.

    Not thread-safe: call it under the lane's lock, except for `token_for`.
    """

    def __init__(self, handler: Handler) -> None:
        self._keyed = handler.key is not None
        self._limit = handler.concurrency
        self._inside = 0
        self._abandoned = False
        self._at_limit: deque[Delivery] = deque()
        #: Open deliveries that have no place inside the gate, because they wait for their next
        #: attempt or were withdrawn; and whether each is the delivery in progress for its key.
        self._outside: dict[Delivery, bool] = {}
        #: For each key with a delivery in progress, the deliveries that wait behind it.
        self._lines: dict[object, deque[Delivery]] = {}
        #: For keys that only user code can compare: the token of each key, and the token of each
        #: delivery.
        self._tokens: dict[UserKey | Exactly, Token] = {}
        self._token_of: dict[Delivery, Token] = {}

    def token_for(self, key: UserKey) -> Token:
        """Return the token of a user key. Call it without the lock, because it runs user code."""
        made = Token(key)
        token = self._tokens.setdefault(key, made)
        # While user code compared keys, another thread may have put an equal key into a place of
        # the dict that this thread had passed. Then every look-up finds the other thread's key.
        if token is made and (found := self._tokens.get(key)) is not None and found is not made:
            self._tokens.pop(Exactly(key), None)
            return found
        return token

    def accept(self, delivery: Delivery, token: Token) -> bool:
        """Note the token of a delivery that will be admitted; False if the token is gone."""
        if delivery in self._token_of:
            return True  # the delivery's publisher was interrupted, and calls again
        if token.gone:
            return False
        if not self._abandoned:
            self._token_of[delivery] = token
            token.users += 1
        return True

    def refuse(self, delivery: Delivery) -> None:
        """Drop the token of a delivery that is not admitted after all, or has left."""
        token = self._token_of.pop(delivery, None)
        if token is None:
            return
        token.users -= 1
        if not token.users:
            self._tokens.pop(Exactly(token.key), None)
            token.gone = True

    def admit(self, delivery: Delivery) -> bool:
        """Let the delivery pass, or keep it until `release` returns it."""
        # No call stands between a check and its consequence: after a call Ctrl-C may come, or a
        # signal handler that publishes.
        line: deque[Delivery] = deque()
        if self._keyed:
            key = self._token_of.get(delivery, delivery.key)
            if key in self._lines:
                self._lines[key].append(delivery)
                return False
            self._lines[key] = line
        if self._limit is not None and self._inside >= self._limit:
            self._at_limit.append(delivery)
            return False
        self._inside += 1
        return True

    def _take_place(self, delivery: Delivery) -> bool:
        if self._limit is not None and self._inside >= self._limit:
            self._at_limit.append(delivery)
            return False
        self._inside += 1
        return True

    def release(self, delivery: Delivery) -> list[Delivery]:
        """Take back the place of a settled delivery; return the deliveries that may go now."""
        if self._abandoned:
            return []
        go: list[Delivery] = []
        in_progress = self._outside.pop(delivery, None)
        if in_progress is None:
            self._inside -= 1
            if self._at_limit:
                self._inside += 1
                go.append(self._at_limit.popleft())
        if in_progress is False:
            self.refuse(delivery)
        elif self._keyed:
            key = self._token_of.get(delivery, delivery.key)
            line = self._lines[key]
            if line:
                following = line.popleft()
                if self._take_place(following):
                    go.append(following)
            else:
                del self._lines[key]
            if self._token_of:
                self.refuse(delivery)
        return go

    def withdraw(self, delivery: Delivery) -> bool:
        """Take out a delivery that waits at the gate. It is released once it is settled."""
        if delivery in self._at_limit:
            self._at_limit.remove(delivery)
            self._outside[delivery] = True
            return True
        if not self._keyed or self._abandoned:
            return False
        line = self._lines.get(self._token_of.get(delivery, delivery.key))
        if line is None or delivery not in line:
            return False
        line.remove(delivery)
        self._outside[delivery] = False
        return True

    def step_aside(self, delivery: Delivery) -> list[Delivery]:
        """Note that a delivery waits for its next attempt; return those that may run meanwhile.

        Deliveries of the same key stay behind this delivery, so that their order is kept.
        """
        if self._abandoned:
            return []
        self._outside[delivery] = True
        self._inside -= 1
        if not self._at_limit:
            return []
        self._inside += 1
        return [self._at_limit.popleft()]

    def step_back(self, delivery: Delivery) -> bool:
        """Let a delivery pass whose next attempt is due, or keep it until `release` returns it."""
        self._outside.pop(delivery, None)
        return self._abandoned or self._take_place(delivery)

    @property
    def behind(self) -> int:
        """Number of deliveries that wait at the gate."""
        return len(self._at_limit) + sum(map(len, list(self._lines.values())))

    def waiting(self) -> Iterator[Delivery]:
        """The deliveries that wait at the gate, in no particular order."""
        yield from self._at_limit
        for line in self._lines.values():
            yield from line

    def abandon(self) -> list[Delivery]:
        """Return the waiting deliveries, and stop counting: the bus runs nothing more."""
        waiting = list(self.waiting())
        self._abandoned = True
        self._at_limit.clear()
        self._outside.clear()
        self._lines.clear()
        self._tokens.clear()
        self._token_of.clear()
        return waiting
