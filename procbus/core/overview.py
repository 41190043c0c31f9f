# SPDX-License-Identifier: MIT
"""Overviews for people: lines and tables, as plain text and, in a notebook, as HTML.

The HTML has no script, and no colour of its own, so that light and dark notebooks can show it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple, TypeVar

from procbus.core.text import printable, table

_LEFT = ' style="text-align: left"'
_RIGHT = ' style="text-align: right"'


class Table(NamedTuple):
    """Rows under a head, see `text.table`."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    #: Heads of the columns that are aligned to the left; None for the first.
    left: Collection[str] | None = None


#: Lines of text, and tables.
Overview = Sequence[str | Table]


_T = TypeVar("_T")


def shown_as(overview_of: Callable[[Any], Overview]) -> Callable[[type[_T]], type[_T]]:
    """Give a class a `__str__`, and a `_repr_html_` for notebooks, that show an overview of it.

    Args:
        overview_of: makes the overview of an object of the class.
    """

    def decorate(cls: type[_T]) -> type[_T]:
        def __str__(self: _T) -> str:  # noqa: N807 - it becomes that method
            """The overview as plain text."""
            return text_of(overview_of(self))

        def _repr_html_(self: _T) -> str:
            """The overview as HTML, for a notebook."""
            return html_of(overview_of(self))

        for method in (__str__, _repr_html_):
            method.__qualname__ = f"{cls.__qualname__}.{method.__name__}"
            setattr(cls, method.__name__, method)
        return cls

    return decorate


def text_of(overview: Overview) -> str:
    """Write an overview as plain text."""
    return "\n\n".join(each if isinstance(each, str) else table(*each) for each in overview)


def html_of(overview: Overview) -> str:
    """Write an overview as HTML, in which all text is escaped."""
    return "<div>" + "".join(map(_block, overview)) + "</div>"


def _block(block: str | Table) -> str:
    if isinstance(block, str):
        return "<p>" + "<br>".join(map(_escaped, block.splitlines())) + "</p>"
    left = block.head[:1] if block.left is None else block.left
    aligned = [_LEFT if head in left else _RIGHT for head in block.head]
    head = _row("th", block.head, aligned)
    body = "".join(_row("td", row, aligned) for row in block.rows)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table>"


def _row(tag: str, cells: Sequence[str], aligned: Sequence[str]) -> str:
    made = [
        f"<{tag}{style}>{_escaped(cell)}</{tag}>"
        for cell, style in zip(cells, aligned, strict=True)
    ]
    return f"<tr>{''.join(made)}</tr>"


def _escaped(text: str) -> str:
    from html import escape  # only now: few scripts need it

    return escape(printable(text))
