"""The nouns of a benchmark: settings, rows, targets, questions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

PROCBUS = "procbus"
LIMIT = "limit"
PROCBUS_IO = "procbus io"
PROCBUS_CPU = "procbus cpu"
# Contenders that an environment may lack, named as their libraries: one without the `bench` extra,
# and Dask's and Ray, which that extra does not bring.
OPTIONAL = (
    *("blinker", "bubus", "distributed", "huey", "joblib"),
    *("mpire", "pebble", "persistqueue", "pyee", "ray"),
)


@dataclass(frozen=True)
class Settings:
    """The settings that every sample of one run shares.

    Attributes:
        workers: cpu workers of every contender: the cores that this process may use.
        spins_per_ms: iterations of `work.spin` that take 1 ms on an idle core, measured once per
            run. Work is counted in iterations, not timed, so that contention shows.
        scale: factor on all event counts; 1.0 is a real run, `--quick` uses much less.
    """

    workers: int
    spins_per_ms: int
    scale: float = 1.0

    def count(self, full: int, at_least: int = 20) -> int:
        """Scale the event count `full` to this run."""
        return max(min(full, at_least), round(full * self.scale))

    def seconds(self, full: float) -> float:
        """Scale a measuring time in seconds to this run."""
        return max(0.2, full * self.scale)

    def to_json(self) -> dict[str, float]:
        """Return the settings as plain data, for the command line of a sample and the results."""
        return asdict(self)


@dataclass(frozen=True)
class Target:
    """The bound that procbus must reach in one row: on its figure, or on a ratio.

    Attributes:
        bound: the number to reach.
        at_least: True where more is better, False where `bound` must not be exceeded.
        against: contender by whose figure procbus's is divided, within one round;
            None where the bound is on procbus's figure itself.
        unit: unit of an absolute bound, for display.
        equal: part of the bound by which a value may miss it and still count as equal to it,
            because rounds of one and the same contender differ by more.
    """

    bound: float
    at_least: bool
    against: str | None = None
    unit: str = ""
    equal: float = 0.0

    def is_reached_by(self, value: float) -> bool:
        """Tell whether `value` keeps to the bound, or counts as equal to it."""
        slack = self.bound * self.equal
        return value >= self.bound - slack if self.at_least else value <= self.bound + slack

    def text(self) -> str:
        """Return the target as a person writes it."""
        sign = "≥" if self.at_least else "≤"
        over = f"x {self.against}" if self.against else self.unit
        equal = f" (within {100 * self.equal:g} % is equal)" if self.equal else ""
        return f"{sign} {self.bound:g} {over}".rstrip() + equal


@dataclass(frozen=True)
class Row:
    """One figure that a question asks of every contender: a line of the table."""

    name: str
    unit: str
    targets: tuple[Target, ...] = ()


# Takes one sample: runs in a process of its own, returns its figure for each row that it can fill.
Sample = Callable[[Settings], dict[str, float]]


@dataclass(frozen=True)
class Question:
    """One question to the machine: its rows, and its contenders.

    Attributes:
        name: as in `--only`.
        asks: the question in one sentence.
        rows: the figures in the order of the table.
        contenders: name to sample function; one that begins with `PROCBUS` is among them, `LIMIT`
            where there is one.
        limit: the work of the limit, in a few words; empty if there is none.
        time_limit: seconds after which one sample is killed and recorded as failed.
        rounds: number of rounds by default. Fewer than five are for figures that are counts, which
            hardly vary, and for samples that hold many measurements each.
        needs: modules without which the question cannot be asked.
        not_here: contenders that this machine lacks the means for.
    """

    name: str
    asks: str
    rows: tuple[Row, ...]
    contenders: Mapping[str, Sample]
    limit: str = ""
    time_limit: float = 120.0
    rounds: int = 5
    needs: tuple[str, ...] = ()
    not_here: tuple[str, ...] = ()
