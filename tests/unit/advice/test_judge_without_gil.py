"""The judgement in a process without a GIL. The fact is an argument, so it runs on every Python."""

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.advice.advice import Advice, make_advice
from procbus.advice.judge import SILENT, Judgement, SwitchPolicy, judge
from procbus.core.meter import NONE, Evidence, Machine, Span

TWO_CORES = Machine(cores=2, cpu_workers=2, io_workers=32, gil=False)
COMPUTES = Evidence("io", runs=1_000, wall_s=0.01, cpu_s=0.01, at_once=4.0, load=2.0)
WAITS = replace(COMPUTES, cpu_s=1e-4, wait_s=Span(0.0099, 0.0099))


def advice_on(
    evidence: Evidence, machine: Machine = TWO_CORES, declared: Any = None, name: str = "parse"
) -> Advice:
    judgement = judge(evidence, machine)
    return make_advice(name, declared or evidence.kind, evidence, judgement, machine)


def in_workers(evidence: Evidence, **measured: Any) -> Evidence:
    """The same handler in worker processes."""
    return replace(evidence, kind="cpu", gil_s=Span(0.0, evidence.cpu_s), **measured)


def test_handler_that_computes_is_right_on_threads():
    assert judge(COMPUTES, TWO_CORES) == Judgement("threads")


@pytest.mark.parametrize("computes_s", [1e-4, 1e-3, 1.0])
def test_computing_on_threads_has_nothing_to_change(computes_s: float):
    advice = advice_on(replace(COMPUTES, cpu_s=computes_s, wall_s=computes_s, runs=10**6))

    assert (advice.kind, advice.level, advice.gain) == ("threads", "", 1.0)
    assert advice.text == (
        "parse computes for 100% of its time, and without a GIL threads do that side by side: "
        "nothing has to change"
    )


def test_the_same_handler_belongs_to_processes_if_there_is_a_gil():
    with_gil = replace(TWO_CORES, gil=True)
    assert judge(replace(COMPUTES, gil_s=Span(0.01, 0.01), obstacle=""), with_gil).kind == "cpu"


def test_handler_that_waits_is_right_on_the_io_lane():
    advice = advice_on(WAITS)
    assert (advice.kind, advice.level) == ("io", "")
    assert advice.text == "parse waits for 99% of its time: io is right"


def test_sleep_is_not_taken_for_computing():
    assert judge(replace(WAITS, cpu_s=2e-5, wait_s=Span(0.00998, 0.00998)), TWO_CORES).kind == "io"


def test_handler_that_waits_and_computes_is_right_where_many_can_wait():
    half = replace(COMPUTES, wall_s=0.02, wait_s=Span(0.01, 0.01))
    assert judge(half, TWO_CORES).kind == "io"
    assert judge(in_workers(half), TWO_CORES).kind == "io"


def test_tiny_handler_is_right_where_it_is_cheapest_to_call():
    tiny = replace(COMPUTES, wall_s=3e-6, cpu_s=3e-6, runs=10**6)
    advice = advice_on(tiny)
    assert (advice.kind, advice.level) == ("io", "")
    assert "GIL" not in advice.text


def test_computing_in_workers_is_right_if_transport_is_cheap():
    advice = advice_on(in_workers(COMPUTES))
    assert (advice.kind, advice.level) == ("cpu", "")


def test_dear_transport_speaks_for_threads():
    advice = advice_on(in_workers(COMPUTES, transport_s=0.02, unpacking_s=0.01))
    assert (advice.kind, advice.level) == ("threads", "warning")
    assert advice.gain == pytest.approx(4.0, rel=0.1)
    assert "without a GIL threads compute side by side" in advice.text


def test_handler_that_needs_a_process_keeps_it():
    evidence = in_workers(COMPUTES, transport_s=0.02, unpacking_s=0.01, needs_process=True)
    assert judge(evidence, TWO_CORES) == Judgement("cpu")


def test_waiting_in_workers_belongs_to_the_io_lane():
    advice = advice_on(in_workers(WAITS))
    assert (advice.kind, advice.level) == ("io", "warning")


def test_async_handler_that_computes_is_to_let_a_thread_do_it():
    advice = advice_on(replace(COMPUTES, is_async=True, load=1.0))
    assert (advice.kind, advice.level) == ("threads", "warning")
    assert "let a plain `def` handler do the computing" in advice.text
    assert advice.gain == pytest.approx(2.0, rel=0.01)


def test_async_handler_that_waits_is_right_on_the_event_loop():
    assert judge(replace(WAITS, is_async=True), TWO_CORES) == Judgement("io")


def test_single_core_has_nothing_to_gain():
    single = replace(TWO_CORES, cores=1, cpu_workers=1)
    assert judge(COMPUTES, single).gain == 1.0
    assert judge(replace(COMPUTES, is_async=True), single) == Judgement("io")


def test_more_cores_than_threads_are_named():
    advice = advice_on(COMPUTES, Machine(cores=64, cpu_workers=64, io_workers=4, gil=False))
    assert advice.kind == "threads"
    assert advice.gain == pytest.approx(16.0, rel=0.1)
    assert "more io_workers" in advice.text


def test_unknown_waiting_gives_no_judgement():
    assert judge(replace(COMPUTES, wall_s=0.02, wait_s=Span(0.0, 0.01)), TWO_CORES) == SILENT


def test_cost_of_sending_need_not_be_known():
    assert not judge(replace(COMPUTES, obstacle=None), TWO_CORES).unweighed


def test_event_that_cannot_travel_is_no_obstacle():
    assert (
        judge(replace(COMPUTES, obstacle="its events cannot travel"), TWO_CORES).kind == "threads"
    )


KINDS: st.SearchStrategy[Literal["io", "cpu"]] = st.sampled_from(("io", "cpu"))


@given(st.floats(1e-6, 10.0), st.floats(0.0, 10.0), st.floats(0.0, 1.0), st.booleans(), KINDS)
def test_auto_handler_on_threads_never_moves(
    cpu_s: float, idle_s: float, least: float, is_async: bool, kind: Literal["io", "cpu"]
):
    evidence = replace(
        COMPUTES,
        is_async=is_async,
        runs=10**6,
        wall_s=cpu_s + idle_s,
        cpu_s=cpu_s,
        gil_s=NONE,
        wait_s=Span(least * idle_s, idle_s),
        obstacle="",
    )
    policy, judgement = SwitchPolicy(), judge(evidence, TWO_CORES)
    assert not any(policy.moves("io", judgement, now) for now in (1.0, 2.0, 3.0))


ON_THREADS = replace(TWO_CORES, cpu_on_threads=True)


def test_cpu_handler_that_computes_on_threads_has_nothing_to_change():
    advice = advice_on(in_workers(COMPUTES), ON_THREADS)
    assert (advice.kind, advice.level, advice.gain) == ("threads", "", 1.0)
    assert "nothing has to change" in advice.text


def test_cpu_handler_that_waits_on_as_many_threads_as_cores_belongs_to_the_io_lane():
    advice = advice_on(in_workers(WAITS), ON_THREADS)
    assert (advice.kind, advice.level) == ("io", "warning")
    assert advice.gain > 10


def test_cpu_handler_that_waits_a_little_on_threads_has_nothing_to_change():
    waits_s = COMPUTES.cpu_s / 3
    evidence = in_workers(replace(COMPUTES, wall_s=COMPUTES.wall_s + waits_s * COMPUTES.runs))
    advice = advice_on(replace(evidence, wait_s=Span(waits_s, waits_s)), ON_THREADS)
    assert (advice.kind, advice.level, advice.gain) == ("threads", "", 1.0)


@pytest.mark.parametrize("kind", ["io", "cpu"])
def test_handler_that_computes_on_threads_with_a_gil_is_sent_to_processes(
    kind: Literal["io", "cpu"],
):
    evidence = replace(COMPUTES, kind=kind, gil_s=Span(0.01, 0.01), obstacle="")
    advice = advice_on(evidence, replace(ON_THREADS, gil=True))
    assert advice.kind == "cpu"
    assert "with cpu='processes' for the bus" in advice.text
