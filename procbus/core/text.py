# SPDX-License-Identifier: MIT
"""Figures and tables in plain ASCII text, which any terminal and file takes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))


def seconds(value_s: float | None) -> str:
    """Write a duration in the unit that suits it, as "1.5 ms" or "120 s"; None as "-"."""
    if value_s is None:
        return "-"
    if not value_s:
        return "0 s"
    # A value that rounds to 1,000 of a unit is written as 1 of the next.
    unit_s, unit = next((each for each in _UNITS if value_s >= 0.9995 * each[0]), _UNITS[-1])
    count = value_s / unit_s
    return f"{count:.1f} {unit}" if count < 9.95 else f"{count:,.0f} {unit}"


def share(value: float | None) -> str:
    """Write a part of the whole, from 0 to 1, as percent; None as "-"."""
    return "-" if value is None else f"{value:.0%}"


def printable(text: str) -> str:
    """Write characters that a terminal would obey, or cannot show, as escapes of `repr`."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] | None = None
) -> str:
    """Write rows under a head, with the columns under each other.

    Args:
        head: the head of each column.
        rows: the cells of each row, as many as there are columns.
        left: heads of the columns that are aligned to the left; all others are aligned to the
            right. None for the first column.
    """
    to_left = [each in (head[:1] if left is None else left) for each in head]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at_left else cell.rjust(width)
            for cell, width, at_left in zip(line, widths, to_left, strict=True)
        ).rstrip()
        for line in (head, *rows)
    )


def shown_events(ids: Sequence[int], what: str = "") -> str:
    """Name the events with these ids, for people.

    Args:
        ids: one id at least.
        what: what the events are, in a word or two.
    """
    if len(ids) == 1:
        return f"event #{ids[0]}" + (f" ({what})" if what else "")
    shown = ", ".join(f"#{number}" for number in ids[:_FEW])
    if len(ids) > _FEW:
        in_order = ids[-1] - ids[0] == len(ids) - 1  # as nearly always
        shown = f"#{ids[0]} to #{ids[-1]}" if in_order else f"{shown} ..."
    return f"{len(ids)} events ({shown}{f'; {what}' if what else ''})"


#: Maximum of ids that are listed in a message.
_FEW = 10
