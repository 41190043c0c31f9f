# SPDX-License-Identifier: MIT
"""The page of `procbus serve` in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.browser import CHROMIUM, Browser
from tests.integration.live_stage import Stage
from tests.integration.test_serve import Served
from tests.live_picture import make_picture
from tests.waits import BOUND_S, eventually

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

#: Names and texts of a user that would do harm on a page that took them for HTML.
SCRIPT = """
import os, time
from procbus import EventBus, current, subscribe


def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.005)


@subscribe("held", kind="cpu")
def held(event):
    current().progress(4_211, 5_000, "<img src=x onerror=fail()>")
    wait_for("go")


@subscribe("bad", name="<b>bad</b>")
def bad(event):
    with open("bad.txt", "a") as file:
        print(event, file=file)
    raise ValueError("<script>fail()</script>")


if __name__ == "__main__":
    with EventBus(cpu_workers=1, journal="run.db", on_failure=lambda _: None) as bus:
        bus.publish("bad", "</script><i>a</i>").wait()
        receipt = bus.publish("held", 1)
        open("ready", "w").close()
        receipt.wait()
        print(receipt.deliveries[0].state.value, flush=True)
        wait_for("end")
"""

Open = Callable[..., Browser]
Serve = Callable[..., Served]


@pytest.fixture
def serve(stage: Stage) -> Iterator[Serve]:
    with ExitStack() as ending:

        def start(*arguments: str) -> Served:
            served = Served(stage, *arguments)
            ending.callback(served.end)
            return served

        yield start


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as ending:
        number = 0

        def start(
            address: str, width: int = 1280, height: int = 900, dark: bool = False
        ) -> Browser:
            nonlocal number
            number += 1
            browser = ending.enter_context(
                Browser(tmp_path / f"browser{number}", width, height, dark)
            )
            browser.open(address)
            return browser

        yield start


def press(page: Browser, name: str) -> None:
    """Press the button of a name by the keyboard, once it is there."""
    found = (
        "[...document.querySelectorAll('button')].find(each => each.offsetParent "
        "&& !each.disabled && (each.getAttribute('aria-label') || each.textContent) "
        f"=== {json.dumps(name)})"
    )
    eventually(lambda: page.run(f"Boolean({found})"))
    page.run(f"{found}.focus()")
    page.press("Enter")


def tells(page: Browser, text: str) -> None:
    """Wait for the words that the page has for an action; it shows them for some seconds."""
    said = "document.querySelector('#toast').textContent"
    eventually(lambda: text in page.run(said))


def test_the_page_shows_a_bus_and_acts_on_it_by_the_keyboard(
    stage: Stage, serve: Serve, browse: Open
) -> None:
    run = stage.start(SCRIPT)
    served = serve()
    page = browse(served.address)

    page.shows("script.py", "live", "held", "4,211 of 5,000", "ValueError: <script>fail()</script>")
    page.shows("<b>bad</b>", "<img src=x onerror=fail()>")
    assert served.token not in page.run("location.href")
    assert page.run("document.cookie") == ""
    assert (
        page.run("document.querySelectorAll('#bus b, #bus i:not(.bar > i), #bus img').length") == 0
    )

    page.run("document.querySelector('summary').focus()")
    page.press("Enter")
    press(page, "Replay event #1")
    tells(page, "Event #1 runs again as")
    eventually(lambda: (stage.folder / "bad.txt").read_text().count("a") == 2)

    press(page, "Pause the io lane")
    page.shows("The io lane is paused: paused by hand")
    press(page, "Resume the io lane")
    tells(page, "The io lane goes on")
    page.shows("live", without="paused by hand")

    press(page, "Stack of procbus-companion-1")
    page.shows("in held", 'wait_for("go")')
    page.press("Escape")
    press(page, "Cancel event #2")
    page.shows("ends as cancelled")
    press(page, "Cancel it")
    tells(page, "Event #2 is cancelled")
    assert run.stdout is not None
    assert run.stdout.readline() == "cancelled\n"

    stage.let("end")
    assert run.wait(BOUND_S) == 0
    page.shows("This bus has ended", "in the journal")
    page.run("document.querySelector('#journal-letters summary').click()")
    press(page, "Run event #1 again")
    tells(page, "will run again at the next start")
    assert page.errors == []


@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)], ids=["phone", "desk"])
def test_the_page_fits_its_window(
    stage: Stage, serve: Serve, browse: Open, width: int, dark: bool
) -> None:
    stage.start(SCRIPT)
    page = browse(serve().address, width, 844, dark)
    page.shows("4,211 of 5,000", "ValueError")

    assert page.run("document.documentElement.scrollWidth") <= width
    ground = page.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{ground[4:-1]}]")) < 200) == dark
    # The pointer over a plot tells the figures of that moment.
    eventually(lambda: page.run("document.querySelector('.plot .lead').getAttribute('d')"))
    box = page.run(
        "document.querySelector('.plot svg').scrollIntoView({block: 'center'}), "
        "JSON.parse(JSON.stringify(document.querySelector('.plot svg').getBoundingClientRect()))"
    )
    page.move_to(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    eventually(lambda: page.run("document.querySelector('.plot .at').textContent"))
    assert page.errors == []


def test_the_page_comes_and_goes_with_buses_and_with_the_server(
    stage: Stage, serve: Serve, browse: Open
) -> None:
    served = serve()
    page = browse(served.address)
    page.shows("No bus is alive that can be watched")
    stage.start(SCRIPT)
    page.shows("script.py", "live", without="No bus is alive")
    served.end()
    page.shows("procbus serve does not answer", "script.py")


@pytest.mark.slow
def test_the_picture_of_the_docs_can_be_made_again(tmp_path: Path) -> None:
    make_picture(tmp_path / "live.png", points=2)

    assert (tmp_path / "live.png").read_bytes().startswith(b"\x89PNG")
