"""What does the import cost, and how long does it take to the first cpu result?

Each figure is taken in fresh interpreters, with the handlers in their `__main__`. The first result
is taken three times: with byte code on disk as pip leaves it, without any, and after a pause in
which a script would read its input: a pool that starts workers before they are needed uses it. The
last figure is of a worker that dies: of the time until its successor has a result.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from functools import partial
from statistics import median
from time import perf_counter
from typing import NamedTuple

from .model import LIMIT, PROCBUS, Question, Row, Settings, Target

IMPORT = "import, over bare Python"
FIRST = "bus or pool to first cpu result, fresh process"
UNCOMPILED = "the same without byte code"
PAUSED = "the same after 0.5 s of reading, from its end"
KILLED = "the only worker is killed, to the next result"
PAUSE_S = 0.5  # every pool that starts its workers early has them by then
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


class First(NamedTuple):
    """The code to a first result: it makes the bus or pool, gets the result, and ends it all.

    Attributes:
        make: makes the bus or pool.
        result: gets a result.
        close: ends it.
        kill: makes a worker kill itself, and sees to it that another result can be had. Empty for a
            pool that has no way to go on.
    """

    make: str
    result: str
    close: str = ""
    kill: str = ""


# Between {imports} and the clock lies nothing but the handler: a peer's import is not counted, and
# what procbus imports only when it is used is. One of {early} and {late} makes the bus or pool.
SCRIPT = """
from time import perf_counter, sleep
{imports}
def double(number: int) -> int:
    return 2 * number
{early}
began = perf_counter()
{late}
{result}
seconds = perf_counter() - began
assert result == 42, result
{close}
print(seconds)
"""
KILLING_SCRIPT = """
import os, signal, sys, tempfile
from time import perf_counter
{imports}
def double(number: int) -> int:
    return 2 * number
def die(path: str) -> None:
    with open(path, "w") as file:
        file.write(repr(perf_counter()))
    os.kill(os.getpid(), signal.SIGKILL)
path = os.path.join(tempfile.mkdtemp(dir=sys.argv[1]), "killed at")
{make}
{result}
{kill}
{result}
seconds = perf_counter() - float(open(path).read())
assert result == 42, result
{close}
print(seconds)
"""
# Their pools are broken by a death: a script has to make a new one.
BROKEN = """
try:
    pool.submit(die, path).result()
except Exception:
    pool = ProcessPoolExecutor({workers})
"""
EXECUTOR = First(
    "pool = ProcessPoolExecutor({workers})",
    "result = pool.submit(double, 21).result()",
    "pool.shutdown()",
    BROKEN,
)
FIRST_RESULTS = {
    PROCBUS: First(
        # As a `with` block does.
        "bus = EventBus([], cpu_workers={workers}); bus.subscribe(int, double, kind='cpu')"
        "; bus.__enter__()",
        "result = bus.publish(21).result()",
        "bus.__exit__(None, None, None)",
        "bus.subscribe(str, die, kind='cpu'); bus.publish(path)",
    ),
    "ProcessPoolExecutor": EXECUTOR,
    "mp.Pool": First(
        "pool = Pool({workers})",
        "result = pool.apply_async(double, (21,)).get()",
        "pool.terminate()",  # the call that killed its worker stays open for ever
        "pool.apply_async(die, (path,))",
    ),
    "loky": EXECUTOR,
    "joblib": First("", "result, = Parallel(n_jobs={workers})([delayed(double)(21)])"),
    "mpire": First(
        "pool = WorkerPool(n_jobs={workers})",
        "result = pool.apply_async(double, (21,)).get()",
        "pool.stop_and_join()",
    ),
    "pebble": First(
        "pool = ProcessPool(max_workers={workers})",
        "result = pool.schedule(double, (21,)).result()",
        "pool.close(); pool.join()",
        "pool.schedule(die, (path,))",
    ),
    "distributed": First(
        "cluster = LocalCluster(n_workers={workers}, threads_per_worker=1, dashboard_address=None)"
        "; client = Client(cluster)",
        "result = client.submit(double, 21).result()",
        "client.close(); cluster.close()",
    ),
    "ray": First(
        "ray.init(num_cpus={workers}, include_dashboard=False, log_to_driver=False)",
        "result = ray.get(ray.remote(double).remote(21))",
        "ray.shutdown()",
    ),
}


def run_python(code: str, *arguments: str, compiled: bool = True) -> str:
    """Run `code` in a fresh interpreter, as a user's, and return what it printed.

    Args:
        code: the script.
        arguments: its arguments.
        compiled: whether Python finds byte code, and may keep it.
    """
    # Python may be unable to keep byte code. Then files that pip did not compile are compiled at
    # each start.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code, *arguments]
    with tempfile.TemporaryDirectory() as empty:
        if not compiled:
            environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": empty}
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


def first_result_ms(
    name: str, settings: Settings, *, compiled: bool = True, paused: bool = False
) -> float:
    """Return the time from making the bus or pool to the first result, in ms.

    Args:
        name: the contender.
        settings: has the number of workers.
        compiled: whether Python finds byte code.
        paused: whether a pause follows the making of the pool, which does not count; nor does the
            making then.
    """
    first = FIRST_RESULTS[name]
    make = first.make.format(workers=settings.workers)
    script = SCRIPT.format(
        imports=IMPORTS[name],
        early=f"{make}\nsleep({PAUSE_S})" if paused else "",
        late="" if paused else make,
        result=first.result.format(workers=settings.workers),
        close=first.close,
    )
    return float(run_python(script, compiled=compiled).splitlines()[-1]) * 1e3


def killed_ms(name: str) -> float:
    """Return the time from the death of the only worker to the next result, in ms."""
    first = FIRST_RESULTS[name]
    parts = {part: text.format(workers=1) for part, text in first._asdict().items()}
    with tempfile.TemporaryDirectory(prefix="procbus-bench-") as directory:
        script = KILLING_SCRIPT.format(imports=IMPORTS[name], **parts)
        return float(run_python(script, directory).splitlines()[-1]) * 1e3


def contender_figures(name: str, settings: Settings) -> dict[str, float]:
    """Take all figures."""
    found = {IMPORT: import_ms(IMPORTS[name], settings)}
    if name in FIRST_RESULTS:  # the others have no workers
        found[FIRST] = first_result_ms(name, settings)
        found[UNCOMPILED] = first_result_ms(name, settings, compiled=False)
        found[PAUSED] = first_result_ms(name, settings, paused=True)
        if FIRST_RESULTS[name].kill:
            found[KILLED] = killed_ms(name)
    return found


def bare_figures(settings: Settings) -> dict[str, float]:
    """Measure one bare interpreter that prints a number: no worker can answer before it."""
    return {FIRST: wall_ms("print(42)")}


QUESTION = Question(
    name="startup",
    asks="What does the import cost, and how long does it take to the first cpu result?",
    rows=(
        Row(IMPORT, "ms", (Target(60, at_least=False, unit="ms"),)),
        Row(
            FIRST,
            "ms",
            (Target(115, at_least=False, unit="ms"), Target(1.15, at_least=False, against="loky")),
        ),
        Row(UNCOMPILED, "ms"),
        Row(PAUSED, "ms"),
        Row(KILLED, "ms"),
    ),
    contenders={name: partial(contender_figures, name) for name in IMPORTS} | {LIMIT: bare_figures},
    limit="one bare interpreter, start to end",
)
