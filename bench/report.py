"""Shows the answers on a terminal: a table for each question."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING

from .model import LIMIT, PROCBUS, Row
from .runner import Answer

if TYPE_CHECKING or find_spec("rich"):
    from rich.console import Console as Console
    from rich.table import Table
else:  # an extra of procbus, without which the tables are plain text
    from .plain import Console, Table

# Left to right; a question's contender that is not named here comes last.
ORDER = (
    PROCBUS,
    LIMIT,
    "pipe alone",
    "ProcessPoolExecutor",
    "mp.Pool",
    "loky",
    "joblib",
    "mpire",
    "pebble",
    "distributed",
    "ray",
    "thread bus",
    "ThreadPoolExecutor",
)
REACHED = {True: "[green]yes[/]", False: "[red]no[/]", None: "-"}
TABLE_WIDTH = 170  # where the output is no terminal


def show(answers: Sequence[Answer], console: Console) -> None:
    """Print a table for each question, and which targets were reached in all."""
    for answer in answers:
        console.print(table_of(answer))
        for error in answer.errors:
            console.print(f"failed: {error}", style="red", markup=False)
        console.print()
    console.print(
        "Figures are medians of the rounds; procbus's own with the lowest and the highest round.\n"
        "Ratios are medians of the rounds' ratios."
    )
    verdicts = [
        (f"{answer.question.name}: {row.name} ({target.text()})", answer.is_reached(row, target))
        for answer in answers
        for row in answer.question.rows
        for target in row.targets
    ]
    reached_count = sum(bool(reached) for _, reached in verdicts)
    console.print(f"Targets reached: {reached_count} of {len(verdicts)}.")
    for text, reached in verdicts:
        if not reached:
            console.print(f"  {'not measured' if reached is None else 'not reached'}: {text}")


def table_of(answer: Answer) -> Table:
    """Return the table of one question: a line for each row, a column for each contender."""
    question = answer.question
    table = Table(title=f"{question.name}: {question.asks}", title_justify="left", show_lines=True)
    notes = [f"limit: {question.limit}"] if question.limit else []
    if answer.not_installed:
        notes.append(f"not installed: {', '.join(answer.not_installed)}")
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    known = [name for name in ORDER if name in question.contenders]
    columns = known + [name for name in question.contenders if name not in known]
    table.add_column("measurement", min_width=24)
    for name in columns:
        table.add_column(name, justify="right")
    for heading in ("ratio", "target", "reached"):
        table.add_column(heading)
    for row in question.rows:
        table.add_row(
            f"{row.name}, {row.unit}",
            *(cell(answer.figures(row, contender), contender) for contender in columns),
            *target_cells(answer, row),
        )
    return table


def cell(figures: Sequence[float], contender: str) -> str:
    """Return one contender's figure; with its spread for procbus."""
    if not figures:
        return "-"
    if contender != PROCBUS or len(figures) == 1:
        return short(median(figures))
    return f"[bold]{short(median(figures))}[/]\n{short(min(figures))} … {short(max(figures))}"


def target_cells(answer: Answer, row: Row) -> tuple[str, str, str]:
    """Return ratio, target and whether it was reached: a line for each target of the row."""
    ratios, targets, reached = [], [], []
    for target in row.targets:
        values = answer.against(row, target)
        ratios.append(short(median(values)) + " x" if values and target.against else "-")
        targets.append(target.text())
        reached.append(REACHED[answer.is_reached(row, target)])
    return "\n".join(ratios), "\n".join(targets), "\n".join(reached)


def short(figure: float) -> str:
    """Return a figure with three digits that count, or in thousands without any more.

    >>> [short(x) for x in (0.01234, 1.5, 42.42, 318.2, 7213.0, 123456.0, 1_234_567.0)]
    ['0.0123', '1.5', '42.4', '318', '7,213', '123,456', '1,234,567']
    """
    return f"{figure:,.0f}" if abs(figure) >= 100 else f"{figure:.3g}"
