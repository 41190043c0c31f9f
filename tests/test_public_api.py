# SPDX-License-Identifier: MIT
"""The names and signatures that users rely on, and that they type-check."""

import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import procbus
from procbus import (
    Delivery,
    EventBus,
    HandlerTimeout,
    ProcbusError,
    Receipt,
    WorkerTraceback,
    subscribe,
)
from procbus.core.receipt import FanReceipt, SoleReceipt

NAMES = [
    "Accepted",
    "Advice",
    "AdviceList",
    "BatchFailed",
    "BusClosed",
    "BusExecutor",
    "BusHealth",
    "BusOptions",
    "BusStats",
    "CallOptions",
    "Cancelled",
    "CircuitOpen",
    "CurrentWorker",
    "DaskPool",
    "DeadLetter",
    "DeadLetters",
    "Delivery",
    "DeliveryState",
    "EventBus",
    "Evidence",
    "ExpectTimeout",
    "Expected",
    "Handler",
    "HandlerContext",
    "HandlerExited",
    "HandlerOptions",
    "HandlerStats",
    "HandlerTimeout",
    "Job",
    "JobDone",
    "JobFailed",
    "JournalError",
    "LaneStats",
    "Limits",
    "Listener",
    "Listening",
    "MemoryLimitExceeded",
    "NoSuchHandler",
    "OptionError",
    "Outcome",
    "OutcomeKind",
    "Percentiles",
    "ProcbusError",
    "Progress",
    "Published",
    "QueueFull",
    "Rate",
    "Receipt",
    "Resource",
    "ResumeSummary",
    "Retried",
    "RetryPolicy",
    "Schedule",
    "SerializationError",
    "Settled",
    "SharedMemoryStats",
    "Span",
    "Started",
    "SubscriptionError",
    "TopicError",
    "WorkerDied",
    "WorkerEnded",
    "WorkerHealth",
    "WorkerStalled",
    "WorkerStarted",
    "WorkerTraceback",
    "current",
    "executor",
    "freeze_support",
    "resource",
    "subscribe",
    "use",
]


def test_these_are_the_public_names():
    assert sorted(procbus.__all__) == NAMES
    for name in NAMES:
        assert getattr(procbus, name).__doc__, name
    assert set(NAMES) <= set(dir(procbus))
    namespace: dict[str, object] = {}
    exec("from procbus import *", namespace)
    assert set(NAMES) <= set(namespace)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Bus'"):
        procbus.Bus  # noqa: B018 - asking is the point


def test_every_error_is_a_procbus_error():
    errors = [e for n in NAMES if isinstance(e := getattr(procbus, n), type)]
    errors = [e for e in errors if issubclass(e, Exception) and e is not WorkerTraceback]
    assert HandlerTimeout in errors
    assert len(errors) == 18
    assert all(issubclass(e, ProcbusError) for e in errors)


def test_errors_are_shown_by_the_name_to_import_and_survive_pickle() -> None:
    for name in NAMES:
        found = getattr(procbus, name)
        if isinstance(found, type) and issubclass(found, Exception):
            assert (found.__module__, found.__qualname__) == ("procbus", name)
            assert pickle.loads(pickle.dumps(found)) is found


def parameters(function: object) -> dict[str, object]:
    assert callable(function)
    found = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in found if p.name != "self" and p.kind is not p.VAR_KEYWORD}


def test_the_options_and_their_defaults():
    assert parameters(EventBus.__init__) == {
        "handlers": None,
        "cpu": "processes",
        "cpu_workers": None,
        "io_workers": None,
        "max_pending": 10_000,
        "on_full": "block",
        "worker_init": None,
        "max_events_per_worker": None,
        "worker_max_memory": None,
        "worker_nice": 0,
        "worker_env": None,
        "on_failure": None,
        "shared_memory_limit": None,
        "shared_memory_threshold": 32 * 1024,
        "on_oversize": "pipe",
        "journal": None,
        "durability": "process",
        "keep": "unfinished",
        "keep_results": False,
        "journal_codec": "pickle",
        "on_sigterm": None,
        "grace": 25.0,
        "carry": (),
        "live": False,
    }
    options = parameters(subscribe)
    assert {k: options[k] for k in ("topic", "kind", "name", "priority", "key")} == {
        "topic": None,
        "kind": "io",
        "name": None,
        "priority": 0,
        "key": None,
    }
    assert (options["concurrency"], options["where"]) == (None, None)
    assert options["writable"] is False
    limits = ("timeout", "retries", "backoff", "retry_on", "max_crashes", "max_memory")
    assert [options[name] for name in limits] == [None, 0, None, (Exception,), 1, None]
    assert parameters(EventBus.drain) == {"timeout": None, "progress": False}
    assert parameters(EventBus.close) == {"timeout": None, "cancel": False}
    of_a_stream = ["events", "topic", "id", "ordered", "progress", "total", "batch"]
    assert list(parameters(EventBus.stream)) == [*of_a_stream, "stop_on_error"]
    assert (options["batch"], options["batch_wait"]) == (None, 0.0)
    assert list(parameters(EventBus.astream)) == [*of_a_stream, "stop_on_error"]
    assert parameters(EventBus.cancel) == {"handler": None, "topic": None, "where": None}
    assert options["grace"] == 2.0
    assert parameters(EventBus.progress) == {"progress": True, "total": None}
    for method in (Receipt.wait, Receipt.result, Receipt.results):
        assert parameters(method) == {"timeout": None}


def test_receipts_and_deliveries_offer_the_documented_names():
    receipt = (
        "id event topic parent_id deliveries wait result results done settled cancel __await__"
    )
    delivery = (
        "handler state attempts outcome result exception queued_s run_s worker_pid event_id cancel"
    )
    for kind in (SoleReceipt, FanReceipt):
        assert issubclass(kind, Receipt)
        assert [n for n in receipt.split() if not hasattr(kind, n)] == []
    assert [n for n in delivery.split() if not hasattr(Delivery, n)] == []


def test_every_public_method_of_the_bus_has_a_docstring():
    methods = {n: m for n, m in inspect.getmembers(EventBus) if not n.startswith("_")}
    assert {"publish", "apublish", "stream", "astream", "drain", "close", "start"} <= set(methods)
    assert [n for n, m in methods.items() if not inspect.getdoc(m)] == []


def test_importing_procbus_imports_nothing_heavy():
    heavy = ["asyncio", "loky", "cloudpickle", "psutil", "rich", "multiprocessing"]
    code = (
        "import sys, procbus; procbus.EventBus; procbus.subscribe\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=150
    )
    assert run.stdout.strip() == "[]"


def test_receipts_and_deliveries_are_generic_at_run_time():
    assert get_args(Receipt[int, str]) == (int, str)
    assert get_args(Receipt[int]) == (int, Any)
    assert get_args(Delivery[str]) == (str,)
    with EventBus([]) as bus:
        bus.subscribe(int, print)
        receipt = bus.publish(3)
        assert isinstance(receipt, Receipt)
        assert not hasattr(receipt, "__dict__")


@pytest.mark.timeout(240)  # mypy without a cache, on a busy machine
@pytest.mark.parametrize(
    "checker",
    [("mypy", "--strict"), ("basedpyright", "--pythonpath", sys.executable)],
    ids=lambda c: c[0],
)
def test_the_public_api_is_usable_without_casts(checker: tuple[str, ...]):
    pytest.importorskip(checker[0])
    root = Path(__file__).parent.parent
    run = subprocess.run(
        [sys.executable, "-m", *checker, "tests/typing/api.py"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert run.returncode == 0, run.stdout + run.stderr
