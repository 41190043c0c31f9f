"""What do threads, processes and interpreters do on each Python that this machine has?

3.11 to 3.15, with the free-threaded builds. Speed-ups are over a plain loop on the same Python.
procbus is measured where the packages that it needs can be imported. An environment without them is
lent the packages of the Python that runs this. A compiled one may fit no other version.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from . import interpreters, python_probe
from .model import LIMIT, Question, Row, Settings
from .python_probe import row_of
from .runner import ROOT, last_line

PACKAGES = ("procbus", "cloudpickle", "loky", "psutil")


def package_paths() -> Iterator[str]:
    """Say where the packages are."""
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            yield str(Path(spec.origin).parents[1])


def environment_of(path: str) -> dict[str, str]:
    """Return the environment variables with which an interpreter finds the packages."""
    own = subprocess.run(
        [path, "-c", "import cloudpickle, loky, psutil"], capture_output=True, check=False
    )
    paths = [str(ROOT)] if own.returncode == 0 else dict.fromkeys(package_paths())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    return environment


def figures(version: str, settings: Settings) -> dict[str, float]:
    """Run the probe on one interpreter."""
    path = interpreters.find(version)
    if path is None:
        raise LookupError(f"no Python {version} on this machine")
    environment = environment_of(path)
    if version.endswith("t"):
        # 3.14t counts references to the constants of a module that it compiled itself, so that
        # threads get into each other's way. Read from a .pyc file they are free of that.
        code = [str(Path(python_probe.__file__)), str(ROOT / "procbus")]
        subprocess.run([path, "-m", "compileall", "-q", *code], env=environment, check=False)
    done = subprocess.run(
        [path, "-m", python_probe.__name__]
        + [str(each) for each in (settings.spins_per_ms, settings.workers, settings.scale)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{path}: {last_line(done.stderr)}")
    found: dict[str, float] = json.loads(last_line(done.stdout))
    return found


#: The rows that say how many times as fast as the loop one way is.
SPEED_UPS = (
    *(row_of(way, length) for length in python_probe.LENGTHS_MS for way in python_probe.WAYS),
    *(
        row_of(way, what)
        for what in (python_probe.ALONE, python_probe.CROWDED)
        for way in python_probe.WAYS_SCALED
    ),
)


def limits(settings: Settings) -> dict[str, float]:
    """Nothing is faster than every core at work all the time."""
    alone = {row_of(way, python_probe.ALONE): 1.0 for way in python_probe.WAYS_SCALED}
    return dict.fromkeys(SPEED_UPS, float(settings.workers)) | alone


def _rows() -> Iterator[Row]:
    for row in SPEED_UPS:
        yield Row(row, "x the loop")
    for what, unit in (
        (python_probe.TINY, "events/s"),
        (python_probe.ARRAY, "ms"),
        (python_probe.START, "ms"),
        (python_probe.MEMORY, "MB a worker"),
    ):
        for way in python_probe.WAYS:
            yield Row(row_of(way, what), unit)
    for what, unit in (
        (python_probe.TINY_TWO, "events/s"),
        (python_probe.CALLS, "calls/s"),
        (python_probe.CALLS_TWO, "calls/s"),
    ):
        for way in python_probe.WAYS_FROM_TWO:
            yield Row(row_of(way, what), unit)
    yield Row(python_probe.LOOP, "events/s")
    yield Row(python_probe.CONVOY, "µs")


QUESTION = Question(
    name="pythons",
    asks="What do threads, processes and interpreters do on each Python of this machine?",
    rows=tuple(_rows()),
    contenders={version: partial(figures, version) for version in interpreters.VERSIONS}
    | {LIMIT: limits},
    limit="the number of cores",
    rounds=3,
    # By now: an interpreter may come while others are measured.
    not_here=tuple(each for each in interpreters.VERSIONS if interpreters.find(each) is None),
)
