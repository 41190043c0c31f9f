"""docs/glossary.md has a line for each noun and each room, and a noun of core/ means one thing."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

from tests.test_layering import FRONT, ROOMS

ROOT = Path(__file__).parents[1]

LINE = re.compile(r"^- \*\*(?P<name>[\w ]+)(?P<room>/?)\*\*: .+\.$", flags=re.MULTILINE)

#: Not the name of a constant, nor of a type variable, which is a single letter.
CLASS_NAME = re.compile(r"[A-Z]\w*[a-z]\w*")
#: A type variable, which is a single letter, is none.
CONSTANT_NAME = re.compile(r"[A-Z][A-Z0-9_]+")

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

#: Public names of classes and types that two modules define, each with the reason.
SHARED_NAMES = {
    "Worker": "one thing from both sides: its companion's, and its own process's",
}


def glossary() -> tuple[list[str], list[str]]:
    """The nouns and the rooms of the page, in its order."""
    page = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("- ")]
    found = [LINE.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    nouns = [match["name"] for match in found if match and not match["room"]]
    return nouns, [match["name"] for match in found if match and match["room"]]


def homes_of(form: re.Pattern[str]) -> dict[str, set[str]]:
    """By each public name of this form, the modules that define it."""
    homes: dict[str, set[str]] = defaultdict(set)
    for file in sorted((ROOT / "procbus").rglob("*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for name in names_of(node, form):
                homes[name].add(file.relative_to(ROOT).as_posix())
    return homes


def names_of(node: ast.stmt, form: re.Pattern[str]) -> list[str]:
    """The names of this form that a statement defines."""
    match node:
        case ast.ClassDef(name=name) | ast.AnnAssign(target=ast.Name(id=name)):
            names = [name]
        case ast.Assign(targets=targets):
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        case _:
            names = []
    return [name for name in names if form.fullmatch(name)]


def test_every_noun_of_the_vocabulary_has_one_line() -> None:
    nouns, _ = glossary()

    assert set(nouns) >= VOCABULARY
    assert nouns == sorted(set(nouns))


def test_every_room_has_one_line() -> None:
    _, rooms = glossary()

    assert rooms == sorted(set(ROOMS) - {FRONT})


def test_nouns_of_the_vocabulary_are_types_of_core() -> None:
    nouns, _ = glossary()
    homes = homes_of(CLASS_NAME)
    of_core = {
        name
        for noun in nouns
        if (name := noun.title().replace(" ", ""))
        and any(home.startswith("procbus/core/") for home in homes.get(name, ()))
    }

    assert {"DeadLetter", "Delivery", "Handler", "Kind", "Lane", "Outcome", "Receipt"} <= of_core


def test_each_public_type_is_defined_in_one_module() -> None:
    shared = {name: homes for name, homes in homes_of(CLASS_NAME).items() if len(homes) > 1}

    assert not set(shared) - set(SHARED_NAMES), shared


def test_each_public_constant_is_defined_in_one_module() -> None:
    shared = {name: homes for name, homes in homes_of(CONSTANT_NAME).items() if len(homes) > 1}

    assert not shared


def test_types_are_distinguished_from_constants_and_type_variables() -> None:
    source = (
        "class A: ...\nclass Box: ...\nLine: TypeAlias = int\nT = x\nMOST_S = 1\nPage = int\n_P = 1"
    )
    tree = ast.parse(source)

    def names(form: re.Pattern[str]) -> list[str]:
        return [name for node in tree.body for name in names_of(node, form)]

    assert names(CLASS_NAME) == ["Box", "Line", "Page"]
    assert names(CONSTANT_NAME) == ["MOST_S"]
