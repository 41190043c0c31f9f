# SPDX-License-Identifier: MIT
"""``procbus ps`` lists the buses of this user; ``procbus top`` shows one of them while it works."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from procbus.system.terminal import moves_cursor

if TYPE_CHECKING:
    from procbus.live.client import LiveConnection

#: Interval between two looks, in seconds: on a full screen, and of lines on a plain stream.
TOP_S = 1.0
PLAIN_TOP_S = 2.0
#: Time after which a script that does not answer is asked by a signal, in seconds.
STUCK_S = 3.0
#: Interval between the two looks of `--once`, between which the rates are taken, in seconds.
_ONCE_S = 0.5

_NONE = 1
_UNSAFE = 2


def add_live(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands `ps` and `top` to the command line."""
    ps = commands.add_parser(
        "ps",
        help="list your buses that can be watched",
        description="List the buses of this user that were made with live=True, or in a script "
        "started with PROCBUS_LIVE=1. The exit status is 1 if there is none, and 2 if the "
        "directory of their sockets is not yours alone.",
    )
    ps.add_argument("--json", action="store_true", help="print JSON in place of a table")
    ps.set_defaults(run=_told(run_ps))
    top = commands.add_parser(
        "top",
        help="look at a bus while it works",
        description="Look at a bus while it works: its lanes, handlers, workers, dead letters and "
        "advice. Keys: arrows choose a row; s shows the stack of a worker, S all stacks, c cancels "
        "a delivery, r replays a dead letter, p pauses or resumes a lane, q ends, ? helps. On a "
        "pipe it prints tables. The exit status is 0 at the end of the bus or with q, 1 if there "
        "is no such bus or it does not answer, and 2 if the directory of the sockets is not yours "
        "alone.",
    )
    top.add_argument(
        "bus", nargs="?", metavar="PID", help="as `procbus ps` names it; default: the only bus"
    )
    top.add_argument("--once", action="store_true", help="print one table, and end")
    top.add_argument("--json", action="store_true", help="print JSON, one object on each line")
    top.add_argument(
        "--stacks", action="store_true", help="print the stacks of all workers and threads, and end"
    )
    top.add_argument(
        "--interval",
        type=_interval,
        metavar="S",
        help="seconds between two looks; default: 1, on a pipe 2",
    )
    top.set_defaults(run=_told(run_top))


def _interval(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"must be from 0.1 to 3600 seconds, not {text!r}")
    return value


def _told(
    run: Callable[[argparse.Namespace], int],
) -> Callable[[argparse.Namespace], int]:
    """Make a command that says on stderr why it failed."""

    @wraps(run)
    def telling(options: argparse.Namespace) -> int:
        from procbus.live.client import NoAnswer
        from procbus.live.sockets import UnsafePlace

        try:
            return run(options)
        except (NoAnswer, UnsafePlace) as error:
            print(f"procbus {run.__name__.removeprefix('run_')}: {error}", file=sys.stderr)
            return _UNSAFE if isinstance(error, UnsafePlace) else _NONE

    return telling


def run_ps(options: argparse.Namespace) -> int:
    """List the buses of this user."""
    from procbus.cli.live_page import age
    from procbus.core.text import table
    from procbus.live.client import NO_BUS, Gone, LiveConnection, NoAnswer, living

    found: list[tuple[str, dict[str, Any] | None]] = []
    for place in living():
        try:
            with LiveConnection(place) as connection:
                found.append((place.name, connection.ask("brief")))
        except NoAnswer:
            found.append((place.name, None))
    if options.json:
        print(json.dumps([{"name": name, "brief": brief} for name, brief in found], indent=1))
    elif found:
        rows = []
        for name, brief in found:
            if brief is None:
                rows.append((name, "(does not answer)", *["-"] * (len(_COUNTS) + 1)))
                continue
            counts = [f"{brief[count]:,}" for count in _COUNTS]
            rows.append((name, brief["bus"]["script"], age(brief["bus"]["age_s"]), *counts))
        print(table(("bus", "script", "age", *_COUNTS), rows, ("bus", "script")))
    else:
        raise Gone(NO_BUS)
    return 0 if found else _NONE


_COUNTS = ("queued", "running", "succeeded", "failed", "workers")


def run_top(options: argparse.Namespace) -> int:
    """Look at a bus."""
    from procbus.live.client import LiveConnection, bus_named

    with LiveConnection(bus_named(options.bus)) as connection:
        if options.stacks:
            return _print_stacks(connection, json_too=options.json)
        if options.once:
            connection.ask("snapshot")
            time.sleep(_ONCE_S)
            _print(connection, json_too=options.json)
            return 0
        on_terminal = os.name == "posix" and all(map(moves_cursor, (sys.stdin, sys.stdout)))
        if options.json or not on_terminal:
            return _print_on(connection, options.interval or PLAIN_TOP_S, json_too=options.json)
        if find_spec("rich") is None:
            print("procbus top: full screen needs pip install 'procbus[rich]'", file=sys.stderr)
            return _print_on(connection, options.interval or PLAIN_TOP_S, json_too=False)
        from procbus.cli.live_screen import run_screen

        return run_screen(connection, options.interval or TOP_S)


def _print_on(connection: LiveConnection, interval_s: float, *, json_too: bool) -> int:
    """Print a table, again and again, until the bus ends."""
    from procbus.live.client import Gone

    connection.ask("snapshot")
    first = True
    while True:
        time.sleep(_ONCE_S if first else interval_s)
        if not first and not json_too:
            print()
        first = False
        try:
            _print(connection, json_too=json_too)
        except Gone as error:
            print(f"procbus top: {error}", file=sys.stderr)
            return 0
        sys.stdout.flush()


def _print(connection: LiveConnection, *, json_too: bool) -> None:
    from procbus.cli.live_page import page

    snapshot = connection.ask("snapshot")
    if json_too:
        print(json.dumps(snapshot))
        return
    # A file has no width: its lines are as long as a wide terminal's.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 120
    print("\n".join(row.text for row in page(snapshot, max(40, width))))


def _print_stacks(connection: LiveConnection, *, json_too: bool) -> int:
    from procbus.cli.live_page import stacks_text
    from procbus.live.client import Declined, Gone, NoAnswer
    from procbus.live.stuck import stacks_by_signal

    try:
        stacks = connection.ask("stacks", within_s=STUCK_S)
    except (Declined, Gone):
        raise
    except NoAnswer as error:
        if (found := stacks_by_signal(connection.place.pid)) is None:
            raise
        print(f"procbus top: {error}; a signal had its stacks written instead", file=sys.stderr)
        stacks = found
    print(json.dumps(stacks) if json_too else stacks_text(stacks))
    return 0
