# SPDX-License-Identifier: MIT
"""The Python stack of a handler that runs in this process, as text."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from traceback import FrameSummary, format_list


def stack_text(frames: Sequence[FrameSummary], caller: str) -> str:
    """Format the stack of a handler in this process, without the frames that called it.

    Args:
        frames: the stack, the innermost frame last.
        caller: file of the module that called the handler.
    """
    inner = list(frames)
    while any(frame.filename == caller for frame in inner):
        del inner[0]
    return "Stack (most recent call last):\n" + "".join(format_list(inner)) if inner else ""


def stack_of_thread(ident: int | None, caller: str) -> str:
    """Format the stack of a handler in another thread; empty if the thread is in none.

    Args:
        ident: identifier of the thread.
        caller: file of the module that called the handler.
    """
    frame = sys._current_frames().get(ident or 0)  # noqa: SLF001 - documented so
    return "" if frame is None else stack_text(traceback.extract_stack(frame), caller)
