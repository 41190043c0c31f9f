# SPDX-License-Identifier: MIT
"""The families of metrics: their names, their text, and their bounds."""

from __future__ import annotations

import json
import re
from pathlib import Path

from procbus.core.stats import BusStats, HandlerStats, LaneStats, Percentiles, collect_stats
from procbus.live.metrics import (
    HANDLERS_MEASURED,
    METRICS,
    OTHER_HANDLERS,
    Figures,
    exposition,
    families,
    figures,
)
from procbus.supervision.health import WorkerHealth
from tests.parts import subscription_of

LANES = {"io": LaneStats(3, 2, 1, 0, utilisation=0.5), "cpu": LaneStats(0, 0, 0, 0)}


def bus_with(handlers: dict[str, HandlerStats], workers: tuple[WorkerHealth, ...] = ()) -> Figures:
    return figures(BusStats(4, 5, handlers, LANES), workers)


def lines_of(name: str, **buses: Figures) -> list[str]:
    text = exposition(families(buses))
    return [line for line in text.splitlines() if re.match(rf"{name}[^a-z_]", line)]


def test_samples_are_written_as_text_under_their_help_and_type():
    stats = HandlerStats(published=7, succeeded=3, failed=2, cancelled=1, crashed=9)
    text = exposition(families({"b": bus_with({"h": stats})}))
    assert text.startswith(
        "# HELP procbus_deliveries_total Deliveries that ended for good.\n"
        "# TYPE procbus_deliveries_total counter\n"
        'procbus_deliveries_total{bus="b",handler="h",kind="io",outcome="succeeded"} 3\n'
        'procbus_deliveries_total{bus="b",handler="h",kind="io",outcome="failed"} 2\n'
        'procbus_deliveries_total{bus="b",handler="h",kind="io",outcome="cancelled"} 1\n'
    )
    assert text.endswith("\n")
    assert (
        'procbus_attempts_stopped_total{bus="b",handler="h",kind="io",reason="worker_died"} 9'
        in text
    )
    assert 'procbus_lane_utilisation_ratio{bus="b",kind="io"} 0.5\n' in text
    assert 'procbus_lane_utilisation_ratio{bus="b",kind="cpu"}' not in text  # unknown


def test_labels_are_escaped():
    assert lines_of("procbus_retries_total", b=bus_with({'a"b\\c\nd\x1b': HandlerStats()})) == [
        'procbus_retries_total{bus="b",handler="a\\"b\\\\c\\\\nd\\\\x1b",kind="io"} 0'
    ]


def test_histogram_has_cumulative_buckets_sum_and_count():
    subscription = subscription_of(name="h")
    for run_s in (0.001, 0.3, 0.3, 10_000.0):
        subscription.ran.add(run_s)
    stats = collect_stats(0, 0, [subscription], LANES)
    lines = lines_of("procbus_run_seconds_(bucket|sum|count)", b=figures(stats, ()))
    about = 'bus="b",handler="h",kind="io"'
    counts = {line.split('le="')[1].split('"')[0]: int(line.split()[-1]) for line in lines[:-2]}
    assert counts["0.0009765625"] == 0
    assert counts["0.001953125"] == counts["0.25"] == 1
    assert counts["0.5"] == counts["4096.0"] == 3
    assert counts["+Inf"] == 4
    assert lines[-2:] == [
        f"procbus_run_seconds_sum{{{about}}} 10000.601",
        f"procbus_run_seconds_count{{{about}}} 4",
    ]


def test_handlers_beyond_a_maximum_are_added_up():
    times = Percentiles(1.0, 1.0, 1.0, 2, 2.0, (0,) * 18 + (2,) * 12)
    stats = {f"h{n}": HandlerStats(succeeded=1, run_s=times) for n in range(HANDLERS_MEASURED + 5)}
    lines = lines_of("procbus_deliveries_total", b=bus_with(stats))
    succeeded = [line for line in lines if "succeeded" in line]
    assert len(succeeded) == HANDLERS_MEASURED + 1
    assert succeeded[-1].endswith(f'handler="{OTHER_HANDLERS}",kind="io",outcome="succeeded"}} 5')
    (counted,) = [
        line
        for line in lines_of("procbus_run_seconds_count", b=bus_with(stats))
        if OTHER_HANDLERS in line
    ]
    assert counted.endswith(" 10")


def test_only_processes_among_workers_have_samples_and_stalled_ones_count_for_their_lane():
    workers = (
        WorkerHealth(
            kind="cpu", name="c-1", pid=7, state="busy", memory_bytes=9, cpu_s=1.5, events_done=0
        ),
        WorkerHealth(kind="io", name="io-1", pid=1, state="stalled", cpu_s=2.0, events_done=0),
    )
    taken = bus_with({}, workers)
    assert lines_of("procbus_worker_resident_memory_bytes", b=taken) == [
        'procbus_worker_resident_memory_bytes{bus="b",worker="c-1"} 9'
    ]
    assert lines_of("procbus_worker_cpu_seconds_total", b=taken) == [
        'procbus_worker_cpu_seconds_total{bus="b",worker="c-1"} 1.5'
    ]
    assert lines_of("procbus_lane_workers_stalled", b=taken) == [
        'procbus_lane_workers_stalled{bus="b",kind="io"} 1',
        'procbus_lane_workers_stalled{bus="b",kind="cpu"} 0',
    ]


def test_several_buses_share_each_family_and_differ_in_a_label():
    text = exposition(families({"a": bus_with({}), "b": bus_with({})}))
    assert text.count("# TYPE procbus_pending gauge") == 1
    assert 'procbus_pending{bus="a"} 4\nprocbus_pending{bus="b"} 4\n' in text


def test_figures_are_the_same_after_a_journey_as_json():
    stats = {"h": HandlerStats(succeeded=3, run_s=Percentiles(1.0, 1.0, 1.0, 1, 1.0, (1,) * 30))}
    taken = bus_with(stats)
    assert families({"b": json.loads(json.dumps(taken))}) == families({"b": taken})


def test_names_follow_the_conventions_and_are_on_the_page():
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(procbus_\w+)` \| (\w+) \|([^|]*)\|", page, flags=re.MULTILINE)
    assert [(m.name, m.kind, ", ".join(f"`{each}`" for each in m.labels[1:])) for m in METRICS] == [
        (name, kind, labels.strip()) for name, kind, labels in rows
    ]
    for metric in METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert metric.text.endswith(".")
