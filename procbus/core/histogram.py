# SPDX-License-Identifier: MIT
"""A histogram of durations in buckets whose width grows with the value."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp2, log2

_PER_OCTAVE = 8.0
# Makes every bucket number positive, above the zero bucket, even for the smallest float (1408).
# int() rounds towards zero, so on positive numbers it always rounds down.
_OFFSET = 10_000.0
_ZERO = 0


class Histogram:
    """Durations, counted in buckets: 8 in each octave, so each is 9 % wider than the one before.

    A quantile is therefore right to 4.5 %, however short or long the durations are, and two
    histograms add up without loss. The idea comes from DDSketch (Masson, Rim and Lee, 2019), which
    cuts buckets by the logarithm of the value, and before it from HdrHistogram (Gil Tene), which
    has equal steps within each octave. Only buckets with durations take memory: durations from 1 us
    to a day fill 300 at most.

    Not thread-safe: the owner of a histogram says which lock guards it. Reading (`count`,
    `quantile`, `merge` from another) is safe while a thread adds; the reader may miss durations
    added meanwhile.
    """

    __slots__ = ("_buckets", "total")

    def __init__(self) -> None:
        # The number of durations, or their weight, by number of the bucket.
        self._buckets: dict[int, int] = {}
        #: Sum of the durations in seconds, each times its weight.
        self.total = 0.0

    @property
    def count(self) -> int:
        """The number of durations: the sum of their weights."""
        # Summed here and not counted in `add`: `add` runs for every event, `count` only for a
        # snapshot.
        return sum(self._buckets.copy().values())

    def add(self, value_s: float, weight: int = 1) -> None:
        """Add a duration.

        Args:
            value_s: seconds, not infinite; zero or less (clocks differ) counts as zero.
            weight: the number of durations that it stands for, 1 or more.
        """
        # Measured: with frexp in place of log2 this takes a quarter to a half longer.
        if value_s > 0.0:
            bucket = int(_PER_OCTAVE * log2(value_s) + _OFFSET)
            self.total += value_s * weight
        else:
            bucket = _ZERO
        try:
            self._buckets[bucket] += weight
        except KeyError:
            self._buckets[bucket] = weight

    def merge(self, other: Histogram) -> None:
        """Add all durations of another histogram, which stays as it is."""
        mine = self._buckets
        # Copying is one step for other threads. A loop over the original would raise when another
        # thread adds a bucket.
        for bucket, weight in other._buckets.copy().items():
            mine[bucket] = mine.get(bucket, 0) + weight
        self.total += other.total

    def shorter_than(self, octaves: Iterable[int]) -> tuple[int, ...]:
        """The number of durations shorter than 2 to the power of each octave, in seconds.

        The number is exact, because every octave begins with a bucket.
        """
        buckets = self._buckets.copy().items()
        firsts = [int(_PER_OCTAVE * octave + _OFFSET) for octave in octaves]
        return tuple(sum(weight for b, weight in buckets if b < first) for first in firsts)

    def quantile(self, q: float) -> float | None:
        """Return the quantile `q`: the duration that a share `q` of all durations does not exceed.

        Args:
            q: from 0 (the shortest) to 1 (the longest).

        Returns:
            Seconds, at most 4.5 % off the duration at that rank; None when there is none.

        Raises:
            ValueError: q is not from 0 to 1.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q must be from 0 to 1, not {q!r}")
        buckets = sorted(self._buckets.copy().items())
        rank = q * sum(weight for _, weight in buckets)
        passed = 0
        for bucket, weight in buckets:
            passed += weight
            if passed >= rank:
                return _middle_s(bucket)
        return None


def _middle_s(bucket: int) -> float:
    """The geometric middle of a bucket in seconds: the same ratio to both its ends."""
    if bucket == _ZERO:
        return 0.0
    return exp2((bucket - _OFFSET + 0.5) / _PER_OCTAVE)
