"""Try settings of a shop's tills; after a crash, the next start runs only what is missing."""

from dataclasses import dataclass
from itertools import product
from random import Random

from procbus import EventBus, subscribe


@dataclass(frozen=True)
class Trial:
    tills: int
    rate: float
    seed: int


@subscribe(kind="cpu", name="simulate")
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
with EventBus(journal="sweep.db", keep_results=True) as bus:
    results = {r.event: r.result() for r in bus.stream(trials, id=repr)}
worst = max(trials, key=results.__getitem__)
print(f"{len(results)} trials, the longest waiting is {results[worst]:.3f} in {worst}")
