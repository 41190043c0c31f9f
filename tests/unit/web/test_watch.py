# SPDX-License-Identifier: MIT
from itertools import pairwise

from procbus.web.watch import History, Point


def point(at: float, succeeded: int = 0) -> Point:
    return Point(at, succeeded, 0, 0, 0, 0)


def test_a_full_history_keeps_the_whole_time_at_a_coarser_interval() -> None:
    history = History(most=10, interval_s=1.0)
    for at in range(100):
        history.add(point(float(at), at))
        assert len(history.points) <= 10
        assert history.points[-1].at == at

    points = history.points
    assert points[0] == point(0.0)
    steps = [after.at - before.at for before, after in pairwise(points[:-1])]
    assert min(steps) >= 8
    assert max(steps) <= 2 * min(steps)
    assert [each.succeeded for each in points] == [each.at for each in points]


def test_a_history_tells_how_it_changed() -> None:
    history = History(most=4, interval_s=1.0)

    changes = [history.add(point(float(at))) for at in range(8)]
    assert changes == [*["added"] * 4, "thinned", "added", "moved", "thinned"]
    assert [each.at for each in history.points] == [0.0, 4.0, 7.0]
