"""Fixtures for tests with real processes."""

from __future__ import annotations

import shutil
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from procbus.pool import stack
from tests.integration.helpers import Bell, Door, Ended, Listener, Program, Tally
from tests.integration.live_stage import Stage
from tests.waits import BOUND_S

Start = Callable[..., Program]
Run = Callable[..., Ended]


@pytest.fixture(autouse=True)
def nothing_of_its_own_failed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test in which a thread of procbus came upon an error of its own, and went on."""
    yield
    failed = [r for r in caplog.get_records("call") if "procbus itself failed" in r.getMessage()]
    assert not failed, caplog.text


@pytest.fixture(autouse=True)
def patience_for_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give a worker on a busy machine the time to write its stack before it is killed."""
    monkeypatch.setattr(stack, "PATIENCE_S", 10.0)


@pytest.fixture
def tally(tmp_path: Path) -> Tally:
    return Tally(str(tmp_path / "tally"))


@pytest.fixture
def bell(tmp_path: Path) -> Bell:
    return Bell.make(tmp_path / "bell")


@pytest.fixture
def heard(bell: Bell) -> Iterator[Listener]:
    with bell.heard() as listener:
        yield listener


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(str(tmp_path / "door"))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a script, given as its text."""
    started: list[Program] = []

    def start_one(text: str, *arguments: str, **environment: str) -> Program:
        path = tmp_path / f"job{len(started)}.py"
        path.write_text(textwrap.dedent(text))
        started.append(Program(path, *arguments, **environment))
        return started[-1]

    yield start_one
    for program in started:
        program.close()


@pytest.fixture
def run(start: Start) -> Run:
    """Run a script, given as its text, to its end."""

    def run_one(text: str, *arguments: str, **environment: str) -> Ended:
        return start(text, *arguments, **environment).finish()

    return run_one


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    made = Stage(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made.home))
    monkeypatch.setattr(tempfile, "tempdir", str(made.home))
    yield made
    for run in made.started:
        if run.poll() is None:
            run.kill()
        run.communicate(timeout=BOUND_S)
    shutil.rmtree(made.home, ignore_errors=True)
