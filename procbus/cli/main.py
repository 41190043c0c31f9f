# SPDX-License-Identifier: MIT
"""The command line: ``procbus COMMAND``, and how commands end."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import NoReturn

from procbus import __version__
from procbus.cli.completion import add_completion
from procbus.cli.journal import add_journal
from procbus.cli.live import add_live
from procbus.cli.parser import Parser
from procbus.cli.profile import add_profile
from procbus.cli.serve import add_serve

# Exit statuses as in shells: 128 + the number of the signal.
_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
_PIPE_BROKEN = 128 + 13  # SIGPIPE, which Windows has not


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. Call it in the main thread.

    SIGTERM and Ctrl-C end a command in the same way: the bus is closed, no process is left behind,
    and one line says how much was not run. The exit status is 143 or 130.

    Args:
        arguments: the arguments after the program's name; None for the process's own.

    Raises:
        SystemExit: for ``--help`` and ``--version``, and for wrong arguments.
    """
    # A file name that the terminal cannot show must not stop a report in the middle.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    options = _parse(arguments)
    if not hasattr(options, "script"):
        # Commands report failures and unfinished work themselves; a script has its own logging.
        logging.getLogger("procbus").addHandler(logging.NullHandler())
    try:
        with _sigterm_exits():
            status: int = options.run(options)
            sys.stdout.flush()
    except BrokenPipeError:
        if hasattr(options, "script"):
            raise  # the exception is the script's own
        _end_at_once(_PIPE_BROKEN)  # as in `procbus journal list FILE | head`
    except KeyboardInterrupt:
        _end_at_once(_INTERRUPTED)
    except _Terminated:
        _end_at_once(_TERMINATED)
    return status


def _parser() -> Parser:
    parser = Parser(prog="procbus", description="An event bus that lives inside your script.")
    parser.set_defaults(root=parser, run=_run_help)
    parser.add_argument("--version", action="version", version=f"procbus {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_demo(commands)
    _add_bench(commands)
    add_completion(commands)
    add_journal(commands)
    add_live(commands)
    add_profile(commands)
    add_serve(commands)
    return parser


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    if options.run is _run_bench:
        options.arguments = unknown
    elif unknown:
        options.parser.refuse(unknown)
    return options


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="see one job done four ways, and what happens when workers die, hang or are killed",
        description="Measure the functions of a tree of Python files in a plain loop, on a "
        "ProcessPoolExecutor, on a thread-pool bus and on procbus. Without DIR, four accidents "
        "follow: a worker is killed, a handler hangs, the script is killed, and a handler has the "
        "wrong kind.",
    )
    demo.add_argument(
        "dir",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="default: the standard library, without its tests",
    )
    demo.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="SQLite file to write; default: none is kept",
    )
    demo.add_argument("--limit", type=_positive, metavar="N", help="measure the first N files only")
    demo.add_argument(
        "--cpu-workers", type=_positive, metavar="N", help="default: one for each core"
    )
    demo.add_argument(
        "--no-compare", action="store_true", help="do the job on procbus alone, without accidents"
    )
    demo.set_defaults(run=_run_demo)


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    # Without its own help: all further arguments are for the command line of the benchmarks.
    bench = commands.add_parser(
        "bench",
        add_help=False,
        help="threads or processes? measures on this machine (procbus bench --help)",
    )
    bench.set_defaults(run=_run_bench)


def _run_help(options: argparse.Namespace) -> int:
    options.parser.print_help()
    return 0


def _run_bench(options: argparse.Namespace) -> int:
    name = "procbus._bench"
    if find_spec(name) is None:
        # In a source checkout the benchmarks lie beside this package.
        name, root = "bench", Path(__file__).parents[2]
        spec = find_spec(name)
        if spec is None or spec.origin != str(root / "bench" / "__init__.py"):
            print(f"procbus bench: the benchmarks are not in {root}", file=sys.stderr)
            return 2
    status: int = import_module(f"{name}.__main__").main(options.arguments)
    return status


def _run_demo(options: argparse.Namespace) -> int:
    # Here, not above: `procbus --help` needs none of this.
    from procbus.demo import DemoError
    from procbus.demo.run import DemoOptions, run_demo

    try:
        return run_demo(
            DemoOptions(
                root=options.dir,
                output=options.output,
                limit=options.limit,
                cpu_workers=options.cpu_workers,
                compare=not options.no_compare,
            )
        )
    except DemoError as error:
        print(f"procbus demo: {error}", file=sys.stderr)
        return 2


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {text}")
    return int(text)


class _Terminated(SystemExit):
    """SIGTERM came. This error is a SystemExit, so that every `with` block is left properly."""


@contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Turn SIGTERM into an exception of the main thread, as Python does with SIGINT."""

    def leave(_signum: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one would interrupt the exit
        raise _Terminated

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_at_once(status: int) -> NoReturn:
    """End the process after everything is closed, without waiting for its threads.

    A thread cannot be stopped. The interpreter would wait for the threads of a thread pool for as
    long as their handlers take.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the reader of the pipe may be gone
            stream.flush()
    os._exit(status)
