# SPDX-License-Identifier: MIT
"""``procbus profile SCRIPT.py``: runs a script, then prints which kind suits its handlers."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.machinery import SourceFileLoader
from types import ModuleType

from procbus.advice import advisor
from procbus.advice.advice import AdviceList
from procbus.system import exit_hooks

_NO_BUS = "procbus profile: the script used no bus, so there is nothing to say"


def add_profile(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `profile` to the command line."""
    profile = commands.add_parser(
        "profile",
        help="run a script that uses procbus, and say which kind suits its handlers",
        description="Run a script as `python SCRIPT.py` does, and print on stderr which kind suits "
        "each of its handlers, also when it fails or is interrupted. The exit status is the "
        "script's.",
    )
    profile.add_argument("script", metavar="SCRIPT.py")
    profile.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="the arguments of the script"
    )
    profile.set_defaults(run=lambda options: profile_script(options.script, options.arguments))


def profile_script(path: str, arguments: Sequence[str]) -> int:
    """Run a script in place of this program, and print the advice on its handlers at the end.

    Call this function in the main thread. It changes `sys.argv`, `sys.path` and `__main__` for
    good, so a process can run only one script.

    Args:
        path: path of the script.
        arguments: the script's own arguments in `sys.argv`.

    Returns:
        The exit status of the script; 2 if the script does not exist.

    Raises:
        KeyboardInterrupt: the script was interrupted.
        SystemExit: SIGTERM ended the script.
    """
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        print(f"procbus profile: cannot read the script: {error}", file=sys.stderr)
        return 2
    collected: list[AdviceList] = []
    advisor.last_words.append(collected.append)
    try:
        return _run(path, source, arguments)
    finally:
        advisor.last_words.remove(collected.append)
        _show(collected)


def _run(path: str, source: bytes, arguments: Sequence[str]) -> int:
    """Run the script to its end, and close the buses that it left open."""
    full_path = os.path.abspath(path)
    sys.argv = [path, *arguments]
    sys.path[0] = os.path.dirname(full_path)
    main = ModuleType("__main__")
    main.__dict__.update(
        __file__=full_path,
        __loader__=SourceFileLoader("__main__", full_path),
        __builtins__=__builtins__,
        __cached__=None,
    )
    sys.modules["__main__"] = main
    try:
        exec(compile(source, full_path, "exec", dont_inherit=True), main.__dict__)  # noqa: S102 - running it is the purpose
    except SystemExit as error:
        if type(error) is not SystemExit:
            raise  # SIGTERM, see `cli`
        return _status(error.code)
    except BaseException as error:
        # Without the frame of this function, as if Python itself ran the script.
        traceback = None if error.__traceback__ is None else error.__traceback__.tb_next
        sys.last_value = error  # open buses look here for Ctrl-C
        sys.excepthook(type(error), error.with_traceback(traceback), traceback)
        if isinstance(error, KeyboardInterrupt):
            raise
        return 1
    finally:
        exit_hooks.close_open()
    return 0


def _status(code: object) -> int:
    """The exit status that Python makes from the argument of `sys.exit`."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    print(code, file=sys.stderr)
    return 1


def _show(collected: Sequence[AdviceList]) -> None:
    # Not on stdout, which belongs to the script and may be read by another program.
    sys.stdout.flush()
    if not collected:
        print(_NO_BUS, file=sys.stderr)
    for number, advice in enumerate(collected, 1):
        which = f" of bus {number}" if len(collected) > 1 else ""
        print(f"\nprocbus profile: the handlers{which}\n\n{advice}", file=sys.stderr)
