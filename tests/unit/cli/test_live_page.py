# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from procbus.cli.live_page import age, keys, page, rate, stacks_text

LANE = {
    "kind": "cpu",
    "queued": 12_345,
    "workers": 2,
    "busy": 2,
    "used": 0.97,
    "restarts": 1,
    "abandoned": 0,
    "paused": "",
    "by_hand": False,
}
TIMES = {"p50": 0.0012, "p90": 0.002, "p99": 0.0031}
HANDLER = {
    "name": "__main__.resize",
    "kind": "cpu",
    "rate": 1234.5,
    "published": 9,
    "pending": 7,
    "running": 2,
    "succeeded": 1_000,
    "failed": 0,
    "cancelled": 0,
    "retried": 0,
    "timed_out": 0,
    "crashed": 0,
    "over_memory": 0,
    "queue_s": TIMES,
    "run_s": TIMES,
}
WORKER = {
    "name": "procbus-companion-1",
    "kind": "cpu",
    "pid": 4712,
    "state": "busy",
    "handler": "__main__.resize",
    "event_id": 17,
    "running_s": 2.5,
    "memory_bytes": 1 << 25,
    "progress": {"text": "4,211 of 5,000: parsing"},
    "cpu_s": 9.0,
    "cpu_share": 0.99,
    "events_done": 500,
    "restarts": 0,
    "last_exit": "",
}
IDLE = {
    **WORKER,
    "name": "procbus-io-1",
    "kind": "io",
    "state": "idle",
    "handler": None,
    "event_id": None,
    "running_s": None,
    "progress": None,
    "memory_bytes": None,
}
LETTER = {
    "key": "9/1.0/__main__.resize",
    "event_id": 9,
    "handler": "__main__.resize",
    "kind": "cpu",
    "topic": "page",
    "event": "'a.png'",
    "error": "ValueError: no good",
    "attempts": 3,
    "failed_at": 1000.0,
    "quarantined": False,
}
SNAPSHOT: dict[str, Any] = {
    "protocol": 1,
    "at": 1065.0,
    "bus": {
        "pid": 4711,
        "number": 1,
        "script": "/srv/shop.py",
        "since": 0.0,
        "python": "3.12.1",
        "journal": None,
        "age_s": 3725.0,
        "state": "open",
    },
    "pending": 7,
    "max_pending": 10_000,
    "retrying": 0,
    "unrouted": 0,
    "lanes": [LANE],
    "handlers": [HANDLER],
    "handlers_left_out": 0,
    "workers": [WORKER, IDLE],
    "workers_left_out": 0,
    "dead_letters": [LETTER],
    "dead_letters_kept": 1,
    "advice": [
        {"handler": "resize", "level": "info", "suits": "cpu", "gain": 2.0, "text": "resize is io"}
    ],
}


def text(snapshot: dict[str, Any], width: int = 160, height: int | None = None) -> str:
    return "\n".join(row.text for row in page(snapshot, width, height))


def test_a_page_is_drawn_without_rich() -> None:
    script = (
        "import json, sys; sys.modules['rich'] = sys.modules['rich.cells'] = None\n"
        "from procbus.cli.live_page import page\n"
        "print(*(row.text for row in page(json.load(sys.stdin), 80)), sep='\\n')"
    )
    drawn = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(SNAPSHOT),
        capture_output=True,
        text=True,
        timeout=150,
    )

    assert drawn.stdout.removesuffix("\n") == text(SNAPSHOT, 80), drawn.stderr


def test_a_wide_page_shows_everything() -> None:
    assert text(SNAPSHOT).splitlines() == [
        "procbus 4711   /srv/shop.py   up 1 h 2 min   7 of 10,000 pending",
        "",
        "lane  queued  workers  busy  used  restarts  left behind",
        "cpu   12,345        2     2   97%         1            0",
        "",
        "handler  kind     rate  pending  running  succeeded  failed  retried  queue p50  "
        "queue p99  run p50  run p99",
        "resize   cpu   1,234/s        7        2      1,000       0        0     1.2 ms     "
        "3.1 ms   1.2 ms   3.1 ms",
        "",
        "worker        pid  state  handler  event  since  progress                 memory  cpu  "
        "done",
        "companion-1  4712  busy   resize      17  2.5 s  4,211 of 5,000: parsing  32 MiB  99%   "
        "500",
        "1 idle thread",
        "",
        "dead letter  event         error                attempts        age",
        "9 resize     page 'a.png'  ValueError: no good         3  1 min 5 s",
        "",
        "advice",
        "resize is io",
    ]


@pytest.mark.parametrize("width", [20, 60, 80, 200])
@pytest.mark.parametrize("height", [5, 12, 24, 60])
def test_a_page_fits_into_any_terminal(width: int, height: int) -> None:
    many = copy.deepcopy(SNAPSHOT)
    many["handlers"] *= 30
    many["workers"] *= 30
    many["dead_letters"] = [
        {**LETTER, "key": f"{n}", "event": "'" + "宽" * 90 + "'"} for n in range(50)
    ]
    many["advice"][0]["text"] = "word " * 100

    rows = page(many, width, height)

    assert len(rows) <= height
    assert max(cell_len(row.text) for row in rows) <= width


def test_narrow_pages_keep_what_tells_most() -> None:
    assert "resize   cpu   1,234/s        7        2      1,000       0" in text(SNAPSHOT, 60)
    assert "companion-1  4712  busy   resize   2.5 s  4,211 of 5,000: parsing" in text(SNAPSHOT, 70)


def test_a_row_that_is_chosen_is_on_the_page() -> None:
    many = copy.deepcopy(SNAPSHOT)
    many["dead_letters"] = [{**LETTER, "key": f"{n}", "event_id": n} for n in range(50)]

    for number in (0, 25, 49):
        shown = [row.key for row in page(many, 80, 24, ("letter", f"{number}"))]
        assert ("letter", f"{number}") in shown


def test_the_rows_that_can_be_chosen() -> None:
    assert keys(SNAPSHOT) == [
        ("lane", "cpu"),
        ("worker", "procbus-companion-1"),
        ("letter", "9/1.0/__main__.resize"),
    ]


def test_a_long_name_loses_its_beginning() -> None:
    long = copy.deepcopy(SNAPSHOT)
    long["handlers"][0]["name"] = "shop.pictures.thumbnails.of_all_sizes.resize"

    assert "..s.thumbnails.of_all_sizes.resize  1,234/s" in text(long, 60)


def test_a_paused_lane_says_so() -> None:
    paused = copy.deepcopy(SNAPSHOT)
    paused["lanes"][0] |= {"paused": "paused by hand", "by_hand": True}

    assert "paused by hand" in text(paused, 60)


def test_figures_for_people() -> None:
    assert [age(each) for each in (0.9, 60, 192, 7500, 100_000)] == [
        *("0 s", "1 min", "3 min 12 s", "2 h 5 min", "1 d 3 h"),
    ]
    assert [rate(each) for each in (None, 0.0, 1.25, 12345.6)] == ["-", "0/s", "1.2/s", "12,346/s"]


def test_stacks_come_one_below_the_other() -> None:
    stacks = {
        "workers": [{"name": "procbus-companion-1", "pid": 4712, "stack": ""}],
        "threads": [{"name": "MainThread", "main": True, "stack": '  File "a.py", line 1'}],
    }

    assert stacks_text(stacks).splitlines() == [
        "worker procbus-companion-1 (process 4712)",
        "  (between two handlers, or its stack could not be read)",
        "",
        "thread MainThread",
        '  File "a.py", line 1',
    ]


def test_the_picture_in_the_docs_is_this_page() -> None:
    docs = Path(__file__).parents[3] / "docs" / "live.md"

    assert f"```text\n{text(SNAPSHOT, 100)}\n```\n" in docs.read_text(encoding="utf-8")
