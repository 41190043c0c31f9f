# SPDX-License-Identifier: MIT
"""``procbus completion``: completes commands and options in your shell."""

from __future__ import annotations

import argparse
import sys

_SHELLS = ("bash", "zsh", "tcsh")


def add_completion(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `completion` to the command line."""
    completion = commands.add_parser(
        "completion",
        help="print a script that completes commands and options in your shell",
        description="Print a script that completes the commands and options of procbus in your "
        "shell. Needs the extra completion: pip install 'procbus[completion]'. "
        'For bash: eval "$(procbus completion bash)"',
    )
    completion.add_argument("shell", choices=_SHELLS)
    completion.set_defaults(run=_run_completion)


def _run_completion(options: argparse.Namespace) -> int:
    try:
        import shtab
    except ImportError:
        print("procbus completion: needs shtab: pip install 'procbus[completion]'", file=sys.stderr)
        return 2
    print(shtab.complete(options.root, options.shell))
    return 0
