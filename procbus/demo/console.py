# SPDX-License-Identifier: MIT
"""Printing whole lines that may hold names of files."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


def print_line(console: Console, text: str) -> None:
    """Print a line as it is: neither wrapped nor read as markup, nothing for a terminal to obey."""
    console.print(Text(printable(text)), soft_wrap=True)


def printable(text: str) -> str:
    """Show characters that a terminal would obey or cannot show, such as escapes, as escapes."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )
