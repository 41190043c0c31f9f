# SPDX-License-Identifier: MIT
"""Tells whether a stream goes to a terminal whose cursor can be moved."""

from __future__ import annotations

import os
from typing import Any

_STAYS = ("", "dumb", "unknown")


def moves_cursor(stream: Any) -> bool:
    """Whether a stream is a terminal on which lines can be drawn anew.

    Such a terminal has a name in ``TERM``, as curses and most libraries demand. On Windows
    ``TERM`` may be missing.

    Args:
        stream: the stream. None, a closed stream or one without `isatty` counts as no terminal.
    """
    name = os.environ.get("TERM", "windows" if os.name == "nt" else "")
    if name in _STAYS:
        return False
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False
