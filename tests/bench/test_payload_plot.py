"""The plot of time by size: who is in it, and where sharing memory pays."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import payload_plot, payload_sizes
from bench.large_contenders import LARGE_CONTENDERS, PIPE
from bench.model import LIMIT, PROCBUS
from bench.payload_sizes import SHARED, SIZES, row_of

pytestmark = pytest.mark.usefixtures("open_fonts")


def sizes_found(times: dict[str, list[float]]) -> Any:
    """Results of `payload_sizes` in which each contender takes the same times for every size."""
    contenders = {
        name: {"median": sorted(runs)[len(runs) // 2], "runs": runs} for name, runs in times.items()
    }
    rows = {row_of(size): {"contenders": contenders} for size in payload_sizes.SIZES}
    return {"questions": {"payload_sizes": {"rows": rows}}}


OURS = {PROCBUS: [1.0, 2.0, 3.0], PIPE: [4.0, 4.0, 4.0], SHARED: [1.0, 1.0, 1.0]}


@pytest.mark.slow
def test_the_plot_names_every_contender_and_both_axes(tmp_path: Path) -> None:
    results, plot = tmp_path / "results.json", tmp_path / "plot.svg"
    results.write_text(json.dumps(sizes_found(OURS | {LIMIT: [0.001], "loky": [9.0, 9.5]})))
    payload_plot.main(str(results), str(plot))
    texts = set(re.findall(r"<text[^>]*>([^<]*)<", plot.read_text(encoding="utf-8")))
    assert {"procbus", "procbus, pipe alone", "loky", "1 KiB", "256 MiB", "time in ms"} <= texts
    assert "one memcpy" not in texts  # too fast to be in the plot
    assert {payload_plot.DEFAULT_NAME, payload_plot.SHARED_NAME, "times as fast"} <= texts


def test_every_contender_of_the_question_has_a_name_in_the_plot() -> None:
    assert set(payload_plot.NAMES) == {*LARGE_CONTENDERS, LIMIT}


def test_a_gain_is_the_ratio_within_each_round() -> None:
    rows = sizes_found(OURS)["questions"]["payload_sizes"]["rows"]
    gains = payload_plot.gains(rows, PROCBUS)
    assert [size for size, _ in gains] == SIZES
    assert gains[0][1] == (2.0, 4 / 3, 4.0)


def test_results_without_our_figures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no figures of procbus"):
        payload_plot.draw(sizes_found({"loky": [1.0]}), tmp_path / "plot.svg")
