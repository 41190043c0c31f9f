"""Make docs/live.png, the picture of the page of `procbus serve`:

    PROCBUS_CHROMIUM=/usr/bin/chromium python -m tests.live_picture

A script with failing handlers works for half a minute, and a browser looks at it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from tests.browser import Browser
from tests.waits import BOUND_S, eventually

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "live.png"

#: Number of points in the plots, one a second.
POINTS = 40
WIDTH, HEIGHT = 1240, 856

SCRIPT = textwrap.dedent(
    """
    import math, time
    from procbus import EventBus, current, subscribe


    @subscribe("picture", kind="cpu", retries=1)
    def resize(number):
        end = time.perf_counter() + 0.006 + 0.004 * math.sin(time.time() / 4)
        while time.perf_counter() < end:
            pass
        if number % 97 == 0:
            raise ValueError("no picture: the file begins with b'<htm'")


    @subscribe("picture", kind="io")
    def upload(number):
        time.sleep(0.01)
        if number % 151 == 0:
            raise ConnectionError("images.example:443 refused")


    @subscribe("orders", kind="cpu")
    def summarise(month):
        for row in range(90_000):
            current().progress(row, 90_000, "rows of March")
            time.sleep(0.001)


    if __name__ == "__main__":
        with EventBus(live=True, cpu_workers=3, max_pending=2_000) as bus:
            bus.publish("orders", "march")
            number = 0
            while True:
                number += 1
                bus.publish("picture", number)
    """
)


def make_picture(to: Path, points: int) -> None:
    """Make the picture.

    Args:
        to: the file to write.
        points: number of points in the plots to wait for.
    """
    with tempfile.TemporaryDirectory(prefix="live") as folder:
        script = Path(folder) / "shop.py"
        script.write_text(SCRIPT, encoding="utf-8")
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        env = {**os.environ, "XDG_RUNTIME_DIR": folder, "TMPDIR": folder, "PYTHONPATH": path}
        job = subprocess.Popen([sys.executable, str(script)], env=env, stderr=subprocess.DEVNULL)
        serve = subprocess.Popen(
            [sys.executable, "-m", "procbus", "serve", "--port", "0"],
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert serve.stdout is not None
            found = re.search(r"http://\S+", serve.stdout.readline())
            assert found
            with Browser(Path(folder) / "browser", WIDTH, HEIGHT) as page:
                page.open(found[0])
                page.shows("resize", "rows of March", "ValueError")
                eventually(lambda: page.run("points.length") >= points)
                to.write_bytes(page.picture())
                assert page.errors == []
        finally:
            for process in (job, serve):
                process.kill()
                process.communicate(timeout=BOUND_S)


if __name__ == "__main__":
    make_picture(PICTURE, POINTS)
