"""The Pythons of this machine: the ones that you name, of `make pythons`, on PATH, of pyenv."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from .runner import ROOT

#: Versions that are looked for; t is the free-threaded build.
VERSIONS = ("3.11", "3.12", "3.13", "3.13t", "3.14", "3.14t", "3.15", "3.15t")
#: Variable of the environment with the files of more interpreters, separated as in PATH.
NAMED = "PROCBUS_BENCH_PYTHONS"
ASK = (
    "import sys, sysconfig; print('%d.%d' % sys.version_info[:2]"
    " + ('t' if sysconfig.get_config_var('Py_GIL_DISABLED') else ''))"
)


def candidates(version: str, root: Path = ROOT) -> Iterator[str]:
    """Name possible files of that interpreter, first the ones that you named.

    Args:
        version: one of `VERSIONS`.
        root: the directory of the environments of `make pythons`.
    """
    yield from filter(None, os.environ.get(NAMED, "").split(os.pathsep))
    # Whole, if the last step of making it is done.
    if (root / f".venv-{version}" / "installed-test").exists():
        yield str(root / f".venv-{version}" / "bin" / "python")
    name = f"python{version}"
    if found := shutil.which(name):
        yield found
    roots = {os.environ.get("PYENV_ROOT", ""), str(Path.home() / ".pyenv")} - {""}
    for pyenv in sorted(roots):
        files = Path(pyenv).glob(f"versions/{version.rstrip('t')}*/bin/{name}")
        yield from map(str, sorted(files))


@cache
def version_of(path: str) -> str | None:
    """Return the version that an interpreter says; None if it fails, as a shim may."""
    try:
        done = subprocess.run([path, "-c", ASK], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def is_one(path: str, version: str) -> bool:
    """Tell whether this runs, and is the named version."""
    return version_of(path) == version


def find(version: str, root: Path = ROOT) -> str | None:
    """Return the path of one interpreter; None where this machine has none."""
    return next((path for path in candidates(version, root) if is_one(path, version)), None)
