# SPDX-License-Identifier: MIT
"""A histogram of durations in buckets whose width grows with the value."""

from __future__ import annotations

from math import frexp, ldexp

# Below the number of every other bucket: the smallest float is in -8576.
_ZERO = -10_000


class Histogram:
    """Durations, counted in buckets: 8 in each octave, so none is wider than 1/8 of its values.

    A quantile is therefore right to 6.25 %, however long or short the durations are, and two
    histograms can be added up without loss. The idea is that of HdrHistogram (Gil Tene): octaves
    by the exponent of the float, and equal steps within each; DDSketch has the same promise of a
    relative error, with logarithms. Only buckets that something fell into take memory: durations
    from 1 us to a day fill at most 300.

    Not thread-safe: whoever owns it says which lock guards it. Only `merge` may read from another
    one, `other`, while that is added to: it then has the durations of a moment in between.
    """

    __slots__ = ("_buckets", "total")

    def __init__(self) -> None:
        # Weight by number of the bucket.
        self._buckets: dict[int, int] = {}
        #: Sum of the durations in seconds, each times its weight.
        self.total = 0.0

    @property
    def count(self) -> int:
        """How many durations there are: the sum of their weights."""
        # Not kept by `add`, which runs for every event; this runs for a snapshot.
        return sum(self._buckets.values())

    def add(self, value_s: float, weight: int = 1) -> None:
        """Add a duration.

        Args:
            value_s: seconds, finite; zero or less (clocks differ) is kept as zero.
            weight: for how many durations it stands, 1 or more.
        """
        if value_s > 0.0:
            fraction, exponent = frexp(value_s)
            # The fraction is from 0.5 up to 1, so its steps are 8 to 15.
            bucket = 8 * exponent + int(16.0 * fraction)
            self.total += value_s * weight
        else:
            bucket = _ZERO
        buckets = self._buckets
        if bucket in buckets:
            buckets[bucket] += weight
        else:
            buckets[bucket] = weight

    def merge(self, other: Histogram) -> None:
        """Add all that is in another histogram, which stays as it is."""
        mine = self._buckets
        # The copy is one step for other threads; a loop over the original would raise when one of
        # them adds a bucket.
        for bucket, weight in other._buckets.copy().items():
            mine[bucket] = mine.get(bucket, 0) + weight
        self.total += other.total

    def quantile(self, q: float) -> float | None:
        """Tell the duration that a share `q` of all durations does not exceed.

        Args:
            q: from 0 (the shortest) to 1 (the longest).

        Returns:
            Seconds, at most 6.25 % off the duration at that rank; None when there is none.

        Raises:
            ValueError: q is not from 0 to 1.
        """
        if not 0.0 <= q <= 1.0:
            raise ValueError(f"q must be from 0 to 1, not {q!r}")
        rank = q * self.count
        passed = 0
        middle_s = None
        for bucket, weight in sorted(self._buckets.items()):
            middle_s = _middle_s(bucket)
            passed += weight
            if passed >= rank:
                break
        return middle_s


def _middle_s(bucket: int) -> float:
    """Seconds in the middle of a bucket."""
    if bucket == _ZERO:
        return 0.0
    octave, step = divmod(bucket, 8)
    # 8 * exponent + (8 to 15) is 8 * (exponent + 1) + (0 to 7).
    return ldexp(8.5 + step, octave - 1 - 4)
