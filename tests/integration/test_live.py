# SPDX-License-Identifier: MIT
"""A real script, watched from other processes: `procbus ps`, `procbus top` in a terminal."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from procbus import EventBus
from procbus.core.gil import gil_is_on
from procbus.live.client import LiveConnection, bus_named, living
from tests.integration.helpers import Bell, Door, Listener, Tally
from tests.integration.live_stage import Stage
from tests.waits import BOUND_S, eventually


def test_a_script_is_listed_watched_and_gone_when_killed(stage: Stage) -> None:
    run = stage.start()

    listed = stage.procbus("ps")
    assert listed.returncode == 0, listed.stderr
    head, line = listed.stdout.splitlines()
    assert head.split()[:5] == ["bus", "script", "age", "queued", "running"]
    assert line.split()[:2] == [str(run.pid), str(stage.folder / "script.py")]
    (facts,) = json.loads(stage.procbus("ps", "--json").stdout)
    assert (facts["brief"]["running"], facts["brief"]["failed"]) == (1, 1)

    table = stage.procbus("top", "--once").stdout
    assert "4,211 of 5,000: parsing" in table
    assert "ValueError: no good" in table
    snapshot = json.loads(stage.procbus("top", str(run.pid), "--once", "--json").stdout)
    assert snapshot["bus"]["pid"] == run.pid
    stacks = stage.procbus("top", "--stacks").stdout
    assert "in held" in stacks
    assert "receipt.wait()" in stacks

    run.kill()
    run.wait(BOUND_S)

    gone = stage.procbus("ps")
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "there is no bus" in gone.stderr
    assert list((stage.home / "procbus").iterdir()) == []
    top = stage.procbus("top", str(run.pid))
    assert top.returncode == 1
    assert f"there is no bus {run.pid}" in top.stderr


def test_top_on_a_stream_prints_until_the_bus_ends(stage: Stage) -> None:
    run = stage.start()
    top = subprocess.Popen(
        [sys.executable, "-m", "procbus", "top", "--interval", "0.1"],
        env=stage.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert top.stdout is not None
    assert top.stdout.readline().startswith(f"procbus {run.pid}")
    stage.let("go")
    stage.let("end")
    assert run.wait(BOUND_S) == 0
    _, words = top.communicate(timeout=BOUND_S)
    assert top.returncode == 0
    assert f"process {run.pid}" in words


def test_a_forked_child_neither_answers_nor_removes_the_socket(stage: Stage) -> None:
    run = stage.start(
        """
        import os, time
        from procbus import EventBus

        with EventBus([]) as bus:
            if os.fork() == 0:  # it ends
                bus.close()
                raise SystemExit
            os.wait()
            if os.fork() == 0:  # it outlives its parent
                open("ready", "w").close()
                while not os.path.exists("end"):
                    time.sleep(0.005)
                os._exit(0)
            os.wait()
        """
    )
    (place,) = living()
    with LiveConnection(place) as connection:
        assert connection.ask("brief")["bus"]["pid"] == run.pid
    run.kill()
    run.wait(BOUND_S)

    assert living() == []
    stage.let("end")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs a second user")
def test_another_user_cannot_connect(stage: Stage) -> None:
    stage.home.chmod(0o755)
    with EventBus([], live=True):
        (place,) = living()
        assert as_nobody(lambda: connected(place.path)) == 1
        # Even if the files lay open, the other end would be asked who it is.
        Path(place.path).parent.chmod(0o755)
        Path(place.path).chmod(0o666)
        assert as_nobody(lambda: connected(place.path)) == 2


@pytest.mark.parametrize("command", ["ps", "top"])
def test_directory_of_sockets_that_others_may_enter_is_refused(stage: Stage, command: str) -> None:
    folder = stage.home / "procbus"
    folder.mkdir()
    folder.chmod(0o755)
    refused = stage.procbus(command)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert f"others may enter {folder}: chmod 700 {folder}" in refused.stderr


def connected(path: str) -> int:
    """How far a connection comes: 1 to the socket's file, 2 to the socket, 3 to an answer."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND_S)
        try:
            sock.connect(path)
        except PermissionError:
            return 1
        with suppress(ConnectionError):
            sock.sendall(b'{"protocol": 1, "do": "brief"}\n')
            return 3 if sock.recv(1) else 2
    return 2


def as_nobody(function: Callable[[], int]) -> int:
    """Run a function as another user, in a child; return its result."""
    child = os.fork()
    if child == 0:
        result = 99
        with suppress(BaseException):
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            result = function()
        os._exit(result)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


#: A script that holds its GIL for ages, while a handler waits in a worker process.
STUCK = """
import os, re, time
from procbus import EventBus

def wait(event):
    open("waiting", "w").close()
    time.sleep(3_600)

def hang():
    open("ready", "w").close()
    re.match("(a+)+$", "a" * 64 + "b")

with EventBus([], cpu_workers=1) as bus:
    bus.subscribe("wait", wait, kind="cpu")
    bus.publish("wait", 1)
    while not os.path.exists("waiting"):
        time.sleep(0.005)
    hang()
"""
#: Its stacks come by a signal.
CAN_BE_STUCK = pytest.mark.skipif(
    not hasattr(os, "memfd_create") or not gil_is_on(),
    reason="needs Linux, and a GIL: without one the script answers",
)


@CAN_BE_STUCK
def test_stacks_of_a_script_whose_gil_is_held(stage: Stage) -> None:
    run = stage.start(STUCK)

    stacks = stage.procbus("top", str(run.pid), "--stacks")

    assert stacks.returncode == 0, stacks.stderr
    assert f"process {run.pid} did not answer within 3 s" in stacks.stderr
    assert "in hang" in stacks.stdout
    assert "in wait" in stacks.stdout
    assert run.poll() is None


@pytest.mark.usefixtures("stage")
def test_paused_cpu_lane_takes_back_what_its_workers_have_not_begun(
    door: Door, bell: Bell, heard: Listener, tmp_path: Path
) -> None:
    def work(event: tuple[Tally, Door | None, Bell | None]) -> None:
        tally, door, bell = event
        tally.note("begun")
        if door is not None and bell is not None:
            bell.ring()
            door.go_through()

    tally = Tally(str(tmp_path / "tally"))
    bus = EventBus([], cpu_workers=1, live=True)
    try:
        bus.subscribe("n", work, kind="cpu")
        for receipt in [bus.publish("n", (tally, None, None)) for _ in range(200)]:
            receipt.wait(BOUND_S)  # it is known as short, and goes in batches
        with LiveConnection(bus_named(str(os.getpid()))) as watcher:
            with door.shut():
                first = bus.publish("n", (tally, door, bell))
                others = [bus.publish("n", (tally, None, None)) for _ in range(100)]
                heard.wait()
                watcher.ask("pause", kind="cpu")
                paused = {each["kind"]: each["paused"] for each in watcher.ask("snapshot")["lanes"]}
                assert paused == {"io": "", "cpu": "paused by hand"}
            assert first.wait(BOUND_S), "a running handler finishes"
            eventually(lambda: bus.stats().lanes["cpu"].depth == 100)
            eventually(lambda: bus.health()[0].state == "idle")
            assert tally.counts()["begun"] == 201
            assert not any(receipt.done for receipt in others)
            watcher.ask("resume", kind="cpu")
        assert all(receipt.wait(BOUND_S) for receipt in others)
        assert tally.counts()["begun"] == 301
    finally:
        bus.close(cancel=True)


# In a terminal.


class Terminal:
    """A terminal of tmux, in which a shell runs a command."""

    def __init__(
        self,
        stage: Stage,
        command: str,
        width: int = 120,
        height: int = 40,
        shell: str = "",
        prefix: str = "",
    ) -> None:
        self._socket = str(stage.home / f"tmux{len(os.listdir(stage.home))}")
        script = stage.folder / "run.sh"
        lines = ("trap : INT", prefix + command, "echo status $?", "stty -a", "read line", "")
        script.write_text("\n".join(lines), encoding="utf-8")
        size = ["-x", str(width), "-y", str(height)]
        self._tmux(
            "-f", "/dev/null", "new-session", "-d", *size, shell or f"sh {script}", env=stage.env
        )

    def _tmux(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        run = subprocess.run(
            ["tmux", "-S", self._socket, *arguments],
            env=env,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    def press(self, *keys: str) -> None:
        """Press keys."""
        self._tmux("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        """Give the terminal another size."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def screen(self, *, colours: bool = False) -> str:
        """The text on the screen."""
        return self._tmux("capture-pane", "-p", *(["-e"] if colours else []))

    def shows(self, *texts: str, without: str = "\0") -> None:
        """Wait until all texts are on the screen, and one is not."""
        try:
            eventually(lambda: self._has(self.screen(), texts, without))
        except AssertionError:
            pytest.fail(f"{texts} (without {without!r}) did not come:\n{self.screen()}")

    @staticmethod
    def _has(screen: str, texts: tuple[str, ...], without: str) -> bool:
        return all(text in screen for text in texts) and without not in screen

    def end(self) -> None:
        """End it, and all that runs in it."""
        with suppress(AssertionError):  # it has ended already
            self._tmux("kill-server")


Open = Callable[..., Terminal]
RED = re.compile("\x1b\\[(?:\\d+;)*31m")


@pytest.fixture
def terminal(stage: Stage) -> Iterator[Open]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    opened: list[Terminal] = []

    def open_terminal(arguments: str, **about: Any) -> Terminal:
        opened.append(Terminal(stage, f"{sys.executable} -m procbus {arguments}", **about))
        return opened[-1]

    stage.env["TERM"] = "screen"
    yield open_terminal
    for each in opened:
        each.end()


def test_top_shows_a_script_and_acts_on_it(stage: Stage, terminal: Open) -> None:
    run = stage.start()
    top = terminal("top --interval 0.2")
    top.shows(f"procbus {run.pid}", "4,211 of 5,000: parsing", "ValueError: no good", "? help")

    top.press("s")  # there is one worker
    top.shows('wait_for("go")', "any other key goes back")
    top.press("x")
    top.shows("? help", without="any other key")
    top.press("?")
    top.shows("replay the chosen dead letter")
    top.press("Escape")
    top.shows("? help", without="replay the chosen")

    top.press("p", "i")
    top.shows("paused by hand", "pause io: done")
    top.press("r")
    top.shows("replay: done")
    assert (stage.folder / "bad.txt").read_text(encoding="utf-8") == "a.png\n"
    top.press("p", "i")
    top.shows("resume io: done", without="paused by hand")
    eventually(lambda: (stage.folder / "bad.txt").read_text(encoding="utf-8") == "a.png\na.png\n")

    top.resize(60, 12)
    top.shows("procbus", without="retried")
    top.resize(150, 40)
    top.shows("retried", "run p99")

    top.press("c")
    top.shows("cancel __main__.held with event", "y: yes")
    top.press("y")
    top.shows("cancel: done")
    assert run.stdout is not None
    assert run.stdout.readline() == "cancelled\n"

    stage.let("end")
    assert run.wait(BOUND_S) == 0
    top.shows(f"process {run.pid}", "status 0", " icanon", " echo")


@CAN_BE_STUCK
@pytest.mark.slow  # top waits for the script several times
def test_top_shows_the_stacks_of_a_script_whose_gil_is_held(stage: Stage, terminal: Open) -> None:
    run = stage.start(STUCK)
    top = terminal("top", width=120, height=60)
    top.shows(f"process {run.pid} did not answer")
    top.press("S")
    top.shows("in hang", "in wait", "any other key goes back")
    top.press("x", "q")
    top.shows("status 0")


@pytest.mark.parametrize(("key", "status"), [("q", 0), ("C-c", 130)])
def test_the_terminal_is_as_before_in_the_end(
    stage: Stage, terminal: Open, key: str, status: int
) -> None:
    stage.start()
    top = terminal("top", width=80, height=24)
    top.shows("? help")
    top.press(key)
    top.shows(f"status {status}", " icanon", " echo", without="? help")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs a shell with jobs")
def test_ctrl_z_gives_the_terminal_to_the_shell_until_fg(stage: Stage, terminal: Open) -> None:
    stage.start()
    shell = terminal("top", width=80, height=24, shell="env PS1=here% bash --norc --noprofile -i")
    shell.shows("here%")
    shell.press(f"{sys.executable} -m procbus top; stty -a", "Enter")
    shell.shows("? help")
    shell.press("C-z")
    shell.shows("Stopped", " icanon", " echo", without="? help")
    shell.press("clear; fg", "Enter")
    shell.shows("4,211 of 5,000", "? help", without="here%")
    shell.press("p")
    shell.shows("pause or resume which lane?")
    shell.press("x", "q")
    shell.shows("here%", without="? help")
    shell.press("stty -a", "Enter")
    shell.shows(" icanon", " echo")


def test_top_has_no_colours_if_the_user_wants_none(stage: Stage, terminal: Open) -> None:
    stage.start()
    stage.env["NO_COLOR"] = "1"
    plain = terminal("top", width=80, height=24)
    plain.shows("ValueError: no good", "? help")
    assert not RED.search(plain.screen(colours=True))
    plain.end()
    del stage.env["NO_COLOR"]
    coloured = terminal("top", width=80, height=24)
    coloured.shows("ValueError: no good", "? help")
    assert RED.search(coloured.screen(colours=True))


def test_top_prints_tables_on_a_dumb_terminal(stage: Stage, terminal: Open) -> None:
    run = stage.start()
    top = terminal("top", width=80, height=24, prefix="env TERM=dumb ")
    top.shows("ValueError: no good", without="? help")
    assert "\x1b" not in top.screen(colours=True)
    top.press("C-c")
    top.shows("status 130")
    assert run.poll() is None


def test_the_script_goes_on_when_top_is_killed(stage: Stage, terminal: Open) -> None:
    run = stage.start()
    top = terminal("top", width=80, height=24)
    top.shows("? help")
    top.end()
    with LiveConnection(bus_named(str(run.pid))) as connection:
        assert connection.ask("brief")["running"] == 1
    stage.let("go")
    stage.let("end")
    assert run.wait(BOUND_S) == 0
