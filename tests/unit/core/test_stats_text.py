# SPDX-License-Identifier: MIT
"""The statistics of a bus as tables."""

from procbus.core.stats import BusStats, HandlerStats, LaneStats, Percentiles


def test_a_quiet_bus_has_no_columns_of_trouble():
    handler = HandlerStats(
        published=12_345,
        running=2,
        succeeded=12_340,
        queue_s=Percentiles(0.0015, 0.003, 0.01),
        run_s=Percentiles(20e-6, 30e-6, 1.5),
    )
    lanes = {"io": LaneStats(0, 0, 0, 0), "cpu": LaneStats(3, 2, 2, 0, utilisation=0.876)}
    assert str(BusStats(5, 0, {"square": handler}, lanes)) == (
        "5 pending, 0 of them to be tried again; 0 dead letters; 0 events unrouted\n"
        "\n"
        "lane  depth  workers  busy  used\n"
        "io        0        0     0     -\n"
        "cpu       3        2     2   88%\n"
        "\n"
        "handler  published  pending  running  succeeded  queue p50  queue p99  run p50  run p99\n"
        "square      12,345        5        2     12,340     1.5 ms      10 ms    20 us    1.5 s"
    )


def test_trouble_has_its_columns():
    handlers = {
        "fine": HandlerStats(published=1, succeeded=1),
        "bad": HandlerStats(
            published=9, failed=3, cancelled=1, retried=4, timed_out=5, crashed=6, over_memory=7
        ),
    }
    lanes = {
        "io": LaneStats(0, 1, 0, 0, abandoned=2),
        "cpu": LaneStats(0, 1, 0, 1_000, paused="short of memory"),
    }
    first, lane_table, handler_table = str(
        BusStats(5, 4, handlers, lanes, retrying=3, dead_letters=2)
    ).split("\n\n")
    assert first == "5 pending, 3 of them to be tried again; 2 dead letters; 4 events unrouted"
    head, io, cpu = lane_table.splitlines()
    assert head.split()[-3:] == ["restarts", "abandoned", "paused"]
    assert io.split()[-3:] == ["0", "2", "-"]
    assert cpu.endswith("1,000          0  short of memory")
    head, fine, bad = handler_table.splitlines()
    assert head.endswith("failed  cancelled  retried  timed out  crashed  over memory")
    assert fine.split()[-6:] == ["0"] * 6
    assert bad.split()[-6:] == ["3", "1", "4", "5", "6", "7"]


def test_only_the_trouble_that_there_was_has_a_column():
    text = str(BusStats(0, 0, {"bad": HandlerStats(published=1, crashed=1)}, {}))
    assert "crashed" in text
    assert "timed out" not in text


def test_a_bus_without_anything_is_one_line():
    assert "\n" not in str(BusStats(0, 0, {}, {}))
