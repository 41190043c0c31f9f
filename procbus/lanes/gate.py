# SPDX-License-Identifier: MIT
"""Who may go now: order by key, and a limit on how many run at once.

A delivery passes the gate before it is ready for a worker, and gives its place back once it is
settled. All state belongs to one lane and is guarded by that lane's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from procbus.core.delivery import Delivery
from procbus.core.handler import Handler
from procbus.core.user_key import Exactly, UserKey


class Token:
    """Stands for all user keys that are equal: under the lock nobody compares those themselves."""

    __slots__ = ("gone", "key", "users")

    def __init__(self, key: UserKey) -> None:
        #: The first of the keys.
        self.key = key
        #: Deliveries that have it.
        self.users = 0
        #: It stands for its keys no more.
        self.gone = False


class Gate:
    """The gate of one handler on one bus.

    Not thread-safe: call it under the lane's lock, but for `token_for`.
    """

    def __init__(self, handler: Handler) -> None:
        self._keyed = handler.key is not None
        self._limit = handler.concurrency
        self._inside = 0
        self._abandoned = False
        self._at_limit: deque[Delivery] = deque()
        #: Deliveries behind the one that is under way, for each key with one under way.
        self._lines: dict[object, deque[Delivery]] = {}
        #: Of keys that only the user's code can compare: the token that stands for each, and that
        #: of each delivery.
        self._tokens: dict[UserKey | Exactly, Token] = {}
        self._token_of: dict[Delivery, Token] = {}

    def token_for(self, key: UserKey) -> Token:
        """Give the token of a user key. Call it without the lock: it runs the user's code."""
        made = Token(key)
        token = self._tokens.setdefault(key, made)
        # While the user's code compared, another thread may have put an equal key in a place of
        # the dict that this one had passed. Then that is the one that everybody finds.
        if token is made and (found := self._tokens.get(key)) is not None and found is not made:
            self._tokens.pop(Exactly(key), None)
            return found
        return token

    def accept(self, delivery: Delivery, token: Token) -> bool:
        """Note the token of a delivery that is about to be admitted; False if it is gone."""
        if delivery in self._token_of:
            return True  # its publisher was interrupted, and comes again
        if token.gone:
            return False
        if not self._abandoned:
            self._token_of[delivery] = token
            token.users += 1
        return True

    def refuse(self, delivery: Delivery) -> None:
        """A delivery that has a token is not to be admitted after all, or has left."""
        token = self._token_of.pop(delivery, None)
        if token is None:
            return
        token.users -= 1
        if not token.users:
            self._tokens.pop(Exactly(token.key), None)
            token.gone = True

    def admit(self, delivery: Delivery) -> bool:
        """Let the delivery pass, or keep it until `release` hands it out."""
        # No call between a look and what follows from it: after one, Ctrl-C may come, or a signal
        # handler that publishes.
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
        """Take back the place of a settled delivery; return those that may go now."""
        if self._abandoned:
            return []
        self._inside -= 1
        go: list[Delivery] = []
        if self._at_limit:
            self._inside += 1
            go.append(self._at_limit.popleft())
        if self._keyed:
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

    def step_aside(self) -> list[Delivery]:
        """A delivery waits for its next attempt: return those that may run meanwhile.

        Others of its key stay behind it, so that their order is kept.
        """
        if self._abandoned:
            return []
        self._inside -= 1
        if not self._at_limit:
            return []
        self._inside += 1
        return [self._at_limit.popleft()]

    def step_back(self, delivery: Delivery) -> bool:
        """The next attempt is due: let it pass, or keep it until `release` hands it out."""
        return self._abandoned or self._take_place(delivery)

    @property
    def behind(self) -> int:
        """How many wait at the gate."""
        return len(self._at_limit) + sum(map(len, list(self._lines.values())))

    def waiting(self) -> Iterator[Delivery]:
        """Those that wait at the gate, in no particular order."""
        yield from self._at_limit
        for line in self._lines.values():
            yield from line

    def abandon(self) -> list[Delivery]:
        """Give out those that wait, and stop keeping count: the bus runs nothing more."""
        waiting = list(self.waiting())
        self._abandoned = True
        self._at_limit.clear()
        self._lines.clear()
        self._tokens.clear()
        self._token_of.clear()
        return waiting
