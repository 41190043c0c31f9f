"""docs/glossary.md has a line for each noun and each room, and a noun of core/ means one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.test_layering import FRONT, ROOMS

ROOT = Path(__file__).parents[1]

LINE = re.compile(r"^- \*\*(?P<name>[\w ]+)(?P<room>/?)\*\*: .+\.$", flags=re.MULTILINE)

#: The words that the project says everywhere.
VOCABULARY = {
    "dead letter",
    "delivery",
    "event",
    "handler",
    "journal",
    "lane",
    "outcome",
    "receipt",
    "topic",
    "worker",
}

#: Classes of core/ whose names other rooms use for something else. None may join them.
SHARED_NAMES = {"Lock", "Meter", "Run"}


def glossary() -> tuple[list[str], list[str]]:
    """The nouns and the rooms of the page, in its order."""
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("- ")]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    nouns = [match["name"] for match in found if match and not match["room"]]
    return nouns, [match["name"] for match in found if match and match["room"]]


def homes_of_classes() -> dict[str, set[str]]:
    """By the name of a class, without leading underscores, the modules that define one."""
    homes: dict[str, set[str]] = defaultdict(set)
    for file in sorted((ROOT / "procbus").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].add(file.relative_to(ROOT).as_posix())
    return homes


def test_every_noun_of_the_vocabulary_has_one_line() -> None:
    nouns, _ = glossary()

    assert set(nouns) >= VOCABULARY
    assert nouns == sorted(set(nouns))


def test_every_room_has_one_line() -> None:
    _, rooms = glossary()

    assert rooms == sorted(set(ROOMS) - {FRONT})


def test_a_noun_that_is_a_class_of_core_is_defined_in_one_module() -> None:
    nouns, _ = glossary()
    homes = homes_of_classes()
    of_core = {
        name: homes[name]
        for noun in nouns
        if (name := noun.title().replace(" ", ""))
        and any(home.startswith("procbus/core/") for home in homes.get(name, ()))
    }

    assert {"DeadLetter", "Delivery", "Handler", "Lane", "Outcome", "Receipt"} <= set(of_core)
    assert {name: found for name, found in of_core.items() if len(found) > 1} == {}


def test_a_class_of_core_shares_its_name_with_no_other_class() -> None:
    shared = {
        name
        for name, found in homes_of_classes().items()
        if len(found) > 1 and any(home.startswith("procbus/core/") for home in found)
    }

    assert shared <= SHARED_NAMES
