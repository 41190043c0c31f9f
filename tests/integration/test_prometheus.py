# SPDX-License-Identifier: MIT
"""The collector for prometheus_client: its figures equal `bus.stats()`."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import threading

import pytest

from procbus import EventBus, OptionError
from procbus.testing import InlineBus
from tests.parts import BOUND_S
from tests.waits import eventually

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from procbus.prometheus import Collector

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(registry: CollectorRegistry) -> Samples:
    """All samples of a scrape, as Prometheus reads them."""
    found: Samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found
            found[key] = sample.value
    return found


def registry_of(*collectors: Collector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    for collector in collectors:
        registry.register(collector)
    return registry


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def fail(_: object) -> None:
    raise ValueError("no good")


def assert_equal(samples: Samples, bus: EventBus, name: str) -> None:
    """Assert that the samples of each handler are equal to the bus's own figures."""
    stats = bus.stats()
    for handler, of in stats.handlers.items():
        about = {"bus": name, "handler": handler, "kind": of.kind}
        for outcome in ("succeeded", "failed", "cancelled"):
            ended = value(samples, "procbus_deliveries_total", **about, outcome=outcome)
            assert ended == getattr(of, outcome)
        assert value(samples, "procbus_deliveries_published_total", **about) == of.published
        assert value(samples, "procbus_retries_total", **about) == of.retried
        for metric, times in (("procbus_queue", of.queue_s), ("procbus_run", of.run_s)):
            assert value(samples, f"{metric}_seconds_count", **about) == times.count
            assert value(samples, f"{metric}_seconds_sum", **about) == times.total_s
            assert value(samples, f"{metric}_seconds_bucket", **about, le="+Inf") == times.count
    assert value(samples, "procbus_events_unrouted_total", bus=name) == stats.unrouted
    assert value(samples, "procbus_dead_letters", bus=name) == stats.dead_letters


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_figures_equal_those_of_the_bus_exactly(count):
    with EventBus([], cpu_workers=2) as bus:
        bus.subscribe("n", abs, name="io")
        bus.subscribe("n", abs, kind="cpu", name="cpu")
        bus.subscribe("bad", fail, retries=1, backoff=0.0, name="bad")
        registry = registry_of(Collector({"b": bus}))
        for _ in bus.stream(range(count + 11), topic="n"):
            pass
        bus.publish("bad", 1)
        bus.publish("nobody", 1)
        assert bus.drain(BOUND_S)
        # The workers' CPU time goes on; all else stands still.
        samples = samples_of(registry)
        assert_equal(samples, bus, "b")
        for handler in ("io", "cpu"):
            for metric in ("procbus_queue_seconds_count", "procbus_run_seconds_count"):
                about = {"bus": "b", "handler": handler, "kind": handler}
                assert value(samples, metric, **about) == count + 11
        about = {"bus": "b", "handler": "bad", "kind": "io"}
        assert value(samples, "procbus_run_seconds_count", **about) == 2
        assert value(samples, "procbus_queue_seconds_count", **about) == 1
        assert value(samples, "procbus_lane_workers", bus="b", kind="cpu") == 2
        worker = f"{bus.health()[0].name}"
        memory = value(samples, "procbus_worker_resident_memory_bytes", bus="b", worker=worker)
        assert memory > 2**20


def test_closed_and_dropped_bus_still_has_its_figures():
    with EventBus([]) as bus:
        bus.subscribe("n", abs, name="io")
        registry = registry_of(Collector({"b": bus}))
        bus.publish("n", 1)
    assert_equal(samples_of(registry), bus, "b")
    del bus
    about = {"bus": "b", "handler": "io", "kind": "io"}
    ended = value(samples_of(registry), "procbus_deliveries_total", **about, outcome="succeeded")
    assert ended == 1


def test_collector_does_not_keep_a_bus_open():
    bus = EventBus([])
    thread: list[threading.Thread] = []
    bus.subscribe("n", lambda _: thread.append(threading.current_thread()))
    registry = registry_of(Collector(bus))
    bus.publish("n", 1).wait(BOUND_S)
    del bus
    eventually(lambda: not thread[0].is_alive())
    assert samples_of(registry)


@pytest.mark.parametrize("together", [True, False])
def test_several_buses_do_not_clash(together):
    one, two = InlineBus([]), InlineBus([])
    for bus in (one, two):
        bus.subscribe("n", abs, name="same")
    one.publish("n", 1)
    if together:
        names = ["one", "two"]
        registry = registry_of(Collector({"one": one, "two": two}))
    else:
        registry = registry_of(Collector(one), Collector(two))
        found = samples_of(registry)
        names = sorted({dict(labels)["bus"] for _, labels in found}, key=int)
    samples = samples_of(registry)
    about = {"handler": "same", "kind": "io", "outcome": "succeeded"}
    assert [value(samples, "procbus_deliveries_total", **about, bus=n) for n in names] == [1, 0]


def test_scrapes_beside_the_work_never_go_back(monkeypatch):
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", abs, name="io")
        registry = registry_of(Collector({"b": bus}))
        stream = bus.stream(range(20_000), topic="n")
        before: Samples = {}
        for number, _ in enumerate(stream):
            if number % 2_000:
                continue
            samples = samples_of(registry)
            for key, at in samples.items():
                if key[0].endswith(("_total", "_count", "_sum", "_bucket")):
                    assert at >= before.get(key, 0.0), key
            before = samples


def test_promtool_finds_no_fault():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not here: it comes with Prometheus")
    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("n", abs, kind="cpu", name='a "name"\\')
        bus.publish("n", 1).wait(BOUND_S)
        text = generate_latest(registry_of(Collector({"a": bus, "b": bus})))
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, timeout=BOUND_S
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


@pytest.mark.parametrize("given", [None, 7, {"a": 7}, {7: None}, [InlineBus([])]])
def test_anything_but_buses_is_refused(given):
    with pytest.raises(OptionError, match="Collector takes a bus, or several by name"):
        Collector(given)


def test_import_without_prometheus_client_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "procbus.prometheus")
    for name in [name for name in sys.modules if name.startswith("prometheus_client")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'procbus\[prometheus\]'"):
        importlib.import_module("procbus.prometheus")
