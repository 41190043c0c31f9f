# SPDX-License-Identifier: MIT
"""The accidents of the demo, each really played."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from procbus.demo.page import Printout
from procbus.demo.scenes import hang, killed, resume, wrong_kind

pytestmark = pytest.mark.slow


def test_killed_worker_loses_one_photo_and_breaks_the_pool(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    killed.play(page, 2)
    text = capsys.readouterr().out
    assert re.search(r"^procbus +199 +1  WorkerDied$", text, re.M)
    pool = re.search(r"^ProcessPoolExecutor +(\d+) +(\d+)  BrokenProcessPool$", text, re.M)
    assert pool
    assert int(pool[1]) + int(pool[2]) == 200
    assert int(pool[2]) >= 1
    assert "Photo(number=101): worker " in text


def test_hang_is_ended_with_its_stack(page: Printout, capsys: pytest.CaptureFixture[str]) -> None:
    hang.play(page, 2)
    text = capsys.readouterr().out
    assert "the process computes on" in " ".join(text.split())
    assert "longer than its timeout" in " ".join(text.split())
    # On a busy machine procbus may say instead that it could not read the stack.
    assert "in _next_token" in text or "stack of the handler could not be read" in text


def test_killed_script_does_the_rest_and_nothing_that_it_finished(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    resume.play(page, 2)
    text = capsys.readouterr().out
    figures = [int(each) for each in re.findall(r"^(?:first|second|films) .* (\d+)$", text, re.M)]
    first, second, missing, twice = figures
    assert missing == 0
    assert twice <= 2  # at most those that its two workers were at
    assert first + second == 200 + twice
    assert first < 200


def test_wrong_kind_is_found_by_the_advice(
    page: Printout, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_kind.play(page, 2)
    text = capsys.readouterr().out
    assert "checksum" in text
    as_declared, as_advised = map(float, re.findall(r'events with kind="\w+": +([0-9.]+) s', text))
    if as_advised != as_declared:  # as rounded here
        assert ("The workers needed longer" in text) == (as_advised > as_declared)


@pytest.mark.parametrize("blocked", ["", "rich"], ids=["rich", "no rich"])
def test_whole_demo_is_plain_text_in_a_pipe(tmp_path: Path, blocked: str) -> None:
    script = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked.split()!r}))\n"
        "from procbus.cli.main import main; sys.exit(main(['demo', '--limit', '30']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        encoding="utf-8",
        timeout=150,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert run.returncode == 0, run.stderr
    heads = re.findall(r"^\d\. .*$|^How to go on$", run.stdout, re.M)
    assert len(heads) == 6
    for character in run.stdout + run.stderr:
        assert character == "\n" or character.isprintable()
    assert list(tmp_path.iterdir()) == []
