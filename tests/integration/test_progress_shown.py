# SPDX-License-Identifier: MIT
"""Progress as scripts show it: in terminals of two widths, in a notebook, in a log."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Run
from tests.integration.helpers import Door
from tests.integration.terminal import Terminal

Open = Callable[..., Terminal]

#: Ten events, of which the last waits at the door, and one fails.
JOB = """
import fcntl, logging, sys
from procbus import EventBus, current

logging.basicConfig(format="%(message)s")
logging.getLogger("procbus").setLevel(logging.CRITICAL)

def handle(number):
    if number == 3:
        raise ValueError(number)
    if number == 9:
        current().progress(42, 50, "parsing")
        with open("door") as file:
            fcntl.flock(file, fcntl.LOCK_SH)

with EventBus([], io_workers=2) as bus:
    bus.subscribe(int, handle)
    for receipt in bus.stream(range(10), progress=True):
        if receipt.event == 5:
            print("print", "of", "five")
            print("to stderr", file=sys.stderr)
            logging.getLogger("mine").warning("logged")
"""


@pytest.fixture
def in_terminal(tmp_path: Path) -> Iterator[Open]:
    """Run a script, given as its text, in a terminal of its own."""
    pytest.importorskip("rich")
    opened: list[Terminal] = []

    def open_one(text: str, columns: int = 100, **environment: str) -> Terminal:
        path = tmp_path / f"job{len(opened)}.py"
        path.write_text(textwrap.dedent(text))
        opened.append(Terminal(path, columns, **environment))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


@pytest.mark.parametrize(
    ("columns", "while_running", "at_the_end"),
    [
        (
            100,
            r"^events  ━{36}────  9/10  90%  .+ left  1 failed\n"
            r"  io   1 running       0 queued\n"
            r"  __main__.handle: 42 of 50: parsing\n?\Z",
            r"^events  ━{40}  10/10  100%  .+  in 0:\d\d  1 failed\n\Z",
        ),
        (
            60,
            r"^events  ━+─+  9/10  .* left  1 failed\n"
            r"  io   1 running       0 queued\n"
            r"  __main__.handle: 42 of 50: parsing\n?\Z",
            r"^events  ━+  10/10  .*  in 0:\d\d  1 failed\n\Z",
        ),
    ],
)
def test_bars_in_a_terminal_stand_below_all_other_text(
    in_terminal: Open, door: Door, columns: int, while_running: str, at_the_end: str
) -> None:
    with door.shut():
        terminal = in_terminal(JOB, columns)
        shown = terminal.until("(?m)" + while_running)
        assert "print of five\nto stderr\nlogged\nevents" in shown
    assert re.search("(?m)" + at_the_end, terminal.finish()), terminal.screen.text()
    assert terminal.screen.text().count("events") == 1
    assert terminal.screen.colours


def test_no_color_is_heeded(in_terminal: Open, door: Door) -> None:
    with door.shut():
        terminal = in_terminal(JOB, NO_COLOR="1")
        terminal.until(" 9/10 ")
    terminal.finish()
    assert not [each for each in terminal.screen.colours if re.search(r"\[(3|4|9|10)\d", each)]


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"PROCBUS_PROGRESS": "plain"}])
def test_plain_lines_in_a_terminal_without_bars(
    in_terminal: Open, door: Door, environment: dict[str, str]
) -> None:
    with door.shut():
        terminal = in_terminal(JOB, 200, **environment)
        terminal.until(r"events: 9 of 10 \(90%\), .*; __main__.handle: 42 of 50: parsing")
    shown = terminal.finish()
    assert re.search(r"events: 10 of 10 \(100%\) in .* s, .*/s, 1 failed\n\Z", shown), shown
    assert terminal.screen.colours == []


def test_nothing_is_shown_when_the_environment_says_so(in_terminal: Open, door: Door) -> None:
    Path(door.path).touch()
    shown = in_terminal(JOB, PROCBUS_PROGRESS="0").finish()
    assert shown == "print of five\nto stderr\nlogged\n"


def test_bars_of_two_threads_and_a_phase_stand_together(in_terminal: Open, door: Door) -> None:
    with door.shut():
        terminal = in_terminal(
            """
            import fcntl, threading
            from procbus import EventBus

            def wait(number):
                if number in (7, 2000):
                    with open("door") as file:
                        fcntl.flock(file, fcntl.LOCK_SH)

            with EventBus([], io_workers=4) as bus:
                bus.subscribe(int, wait)
                bus.subscribe("many", wait)
                def stream():
                    for receipt in bus.stream(range(1000), topic="many", progress=True):
                        pass
                with bus.progress():
                    thread = threading.Thread(target=stream)
                    thread.start()
                    for number in range(2000, 2010):
                        bus.publish(number)
                    thread.join()
                    bus.drain()
            """
        )
        shown = terminal.until(
            r"(?m)^deliveries .*1,008/1,010 [^\n]*\n^many .*999/1,000 [^\n]*\n  io"
        )
        [phase, stream] = [line for line in shown.splitlines() if " failed" in line]
        assert len(phase) == len(stream), "the columns are aligned"
    shown = terminal.finish()
    assert sorted(re.findall(r"(?m)^(\w+) .* 100% ", shown)) == ["deliveries", "many"]


def test_ctrl_c_an_error_and_a_break_leave_a_clean_terminal(in_terminal: Open) -> None:
    terminal = in_terminal(
        """
        import signal, os
        from procbus import EventBus

        with EventBus([], io_workers=1) as bus:
            bus.subscribe(int, abs)
            for end in ("break", "error", "ctrl-c"):
                try:
                    for receipt in bus.stream(range(100), progress=True):
                        if receipt.event == 50:
                            if end == "break":
                                break
                            if end == "error":
                                raise ValueError
                            signal.raise_signal(signal.SIGINT)
                except (ValueError, KeyboardInterrupt):
                    pass
                del receipt
                print("after", end)
        """
    )
    lines = terminal.finish().splitlines()
    assert [line.split()[0] for line in lines] == ["events", "after"] * 3, lines


def test_where_there_is_no_terminal_a_line_tells_the_end(run: Run, door: Door) -> None:
    Path(door.path).touch()
    ended = run(JOB)
    assert ended.code == 0
    assert re.search(r"(?m)^events: 10 of 10 \(100%\) in .* s, .*/s, 1 failed$", ended.err)
    quiet = run(JOB.replace("progress=True", "progress=False"))
    assert quiet.err == "to stderr\nlogged\n"


@pytest.mark.parametrize("close", ["sys.stderr.close()", "os.close(2)", "sys.stderr = None"])
def test_a_script_without_stderr_goes_on(run: Run, close: str) -> None:
    ended = run(
        f"""
        import os, sys
        from procbus import EventBus

        {close}
        with EventBus([]) as bus:
            bus.subscribe(int, abs)
            print(sum(1 for _ in bus.stream(range(100), progress=True)))
        """
    )
    assert ended.out == "100\n"
    assert ended.code == 0


@pytest.mark.parametrize("widgets", [True, False])
def test_progress_in_a_notebook(run: Run, widgets: bool) -> None:
    for needed in ("nbclient", "ipykernel", *(["ipywidgets"] if widgets else [])):
        pytest.importorskip(needed)
    ended = run(
        """
        import sys
        import nbclient, nbformat

        hide = sys.argv[1] == "False"
        cells = [
            "import sys; sys.modules['ipywidgets'] = None" if hide else "",
            "from procbus import EventBus; bus = EventBus([]); _ = bus.subscribe(int, abs)",
            "_ = [*bus.stream(range(50), progress=True)]",
            "bus.close()",
        ]
        book = nbformat.v4.new_notebook()
        book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbclient.NotebookClient(book, timeout=50).execute()
        for output in book.cells[2].outputs:
            print(output.output_type, output.get("name"), [*output.get("data", {}).items()])
        for state in book.metadata.get("widgets", {}).values():
            print([each["state"].get("value") for each in state["state"].values()])
        """,
        str(widgets),
    )
    shown = ended.out
    assert ended.code == 0, ended.err
    assert "stderr" not in shown
    if widgets:
        assert "application/vnd.jupyter.widget-view+json" in shown, shown
        assert "50.0" in shown, shown
        assert "50/50\\u2007" in shown, shown
    else:
        assert "events: 50 of 50 (100%)" in shown, shown


def test_statistics_advice_health_and_a_receipt_are_tables_in_a_notebook(run: Run) -> None:
    for needed in ("nbclient", "ipykernel"):
        pytest.importorskip(needed)
    ended = run(
        """
        import nbclient, nbformat

        cells = [
            "from procbus import EventBus; bus = EventBus([], io_workers=1)",
            "_ = bus.subscribe(int, abs, name='<b>abs</b>')",
            "receipt = bus.publish(1); receipt.wait()",
            *("bus.stats()", "bus.advice()", "bus.health()", "receipt", "bus.close()"),
        ]
        book = nbformat.v4.new_notebook()
        book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
        nbclient.NotebookClient(book, timeout=50).execute()
        for cell in book.cells[3:7]:
            [output] = cell.outputs
            html = output["data"]["text/html"]
            assert "text/plain" in output["data"]
            assert "<table>" in html and "<b>" not in html, html
            print("&lt;b&gt;abs&lt;/b&gt;" in html)
        """
    )
    assert ended.code == 0, ended.err
    assert ended.out.split() == ["True", "True", "False", "True"], "no worker is at it any more"
