"""The registry: every question, in the order of the table. Each lives in the module of its name."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from .model import Question

# The questions by default: threads or processes? They take less than ten minutes.
SUITE = (
    "cpu_scaling",
    "io_scaling",
    "convoy",
    "gil_release",
    "crossover",
    "pipelines",
)
# The questions about peers: `--only peers`.
PEERS = ("tiny_cpu", "tiny_io", "latency", "crash_table", "pending_memory", "startup")
NAMES = (
    *SUITE,
    "whole_jobs",
    "recipes",
    "pythons",
    "tiny_cpu",
    "latency",
    "granularity",
    "tiny_io",
    "io_latency",
    "io_sleep",
    "bulk_insert",
    "rate",
    "stream_rate",
    "stream_memory",
    "startup",
    "pending_memory",
    "head_of_line",
    "stopped_worker",
    "dispatch_cost",
    "crash_table",
    "random_deaths",
    "timeout_precision",
    "memory_limit",
    "supervision_cost",
    "large_events",
    "large_stream",
    "shared_memory_cost",
    "payload_sizes",
    "payload_curve",
    "executor",
    "joblib_backend",
    "advice",
    "advice_cost",
    "journal_throughput",
    "journal_power",
    "journal_resume",
    "journal_absence",
    "dask_lane",
    "dask_cost",
)

GROUPS = {"gil": SUITE, "peers": PEERS}


def expanded(names: Iterable[str]) -> list[str]:
    """Put the questions of a group in its place, each question once."""
    return list(dict.fromkeys(each for name in names for each in GROUPS.get(name, (name,))))


def load(name: str) -> Question:
    """Import one question.

    Args:
        name: one of `NAMES`.
    """
    question = import_module(f"{__package__}.{name}").QUESTION
    if not isinstance(question, Question):
        raise TypeError(f"{name}.py has no QUESTION")
    return question
