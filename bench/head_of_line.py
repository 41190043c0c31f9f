"""Does one long event hold up the short ones behind it?

Two workers, 400 events of 1 ms for one handler; then the same with one of 2 s among the first ten.
While the long one runs, one worker is left for the short ones: about 0.2 s more is the least.
"""

from __future__ import annotations

from functools import partial
from time import perf_counter

from .contenders import CPU_CONTENDERS, Contender, Opener
from .model import PROCBUS, Question, Row, Settings, Target
from .work import spin

ROW = "400 of 1 ms and one of 2 s: delay of the short ones"
WORKERS = 2
SHORT_COUNT = 400
LONG_MS = 2_000
LONG_AT = 5
# joblib gives out results of a whole list only; loky and pebble go as ProcessPoolExecutor does.
ASKED = (PROCBUS, "ProcessPoolExecutor", "mp.Pool")


def seconds_for_short(contender: Contender, short: int, count: int, long: int | None) -> float:
    """Return the time until every short event is done, then wait for the long one."""
    began = perf_counter()
    handles = [contender.submit(short) for _ in range(LONG_AT)]
    long_handle = None if long is None else contender.submit(long)
    handles += [contender.submit(short) for _ in range(count - LONG_AT)]
    for handle in handles:
        contender.result(handle)
    seconds = perf_counter() - began
    if long_handle is not None:
        contender.result(long_handle)
    return seconds


def delay(opener: Opener, settings: Settings) -> dict[str, float]:
    """Time the short events without the long one, then with it."""
    short = settings.spins_per_ms
    count = settings.count(SHORT_COUNT)
    long = round(short * max(50, LONG_MS * settings.scale))
    with opener(spin, WORKERS) as contender:
        contender.run([short] * 50)
        without = seconds_for_short(contender, short, count, None)
        return {ROW: seconds_for_short(contender, short, count, long) - without}


QUESTION = Question(
    name="head_of_line",
    asks="Does one long event hold up the short ones behind it?",
    rows=(Row(ROW, "s", (Target(0.5, at_least=False, unit="s"),)),),
    contenders={name: partial(delay, CPU_CONTENDERS[name]) for name in ASKED},
)
