"""One contender runs tasks of which some kill their worker: ``python -m bench.scene PLOT``.

Prints one line, the counts as JSON, then closes its pool as its documentation says and ends, if it
can. `bench.casualties` watches it.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
from collections import Counter
from time import monotonic

from .casualties import FAILED, FINISHED, HUNG, Plot, run
from .contenders import CRASH_CONTENDERS, Contender


def counts(contender: Contender, plot: Plot) -> dict[str, int]:
    """Hand over every task, then ask for every result until the time is up."""
    tasks = plot.tasks()
    ends: Counter[str] = Counter()
    if contender.run_all is not None:
        try:
            contender.run_all(tasks)
        except Exception:  # noqa: BLE001 - it is the caller's answer for all of them
            return {FAILED: len(tasks)}
        return {FINISHED: len(tasks)}
    handles = []
    for task in tasks:
        try:
            handles.append(contender.submit(task))
        except Exception:  # noqa: BLE001 - a pool that is broken by now refuses what comes
            ends[FAILED] += 1
    deadline = monotonic() + plot.hung_s
    for handle in handles:
        try:
            contender.result(handle, max(0.0, deadline - monotonic()))
            ends[FINISHED] += 1
        except (TimeoutError, multiprocessing.TimeoutError):  # the peers' own are of these
            ends[HUNG] += 1
        except Exception:  # noqa: BLE001 - every contender has errors of its own
            ends[FAILED] += 1
    return ends


def main(text: str) -> None:
    """Play the scene."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # its dead leave no files
    plot = Plot(**json.loads(text))
    with CRASH_CONTENDERS[plot.contender](run, plot.workers) as contender:
        print(json.dumps({**dict.fromkeys((FINISHED, FAILED, HUNG), 0), **counts(contender, plot)}))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
