# SPDX-License-Identifier: MIT
"""joblib and scikit-learn on procbus: results, errors that name the call, limits, early ends."""

import os
import threading
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config

import procbus.joblib
from procbus import HandlerTimeout, MemoryLimitExceeded, OptionError, WorkerDied
from tests.integration.conftest import Run, Start


@pytest.fixture(autouse=True)
def backend() -> Iterator[None]:
    procbus.joblib.register()
    yield
    procbus.joblib.shutdown()
    procbus.joblib.shutdown()  # may be repeated


@pytest.fixture
def on_procbus() -> Iterator[None]:
    with parallel_config(backend="procbus", n_jobs=2):
        yield


def square(n: int) -> int:
    return n * n


def where(_: object) -> int:
    return os.getpid()


def die_at_13(n: int, *, note: str = "") -> int:
    if n == 13:
        os._exit(3)
    return n


def hang_at_3(n: int) -> int:
    while n == 3:
        pass
    return n


def fail_at_2(n: int) -> int:
    if n == 2:
        raise ValueError(f"bad: {n}")
    return n


def nested(n: int) -> list[int]:
    return list(Parallel(n_jobs=2)(delayed(square)(i) for i in range(n)))


def grow(n: int) -> int:
    return len(bytearray(n))


def look(array: Any, index: int) -> float:
    return float(array[index])


@pytest.mark.parametrize("return_as", ["list", "generator", "generator_unordered"])
@pytest.mark.parametrize("count", [0, 1, 2_000])
def test_results_come_in_every_form(on_procbus: None, return_as: str, count: int) -> None:
    found = Parallel(return_as=return_as)(delayed(square)(n) for n in range(count))

    assert sorted(found) == [n * n for n in range(count)]


def test_calls_run_in_the_same_worker_processes_as_those_of_the_last_parallel(
    on_procbus: None,
) -> None:
    first = set(Parallel()(delayed(where)(n) for n in range(50)))
    second = set(Parallel()(delayed(where)(n) for n in range(50)))

    assert os.getpid() not in first | second
    assert len(first | second) <= 2


def test_functions_of_a_script_travel(on_procbus: None) -> None:
    factor = 3

    assert Parallel()(delayed(lambda n: n * factor)(n) for n in range(3)) == [0, 3, 6]


def test_block_of_one_parallel_has_several_calls(on_procbus: None) -> None:
    with Parallel() as parallel:
        for _ in range(3):
            assert parallel(delayed(square)(n) for n in range(3)) == [0, 1, 4]


def test_all_calls_dispatched_at_once_wait_for_no_room(on_procbus: None) -> None:
    calls = (delayed(square)(n) for n in range(12_000))

    assert len(Parallel(pre_dispatch="all", batch_size=1)(calls)) == 12_000


def test_nested_parallel_runs_inside_the_call(on_procbus: None) -> None:
    assert Parallel()(delayed(nested)(n) for n in range(4)) == [[], [0], [0, 1], [0, 1, 4]]


@pytest.mark.parametrize("batch_size", [1, "auto", 8])
def test_dead_worker_names_the_call_and_the_next_parallel_works(
    on_procbus: None, batch_size: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WorkerDied, match=r"the call was .*test_joblib\.die_at_13\(13, note='x'\)"):
        Parallel(batch_size=batch_size)(delayed(die_at_13)(n, note="x") for n in range(40))

    assert Parallel()(delayed(square)(n) for n in range(3)) == [0, 1, 4]
    assert "cancelled" not in caplog.text


def test_error_of_a_call_comes_as_itself_with_the_traceback_of_its_worker(on_procbus: None) -> None:
    with pytest.raises(ValueError, match="bad: 2") as caught:
        Parallel()(delayed(fail_at_2)(n) for n in range(40))

    assert "in fail_at_2" in str(caught.value.__cause__)


def test_time_limit_ends_the_call_that_hangs_and_names_it() -> None:
    with (
        parallel_config(backend="procbus", n_jobs=2, timeout=0.5),
        pytest.raises(HandlerTimeout, match=r"longer than its timeout of 0.5 s.*hang_at_3\(3\)"),
    ):
        Parallel()(delayed(hang_at_3)(n) for n in range(40))


def test_memory_limit_ends_the_call_that_grows_and_names_it() -> None:
    with (
        parallel_config(backend="procbus", n_jobs=2, max_memory="400 MiB"),
        pytest.raises(MemoryLimitExceeded, match=r"grow\(1000000000\)"),
    ):
        Parallel()(delayed(grow)(n) for n in [10, 1_000_000_000])


def test_retries_repeat_a_call_that_fails(tmp_path: Any) -> None:
    def fail_first(n: int) -> int:
        try:
            (tmp_path / str(n)).touch(exist_ok=False)
        except FileExistsError:
            return n
        raise ValueError(n)

    with parallel_config(backend="procbus", n_jobs=2, retries=1, backoff=0):
        assert Parallel()(delayed(fail_first)(n) for n in range(4)) == [0, 1, 2, 3]


@pytest.mark.filterwarnings("ignore:.*tasks have been successfully executed")
@pytest.mark.filterwarnings("ignore:.*tasks which were still being processed")
def test_generator_that_is_left_early_frees_the_workers(on_procbus: None) -> None:
    results = Parallel(return_as="generator")(delayed(square)(n) for n in range(5_000))
    assert next(results) == 0
    results.close()

    assert Parallel()(delayed(square)(n) for n in range(3)) == [0, 1, 4]


def test_two_generators_share_the_workers_of_a_block(on_procbus: None) -> None:
    one, two = (
        Parallel(return_as="generator")(delayed(square)(n) for n in range(100)) for _ in range(2)
    )

    assert (next(one), next(two)) == (0, 0)
    assert sum(one) == sum(two) == sum(n * n for n in range(100))


def test_error_in_the_iterable_comes_to_the_caller(on_procbus: None) -> None:
    def calls() -> Iterator[Any]:
        yield delayed(square)(1)
        raise KeyError("no more")

    with pytest.raises(KeyError, match="no more"):
        Parallel()(calls())


def test_parallels_of_several_threads_do_not_disturb_each_other() -> None:
    found: dict[int, list[int]] = {}

    def work(start: int) -> None:
        with parallel_config(backend="procbus", n_jobs=2):
            found[start] = Parallel()(delayed(square)(n) for n in range(start, start + 50))

    threads = [threading.Thread(target=work, args=(n,)) for n in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {start: [n * n for n in range(start, start + 50)] for start in (0, 100, 200)}


def test_large_array_of_many_calls_arrives_whole(on_procbus: None) -> None:
    array = np.arange(300_000.0)
    found = Parallel(batch_size=1)(delayed(look)(array, n) for n in range(20))

    assert found == [float(n) for n in range(20)]


def test_threads_of_numeric_libraries_are_limited() -> None:
    with parallel_config(backend="procbus", n_jobs=2, inner_max_num_threads=1):
        found = Parallel()(delayed(os.getenv)("OMP_NUM_THREADS") for _ in range(4))

    assert found == ["1"] * 4


def test_number_of_workers_is_that_of_the_cores_by_default() -> None:
    with parallel_config(backend="procbus"):
        assert joblib.effective_n_jobs() == joblib.cpu_count()


def test_unknown_option_is_refused_with_the_one_that_is_meant() -> None:
    with (
        pytest.raises(OptionError, match="no option time_limit=; did you mean timeout="),
        parallel_config(backend="procbus", time_limit=3),
    ):
        pass


def test_limit_without_a_worker_process_is_warned_of() -> None:
    with (
        parallel_config(backend="procbus", n_jobs=1, timeout=3),
        pytest.warns(UserWarning, match="n_jobs=1 .* timeout has no effect"),
    ):
        assert Parallel()(delayed(square)(n) for n in range(3)) == [0, 1, 4]


def test_calls_run_in_the_script_with_inline(
    on_procbus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROCBUS_INLINE", "1")

    assert set(Parallel()(delayed(where)(n) for n in range(3))) == {os.getpid()}


SCRIPT = """
import joblib
import procbus.joblib

procbus.joblib.register(make_default=True)

def double(n):
    return FACTOR * n

for FACTOR in 2, 3:
    print(joblib.Parallel(n_jobs=2)(joblib.delayed(double)(n) for n in range(4)))
"""


def test_script_sees_its_globals_as_they_are_at_each_parallel_and_ends(run: Run) -> None:
    assert run(SCRIPT).check().splitlines() == ["[0, 2, 4, 6]", "[0, 3, 6, 9]"]


def test_scikit_learn_gets_the_same_figures_as_in_sequence() -> None:
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    from sklearn.datasets import make_classification
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score

    features, labels = make_classification(400, 10, random_state=0)

    def figures() -> tuple[list[float], dict[str, float], float]:
        search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=3).fit(features, labels)
        forest = RandomForestClassifier(10, random_state=0).fit(features, labels)
        scores = cross_val_score(LogisticRegression(), features, labels, cv=3)
        return list(scores), search.best_params_, forest.score(features, labels)

    with parallel_config(backend="sequential"):
        wanted = figures()
    with parallel_config(backend="procbus", n_jobs=2):
        assert figures() == wanted


def test_call_whose_worker_dies_runs_again_where_max_crashes_and_retries_allow_it(
    tmp_path: Any,
) -> None:
    def die_first(n: int) -> int:
        try:
            (tmp_path / str(n)).touch(exist_ok=False)
        except FileExistsError:
            return n
        os._exit(3)

    with parallel_config(backend="procbus", n_jobs=2, retries=2, max_crashes=1, backoff=0):
        assert Parallel()(delayed(die_first)(n) for n in range(2)) == [0, 1]

    with (
        parallel_config(backend="procbus", n_jobs=2, retries=2, max_crashes=0, backoff=0),
        pytest.raises(WorkerDied, match=r"die_first\(7\)"),
    ):
        Parallel()(delayed(die_first)(n) for n in [7])


INTERRUPTED = """
import signal
import time
import joblib
import procbus.joblib

procbus.joblib.register()

def hang(n):
    print("running", flush=True)
    time.sleep(600)

with joblib.parallel_config(backend="procbus", n_jobs=2):
    try:
        joblib.Parallel()(joblib.delayed(hang)(n) for n in range(2))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    print(joblib.Parallel()(joblib.delayed(abs)(n) for n in range(3)))
"""


def test_ctrl_c_ends_a_parallel_and_the_next_one_runs(start: Start) -> None:
    program = start(INTERRUPTED)
    assert [program.read_line(), program.read_line()] == ["running"] * 2

    program.interrupt_group()

    assert program.finish().check().splitlines() == ["interrupted", "[0, 1, 2]"]
