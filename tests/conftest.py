"""Rules for every test: nothing is left behind, and no test is timed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import pytest
from hypothesis import HealthCheck, settings

from tests import leaks

if TYPE_CHECKING:
    from tests.conformance.drive import Gate

# A shell has its background jobs ignore Ctrl-C, and so would all scripts that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# `make test-switch`: threads take turns as often as Python lets them, here and in scripts of tests
# that ask for it.
if interval_s := os.environ.get("PROCBUS_TEST_SWITCH_S"):
    sys.setswitchinterval(float(interval_s))
os.environ[leaks.MARK] = leaks.RUN
leaks.record_children()

PHASES: Final[tuple[Literal["setup", "call", "teardown"], ...]] = ("setup", "call", "teardown")

# No test asserts on elapsed time, so hypothesis does not either: an example, or the making of
# examples, takes long beside other busy programs.
PROFILE: Final = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# Few examples, the same each time, so that a failure comes from a change of the code. `make
# test-all` looks for new ones: --hypothesis-profile=thorough.
settings.register_profile("quick", PROFILE, max_examples=20, derandomize=True)
settings.register_profile("thorough", PROFILE)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def nothing_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test that leaves a process, thread, file descriptor or shared memory behind.

    Autouse, so it is set up before the test's own fixtures and looks after they have cleaned up.
    """
    before = leaks.Snapshot.take()
    yield
    # pytest keeps the records until later. Their text is made by now, and the frames of a traceback
    # keep the objects of the failed code alive.
    for records in map(caplog.get_records, PHASES):
        for record in records:
            record.exc_info = None
    left = leaks.leaks_since(before)
    if left:
        message = f"the test left behind:\n{left}"  # describes the processes: before the kill
        left.kill_processes()
        pytest.fail(message, pytrace=False)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Give a door at which a worker's handler waits; it is open at the end of the test."""
    from tests.conformance.drive import Gate  # only now: most tests need none

    gate = Gate(tmp_path)
    yield gate
    gate.open()


@pytest.fixture(scope="session")
def open_fonts() -> None:
    """Have matplotlib open the font files that it keeps open, before a test is watched for such."""
    import io

    from bench import plotting

    with plotting.drawing() as (figure, (axes,)):
        axes.set_title("bold")
        axes.set_xlabel("plain $10^{-2}$")
        figure.savefig(io.BytesIO(), format="svg")
