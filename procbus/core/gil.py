# SPDX-License-Identifier: MIT
"""The global interpreter lock of this process, the GIL: on, or off."""

from __future__ import annotations

import sys


def gil_is_on() -> bool:
    """Whether threads take turns at Python code: on most builds always.

    On a free-threaded build the GIL is off, until you turn it on (`-X gil=1`, `PYTHON_GIL=1`) or
    import an extension module that needs it. Once on, it stays on. So ask again at each decision.
    """
    is_enabled = getattr(sys, "_is_gil_enabled", None)  # Python 3.13 and later
    return is_enabled is None or bool(is_enabled())
