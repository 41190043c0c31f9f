# SPDX-License-Identifier: MIT
"""Whether a file may be trusted: only if no other user can have written it."""

from __future__ import annotations

import os
import stat

from procbus.core.errors import ProcbusError


def check_ours(name: str, status: os.stat_result, error: type[ProcbusError]) -> None:
    """Refuse a file that another user may have written, because loading it can run their code.

    Args:
        name: name of the file.
        status: status of the open file, not of the name: another file may get the name meanwhile.
        error: class of the error to raise.
    """
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{name} is not a regular file: give one that procbus wrote")
    if not hasattr(os, "geteuid"):
        return  # Windows has no such mode bits: not checked there, and not tested
    if status.st_uid not in (os.geteuid(), 0):
        raise error(
            f"{name} belongs to another user (uid {status.st_uid}), and loading it could run their "
            "code: if you trust them, copy it to a file of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise error(
            f"{name} may be written by others (mode {stat.S_IMODE(status.st_mode):04o}), and "
            f"loading it could run their code: if it is unchanged, chmod 600 {name}"
        )
