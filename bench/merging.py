"""Merges the results of several runs into one: of other machines, and of other builds of Python.

``python -m bench --merge A.json B.json`` writes the figures of both to the file of ``--json``. The
contenders of the first file keep their names. If a later file has one of the same name, the name of
its Python is added, or that of the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import zip_longest
from pathlib import Path
from typing import Any

from .model import LIMIT

Document = Mapping[str, Any]


def merged(documents: Mapping[Path, Document]) -> dict[str, Any]:
    """Merge the documents of runs.

    Args:
        documents: the JSON of each run, by its file; the first is the base.
    """
    (_, first), *others = documents.items()
    result: dict[str, Any] = deepcopy(dict(first))
    labels = {python_of(first)}
    for path, other in others:
        label = python_of(other) if python_of(other) not in labels else path.stem
        labels.add(label)
        result["machine"].setdefault("merged", {})[label] = other["machine"]
        for name, question in other["questions"].items():
            mine = result["questions"].get(name)
            if mine is None:
                result["questions"][name] = {**deepcopy(question), "machine": other["machine"]}
            else:
                add(mine, deepcopy(question), label)
    return result


def python_of(document: Document) -> str:
    """The version of the Python that took the figures."""
    return str(document["machine"]["python"]).rpartition(" ")[2]


def add(mine: dict[str, Any], theirs: Mapping[str, Any], label: str) -> None:
    """Add the figures of another run to a question's.

    Args:
        mine: the question in the base, which is changed.
        theirs: the same question in the other run.
        label: the other run's name, for contenders of which both have figures.
    """
    known = contenders_of(mine)
    names = {name: f"{name} ({label})" if name in known else name for name in contenders_of(theirs)}
    if limits_of(mine) == limits_of(theirs):  # the same, so it is said once
        names.pop(LIMIT, None)
    rounds = []
    ours: dict[str, Any]
    more: dict[str, Any]
    for ours, more in zip_longest(mine["rounds"], theirs["rounds"], fillvalue={}):
        renamed = {names[name]: figures for name, figures in more.items() if name in names}
        rounds.append({**ours, **renamed})
    mine["rounds"] = rounds
    for row, found in theirs["rows"].items():
        into = mine["rows"].setdefault(row, {**found, "contenders": {}})
        for name, figures in found["contenders"].items():
            if name in names:
                into["contenders"][names[name]] = figures
    mine["added"] = [*mine.get("added", ()), *names.values()]
    mine["errors"] += [f"{label}: {error}" for error in theirs["errors"]]
    mine["disturbed"] += theirs["disturbed"]
    there = contenders_of(mine)
    mine["not_installed"] = [name for name in mine["not_installed"] if name not in there]


def limits_of(question: Mapping[str, Any]) -> dict[str, float]:
    """The limit in each row."""
    limits = {row: each["contenders"].get(LIMIT) for row, each in question["rows"].items()}
    return {row: limit["median"] for row, limit in limits.items() if limit}


def contenders_of(question: Mapping[str, Any]) -> Sequence[str]:
    """The contenders that gave figures."""
    return list(dict.fromkeys(name for each in question["rounds"] for name in each))
