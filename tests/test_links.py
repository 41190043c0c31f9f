"""Links between the pages lead somewhere, and the pages name files and names of today."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "bench").glob("*.md")),
    *sorted((ROOT / "tests").glob("*.md")),
    *sorted(DOCS.rglob("*.md")),
]

#: Pages about the code: each name on them is a name in the code.
INTERNALS = [
    DOCS / "architecture.md",
    DOCS / "glossary.md",
    *sorted((DOCS / "internals").iterdir()),
]

LONGEST_MAP = 80  # lines of docs/architecture.md

FENCED = re.compile(r"^ *(```+).*?^ *\1 *$", flags=re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^()\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
HEADING = re.compile(r"^#+ +(?P<text>.+?) *$", flags=re.MULTILINE)

#: Absolute links to a file of this project, for README.md, which a package index shows too.
OWN = re.compile(
    r"https://(?:github\.com/procbus/procbus/blob|raw\.githubusercontent\.com/procbus/procbus)/main/"
)

#: A file or folder of the project, wherever it is named.
PATH = re.compile(r"(?<![\w./-])(?:procbus|tests|bench|docs)/[\w./*-]*[\w/*]")
#: A module by its dotted name, which is lower case.
DOTTED = re.compile(r"procbus(?:\.[a-z_]+)+")

#: Public names and attributes of spans that look like modules; and names of others on the pages
#: about the code.
PUBLIC = {
    *(
        f"procbus.{name}"
        for name in ("executor", "freeze_support", "subscribe", "current", "use", "resource")
    ),
    "procbus.otel.instrument",
    "procbus.joblib.register",
    "procbus.joblib.shutdown",
    *(f"procbus.{name}" for name in ("attempt", "handler.kind", "outcome", "worker.pid")),
}
NAMES_OF_OTHERS = {"memcpy", "send_bytes", "threadpoolctl"}


def text_of(page: Path) -> str:
    """The page without its code blocks."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors_of(page: Path) -> frozenset[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = (match["text"] for match in HEADING.finditer(text_of(page)))
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain]
    numbered = (f"{slug}-{slugs[:at].count(slug)}" for at, slug in enumerate(slugs))
    return frozenset([*slugs, *numbered])


def dead_links(page: Path) -> Iterator[str]:
    for match in LINK.finditer(text_of(page)):
        target, _, anchor = match["target"].partition("#")
        own = OWN.match(target)
        if not own and ("://" in target or target.startswith("mailto:")):
            continue
        file = page
        if own:
            file = ROOT / target[own.end() :]
        elif target:
            file = (page.parent / target).resolve()
        if not file.exists():
            yield match["target"]
        elif anchor and file.suffix == ".md" and anchor not in anchors_of(file):
            yield f"{match['target']} (no such heading)"


def test_readme_has_only_absolute_links() -> None:
    """A package index shows README.md alone."""
    links = [match["target"] for match in LINK.finditer(text_of(ROOT / "README.md"))]

    assert links
    assert [link for link in links if not link.startswith("https://")] == []


def exists(path: str) -> bool:
    """Whether the project has this file or folder; `*` stands for any name."""
    return any(ROOT.glob(path.rstrip("/")))


def relative(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_pages_and_headings(page: Path) -> None:
    assert list(dead_links(page)) == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "Makefile", ROOT / ".ci" / "run"], ids=relative)
def test_paths_on_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert [path for path in PATH.findall(text) if not exists(path)] == []


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_modules_on_a_page_exist(page: Path) -> None:
    named = set(DOTTED.findall(page.read_text(encoding="utf-8"))) - PUBLIC
    missing = {
        name
        for name in named
        if not exists(name.replace(".", "/")) and not exists(name.replace(".", "/") + ".py")
    }

    assert missing == set()


@pytest.mark.parametrize("page", INTERNALS, ids=relative)
def test_names_on_a_page_about_the_code_are_in_the_code(page: Path) -> None:
    words = words_of_the_code()
    files = {file.name for file in (ROOT / "procbus").rglob("*.py")}
    unknown = []
    for code in CODE.findall(text_of(page)):
        if code.endswith(".py"):
            known = code.rpartition("/")[2] in files or exists(code)
        elif re.fullmatch(r"\w+(\.\w+)*", code):
            known = set(code.split(".")) <= words
        else:
            continue
        if not known:
            unknown.append(code)

    assert unknown == []


@cache
def words_of_the_code() -> frozenset[str]:
    texts = (file.read_text(encoding="utf-8") for file in (ROOT / "procbus").rglob("*.py"))
    names = {file.stem for file in (ROOT / "procbus").rglob("*.py")}
    return frozenset(names.union(*(re.findall(r"\w+", text) for text in texts)) | NAMES_OF_OTHERS)


def test_the_architecture_is_a_map() -> None:
    lines = (DOCS / "architecture.md").read_text(encoding="utf-8").splitlines()

    assert len(lines) <= LONGEST_MAP


def test_links_and_anchors_are_found(tmp_path: Path) -> None:
    other = tmp_path / "other.md"
    other.write_text("# A `name`, and more\n\n## Twice\n\n## Twice\n")
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n[a](other.md) [b](other.md#a-name-and-more) [c](#title) [d](other.md#twice-1)\n"
        "[e](https://example.org/x) [f](missing.md) [g](other.md#nowhere)\n"
        "[i](https://github.com/procbus/procbus/blob/main/docs/index.md)\n"
        "[j](https://github.com/procbus/procbus/blob/main/docs/none.md)\n"
        "```python\n[h](not-a-link.md)\n```\n"
    )

    assert list(dead_links(page)) == [
        "missing.md",
        "other.md#nowhere (no such heading)",
        "https://github.com/procbus/procbus/blob/main/docs/none.md",
    ]
