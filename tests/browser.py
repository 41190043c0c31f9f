"""Headless Chromium, driven over a pipe by its DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.waits import BOUND_S, becomes

#: The browser that `make chromium` fetches.
_FETCHED = str(Path(__file__).parents[1] / ".chromium" / "chromium")
#: The browser: PROCBUS_CHROMIUM, the fetched one, or the one on PATH; None if there is none.
CHROMIUM = os.environ.get("PROCBUS_CHROMIUM") or next(
    filter(None, map(shutil.which, (_FETCHED, "chromium"))), None
)
#: Interval between two looks at a page, in seconds; because each look is work for the page.
_LOOK_S = 0.05

#: Gives the browser the two ends under the numbers by which it knows them.
_EXEC = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page in a browser of its own. A context manager; not thread-safe.

    Args:
        folder: a directory for the browser's files.
        width: width of the page, in pixels.
        height: height of the page, in pixels.
        dark: whether the user prefers a dark page.
    """

    def __init__(self, folder: Path, width: int = 1280, height: int = 900, dark: bool = False):
        assert CHROMIUM is not None
        there, self._out = _pipe()
        self._in, back = _pipe()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-S", "-c", _EXEC, str(there), str(back), CHROMIUM),
                *("--headless", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run"),
                *("--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"),
                *(f"--user-data-dir={folder}", "--hide-scrollbars", "about:blank"),
            ],
            pass_fds=(there, back),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(there)
        os.close(back)
        self._received = bytearray()
        self._number = 0
        #: The errors of scripts and of the security policy that the page has logged.
        self.errors: list[str] = []
        self._session: str | None = None
        target = next(
            each for each in self._ask("Target.getTargets")["targetInfos"] if each["type"] == "page"
        )
        self._session = self._ask(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self.resize(width, height)
        self._ask(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(BOUND_S)
        os.close(self._out)
        os.close(self._in)

    def resize(self, width: int, height: int) -> None:
        """Give the page another size; a narrow one is a phone's."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def open(self, address: str) -> None:
        """Go to a page."""
        self._ask("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """Run a script in the page, and return its plain result."""
        result = self._ask(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def text(self) -> str:
        """The text that a user sees on the page."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def shows(self, *texts: str, without: str = "\0") -> None:
        """Wait until all texts are on the page, and one is not."""
        seen = ""

        def there() -> bool:
            nonlocal seen
            time.sleep(_LOOK_S)
            seen = self.text()
            return all(text in seen for text in texts) and without not in seen

        assert becomes(there, BOUND_S), f"{texts} (without {without!r}) did not come:\n{seen}"

    def press(self, key: str) -> None:
        """Press a key, by its name in the DOM, such as "Enter" or "Tab"."""
        codes = {"Enter": 13, "Tab": 9, "Escape": 27, "ArrowLeft": 37}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **about)

    def move_to(self, x: float, y: float) -> None:
        """Move the pointer."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, *, whole: bool = False) -> bytes:
        """The page as PNG; all of its length, or the part that is in sight."""
        return base64.b64decode(
            self._ask("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
            if not whole
            else self._ask(
                "Page.captureScreenshot",
                captureBeyondViewport=True,
                clip={**self._size(), "x": 0, "y": 0, "scale": 1},
            )["data"]
        )

    def _size(self) -> dict[str, float]:
        size = self._ask("Page.getLayoutMetrics")["cssContentSize"]
        return {"width": size["width"], "height": size["height"]}

    def _ask(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._message()
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                return reply["result"]
            self._hear(reply)

    def _message(self) -> Any:
        deadline = time.monotonic() + BOUND_S
        while (end := self._received.find(b"\0")) < 0:
            left_s = max(0.0, deadline - time.monotonic())
            assert select.select([self._in], [], [], left_s)[0], "the browser does not answer"
            data = os.read(self._in, 1 << 18)
            assert data, f"the browser has ended: {self._process.poll()}"
            self._received += data
        message = json.loads(self._received[:end])
        del self._received[: end + 1]
        return message

    def _hear(self, event: Any) -> None:
        about = event.get("params", {})
        if event.get("method") == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description", str(details)))
        elif event.get("method") == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")


def _pipe() -> tuple[int, int]:
    """A pipe whose ends have numbers above the two that the browser knows."""
    ends = os.pipe()
    read, write = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return read, write
