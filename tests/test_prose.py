"""The prose of README.md, docs/ and bench/ speaks to its reader, about things that have names.

Code is left out: fenced blocks and words between backticks.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES_FOR_USERS = [page for page in PAGES if page.parent.name != "internals"]
PAGES_OF_BENCHMARKS = sorted((ROOT / "bench").glob("*.md"))
ALL_PAGES = [*PAGES, *PAGES_OF_BENCHMARKS, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]

# Maximum of the word "what" in 1,000 words of a page; because a clause that it opens has no noun.
WHAT_AT_MOST = 4

# Minimum of the word "you" in 1,000 words; because the reader is the one who acts. "your" counts on
# a single page, since pages of figures and tables have few verbs.
YOU_AT_LEAST = 6

# Beginnings of a sentence that has no noun for its subject.
NOUNLESS = ("What", "Whoever", "Whatever")

# Words in place of a noun, which the reader then has to guess.
VAGUE = re.compile(r"\b(so many|those of|that of which|nobody|whoever)\b", flags=re.IGNORECASE)

# Maximum of words in one sentence; because a longer one has to be read twice. Figures do not count.
WORDS_AT_MOST = 35

FENCED = re.compile(r"^ *(```+).*?^ *\1 *$", flags=re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", flags=re.DOTALL)
INLINE_CODE = re.compile(r"(`+).+?\1", flags=re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")

# A new sentence: a blank line, an item, a cell of a table, or the mark that ends the one before.
BORDER = re.compile(r"\n\s*\n|\n\s*(?:[-*]|\d+\.)\s+|\||\n#+ |(?<=[.!?:;])[\"')*_]*\s+")


def prose_of(page: str) -> str:
    """The page without its code and the addresses of its links."""
    text = COMMENT.sub("", FENCED.sub("\n", page))
    return INLINE_CODE.sub("CODE", LINK.sub(r"\1", text))


def sentences_of(page: str) -> list[str]:
    """The sentences of a page, one line each, without emphasis and list marks."""
    pieces = BORDER.split("\n" + prose_of(page))
    return [" ".join(piece.split()).lstrip("*_#-> ") for piece in pieces if piece.strip()]


def words_of(pages: list[Path]) -> list[str]:
    text = "\n\n".join(prose_of(page.read_text(encoding="utf-8")) for page in pages)
    return re.findall(r"[a-z']+", text.lower())


def number_of_words(sentence: str) -> int:
    """Words that begin with a letter: figures, versions and signs are none."""
    return len(re.findall(r"(?<![\w.,'-])[^\W\d_][\w'-]*", sentence))


def in_a_thousand(words: list[str], *wanted: str) -> float:
    return 1000 * sum(map(words.count, wanted)) / len(words)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_docs_speak_to_their_reader() -> None:
    assert in_a_thousand(words_of(PAGES), "you") >= YOU_AT_LEAST


@pytest.mark.parametrize("page", PAGES_FOR_USERS, ids=name_of)
def test_each_page_for_users_speaks_to_its_reader(page: Path) -> None:
    assert in_a_thousand(words_of([page]), "you", "your") >= YOU_AT_LEAST


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_each_page_seldom_says_what_for_a_thing_that_has_a_name(page: Path) -> None:
    assert in_a_thousand(words_of([page]), "what") <= WHAT_AT_MOST


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_sentences_of_a_page_begin_with_a_noun(page: Path) -> None:
    nounless = [
        sentence
        for sentence in sentences_of(page.read_text(encoding="utf-8"))
        if sentence.split(" ")[0].rstrip(",") in NOUNLESS and not sentence.endswith("?")
    ]

    assert not nounless, "\n".join(nounless)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_sentences_of_a_page_name_their_things(page: Path) -> None:
    vague = [
        sentence
        for sentence in sentences_of(page.read_text(encoding="utf-8"))
        if VAGUE.search(sentence)
    ]

    assert not vague, "\n".join(vague)


@pytest.mark.parametrize("page", ALL_PAGES, ids=name_of)
def test_sentences_of_a_page_are_short(page: Path) -> None:
    long = [
        sentence
        for sentence in sentences_of(page.read_text(encoding="utf-8"))
        if number_of_words(sentence) > WORDS_AT_MOST
    ]

    assert not long, "\n".join(long)


def test_code_is_no_prose() -> None:
    page = "You say `what`.\n\n```python\nwhat = 1\n```\n\n[here](what.md)\n"

    assert re.findall(r"\w+", prose_of(page)) == ["You", "say", "CODE", "here"]


def test_each_item_cell_and_clause_may_begin_a_sentence() -> None:
    page = "# What is it?\n\n- **What** is.\n- Two: what\n  follows\n\n| What | you |\n"

    assert sentences_of(page) == [
        *("What is it?", "What** is.", "Two:", "what follows", "What", "you"),
    ]
