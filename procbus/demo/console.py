# SPDX-License-Identifier: MIT
"""Printing whole lines that may hold names of files."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from procbus.core.text import printable


def print_line(console: Console, text: str) -> None:
    """Print a line as it is: neither wrapped nor read as markup, nothing for a terminal to obey."""
    console.print(Text(printable(text)), soft_wrap=True)
