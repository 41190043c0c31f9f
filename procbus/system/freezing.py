# SPDX-License-Identifier: MIT
"""Frozen programs: PyInstaller or a similar tool made them from a script.

A worker process normally runs `sys.executable`, with a command line that names a module to run. In
a frozen program `sys.executable` is the program itself, which ignores such a command line. So each
worker would run the script again, which starts workers, and so on without end. `freeze_support`
reads the command line and runs the worker instead.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from procbus.core.errors import ProcbusError

#: The modules that a worker process or one of its trackers runs.
_MODULE = r"(?:\w+\.)*(?:loky|multiprocessing)\.(?:\w+\.)*\w+"
_STATEMENT = rf"from {_MODULE} import (\w+); ?\1\([\w ,=]*\)"

#: The program of a worker process: see `pool/birth.py`.
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
WORKER = (
    rf"import sys; sys\.path\[:\] = \[(?:(?:{_STRING})(?:, )?)*\]; import gc; gc\.disable\(\); "
    r"from procbus\.pool\.child\.birth import await_orders, follow_orders; "
    r"sys\.modules\['psutil'\] = None; "
    r"import loky\.process_executor; from loky\.backend\.spawn import prepare; "
    r"del sys\.modules\['psutil'\]; "
    r"await_orders\(\d+, \d+, \d+\); follow_orders\(\d+, prepare\)"
)

_called = False


def freeze_support() -> None:
    """Let a program that was made by PyInstaller or a similar tool start worker processes.

    Call this function first in the script, before any work that a worker does not need. In a worker
    process it runs the worker and does not return. In an ordinary script it does nothing.

    Example:
        ```python
        import procbus

        if __name__ == "__main__":
            procbus.freeze_support()
        ```
    """
    global _called
    _called = True
    if not getattr(sys, "frozen", False):
        return
    import runpy  # only now: scripts do not need it

    options = _without_flags(sys.argv[1:])
    module = None
    if options[:1] == ["-m"] and re.fullmatch(_MODULE, options[1]):
        module = options[1]
    elif options[:1] == ["-c"] and re.fullmatch(WORKER, options[1]):
        exec(options[1], {})  # noqa: S102 - our own process wrote it; it ends this one
    if module is not None:
        sys.argv[1:] = options[2:]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        sys.exit()
    if options[:1] == ["-c"] and re.fullmatch(_STATEMENT, options[1]):
        exec(options[1], {"__name__": "__main__"})  # noqa: S102 - our own process wrote it
        sys.exit()
    import multiprocessing  # only now: it takes time to import

    multiprocessing.freeze_support()  # for processes that handlers start


def check_can_start() -> None:
    """Refuse to start a worker if that would start the whole program again.

    Raises:
        ProcbusError: `freeze_support` was not called; the message says where to call it.
    """
    if getattr(sys, "frozen", False) and not _called:
        raise ProcbusError(
            "this program was frozen (by PyInstaller, say), and each worker process would run it "
            "from its beginning: call procbus.freeze_support() first in the script, below "
            '`if __name__ == "__main__":`, before a bus is made'
        )


def _without_flags(arguments: Sequence[str]) -> list[str]:
    """Leave out the interpreter's flags before `-m` or `-c`."""
    rest = list(arguments)
    while len(rest) > 1 and rest[0].startswith("-"):
        if rest[0] in ("-m", "-c"):
            return rest
        del rest[: 2 if rest[0] == "-X" else 1]
    return []
