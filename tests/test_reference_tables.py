"""The tables of docs/options.md and docs/command-line.md have what the code has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from procbus.cli import main
from procbus.core.handler import Handler, HandlerOptions, Limits
from procbus.core.options import options_of
from procbus.core.retry import RetryPolicy
from procbus.settings import BusOptions, Settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

#: Variables of tests and of scenes of the benchmarks, which a user does not set.
NOT_FOR_USERS = {"PROCBUS_BENCH_GATE", "PROCBUS_BENCH_SCENE", "PROCBUS_TEST_SWITCH_S"}


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2]
    table = re.search(r"^\|.*?(?=\n\n|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert table, f"no table below {heading}"
    lines = table[0].strip().splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def options_on_page(heading: str) -> dict[str, str]:
    return {row[0].strip("`"): row[1].strip("`") for row in rows_of("options.md", heading)}


def test_the_table_has_each_option_of_a_bus_with_its_default() -> None:
    declared = {name: repr(each.default) for name, each in options_of(Settings).items()}

    assert options_on_page("Options of a bus") == declared
    assert set(declared) == set(BusOptions.__annotations__)


def test_the_table_has_each_option_of_a_handler_with_its_default() -> None:
    classes = Handler, Limits, RetryPolicy
    declared = {name: repr(each.default) for name, each in options_of(*classes).items()}

    assert options_on_page("Options of a handler") == declared
    assert set(declared) == set(HandlerOptions.__annotations__)


@pytest.mark.parametrize("heading", ["Options of a bus", "Options of a handler"])
def test_each_option_says_its_unit_and_when_to_change_it(heading: str) -> None:
    assert [row for row in rows_of("options.md", heading) if len(row) != 4 or not all(row)] == []


def test_the_table_has_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.main(["--help"])
    shown = re.findall(r"^    (\w+)(?: {2,}\S|$)", capsys.readouterr().out, flags=re.MULTILINE)
    named = [row[0].strip("`") for row in rows_of("command-line.md", "Commands")]

    assert sorted(named) == sorted(f"procbus {name}" for name in shown)


def statuses_in_the_code() -> Iterator[int]:
    """The exit statuses that the modules of commands return, or have names for."""
    for file in (ROOT / "procbus" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Return(value=ast.Constant(value=int() as status)) if type(status) is int:
                    yield status
                case ast.Assign(
                    targets=[ast.Name(id="_NONE" | "_UNSAFE" | "_UNUSABLE")],
                    value=ast.Constant(value=int() as status),
                ):
                    yield status
    yield from (main._INTERRUPTED, main._PIPE_BROKEN, main._TERMINATED)  # noqa: SLF001 - likewise


def test_the_table_has_each_exit_status() -> None:
    named = {int(row[0]) for row in rows_of("command-line.md", "Exit statuses")}

    assert named == set(statuses_in_the_code())


def variables_in_the_code() -> set[str]:
    """The environment variables of procbus that the code names."""
    texts = [
        file.read_text(encoding="utf-8")
        for folder in ("procbus", "bench")
        for file in (ROOT / folder).rglob("*.py")
    ]
    found = {name for text in texts for name in re.findall(r"\"(PROCBUS_[A-Z_]+)\"", text)}
    asked = {
        name for text in texts for name in re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", text)
    }
    return (found | asked) - NOT_FOR_USERS


def test_the_table_has_each_environment_variable() -> None:
    named = {row[0].strip("`") for row in rows_of("command-line.md", "Environment variables")}

    assert variables_in_the_code() <= named
