# SPDX-License-Identifier: MIT
"""The parser of the command line: it suggests the command or the option that you meant."""

from __future__ import annotations

import argparse
import re
from typing import Any, NoReturn

from procbus.core.validation import did_you_mean

_CHOICE = re.compile(r"invalid choice: '([^']*)'")
_OPTION = re.compile(r"--[a-z][a-z-]*")


class Parser(argparse.ArgumentParser):
    """A parser whose messages suggest commands and options. Its subparsers are of this class too.

    The parser of the chosen command is the attribute `parser` of the namespace.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._commands: argparse._SubParsersAction[Parser] | None = None
        self.set_defaults(parser=self)

    def add_subparsers(self, **options: Any) -> Any:
        """Add commands, as argparse does, and remember their names."""
        self._commands = super().add_subparsers(**options)
        return self._commands

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit. For a misspelt command, suggest one."""
        wrong = _CHOICE.search(message)
        if wrong and self._commands and (hint := did_you_mean(wrong[1], [*self._commands.choices])):
            message = f"{message[: wrong.end()]}{hint}"
        super().error(message)

    def refuse(self, unknown: list[str]) -> NoReturn:
        """Exit because of arguments that this command does not have; suggest similar ones."""
        first = unknown[0].partition("=")[0]
        known = sorted(set(_OPTION.findall(self.format_help())))
        hint = did_you_mean(first, known) if first.startswith("--") else ""
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
