"""The registry: every question, in the order of the table. Each lives in the module of its name."""

from __future__ import annotations

from importlib import import_module

from .model import Question

NAMES = (
    "tiny_cpu",
    "latency",
    "granularity",
    "tiny_io",
    "io_latency",
    "io_sleep",
    "stream_memory",
    "startup",
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
)


def load(name: str) -> Question:
    """Import one question.

    Args:
        name: one of `NAMES`.
    """
    question = import_module(f"{__package__}.{name}").QUESTION
    if not isinstance(question, Question):
        raise TypeError(f"{name}.py has no QUESTION")
    return question
