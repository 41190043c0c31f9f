"""What does one dead worker do to 200 queued tasks on 2 workers?

Task 50 kills its own process with SIGKILL. The other 199 should finish.
"""

from __future__ import annotations

from functools import partial

from . import casualties
from .contenders import CRASH_CONTENDERS
from .model import Question, Row, Settings, Target

COUNT = 200
DEATHS = {"50": "SIGKILL"}
WORKERS = 2
HUNG_S = 10.0  # all of them together take a fifth of a second
QUICK_HUNG_S = 4.0


def outcome(contender: str, settings: Settings) -> dict[str, float]:
    """Play the scene; a quick run plays it with all the tasks, and is only less patient."""
    hung_s = max(QUICK_HUNG_S, settings.seconds(HUNG_S))
    return casualties.figures(contender, WORKERS, COUNT, DEATHS, settings.spins_per_ms, hung_s)


QUESTION = Question(
    name="crash_table",
    asks="What does one dead worker do to 200 queued tasks on 2 workers?",
    rows=(
        Row(casualties.FINISHED, "of 200", (Target(199, at_least=True, unit="tasks"),)),
        Row(casualties.FAILED, "of 200", (Target(1, at_least=False, unit="task"),)),
        Row(casualties.HUNG, "of 200", (Target(0, at_least=False, unit="tasks"),)),
        Row(casualties.TWICE, "of 200", (Target(0, at_least=False, unit="tasks"),)),
        Row(casualties.LEFT, "processes", (Target(0, at_least=False, unit="processes"),)),
    ),
    contenders={name: partial(outcome, name) for name in CRASH_CONTENDERS},
    rounds=1,
)
