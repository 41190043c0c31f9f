"""Advice as people read it."""

from dataclasses import replace
from typing import Any

import pytest

from procbus.advice.advice import Advice, AdviceList, make_advice
from procbus.advice.judge import SILENT, Judgement, judge
from procbus.core.meter import Evidence, Machine, Span

TWO_CORES = Machine(cores=2, cpu_workers=2, io_workers=32)
BUSY = Evidence(
    "io",
    runs=1_000,
    wall_s=0.04,
    cpu_s=0.01,
    gil_s=Span(0.0095, 0.01),
    obstacle="",
    at_once=4.0,
    load=0.94,
)


def advice_on(evidence: Evidence, declared: Any = None, name: str = "extract") -> Advice:
    return make_advice(
        name, declared or evidence.kind, evidence, judge(evidence, TWO_CORES), TWO_CORES
    )


def test_handler_that_holds_the_gil_is_advised_to_move():
    advice = advice_on(BUSY)
    assert str(advice) == (
        "extract is declared io but used 0.94 s of CPU per second while 3 others waited: "
        "declare it cpu, expected 1.9 x on 2 cores"
    )
    assert (advice.level, advice.kind, advice.declared) == ("warning", "cpu", "io")


def test_little_loss_is_no_warning():
    assert advice_on(replace(BUSY, load=0.05)).level == "info"


def test_async_handler_that_computes_is_advised_to_move_that_part():
    text = advice_on(replace(BUSY, is_async=True)).text
    assert "on the event loop, which nothing else can use meanwhile" in text
    assert "let a handler of kind='cpu' do the computing" in text


def test_cpu_handler_that_waits_is_advised_to_be_io():
    evidence = replace(
        BUSY, kind="cpu", wall_s=0.1, cpu_s=0.003, gil_s=Span(0, 0.003), wait_s=Span(0.097, 0.097)
    )
    advice = advice_on(evidence, name="resize")
    assert advice.text.startswith(
        "resize is declared cpu but spends 97% of its time waiting: declare it io, expected"
    )
    assert advice.level == "warning"


def test_transport_that_costs_more_than_the_work_is_named():
    evidence = replace(
        BUSY,
        kind="cpu",
        runs=10**6,
        wall_s=3e-6,
        cpu_s=3e-6,
        gil_s=Span(0, 3e-6),
        transport_s=33e-6,
    )
    assert advice_on(evidence, name="tick").text == (
        "tick takes 3.0 us and its transport 40 us: declare it io, or make the events larger"
    )


@pytest.mark.parametrize(
    ("measured", "sentence"),
    [
        ({"gil_s": Span(0.0, 0.001)}, "releases the GIL: io is right"),
        (
            {"wall_s": 0.1, "cpu_s": 3e-3, "gil_s": Span(3e-3, 3e-3), "wait_s": Span(0.097, 0.097)},
            "waits for 97% of its time: io is right",
        ),
        (
            {"wall_s": 3e-6, "cpu_s": 3e-6, "gil_s": Span(3e-6, 3e-6), "runs": 10**6},
            "takes 3.0 us and its transport 7.0 us: io, or larger events",
        ),
        ({"obstacle": "its events cannot travel"}, "stays io: its events cannot travel"),
        ({"wall_s": 0.02, "wait_s": Span(0.01, 0.01)}, "would gain nothing elsewhere: io is right"),
        ({"kind": "cpu", "wall_s": 0.01}, "computes for 100% of its time: cpu is right"),
        (
            {"runs": 3, "ran": 4, "ran_s": 0.16},
            "ran 4 times, 160 ms in all: too little to say",
        ),
        (
            {"runs": 3, "ran": 144, "ran_s": 5.8},
            "ran 144 times, 5.8 s in all, of which 3 were measured: too little to say",
        ),
        (
            {"obstacle": None},
            "may compute too long for threads; the cost of sending its events is not known yet",
        ),
        ({"gil_s": Span(0.001, 0.01)}, "could be either: the measurements do not decide"),
    ],
)  # fmt: skip
def test_right_or_unknown_kind_has_no_level(measured: dict[str, Any], sentence: str):
    advice = advice_on(replace(BUSY, **measured))
    assert advice.text == f"extract {sentence}"
    assert advice.level == ""


def test_auto_handler_gets_no_advice():
    advice = advice_on(BUSY, "auto")
    assert (advice.level, advice.kind, advice.declared) == ("", "cpu", "auto")


def test_a_list_of_advice_is_a_table():
    silent = make_advice("idle", "io", Evidence("io"), SILENT, TWO_CORES)
    right = make_advice("fetch", "io", BUSY, Judgement("io"), TWO_CORES)
    text = str(AdviceList([advice_on(BUSY), right, silent]))
    table, _, sentences = text.partition("\n\n")
    assert [line.split()[0] for line in table.splitlines()] == [
        "handler",
        "extract",
        "fetch",
        "idle",
    ]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert [line[:2] for line in sentences.splitlines()] == ["!!", "  ", "  "]
    assert sentences.splitlines()[2].endswith("too little to say")


def test_no_handler_is_no_table():
    assert str(AdviceList()) == "no handler, no advice"


def test_advice_cannot_be_changed():
    with pytest.raises(AttributeError):
        advice_on(BUSY).kind = "io"  # type: ignore[misc] # which is the point


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_handler_that_is_shorter_than_the_work_of_the_bus_is_advised_to_take_batches(
    kind: Any,
) -> None:
    short = replace(BUSY, kind=kind, wall_s=2e-6, cpu_s=2e-6, gil_s=Span(2e-6, 2e-6), ran=10_000)
    advice = "It runs for 2.0 us, less than the bus's own work on an event: use batch="
    assert advice in advice_on(short).text
    for other in (replace(short, wall_s=20e-6), replace(short, ran=100), replace(short, runs=0)):
        assert "batch=" not in advice_on(other).text
