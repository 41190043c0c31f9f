"""The results of a run, read from its JSON file: figures, their spread, and ratios in a round."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from .plotting import Spread


class Found:
    """The answer to one question.

    Args:
        question: its part of the JSON document.
    """

    def __init__(self, question: Mapping[str, Any]) -> None:
        self.asks: str = question["asks"]
        self.limit: str = question["limit"]
        self.not_installed: list[str] = question["not_installed"]
        self.errors: list[str] = question["errors"]
        self.disturbed: int = question["disturbed"]
        self.date: str = question["date"]
        #: Facts on the machine, if it is not that of the other questions.
        self.machine: Mapping[str, Any] | None = question.get("machine")
        #: Contenders that were added from other runs, see `merging`.
        self.added: list[str] = question.get("added", [])
        self.rounds: list[dict[str, dict[str, float]]] = question["rounds"]
        self.units: dict[str, str] = {name: row["unit"] for name, row in question["rows"].items()}

    @property
    def rows(self) -> list[str]:
        """Name the rows, in the order of the question."""
        return list(self.units)

    @property
    def samples(self) -> int:
        """Count the samples that were taken."""
        return sum(map(len, self.rounds))

    @property
    def contenders(self) -> list[str]:
        """Name the contenders that gave figures, in the order in which they were first asked."""
        return list(dict.fromkeys(name for each in self.rounds for name in each))

    @property
    def own(self) -> list[str]:
        """Name the contenders that were not added from another run."""
        return [name for name in self.contenders if name not in self.added]

    def runs(self, row: str, contender: str) -> list[float]:
        """Return one figure of each round that has it."""
        return [each[contender][row] for each in self.rounds if row in each.get(contender, {})]

    def spread(self, row: str, contender: str) -> Spread | None:
        """Return the median with the lowest and the highest round; None without figures."""
        runs = self.runs(row, contender)
        return Spread.of(runs) if runs else None

    def middle(self, row: str, contender: str) -> float | None:
        """Return the median of the rounds; None without figures."""
        runs = self.runs(row, contender)
        return median(runs) if runs else None

    def ratio(self, row: str, contender: str, other: str) -> float | None:
        """Return how many times the other's figure one's is: the median of the rounds' ratios."""
        ratios = [
            each[contender][row] / each[other][row]
            for each in self.rounds
            if row in each.get(contender, {}) and each.get(other, {}).get(row)
        ]
        return median(ratios) if ratios else None
