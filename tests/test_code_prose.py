"""Comments and docstrings of the code name their subjects, as the pages of docs/ do.

Found are sentences that begin with a clause in place of a noun, such as "What is left runs again",
and words that stand for a noun which the reader then has to guess: "so many", "those of".
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Beginnings of a sentence that has no noun for its subject.
NOUNLESS = ("What", "Whatever", "Whoever", "Where")

# Words in place of a noun.
VAGUE = re.compile(r"\b(so many|those of)\b", flags=re.IGNORECASE)

# Maximum of such sentences in a folder; because old ones go one by one, and no new one may come.
AT_MOST = {"procbus": 0, "tests": 0, "bench": 0}

# A new sentence: a blank line, an item or argument, or the mark that ends the one before.
BORDER = re.compile(r"\n\s*\n|\n\s*(?:[-*]|\d+\.|\*{0,2}\w+:)\s+|(?<=[.!?:;])\s+")

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def docstrings_in(source: str) -> Iterator[tuple[int, str]]:
    """The docstrings of a module, each with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and (text := ast.get_docstring(node)):
            yield node.body[0].lineno, text


def comments_in(source: str) -> Iterator[tuple[int, str]]:
    """The comments of a module, each with its line; lines below each other are one comment."""
    lines: list[str] = []
    begin = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        line, column = token.start
        alone = not token.line[:column].strip()
        if lines and not (alone and line == last + 1):
            yield begin, "\n".join(lines)
            lines = []
        if not lines:
            begin = line
        lines.append(token.string.lstrip("#:").strip())
        last = line if alone else 0
    if lines:
        yield begin, "\n".join(lines)


def is_nounless(sentence: str) -> bool:
    """Whether a sentence lacks a noun; a question may begin as it likes."""
    first = sentence.split(" ")[0].rstrip(",")
    return (first in NOUNLESS and not sentence.endswith("?")) or bool(VAGUE.search(sentence))


def nounless_in(source: str) -> Iterator[tuple[int, str]]:
    """The sentences of a module that lack a noun, each with the line where its text begins."""
    for line, text in [*docstrings_in(source), *comments_in(source)]:
        for sentence in map(" ".join, map(str.split, BORDER.split(text))):
            if is_nounless(sentence):
                yield line, sentence


@pytest.mark.parametrize("folder", AT_MOST)
def test_sentences_of_the_code_have_nouns(folder: str) -> None:
    nounless = [
        f"{file.relative_to(ROOT)}:{line}: {sentence}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        if file != Path(__file__)
        for line, sentence in nounless_in(file.read_text(encoding="utf-8"))
    ]

    assert len(nounless) <= AT_MOST[folder], "\n".join(nounless)


def test_each_comment_and_docstring_is_read_by_sentences() -> None:
    source = '''
"""Good. What is bad.

Args:
    one: those of a kind.
"""
# A comment that goes
# on. Whoever reads it.
x = "What is a string?"  # Where it stands.
# What is a question?
'''

    assert [sentence for _, sentence in nounless_in(source)] == [
        *("What is bad.", "those of a kind.", "Whoever reads it.", "Where it stands."),
    ]
