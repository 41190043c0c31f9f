"""The Pythons of this machine: on PATH, and pyenv's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

#: Versions that are looked for; t is the free-threaded build.
VERSIONS = ("3.11", "3.12", "3.13", "3.13t", "3.14", "3.14t", "3.15", "3.15t")
ASK = (
    "import sys, sysconfig; print('%d.%d' % sys.version_info[:2]"
    " + ('t' if sysconfig.get_config_var('Py_GIL_DISABLED') else ''))"
)


def candidates(version: str) -> Iterator[str]:
    """Name a possible file of that interpreter."""
    name = f"python{version}"
    if found := shutil.which(name):
        yield found
    roots = {os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")} - {""}
    for root in sorted(roots):
        yield from map(str, sorted(Path(root).glob(f"versions/{version.rstrip('t')}*/bin/{name}")))


def is_one(path: str, version: str) -> bool:
    """Tell whether this runs, and is the named version: a name may be a shim that fails."""
    try:
        done = subprocess.run([path, "-c", ASK], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == version


def find(version: str) -> str | None:
    """Return the path of one interpreter; None where this machine has none."""
    return next((path for path in candidates(version) if is_one(path, version)), None)
