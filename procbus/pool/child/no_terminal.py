# SPDX-License-Identifier: MIT
"""The standard input of a worker process, and its debugger: both say that there is no terminal."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Never

from procbus.core.errors import ProcbusError

_RUN = "a worker process has no terminal; run the script with PROCBUS_INLINE=1"


class NoTerminal(io.TextIOBase):
    """Standard input that raises when it is read, so that `input()` or a debugger cannot hang."""

    name, encoding, errors = "<stdin>", "utf-8", "strict"

    def readable(self) -> bool:
        """Return True, so that readers go on to `read`, which raises."""
        return True

    def read(self, size: int | None = -1, /) -> Never:  # noqa: ARG002 - as of every file
        """Raise."""
        raise ProcbusError(f"a debugger, input() or sys.stdin in a cpu handler: {_RUN}")

    def readline(self, size: int = -1, /) -> Never:  # type: ignore[override]
        """Raise."""
        self.read(size)

    __next__ = readline


def refuse_terminal() -> None:
    """Have `breakpoint()`, debuggers and `input()` in this process raise an error with a remedy.

    A debugger that `PYTHONBREAKPOINT` names is left alone: that debugger may use a socket.
    """
    sys.stdin = NoTerminal()
    named = os.environ.get("PYTHONBREAKPOINT", "")
    if named in ("", "pdb.set_trace") and sys.breakpointhook is sys.__breakpointhook__:
        sys.breakpointhook = _refuse_breakpoint


def _refuse_breakpoint(*_: Any, **__: Any) -> Never:
    raise ProcbusError(f"breakpoint() in a cpu handler: {_RUN}")
