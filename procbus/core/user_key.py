# SPDX-License-Identifier: MIT
"""Keys of deliveries whose hash and comparison are the user's code."""

from __future__ import annotations

from typing import Any

from procbus.core.user_objects import short_repr


class UserKey:
    """A key as the user's function gave it, with the hash that it had when it was published.

    Comparing two keys runs the user's code, so do it without a lock of procbus. `Exactly` finds a
    key in a dict without running the user's code.
    """

    __slots__ = ("hash", "key")

    def __init__(self, key: Any) -> None:
        self.key = key
        self.hash = hash(key)

    def __hash__(self) -> int:
        """The hash that the key had when it was published."""
        return self.hash

    def __eq__(self, other: object) -> bool:
        """Whether the user's keys are equal; false if comparing them raises."""
        if self is other:
            return True
        if isinstance(other, Exactly):
            return other.key is self
        if not isinstance(other, UserKey) or self.hash != other.hash:
            return False
        try:
            return self.key is other.key or bool(self.key == other.key)
        except BaseException:  # noqa: BLE001 - keys that cannot be compared are not equal
            return False

    def __repr__(self) -> str:
        """As the user's key shows itself."""
        return short_repr(self.key)


class Exactly:
    """Equal to one `UserKey` object alone, and to no other object that is equal to that key."""

    __slots__ = ("key",)

    def __init__(self, key: UserKey) -> None:
        self.key = key

    def __hash__(self) -> int:
        """The hash of that key."""
        return self.key.hash

    def __eq__(self, other: object) -> bool:
        """Whether it is that key."""
        return other is self.key
