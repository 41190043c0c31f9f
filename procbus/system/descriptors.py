# SPDX-License-Identifier: MIT
"""The standard descriptors of this process."""

from __future__ import annotations

import os


def hold_standard_descriptors() -> None:
    """Occupy descriptors 0, 1 and 2: a script may have been started with one of them closed.

    Otherwise a pipe or a shared file of procbus would get that number, and a worker's prints would
    go there.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if nothing == fd:
                os.set_inheritable(nothing, True)
            else:  # another thread was faster
                os.close(nothing)
