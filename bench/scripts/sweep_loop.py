"""Try settings of a shop's tills, one after the other; a crash loses all of them."""

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


trials = [Trial(*each) for each in product(range(2, 7), (0.8, 1.2, 1.6, 2.0), range(10))]
results = {trial: simulate(trial) for trial in trials}
worst = max(trials, key=results.__getitem__)
print(f"{len(results)} trials, the longest waiting is {results[worst]:.3f} in {worst}")
