"""Try settings of a shop's tills, with ProcessPoolExecutor and a file of results."""

import sqlite3
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from random import Random


@dataclass(frozen=True)
class Trial:
    tills: int
    rate: float
    seed: int


def simulate(trial: Trial) -> float:
    random, now, waited = Random(trial.seed), 0.0, 0.0
    free = [0.0] * trial.tills
    for _ in range(20_000):
        now += random.expovariate(trial.rate)
        till = free.index(min(free))
        begin = max(now, free[till])
        free[till] = begin + random.expovariate(1)
        waited += begin - now
    return waited / 20_000


if __name__ == "__main__":
    trials = [Trial(*each) for each in product(range(2, 7), (0.8, 1.2, 1.6, 2.0), range(10))]
    database = sqlite3.connect("sweep.db")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=NORMAL")
    database.execute("CREATE TABLE IF NOT EXISTS result (trial TEXT PRIMARY KEY, waited REAL)")
    known = dict(database.execute("SELECT trial, waited FROM result"))
    results = {trial: known[repr(trial)] for trial in trials if repr(trial) in known}
    with ProcessPoolExecutor() as pool:
        futures = {pool.submit(simulate, trial): trial for trial in trials if trial not in results}
        for future in as_completed(futures):
            trial = futures[future]
            results[trial] = future.result()
            with database:
                database.execute("INSERT INTO result VALUES (?, ?)", (repr(trial), results[trial]))
    worst = max(trials, key=results.__getitem__)
    print(f"{len(results)} trials, the longest waiting is {results[worst]:.3f} in {worst}")
