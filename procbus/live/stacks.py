# SPDX-License-Identifier: MIT
"""The stacks of all threads of this process, as text."""

from __future__ import annotations

import sys
import threading
from traceback import StackSummary, format_list, walk_stack
from typing import Any

#: Maximum of threads, and of frames of each, that are shown.
MOST_THREADS = 200
_FRAMES = 60


def stacks_of_threads() -> list[dict[str, Any]]:
    """Name and stack of each thread, the main thread first; the calling thread is left out.

    The lines of the source are read from its files, so no code of the user's runs.
    """
    frames = sys._current_frames()  # noqa: SLF001 - documented so
    named = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    frames.pop(threading.get_ident(), None)
    found = []
    for ident, frame in sorted(frames.items(), key=lambda each: each[0] != main)[:MOST_THREADS]:
        stack = StackSummary.extract(walk_stack(frame), limit=_FRAMES, lookup_lines=False)
        stack.reverse()
        found.append(
            {
                "name": named.get(ident) or f"thread {ident}",
                "main": ident == main,
                "stack": "".join(format_list(stack)).rstrip(),
            }
        )
    return found
