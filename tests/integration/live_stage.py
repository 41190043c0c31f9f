# SPDX-License-Identifier: MIT
"""A script with a live view, and the command line that looks at it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from tests.waits import BOUND_S, eventually

ROOT = Path(__file__).parents[2]

#: A script whose handlers wait for files in the directory in which it runs.
SCRIPT = """
import os, sys, time
from procbus import EventBus, current, subscribe


def wait_for(name):
    while not os.path.exists(name):
        time.sleep(0.005)


@subscribe("held", kind="cpu")
def held(event):
    current().progress(4_211, 5_000, "parsing")
    open("begun", "w").close()
    wait_for("go")


@subscribe("bad", name="bad")
def bad(event):
    with open("bad.txt", "a") as file:
        print(event, file=file)
    raise ValueError("no good")


if __name__ == "__main__":
    with EventBus(cpu_workers=1) as bus:
        bus.publish("bad", "a.png").wait()
        receipt = bus.publish("held", 1)
        wait_for("begun")
        open("ready", "w").close()
        receipt.wait()
        print(receipt.deliveries[0].state.value, flush=True)
        wait_for("end")
"""


class Stage:
    """A directory for a script, and one for sockets, whose path is short."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = Path(tempfile.mkdtemp(prefix="live"))
        self.env = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(self.home),
            "TMPDIR": str(self.home),
            "PROCBUS_LIVE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        }
        self.started: list[subprocess.Popen[str]] = []

    def start(self, source: str = SCRIPT) -> subprocess.Popen[str]:
        """Start a script, and wait until it is ready."""
        (self.folder / "script.py").write_text(textwrap.dedent(source), encoding="utf-8")
        run = subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(run)
        eventually(lambda: (self.folder / "ready").exists() or run.poll() is not None)
        assert run.poll() is None, run.communicate()
        return run

    def procbus(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return subprocess.run(
            [sys.executable, "-m", "procbus", *arguments],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
        )

    def let(self, name: str) -> None:
        """Let the script go on."""
        (self.folder / name).touch()
