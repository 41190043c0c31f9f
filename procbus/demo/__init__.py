# SPDX-License-Identifier: MIT
"""The demo job: an index of the functions of a tree of Python files, made by three handlers."""

from __future__ import annotations

from procbus.core.errors import ProcbusError


class DemoError(ProcbusError):
    """The demo cannot run as asked: the message is one line for the person who asked."""
