# SPDX-License-Identifier: MIT
"""The standard descriptors of this process."""

from __future__ import annotations

import os


def hold_standard_descriptors() -> None:
    """Open each of the descriptors 0, 1 and 2 that was closed when the script started.

    Otherwise a pipe or a shared file of procbus would get the free number, and the prints of a
    worker would go into that pipe or file.
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
