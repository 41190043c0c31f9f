"""How plots look: told apart without colours, and legible on light and dark pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench import plotting
from bench.model import LIMIT
from bench.plotting import GRID, INK, LOOKS, MORE_LOOKS, Spread, looks_of

pytestmark = pytest.mark.usefixtures("open_fonts")

PAGES = ("#ffffff", "#0d1117")  # GitHub's, light and dark


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2.1 defines it."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PAGES)
def test_all_ink_has_contrast_to_light_and_dark_pages(page: str) -> None:
    colours = {INK, *(look.colour for look in (*LOOKS.values(), *MORE_LOOKS))}
    assert {colour for colour in colours if contrast(colour, page) < 3.9} == set()
    assert len(GRID) == len(INK) + 2  # the ink, mostly transparent


def test_contenders_of_one_plot_differ_in_more_than_colour() -> None:
    names = ["serial", "thread bus", "procbus io", "procbus cpu", LIMIT, *"abcdefg"]
    looks = looks_of(names)
    assert list(looks) == names
    for mark in ("marker", "dashes", "hatch"):
        assert len({str(getattr(look, mark)) for look in looks.values()}) == len(names), mark


def test_more_contenders_than_looks_are_refused() -> None:
    with pytest.raises(ValueError, match="no more than 7 looks for a, b"):
        looks_of(list("abcdefgh"))


def test_a_plot_is_a_small_file_with_its_words_in_it_and_the_same_each_time(tmp_path: Path) -> None:
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for file in files:
        names = ["serial", "procbus cpu"]
        looks = looks_of(names)
        with plotting.drawing(columns=2) as (figure, (left, right)):
            for at, name in enumerate(names, 1):
                plotting.line(left, [(1, Spread(at, at, at)), (2, Spread(at, 0, at))], looks[name])
            left.set_ylabel("speed-up")
            plotting.name_ends(left, dict.fromkeys(names, (2, 1)), looks)
            plotting.bars(
                right, ["p50", "p99"], {"serial": [Spread(1, 1, 1), None]}, looks, text=str
            )
            plotting.save(figure, file)
    drawn = files[0].read_text()
    assert drawn == files[1].read_text()
    assert len(drawn) < 100_000
    texts = re.findall(r"<text[^>]*>([^<]*)<", drawn)
    assert {"speed-up", "procbus cpu", "serial", "p50", "p99"} <= set(texts)


def test_names_at_the_ends_of_lines_keep_apart(tmp_path: Path) -> None:
    names = ["serial", "thread bus", "procbus io"]
    looks = looks_of(names)
    with plotting.drawing() as (_, (axes,)):
        for name in names:
            plotting.line(axes, [(0, Spread(1, 1, 1)), (1, Spread(2, 2, 2))], looks[name])
        plotting.name_ends(axes, dict.fromkeys(names, (1, 2)), looks)
        heights = sorted(text.get_position()[1] for text in axes.texts)
    assert heights[1] - heights[0] == pytest.approx(plotting.NAMES_APART)
    assert heights[2] - heights[1] == pytest.approx(plotting.NAMES_APART)


def test_the_spread_is_the_median_with_the_lowest_and_the_highest_round() -> None:
    assert Spread.of([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
