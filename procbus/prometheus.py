# SPDX-License-Identifier: MIT
"""Metrics for Prometheus: the figures of buses, for a registry of prometheus_client.

`Collector(bus)` needs `pip install 'procbus[prometheus]'`, which is prometheus_client.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from procbus.bus import EventBus, parts_of
from procbus.core.errors import OptionError
from procbus.core.validation import shown
from procbus.live.metrics import Family, families, figures

try:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
except ImportError as error:
    raise ImportError(
        "procbus.prometheus needs prometheus_client: pip install 'procbus[prometheus]'"
    ) from error

#: Numbers for buses that have no name.
_numbers = count(1)


class Collector:
    """The figures of one bus, or of several, for a registry of prometheus_client.

    The collector reads the figures of `bus.stats()` at each scrape, and counts nothing itself. The
    collector does not keep a bus open, and still answers once the bus is closed. Thread-safe.
    docs/metrics.md has the names, types and labels.

    Example:
        ```python
        from prometheus_client import CollectorRegistry, generate_latest

        from procbus import EventBus
        from procbus.prometheus import Collector

        registry = CollectorRegistry()  # or prometheus_client.REGISTRY, and start_http_server(9100)
        with EventBus(handlers=[]) as bus:
            registry.register(Collector(bus))
            print(generate_latest(registry).decode())
        ```

    Args:
        buses: the bus; or several, by name: `Collector({"crawl": crawl, "index": index})`. The name
            is the value of the label `bus`. A bus without a name gets a number: the first is "1".

    Raises:
        OptionError: `buses` is neither a bus nor a mapping of names to buses.
    """

    def __init__(self, buses: EventBus | Mapping[str, EventBus]) -> None:
        named: Any = {str(next(_numbers)): buses} if isinstance(buses, EventBus) else buses
        if not isinstance(named, Mapping) or not all(
            isinstance(name, str) and isinstance(bus, EventBus) for name, bus in named.items()
        ):
            raise OptionError(
                "Collector takes a bus, or several by name, such as "
                f'Collector({{"crawl": bus, "index": other}}), not {shown(buses)}'
            )
        self._views = {name: parts_of(bus).view for name, bus in named.items()}

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. The registry calls this for each scrape."""
        taken = {
            name: figures(view.stats(), view.health(brief=True))
            for name, view in self._views.items()
        }
        yield from map(_metric, families(taken))

    def describe(self) -> list[Metric]:
        """Return nothing, so that one registry takes several collectors: their labels differ."""
        return []


def _metric(family: Family) -> Metric:
    about = family.metric
    if about.kind == "histogram":
        histogram = HistogramMetricFamily(about.name, about.text, labels=about.labels)
        for labels, buckets in family.samples:
            histogram.add_metric(labels, buckets.counts, buckets.total)
        return histogram
    make = CounterMetricFamily if about.kind == "counter" else GaugeMetricFamily
    made = make(about.name, about.text, labels=about.labels)
    for labels, value in family.samples:
        made.add_metric(labels, value)
    return made
