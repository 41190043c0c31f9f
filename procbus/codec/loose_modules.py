# SPDX-License-Identifier: MIT
"""Modules that a worker cannot import by their names, or would import from another file.

A script may load a plugin from a path, make a module by hand, or take a folder off `sys.path` again
once it has imported from it. Then the name of the module means nothing in a worker.
"""

from __future__ import annotations

import os
import sys
from typing import Any

#: Modules that a worker can import. A set that only grows, so threads may share it.
_found: set[str] = set()


def is_loose(module: object) -> bool:
    """Whether a module is loaded here, and a worker could not import the same one by its name.

    Only the package at the top of a dotted name is looked for, because a package may make modules
    within itself while it is imported.

    Args:
        module: name of the module, as objects give it in `__module__`.
    """
    if not isinstance(module, str) or module in _found or module.startswith("__"):
        return False  # `__main__` is known, and `__mp_main__`
    if module not in sys.modules:
        return False
    if _is_found(module.partition(".")[0]):
        _found.add(module)
        return False
    return True


def _is_found(name: str) -> bool:
    for finder in list(sys.meta_path):
        find: Any = getattr(finder, "find_spec", None)
        try:
            spec = None if find is None else find(name, None)
        except Exception:  # noqa: BLE001 - a finder of others; workers ask it once more, and tell
            return True
        if spec is not None:
            return _is_same_file(spec.origin, getattr(sys.modules.get(name), "__file__", None))
    return False


def _is_same_file(one: object, other: object) -> bool:
    """Whether two paths are one file; True if either is none, as with modules built in."""
    if not isinstance(one, str) or not isinstance(other, str) or one == other:
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:  # a file within a zip archive, for example
        return True
