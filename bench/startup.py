"""What does the import cost, and how long does it take to the first cpu result?

Each figure is taken in fresh interpreters, with the handlers in their `__main__`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from statistics import median
from time import perf_counter

from .model import LIMIT, PROCBUS, Question, Row, Settings, Target

IMPORT = "import, over bare Python"
FIRST = "bus or pool to first cpu result, fresh process"
FULL_PAIRS = 5  # interleaved pairs of a bare interpreter and one that imports, for each sample

IMPORTS = {
    PROCBUS: "from procbus import EventBus, subscribe",
    "ProcessPoolExecutor": "from concurrent.futures import ProcessPoolExecutor",
    "mp.Pool": "from multiprocessing import Pool",
    "loky": "from loky import ProcessPoolExecutor",
    "joblib": "from joblib import Parallel, delayed",
    "mpire": "from mpire import WorkerPool",
    "pebble": "from pebble import ProcessPool",
    "distributed": "from distributed import Client, LocalCluster",
    "ray": "import ray",
    "blinker": "from blinker import Signal",
    "bubus": "from bubus import BaseEvent, EventBus",
    "huey": "from huey import MemoryHuey",
    "pyee": "from pyee.base import EventEmitter",
}

# Between {import} and the clock lies nothing but the handler: a peer's import is not counted, and
# what procbus imports only when it is used is.
SCRIPT = """
from time import perf_counter
{imports}
def double(number: int) -> int:
    return 2 * number
began = perf_counter()
{first_result}
seconds = perf_counter() - began
assert result == 42, result
{close}
print(seconds)
"""
PROCBUS_FIRST = """
bus = EventBus([])
bus.subscribe(int, double, kind="cpu")
result = bus.publish(21).result()
"""
EXECUTOR_FIRST = """
pool = ProcessPoolExecutor({workers})
result = pool.submit(double, 21).result()
"""
FIRST_RESULTS = {
    PROCBUS: (PROCBUS_FIRST, "bus.close()"),
    "ProcessPoolExecutor": (EXECUTOR_FIRST, "pool.shutdown()"),
    "mp.Pool": (
        "pool = Pool({workers}); result = pool.apply_async(double, (21,)).get()",
        "pool.close(); pool.join()",
    ),
    "loky": (EXECUTOR_FIRST, "pool.shutdown()"),
    "joblib": ("result, = Parallel(n_jobs={workers})([delayed(double)(21)] )", ""),
    "mpire": (
        "pool = WorkerPool(n_jobs={workers}); result = pool.apply_async(double, (21,)).get()",
        "pool.stop_and_join()",
    ),
    "pebble": (
        "pool = ProcessPool(max_workers={workers}); result = pool.schedule(double, (21,)).result()",
        "pool.close(); pool.join()",
    ),
    "distributed": (
        "cluster = LocalCluster(n_workers={workers}, threads_per_worker=1, dashboard_address=None)"
        "; client = Client(cluster); result = client.submit(double, 21).result()",
        "client.close(); cluster.close()",
    ),
    "ray": (
        "ray.init(num_cpus={workers}, include_dashboard=False, log_to_driver=False)"
        "; result = ray.get(ray.remote(double).remote(21))",
        "ray.shutdown()",
    ),
}


def run_python(code: str) -> str:
    """Run `code` in a fresh interpreter, as a user's, and return what it printed."""
    # Python may be unable to keep byte code. Then files that pip did not compile are compiled at
    # each start.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return done.stdout


def wall_ms(code: str) -> float:
    """Return how long a fresh interpreter takes over `code`, in ms."""
    began = perf_counter()
    run_python(code)
    return (perf_counter() - began) * 1e3


def import_ms(imports: str, settings: Settings) -> float:
    """Return the median difference between interpreters that import and bare ones, in ms."""
    run_python(imports)  # its byte code is on disk from here on
    pairs = settings.count(FULL_PAIRS, at_least=1)
    return median([wall_ms(imports) - wall_ms("pass") for _ in range(pairs)])


def first_result_ms(name: str, settings: Settings) -> float:
    """Return the time from making the bus or pool to the first result, in ms."""
    first_result, close = FIRST_RESULTS[name]
    script = SCRIPT.format(
        imports=IMPORTS[name],
        first_result=first_result.format(workers=settings.workers),
        close=close,
    )
    return float(run_python(script).splitlines()[-1]) * 1e3


def contender_figures(name: str, settings: Settings) -> dict[str, float]:
    """Take both figures."""
    found = {IMPORT: import_ms(IMPORTS[name], settings)}
    if name in FIRST_RESULTS:  # the others have no workers
        found[FIRST] = first_result_ms(name, settings)
    return found


def bare_figures(settings: Settings) -> dict[str, float]:
    """Measure one bare interpreter that prints a number: no worker can answer before it."""
    return {FIRST: wall_ms("print(42)")}


QUESTION = Question(
    name="startup",
    asks="What does the import cost, and how long does it take to the first cpu result?",
    rows=(
        Row(IMPORT, "ms", (Target(60, at_least=False, unit="ms"),)),
        Row(FIRST, "ms", (Target(200, at_least=False, unit="ms"),)),
    ),
    contenders={name: partial(contender_figures, name) for name in IMPORTS} | {LIMIT: bare_figures},
    limit="one bare interpreter, start to end",
)
