# SPDX-License-Identifier: MIT
"""``procbus serve``: the live view as a web page."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec

#: The default port.
SERVE_PORT = 8470
#: The libraries of the extra `live`.
_NEEDED = ("starlette", "uvicorn")

_NONE = 1
_UNUSABLE = 2


def add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `serve` to the command line."""
    serve = commands.add_parser(
        "serve",
        help="look at your buses in a browser",
        description="Serve a web page that shows a bus while it works, on the loopback address. "
        "It shows your buses that were made with live=True, or in a script started with "
        "PROCBUS_LIVE=1, until you press Ctrl-C. Needs the extra: pip install 'procbus[live]'.",
    )
    serve.add_argument(
        "bus", nargs="?", metavar="PID", help="as `procbus ps` names it; default: all your buses"
    )
    serve.add_argument(
        "--port",
        type=_port,
        default=SERVE_PORT,
        metavar="N",
        help=f"default: {SERVE_PORT}; 0 takes any free port",
    )
    serve.add_argument(
        "--journal", metavar="FILE", help="show this journal too, also while no bus has it"
    )
    serve.set_defaults(run=run_serve)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, not {text}")
    return int(text)


def run_serve(options: argparse.Namespace) -> int:
    """Serve the page, until a signal comes."""
    missing = [name for name in _NEEDED if not _is_there(name)]
    if missing:
        return _no(f"{' and '.join(missing)} not found: pip install 'procbus[live]'", _UNUSABLE)
    # Here, not above: `procbus --help` needs none of this.
    from procbus.core.errors import JournalError
    from procbus.journal.inspection import Visit
    from procbus.live.client import NoAnswer, bus_named
    from procbus.live.sockets import UnsafePlace
    from procbus.web.server import WebServer

    try:
        only = None if options.bus is None else bus_named(options.bus)
        if options.journal is not None:
            with Visit(options.journal):  # a wrong name is told here, and not on the page
                pass
        server = WebServer(only, options.port, options.journal)
    except NoAnswer as error:
        return _no(str(error), _NONE)
    except (UnsafePlace, JournalError) as error:
        return _no(str(error), _UNUSABLE)
    except OSError as error:
        return _no(
            f"port {options.port} cannot be used: {error.strerror}; --port 0 takes any free one",
            _UNUSABLE,
        )

    def tell() -> None:
        print(f"procbus serve: {server.address}")
        print("Open this address, which has the token for actions. Ctrl-C ends.", flush=True)

    server.run(tell)
    return 0


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # it was imported already, and not as a module
        return False


def _no(reason: str, status: int) -> int:
    print(f"procbus serve: {reason}", file=sys.stderr)
    return status
