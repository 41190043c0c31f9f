"""The judgement on a handler's kind: the pure function, without any machine."""

from dataclasses import replace
from typing import Any, Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from procbus.advice.judge import (
    BETTER,
    CPU_S,
    FEW_RUNS,
    FEW_S,
    MANY_RUNS,
    SILENT,
    Judgement,
    io_over_cpu,
    judge,
)
from procbus.core.meter import Evidence, Machine, Span

TWO_CORES = Machine(cores=2, cpu_workers=2, io_workers=32)
KINDS: st.SearchStrategy[Literal["io", "cpu"]] = st.sampled_from(("io", "cpu"))
SECONDS = st.floats(1e-7, 100)
SHARES = st.floats(0, 1)


def exactly(value: float) -> Span:
    return Span(value, value)


def evidence_of(**measured: Any) -> Evidence:
    """A handler that ran often, computes 10 ms with the GIL and does not wait."""
    usual = Evidence(
        "io",
        runs=1_000,
        wall_s=0.01,
        cpu_s=0.01,
        gil_s=exactly(0.01),
        obstacle="",
        at_once=4.0,
        load=1.0,
    )
    return replace(usual, **measured)


@st.composite
def evidences(draw: st.DrawFn, /, **fixed: Any) -> Evidence:
    cpu_s, idle_s = draw(SECONDS), draw(st.just(0.0) | SECONDS)
    wall_s = cpu_s + idle_s
    low, high = sorted((draw(SHARES), draw(SHARES)))
    least, most = sorted((draw(SHARES), draw(SHARES)))
    found = Evidence(
        draw(KINDS),
        draw(st.booleans()),
        draw(st.integers(0, 100_000)),
        wall_s,
        cpu_s,
        draw(st.just(0.0) | SECONDS),
        Span(low * cpu_s, high * cpu_s),
        Span(least * idle_s, most * idle_s),
        draw(st.just(0.0) | SECONDS),
        draw(st.just(0.0) | SECONDS),
        draw(st.sampled_from([None, "", "its events cannot travel"])),
        draw(SECONDS),
        draw(st.floats(0, 64)),
        draw(st.floats(0, 64)),
    )
    if found.kind == "cpu":
        found = replace(found, is_async=False)
    return replace(found, **fixed)


machines = st.builds(
    Machine,
    cores=st.integers(1, 128),
    cpu_workers=st.integers(1, 128),
    io_workers=st.integers(1, 64),
    gil=st.booleans(),
)


def test_pure_python_belongs_to_processes():
    judgement = judge(evidence_of(), TWO_CORES)
    assert judgement.kind == "cpu"
    assert judgement.gain == pytest.approx(2.0, rel=0.01)
    assert judgement.loud


def test_handler_is_right_on_that_lane():
    evidence = evidence_of(kind="cpu", gil_s=Span(0.0, 0.01))
    assert judge(evidence, TWO_CORES) == Judgement("cpu")


def test_waiting_handler_belongs_to_threads():
    evidence = evidence_of(
        kind="cpu", cpu_s=1e-5, gil_s=Span(0.0, 1e-5), wait_s=exactly(0.01), at_once=2.0
    )
    judgement = judge(evidence, TWO_CORES)
    assert judgement.kind == "io"
    assert judgement.gain > 10
    assert judgement.loud


def test_handler_that_releases_the_gil_is_right_on_threads():
    assert judge(evidence_of(gil_s=Span(0.0, 0.002)), TWO_CORES) == Judgement("io")


def test_half_waiting_and_half_computing_is_as_well_on_either_of_two_cores():
    half = {"wall_s": 0.02, "wait_s": exactly(0.01)}
    assert judge(evidence_of(**half), TWO_CORES).kind == "io"
    assert judge(evidence_of(kind="cpu", **half), TWO_CORES).kind == "cpu"


def test_fetching_and_parsing_in_one_stays_on_threads():
    evidence = evidence_of(wall_s=0.11, wait_s=exactly(0.1))
    assert judge(evidence, TWO_CORES) == Judgement("io")


def test_single_core_has_nothing_to_gain():
    assert judge(evidence_of(), Machine(1, 1, 32)).kind == "io"


def test_a_tiny_handler_is_right_where_it_is_cheapest_to_call():
    assert judge(
        evidence_of(wall_s=3e-6, cpu_s=3e-6, gil_s=exactly(3e-6), runs=10**6), TWO_CORES
    ) == (Judgement("io"))


def test_transport_that_costs_more_than_the_handler_speaks_for_threads():
    evidence = evidence_of(
        kind="cpu", wall_s=3e-6, cpu_s=3e-6, gil_s=Span(0.0, 3e-6), transport_s=4e-5, runs=10**6
    )
    assert judge(evidence, TWO_CORES).kind == "io"


def test_an_async_handler_that_computes_is_to_let_a_process_do_it():
    assert judge(evidence_of(is_async=True), TWO_CORES).kind == "cpu"


def test_handler_whose_events_cannot_travel_stays():
    assert judge(evidence_of(obstacle="its events cannot travel"), TWO_CORES) == Judgement("io")


def test_cpu_is_never_advised_before_the_transport_cost_is_known():
    assert judge(evidence_of(obstacle=None), TWO_CORES) == Judgement(None, unweighed=True)


def test_disagreeing_bounds_give_no_judgement():
    assert judge(evidence_of(gil_s=Span(0.001, 0.01)), TWO_CORES) == SILENT
    unknown = evidence_of(kind="cpu", wall_s=0.02, gil_s=Span(0.0, 0.01), wait_s=exactly(0.01))
    assert judge(unknown, TWO_CORES) == SILENT


def test_the_loss_is_not_large_where_a_handler_is_hardly_used():
    assert not judge(evidence_of(load=0.1), TWO_CORES).loud


def test_loss_is_not_large_if_no_other_handler_waits():
    assert not judge(evidence_of(at_once=1.0), TWO_CORES).loud


@given(evidences(), st.integers(0, FEW_RUNS - 1) | st.integers(0, MANY_RUNS - 1), machines)
def test_thin_evidence_gives_no_judgement(evidence: Evidence, runs: int, machine: Machine):
    evidence = replace(evidence, runs=runs)
    assume(evidence.runs < FEW_RUNS or evidence.seen_s < FEW_S)
    assert judge(evidence, machine) == SILENT


def test_waiting_may_favour_processes_if_there_is_a_single_thread():
    # More waiting makes the io lane slower then too, so the ends are the other way round.
    evidence = evidence_of(
        kind="cpu",
        wall_s=23.0,
        cpu_s=19.0,
        gil_s=exactly(0.0),
        wait_s=Span(0.0, 4.0),
        transport_s=26.0,
    )
    assert judge(evidence, Machine(cores=1, cpu_workers=1, io_workers=1)) == SILENT


@given(evidences(), machines)
def test_judgement_is_loud_only_for_a_change_on_solid_evidence(
    evidence: Evidence, machine: Machine
):
    judgement = judge(evidence, machine)
    if judgement.loud:
        assert judgement.kind not in (None, evidence.kind)
        assert evidence.runs >= 20
        assert evidence.seen_s >= 0.5
        assert evidence.at_once >= 1.5
        assert judgement.gain >= BETTER


@given(evidences(), machines)
def test_a_change_is_advised_only_for_a_gain(evidence: Evidence, machine: Machine):
    judgement = judge(evidence, machine)
    if judgement.kind == "threads":  # what the io lane has as well
        assert judgement.gain == 1.0 or judgement.gain >= BETTER * (1 - 1e-9)
    elif judgement.kind not in (None, evidence.kind):
        assert judgement.gain >= BETTER * (1 - 1e-9)
    else:
        assert judgement.gain == 1.0


@given(evidences(), machines, st.integers(1, 1_000))
def test_more_of_the_same_evidence_never_makes_it_silent(
    evidence: Evidence, machine: Machine, times: int
):
    judgement = judge(evidence, machine)
    more = judge(replace(evidence, runs=evidence.runs * times), machine)
    if judgement.kind is not None:
        assert more.kind == judgement.kind
        assert more.gain == judgement.gain


@given(evidences(), machines, SHARES)
def test_narrower_bounds_never_reverse_a_verdict(evidence: Evidence, machine: Machine, at: float):
    def within(span: Span) -> Span:
        return exactly(min(span.high, max(span.low, span.low + at * (span.high - span.low))))

    judgement = judge(evidence, machine)
    if judgement.kind is not None:
        known = replace(evidence, gil_s=within(evidence.gil_s), wait_s=within(evidence.wait_s))
        assert judge(known, machine).kind == judgement.kind


@given(evidences(kind="io", is_async=False, obstacle=""), machines, SHARES, SHARES)
def test_holding_the_gil_longer_never_speaks_for_threads(
    evidence: Evidence, machine: Machine, one: float, other: float
):
    less, more = sorted((one * evidence.cpu_s, other * evidence.cpu_s))
    wait_s = evidence.wait_s.low
    assert io_over_cpu(evidence, machine, less, wait_s) <= io_over_cpu(
        evidence, machine, more, wait_s
    )


@given(evidences(), machines, st.floats(0, 10))
def test_dearer_transport_never_speaks_for_processes(
    evidence: Evidence, machine: Machine, more_s: float
):
    dearer = replace(evidence, transport_s=evidence.transport_s + more_s)
    args = machine, evidence.gil_s.high, evidence.wait_s.low
    assert io_over_cpu(dearer, *args) <= io_over_cpu(evidence, *args)


@given(evidences(), machines, st.floats(2, 1_000))
def test_scaling_all_times_changes_no_judgement(
    evidence: Evidence, machine: Machine, factor: float
):
    """Without the bus's own cost of a delivery, which matters only for short handlers."""
    times = ("wall_s", "cpu_s", "children_s", "transport_s", "unpacking_s")
    assume(evidence.cpu_s > 1_000 * CPU_S)
    longer = replace(
        evidence,
        **{name: getattr(evidence, name) * factor for name in times},
        gil_s=Span(*(bound * factor for bound in evidence.gil_s)),
        wait_s=Span(*(bound * factor for bound in evidence.wait_s)),
    )
    short = io_over_cpu(evidence, machine, evidence.gil_s.high, evidence.wait_s.low)
    long = io_over_cpu(longer, machine, longer.gil_s.high, longer.wait_s.low)
    assert long == pytest.approx(short, rel=0.02)
