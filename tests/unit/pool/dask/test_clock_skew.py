"""Times of another machine."""

from procbus.core.outcome import Outcome, OutcomeKind
from procbus.pool.dask.clock_skew import boot_id, report_here
from procbus.pool.interface import Report
from procbus.pool.wire import Successes


def test_all_times_of_a_report_are_shifted() -> None:
    raised = Outcome(OutcomeKind.RAISED, None, ValueError(), 3.0, 4.0, 1)
    report = Report(1, Successes([(1.0, 2.0, 0)], ["value"]), [(raised, None)], True)

    here = report_here(report, 100.0)

    assert here.successes == Successes([(101.0, 102.0, 0)], ["value"])
    [(outcome, _)] = here.ends
    assert (outcome.started_at, outcome.ended_at) == (103.0, 104.0)
    assert (here.batch, here.complete) == (1, True)


def test_a_report_of_this_machine_stays_as_it_is() -> None:
    report = Report(1, Successes([(1.0, 2.0, 0)], ["value"]), [], True)

    assert report_here(report, 0.0) is report


def test_a_machine_is_distinguished_from_others_by_one_word() -> None:
    assert boot_id() == boot_id()
