"""What do threads, processes and interpreters do on each Python that this machine has?

3.11 to 3.15, with the free-threaded builds. Speed-ups are over a plain loop on the same Python.
procbus is measured where the packages that it needs can be imported: they are those of the Python
that runs this, so what is compiled for one version only is missing on the others.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from . import interpreters, python_probe
from .model import LIMIT, Question, Row, Settings
from .runner import ROOT, last_line

PACKAGES = ("procbus", "cloudpickle", "loky", "psutil")


@cache
def found() -> dict[str, str]:
    """Return the path of each interpreter that is there, by its version."""
    there = {version: interpreters.find(version) for version in interpreters.VERSIONS}
    return {version: path for version, path in there.items() if path is not None}


def package_paths() -> Iterator[str]:
    """Say where the packages are."""
    for name in PACKAGES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            yield str(Path(spec.origin).parents[1])


def figures(path: str, settings: Settings) -> dict[str, float]:
    """Run the probe on one interpreter."""
    arguments = (
        settings.spins_per_ms * python_probe.HANDLER_MS,
        settings.count(python_probe.FULL_COUNT, at_least=2 * settings.workers),
        settings.count(python_probe.PROBES, at_least=10),
        settings.workers,
    )
    done = subprocess.run(
        [path, "-m", python_probe.__name__, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(package_paths()))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{path}: {last_line(done.stderr)}")
    found: dict[str, float] = json.loads(last_line(done.stdout))
    return found


SPEED_UPS = (
    *(python_probe.THREADS, python_probe.PROCESSES, python_probe.INTERPRETERS),
    *(python_probe.LANE_IO, python_probe.LANE_CPU),
)


def limits(settings: Settings) -> dict[str, float]:
    """Nothing is faster than every core at work all the time."""
    return dict.fromkeys(SPEED_UPS, float(settings.workers))


QUESTION = Question(
    name="pythons",
    asks="What do threads, processes and interpreters do on each Python of this machine?",
    rows=(
        *(Row(name, "x the loop") for name in SPEED_UPS),
        Row(python_probe.LOOP, "events/s"),
        Row(python_probe.CONVOY, "µs"),
    ),
    contenders={version: partial(figures, path) for version, path in found().items()}
    | {LIMIT: limits},
    limit="the number of cores",
    rounds=3,
    not_here=tuple(version for version in interpreters.VERSIONS if version not in found()),
)
