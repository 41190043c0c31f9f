"""Does code that calls joblib run as fast on procbus's backend as on joblib's own, loky?"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from time import perf_counter
from typing import Any

from .model import PROCBUS, Question, Row, Settings, Target
from .work import spin

FIRST = "first Parallel of a script, 100 calls"
SHORT = "calls of 1 ms"
TINY = "tiny calls, batches by joblib"
SEARCH = "GridSearchCV, 24 fits on digits"
ARRAY = "100 calls that share an array of 100 MB"

# The numbers of calls, but for the last two rows.
FEW = 100
SHORT_CALLS = 1_000
TINY_CALLS = 100_000

#: Number of float64 in 100 MB.
FLOATS = 12_500_000

#: The grid and the folds of the search: 8 x 3 fits.
GRID = {"C": [1.0, 10.0], "gamma": [1e-4, 3e-4, 1e-3, 3e-3]}
FOLDS = 3


def one_of(array: Any, index: int) -> float:
    """Read one number of a large array."""
    return float(array[index])


def seconds(calls: Any) -> float:
    """Run calls in one `joblib.Parallel`; return its wall time."""
    joblib: Any = import_module("joblib")
    began = perf_counter()
    joblib.Parallel()(calls)
    return perf_counter() - began


def search_s(settings: Settings) -> float:
    """Search the parameters of a classifier of digits, as scikit-learn's users do."""
    datasets: Any = import_module("sklearn.datasets")
    selection: Any = import_module("sklearn.model_selection")
    machines: Any = import_module("sklearn.svm")
    images, labels = datasets.load_digits(return_X_y=True)
    few = settings.count(len(images), at_least=300)
    search = selection.GridSearchCV(machines.SVC(), GRID, cv=FOLDS, refit=False)
    began = perf_counter()
    search.fit(images[:few], labels[:few])
    return perf_counter() - began


def figures(backend: str, settings: Settings) -> dict[str, float]:
    """Run each kind of work on one backend, whose workers are kept between them."""
    joblib: Any = import_module("joblib")
    numpy: Any = import_module("numpy")
    if backend == PROCBUS:
        import_module("procbus.joblib").register()
    later = joblib.delayed
    found: dict[str, float] = {}
    with joblib.parallel_config(backend=backend, n_jobs=settings.workers):
        found[FIRST] = seconds(later(spin)(1) for _ in range(FEW))
        short = settings.count(SHORT_CALLS)
        millisecond = settings.spins_per_ms
        found[SHORT] = short / seconds(later(spin)(millisecond) for _ in range(short))
        tiny = settings.count(TINY_CALLS, at_least=1_000)
        found[TINY] = tiny / seconds(later(spin)(1) for _ in range(tiny))
        array = numpy.arange(settings.count(FLOATS), dtype=float)
        found[ARRAY] = seconds(later(one_of)(array, index) for index in range(FEW))
        found[SEARCH] = search_s(settings)
    return found


QUESTION = Question(
    name="joblib_backend",
    asks="Does code that calls joblib run as fast on procbus as on joblib's own workers?",
    rows=(
        Row(FIRST, "s", (Target(1, at_least=False, against="loky"),)),
        Row(SHORT, "calls/s", (Target(1, at_least=True, against="loky"),)),
        Row(TINY, "calls/s", (Target(1, at_least=True, against="loky"),)),
        Row(ARRAY, "s", (Target(1, at_least=False, against="loky"),)),
        Row(SEARCH, "s", (Target(1, at_least=False, against="loky"),)),
    ),
    contenders={PROCBUS: partial(figures, PROCBUS), "loky": partial(figures, "loky")},
    time_limit=300.0,
    needs=("joblib", "sklearn"),
)
