"""The JSON file of a run: every figure of every round, written after each sample.

So an interrupted run has lost one sample at most, and goes on from its file when asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from .model import Question, Row, Settings
from .runner import Answer

#: Settings that must be equal for figures in one file.
OF_ONE_KIND = ("system", "processor", "cores", "workers", "python", "libraries")


class CannotResume(Exception):
    """The file that was to be continued is not of this kind; the message says why."""


class Results:
    """The results of one run, in memory and in their file.

    Attributes:
        settings: shared by all samples.
        document: all that is known, as plain data.
    """

    def __init__(self, file: Path, machine: Mapping[str, object], settings: Settings) -> None:
        self.file = file
        self.settings = settings
        self.document: dict[str, Any] = {
            "machine": dict(machine),
            "settings": settings.to_json(),
            "questions": {},
        }

    @classmethod
    def resumed(cls, file: Path, machine: Mapping[str, object], settings: Settings) -> Results:
        """Go on with a file; the work of a millisecond stays as long as it was calibrated there.

        Raises:
            CannotResume: it cannot be read, or was taken on something else.
        """
        try:
            document = json.loads(file.read_text())
            before = {**document["machine"], "scale": document["settings"]["scale"]}
            settings_before = Settings(**document["settings"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CannotResume(f"{file} cannot be continued: {error!r}") from error
        now = {**machine, "scale": settings.scale}
        for what in (*OF_ONE_KIND, "scale"):
            if before.get(what) != now[what]:
                raise CannotResume(
                    f"{file} was taken with {what} {before.get(what)}, and this is {now[what]}: "
                    f"start anew without --resume, or write to another file with --json"
                )
        results = cls(file, machine, settings_before)
        results.document = document
        document["machine"].setdefault("resumed", []).append(machine["date"])
        return results

    def answer_to(self, question: Question) -> Answer:
        """Return the known figures of a question; failed samples are missing, and taken again."""
        rounds = self.document["questions"].get(question.name, {}).get("rounds", [])
        known = [
            {name: figures for name, figures in each.items() if name in question.contenders}
            for each in rounds
        ]
        disturbed = self.document["questions"].get(question.name, {}).get("disturbed", 0)
        return Answer(question, known, disturbed=disturbed)

    def keep(self, answer: Answer) -> None:
        """Write the known figures. The file is always whole: it is replaced, not rewritten."""
        self.document["questions"][answer.question.name] = to_json(answer)
        self.document["machine"]["load_after"] = os.getloadavg()[0]
        new = self.file.with_name(self.file.name + ".new")
        new.write_text(json.dumps(self.document, indent=1) + "\n")
        new.replace(self.file)


def to_json(answer: Answer) -> dict[str, Any]:
    """Return every figure of every round, with the conclusions from them, as plain data."""
    return {
        "asks": answer.question.asks,
        "limit": answer.question.limit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "errors": answer.errors,
        "not_installed": answer.not_installed,
        "disturbed": answer.disturbed,
        "rounds": answer.rounds,
        "rows": {row.name: row_to_json(answer, row) for row in answer.question.rows},
    }


def row_to_json(answer: Answer, row: Row) -> dict[str, Any]:
    """Return one row as plain data; a contender that gave no figure for it is absent."""
    contenders = {}
    for contender in answer.question.contenders:
        if runs := answer.figures(row, contender):
            spread = {"median": median(runs), "min": min(runs), "max": max(runs)}
            contenders[contender] = {"runs": runs, **spread}
    targets = [
        {
            "target": target.text(),
            "against": target.against,
            "runs": (values := answer.against(row, target)),
            "median": median(values) if values else None,
            "reached": answer.is_reached(row, target),
        }
        for target in row.targets
    ]
    return {"unit": row.unit, "contenders": contenders, "targets": targets}
