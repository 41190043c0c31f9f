# SPDX-License-Identifier: MIT
"""Finding the Python files of a directory tree."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from procbus.demo import DemoError

# Hidden directories (.venv, .git, ...) and virtual environments of any name are skipped too.
_SKIPPED_DIRECTORIES = frozenset({"__pycache__", "build", "node_modules", "site-packages"})


def standard_library() -> Path:
    """The directory of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def python_files(root: Path, on_error: Callable[[OSError], object]) -> Iterator[str]:
    """Find the ``.py`` files below a directory, in the same sorted order at each call.

    Hidden directories, ``__pycache__``, ``build``, ``node_modules``, ``site-packages`` and virtual
    environments are left out, unless `root` is such a directory itself. Symbolic links to
    directories are not followed.

    Args:
        root: the directory.
        on_error: called with the error for each directory that cannot be listed.

    Raises:
        DemoError: `root` is not a directory.
    """
    if not root.is_dir():
        what = "is not a directory" if root.exists() else "does not exist"
        raise DemoError(f"{root} {what}: name a directory with Python files")
    return _walk(root, on_error)


def _walk(root: Path, on_error: Callable[[OSError], object]) -> Iterator[str]:
    for directory, subdirectories, names in os.walk(root, onerror=on_error):
        subdirectories[:] = sorted(
            name for name in subdirectories if not _is_skipped(directory, name)
        )
        for name in sorted(names):
            path = os.path.join(directory, name)
            # isfile: opening a pipe or a device named x.py could wait for ever.
            if name.endswith(".py") and os.path.isfile(path):
                yield path


def _is_skipped(directory: str, name: str) -> bool:
    return (
        name.startswith(".")
        or name in _SKIPPED_DIRECTORIES
        or os.path.exists(os.path.join(directory, name, "pyvenv.cfg"))
    )
