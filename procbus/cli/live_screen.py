# SPDX-License-Identifier: MIT
"""The full screen of ``procbus top``: it draws, reads keys, and asks the bus to act."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, ConsoleDimensions, Group
from rich.text import Text

from procbus.cli.live_page import Row, keys, page, stacks_text
from procbus.live.client import Declined, Gone, NoAnswer

if TYPE_CHECKING:
    from types import FrameType

    from procbus.live.client import LiveConnection

#: Maximum wait for a snapshot, and for an action, in seconds; because keys wait as long.
_LOOK_S = 2.0
_ACT_S = 5.0

#: Words of signals.
_RESIZED, _STOP = b"r", b"z"

_STYLES = {
    "title": "bold",
    "head": "bold cyan",
    "bad": "red",
    "dim": "dim",
    "advice": "yellow",
    "message": "bold",
    "": "",
}
_HELP = """\
up, down   choose a row (also k and j)
s          the stack of the chosen worker
c          cancel the delivery that the chosen worker runs; its process ends
r          replay the chosen dead letter
p          pause or resume a lane: no delivery begins meanwhile
S          the stacks of all workers and threads
q          end; the bus goes on
?          this help

Arrows and Page Up, Page Down move a long text. Any other key goes back."""
_FOOTER = "s stack   c cancel   r replay   p pause   q quit   ? help"
_NAMES = {
    **dict.fromkeys((b"\x1b[A", b"\x1bOA", b"k"), "up"),
    **dict.fromkeys((b"\x1b[B", b"\x1bOB", b"j"), "down"),
    b"\x1b[5~": "page up",
    b"\x1b[6~": "page down",
    b" ": "page down",
}


def run_screen(connection: LiveConnection, interval_s: float) -> int:
    """Show a bus on the whole terminal until the user ends the view, or the bus ends."""
    console = Console(highlight=False)
    with Screen(console) as screen:
        ended = View(connection, console, screen).run(interval_s)
    if ended:
        print(f"procbus top: {ended}")
    return 0


class Screen:
    """The whole terminal, whose keys are read as they are pressed.

    Ctrl-Z stops the command: until `fg`, the shell has the terminal as it was before.

    Args:
        console: the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._fd = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._fd)
        #: A pipe that wakes up the view: by `_RESIZED` or `_STOP`.
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._handlers: dict[signal.Signals, Any] = {}

    def fileno(self) -> int:
        """A descriptor that becomes readable when the view should draw anew."""
        return self._reading

    def answer(self) -> None:
        """Redraw or stop, as the signals ask that have come."""
        if _STOP in os.read(self._reading, 4096):
            self._leave()
            handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)  # it returns once the shell says `fg`
            signal.signal(signal.SIGTSTP, handler)
            self._take()

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._on(signal.SIGWINCH, _RESIZED)
        if signal.getsignal(signal.SIGTSTP) is not signal.SIG_IGN:
            self._on(signal.SIGTSTP, _STOP)
        self._take()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the terminal back as it was."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._leave()
        os.close(self._reading)
        os.close(self._writing)

    def _on(self, number: signal.Signals, word: bytes) -> None:
        def wake(_signum: int, _frame: FrameType | None) -> None:
            with suppress(BlockingIOError):
                os.write(self._writing, word)

        self._handlers[number] = signal.signal(number, wake)

    def _take(self) -> None:
        tty.setcbreak(self._fd)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def _leave(self) -> None:
        self._console.show_cursor(True)
        self._console.set_alt_screen(False)
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)


class View:
    """The contents of the screen, and the answer to each key.

    Args:
        connection: to the bus.
        console: the terminal.
        screen: the whole terminal, which gives way to signals.
    """

    def __init__(self, connection: LiveConnection, console: Console, screen: Screen) -> None:
        self._connection = connection
        self._console = console
        self._screen = screen
        self._snapshot: dict[str, Any] = {}
        #: The key of the chosen row.
        self._cursor: tuple[str, str] | None = None
        self._message = ""
        #: A long text in place of the page, and its first line on the screen.
        self._text: list[str] | None = None
        self._first = 0
        #: The question that the next key answers.
        self._question = ""
        self._ended = ""
        #: Whether the script did not answer to the last action.
        self._stuck = False

    def run(self, interval_s: float) -> str:
        """Draw and answer keys until the end.

        Returns:
            Why the bus ended; empty if the user ended the view.
        """
        fd = sys.stdin.fileno()
        look_at = 0.0
        while not self._ended:
            now = monotonic()
            if now >= look_at:
                self._look()
                look_at = monotonic() + interval_s
            self._draw()
            wait_s = max(0.0, look_at - monotonic())
            ready, _, _ = select.select([fd, self._screen], [], [], wait_s)
            if self._screen in ready:
                self._screen.answer()
            if fd in ready:
                pressed = os.read(fd, 1024)
                if not pressed:  # the terminal is gone
                    return ""
                for key in _split(pressed):
                    if not self._press(key):
                        return ""
        return self._ended

    # Looking and acting.

    def _look(self) -> None:
        try:
            self._snapshot = self._connection.ask("snapshot", within_s=_LOOK_S)
        except Gone as error:
            self._ended = str(error)
        except NoAnswer as error:
            self._message = f"{error}: a thread of the script may hold the GIL"

    def _act(self, do: str, words: str, **about: Any) -> Any:
        self._stuck = False
        try:
            result = self._connection.ask(do, within_s=_ACT_S, **about)
        except Declined as error:
            self._message = f"{words}: {error}"
        except Gone as error:
            self._ended = str(error)
        except NoAnswer as error:
            self._stuck = True
            self._message = f"{words}: {error}; the action may still happen"
        else:
            self._message = f"{words}: done"
            self._look()
            return result
        return None

    # Keys.

    def _press(self, pressed: bytes) -> bool:
        """Answer a key; return False to end the view."""
        key = _NAMES.get(pressed) or pressed.decode("ascii", "replace")
        if self._text is not None:
            self._scroll(key)
            return True
        question, self._question, self._message = self._question, "", ""
        if question:
            self._answer(question, key)
            return True
        match key:
            case "q":
                return False
            case "up" | "down":
                self._move(-1 if key == "up" else 1)
            case "?" | "h":
                self._show(_HELP)
            case "S":
                self._stacks(None)
            case "s":
                if (worker := self._chosen("worker")) is not None:
                    self._stacks(worker)
            case "c":
                self._ask_cancel()
            case "r":
                if (letter := self._chosen("letter")) is not None:
                    self._act("replay", "replay", letter=letter)
            case "p":
                self._ask_pause()
        return True

    def _chosen(self, kind: str) -> str | None:
        """The name of the chosen row, if it is of this kind; else of the only row of this kind."""
        if self._cursor is not None and self._cursor[0] == kind:
            return self._cursor[1]
        there = [name for each, name in self._keys() if each == kind]
        if len(there) == 1:
            return there[0]
        what = {"worker": "worker", "letter": "dead letter"}[kind]
        self._message = (
            f"choose a {what} with the arrow keys first" if there else f"there is no {what}"
        )
        return None

    def _stacks(self, worker: str | None) -> None:
        stacks = self._act("stacks", "stack", **({} if worker is None else {"worker": worker}))
        if stacks is None and self._stuck:
            from procbus.live.stuck import stacks_by_signal  # only now: it is needed hardly ever

            stacks = stacks_by_signal(self._connection.place.pid)
        if stacks is not None:
            self._message = ""
            self._show(stacks_text(stacks))

    def _ask_cancel(self) -> None:
        name = self._chosen("worker")
        for worker in self._snapshot.get("workers", ()):
            if worker["name"] == name and worker["event_id"] is not None:
                self._question = f"cancel {name} {worker['event_id']}"
                self._message = (
                    f"cancel {worker['handler']} with event #{worker['event_id']}? y: yes"
                )
                return
        if name is not None:
            self._message = f"{name} runs no delivery"

    def _ask_pause(self) -> None:
        if self._cursor is not None and self._cursor[0] == "lane":
            self._pause(self._cursor[1])
        else:
            self._question = "pause"
            self._message = "pause or resume which lane? i: io, c: cpu"

    def _answer(self, question: str, key: str) -> None:
        words = question.split()
        if words[0] == "cancel" and key == "y":
            self._act("cancel", "cancel", worker=words[1], event_id=int(words[2]))
        elif words[0] == "pause" and key in ("i", "c"):
            self._pause({"i": "io", "c": "cpu"}[key])

    def _pause(self, kind: str) -> None:
        lanes = self._snapshot.get("lanes", ())
        paused = any(lane["kind"] == kind and lane["by_hand"] for lane in lanes)
        do = "resume" if paused else "pause"
        self._act(do, f"{do} {kind}", kind=kind)

    def _keys(self) -> list[tuple[str, str]]:
        return keys(self._snapshot) if self._snapshot else []

    def _move(self, step: int) -> None:
        there = self._keys()
        if not there:
            return
        if self._cursor not in there:
            busy = [key for key in there if key[0] == "worker"]
            self._cursor = busy[0] if busy else there[0]
            return
        at = there.index(self._cursor)
        self._cursor = there[max(0, min(len(there) - 1, at + step))]

    # Drawing.

    def _show(self, text: str) -> None:
        self._text, self._first = text.split("\n"), 0

    def _scroll(self, key: str) -> None:
        assert self._text is not None
        height = self._console.size.height - 1
        steps = {"up": -1, "down": 1, "page up": -height, "page down": height}
        if key not in steps:
            self._text = None
            return
        self._first = max(0, min(len(self._text) - height, self._first + steps[key]))

    def _draw(self) -> None:
        with suppress(OSError):  # rich prefers COLUMNS and LINES, which do not follow the terminal
            self._console.size = ConsoleDimensions(*os.get_terminal_size(sys.stdin.fileno()))
        width, height = self._console.size
        rows: list[Row]
        if self._text is not None:
            rows = [Row(line) for line in self._text[self._first : self._first + height - 1]]
            last = Row("arrows move, any other key goes back", "dim")
        else:
            rows = (
                [] if not self._snapshot else page(self._snapshot, width, height - 1, self._cursor)
            )
            last = Row(self._message, "message") if self._message else Row(_FOOTER, "dim")
        rows += [Row("")] * (height - 1 - len(rows))
        lines = [self._line(row, width) for row in (*rows, last)]
        self._console.update_screen(Group(*lines))

    def _line(self, row: Row, width: int) -> Text:
        chosen = row.key is not None and row.key == self._cursor
        style = f"{_STYLES[row.style]} reverse" if chosen else _STYLES[row.style]
        text = row.text.ljust(width) if chosen else row.text
        return Text(text, style=style, no_wrap=True, overflow="crop", end="\n")


def _split(pressed: bytes) -> Iterator[bytes]:
    """Split bytes that were read at once into single keys."""
    while pressed:
        size = 1
        if pressed[:2] in (b"\x1b[", b"\x1bO"):
            size = 2
            while size < len(pressed) and not 0x40 <= pressed[size] <= 0x7E:
                size += 1
            size += 1
        yield pressed[:size]
        pressed = pressed[size:]
