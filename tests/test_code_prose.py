"""Comments, docstrings and messages of the code name their subjects, as the pages of docs/ do.

Found are sentences that begin with a clause in place of a noun, such as "What is left runs again",
words that stand for a noun which the reader then has to guess, such as "so many", and sentences
that are too long to be understood at once. A message is any string of two words or more; the
strings of tests are samples, and not looked at.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_prose import VAGUE, WORDS_AT_MOST, number_of_words

ROOT = Path(__file__).parents[1]

# Beginnings of a sentence that has no noun for its subject.
NOUNLESS = ("What", "Whatever", "Whoever", "Where")

# Maximum of such sentences in a folder; because old ones go one by one, and no new one may come.
AT_MOST = {"procbus": 0, "tests": 0, "bench": 0}

# Maximum of sentences in a folder that are too long; tests and benchmarks may have some.
LONG_AT_MOST = {"procbus": 0}

# A new sentence: a blank line, an item, a row or argument, or the mark that ends the one before.
BORDER = re.compile(r"\n\s*\n|\n\s*(?:[-*|]|>>>|\d+\.|\*{0,2}\w+:)\s+|(?<=[.!?:;])\s+")

# Beginning of a string that is no prose: a statement of SQL, or a comment in SQL.
SQL = re.compile(r"\s*(--\s|(CREATE|DELETE|INSERT|SELECT|UPDATE)\b)")

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


def messages_in(source: str) -> Iterator[tuple[int, str]]:
    """The strings of a module that hold words, each with its line; a value in one counts as "X"."""
    tree = ast.parse(source)
    passed = {
        id(getattr(node.body[0], "value", None))  # its docstring
        for node in ast.walk(tree)
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None
    }
    for node in ast.walk(tree):  # outer nodes come first
        if isinstance(node, ast.JoinedStr):
            passed.update(map(id, node.values))
            parts = [getattr(part, "value", "X") for part in node.values]
            text = "".join(part if isinstance(part, str) else "X" for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = "" if id(node) in passed else node.value
        else:
            continue
        if " " in text.strip() and not SQL.match(text):
            yield node.lineno, text


def sentences_in(source: str, messages: bool = True) -> Iterator[tuple[int, str]]:
    """The sentences of a module, each with the line where its text begins."""
    texts = [*docstrings_in(source), *comments_in(source)]
    if messages:
        texts += messages_in(source)
    for line, text in texts:
        for sentence in BORDER.split(text):
            yield line, " ".join(sentence.split())


def is_nounless(sentence: str) -> bool:
    """Whether a sentence lacks a noun; a question may begin as it likes."""
    first = sentence.split(" ")[0].rstrip(",")
    return (first in NOUNLESS and not sentence.endswith("?")) or bool(VAGUE.search(sentence))


def nounless_in(source: str, messages: bool = True) -> Iterator[tuple[int, str]]:
    """The sentences of a module that lack a noun, each with the line where its text begins."""
    return (found for found in sentences_in(source, messages) if is_nounless(found[1]))


@pytest.mark.parametrize("folder", AT_MOST)
def test_sentences_of_the_code_have_nouns(folder: str) -> None:
    nounless = [
        f"{file.relative_to(ROOT)}:{line}: {sentence}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        if file != Path(__file__)
        for line, sentence in nounless_in(file.read_text(encoding="utf-8"), folder != "tests")
    ]

    assert len(nounless) <= AT_MOST[folder], "\n".join(nounless)


@pytest.mark.parametrize("folder", LONG_AT_MOST)
def test_sentences_of_the_code_are_short(folder: str) -> None:
    long = [
        f"{file.relative_to(ROOT)}:{line}: {sentence}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line, sentence in sentences_in(file.read_text(encoding="utf-8"))
        if number_of_words(sentence) > WORDS_AT_MOST
    ]

    assert len(long) <= LONG_AT_MOST[folder], "\n".join(long)


def test_each_comment_docstring_and_message_is_read_by_sentences() -> None:
    source = '''
"""Good. What is bad.

Args:
    one: those of a kind.
"""
# A comment that goes
# on. Whoever reads it.
x = "What is a string?"  # Where it stands.
# What is a question?
log(f"{x}. What is logged", "What")
'''

    assert [sentence for _, sentence in nounless_in(source)] == [
        *("What is bad.", "those of a kind.", "Whoever reads it.", "Where it stands."),
        "What is logged",
    ]
