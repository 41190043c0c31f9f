"""Do 2,000 tasks survive the death of 5 of them, by SIGKILL, SIGSEGV or exit, at random places?

The same five for every contender and in every round. All others should finish,
none should run twice, and no process should be left.
"""

from __future__ import annotations

from functools import partial

from . import casualties
from .model import PROCBUS, Question, Row, Settings, Target

FULL_COUNT = 2_000
DEATHS = 5
SEED = 3
WORKERS = 2
HUNG_S = 30.0  # all of them together take one second, but a new worker of Dask's takes one as well
# joblib gives no task's result when one dies, and mp.Pool hangs: that is in `crash_table`.
ASKED = (PROCBUS, "pebble", "ProcessPoolExecutor", "loky", "mpire", "distributed")


def outcome(contender: str, settings: Settings) -> dict[str, float]:
    """Play the scene."""
    count = settings.count(FULL_COUNT, at_least=200)
    deaths = casualties.random_deaths(count, DEATHS, SEED)
    return casualties.figures(contender, WORKERS, count, deaths, settings.spins_per_ms, HUNG_S)


NONE = (Target(0, at_least=False, unit="tasks"),)

QUESTION = Question(
    name="random_deaths",
    asks="Do 2,000 tasks survive the death of 5 of them at random places?",
    rows=(
        Row(casualties.FINISHED, "of 2,000", (Target(1_995, at_least=True, unit="tasks"),)),
        Row(casualties.FAILED, "of 2,000", (Target(5, at_least=False, unit="tasks"),)),
        Row(casualties.HUNG, "of 2,000", NONE),
        Row(casualties.INNOCENT, "tasks", NONE),
        Row(casualties.TWICE, "tasks", NONE),
        Row(casualties.LEFT, "processes", (Target(0, at_least=False, unit="processes"),)),
    ),
    contenders={name: partial(outcome, name) for name in ASKED},
    rounds=3,
)
