# SPDX-License-Identifier: MIT
"""The threads of procbus. Each begins in an empty context, whichever code starts it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any


class OwnThread(threading.Thread):
    """A daemon thread in an empty `contextvars` context.

    With `-X thread_inherit_context=1`, which free-threaded builds have by default, a thread begins
    in a copy of the context of the code that starts it. A handler may start a thread of procbus,
    which would then work for that handler's event until its end.
    """

    def __init__(
        self, name: str | None, target: Callable[..., object] | None = None, *args: Any
    ) -> None:
        empty: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
        super().__init__(target=target, name=name, args=args, daemon=True, **empty)
