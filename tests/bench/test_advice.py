"""The labelled handlers of the benchmark of the advice, and how its answers are counted."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import pytest

from bench.advice import Answer, answering, confusion, percentages
from bench.advice_set import HANDLERS, Labelled
from procbus.advice.advice import Advice
from procbus.core.meter import Evidence


def answer_of(label: Any, declared: Any, said: Any, level: Any = "", *, gil: bool = True) -> Answer:
    handler = Labelled(repr, label, "because", lambda: 1)
    return Answer(handler, Advice("it", declared, said, 1.0, level, "", Evidence(declared)), gil)


def test_each_label_has_enough_handlers_with_a_reason() -> None:
    labels = [handler.label for handler in HANDLERS]
    assert len(labels) >= 40
    assert min(labels.count(label) for label in ("io", "cpu", "either")) >= 10
    assert all(handler.why for handler in HANDLERS)
    names = [handler.name for handler in HANDLERS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: handler.name)
def test_every_handler_does_its_work(handler: Labelled) -> None:
    if handler.name == "ask_over_socket":
        with answering() as port:
            assert handler.function(port) == b"answer"
        return
    found = handler.function(handler.make_event())
    if inspect.isawaitable(found):
        asyncio.run(_await(found))


async def _await(found: Any) -> None:
    await found


def test_only_definite_answers_are_counted() -> None:
    answers = [
        answer_of("io", "io", "io"),
        answer_of("either", "cpu", "io", "info"),
        answer_of("cpu", "io", "cpu", "warning"),
        answer_of("cpu", "cpu", "io", "warning"),
        answer_of("cpu", "io", None),
    ]
    assert percentages(answers) == {
        "right where it speaks": 75.0,
        "silent": 20.0,
        "wrong at WARNING": 1,
    }
    table = confusion(answers).splitlines()
    assert "| cpu | io | 0 | 1 | 1 |" in table
    assert "| cpu | cpu | 1 | 0 | 0 |" in table
    assert "| either | cpu | 1 | 0 | 0 |" in table


@pytest.mark.parametrize(
    ("label", "declared", "said", "right"),
    [
        ("cpu", "io", "threads", True),
        ("cpu", "io", "cpu", False),
        ("cpu", "io", "io", False),
        ("cpu", "cpu", "cpu", True),
        ("cpu", "cpu", "threads", True),
        ("io", "cpu", "io", True),
        ("io", "io", "threads", False),
        ("either", "io", "threads", True),
    ],
)
def test_without_a_gil_computing_belongs_to_threads(
    label: Any, declared: Any, said: Any, right: bool
) -> None:
    answer = answer_of(label, declared, said, gil=False)

    assert answer.is_right == right
    assert confusion([answer]).startswith(
        "| it is | declared | says io | says threads | says cpu |"
    )
