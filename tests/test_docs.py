"""The documentation is true: its Python runs, and its commands exist.

In README.md and the pages of docs/:

- each ```python block is a script of its own, run in an empty directory;
- ```python continue adds to the script of the block before it;
- ```python no-run REASON is not run, for that reason;
- ```python needs MODULE is run where that module is installed;
- ```text output is the whole output of the script before it on stdout; `...` stands for any text;
- each `$ ` line of a ```console block is a command that exists.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clusters import HAS_DASK, NO_DASK

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

# Pages whose scripts `make test` runs; `make test-all` runs the scripts of all pages.
QUICK_PAGES = {"README.md", "guarantees.md", "subscriptions.md"}

# Maximum duration of one script, in seconds; below pytest's own limit, so that the output is shown.
SCRIPT_LIMIT_S = 150

# Shown around procbus, not part of it: these are taken as they stand.
COMMANDS_OF_OTHERS = {"cd", "curl", "dask", "git", "pip", "python"}

# Other words for the same, which this test would pass over.
MISNAMED = {"bash", "py", "pycon", "python3", "sh", "shell"}

FENCE = re.compile(r"(?P<indent> *)(?P<fence>```+)(?P<info>.*)")


@dataclass(frozen=True)
class Block:
    """A fenced block: `info` follows the opening fence, the text begins at line `line`."""

    info: str
    line: int
    text: str

    @property
    def language(self) -> str:
        return self.info.partition(" ")[0]

    @property
    def remark(self) -> str:
        return self.info.partition(" ")[2].strip()


@dataclass(frozen=True)
class Script:
    """Python to run. Its lines have the numbers that they have on the page."""

    line: int
    text: str
    output: str | None = None
    needs: str = ""


def blocks_of(page: str) -> list[Block]:
    blocks: list[Block] = []
    lines = iter(enumerate(page.splitlines(), start=1))
    for number, line in lines:
        opening = FENCE.fullmatch(line)
        if not opening:
            continue
        text = []
        for _, inner in lines:
            if inner.strip() == opening["fence"]:
                break
            text.append(inner.removeprefix(opening["indent"]))
        else:
            raise ValueError(f"line {number}: this block is never closed")
        blocks.append(Block(opening["info"].strip(), number + 1, "\n".join(text)))
    return blocks


def scripts_of(page: str) -> list[Script]:
    scripts: list[Script] = []
    for block in blocks_of(page):
        if block.language in MISNAMED:
            raise ValueError(f"line {block.line}: use python or console, not {block.language}")
        if block.language == "text" and block.remark == "output":
            if not scripts or scripts[-1].output is not None:
                raise ValueError(f"line {block.line}: this output has no script before it")
            scripts.append(replace(scripts.pop(), output=block.text))
        if block.language != "python":
            continue
        word, _, reason = block.remark.partition(" ")
        if word == "no-run" and reason:
            continue
        if block.remark == "continue" and scripts:
            begun = scripts.pop()
            scripts.append(Script(begun.line, below(begun.text, block)))
        elif not block.remark:
            scripts.append(Script(block.line, below("", block)))
        elif word == "needs" and reason.isidentifier():
            scripts.append(Script(block.line, below("", block), needs=reason))
        else:
            raise ValueError(
                f"line {block.line}: not understood: python {block.remark!r}. After `python` comes "
                f"nothing, `continue` (after another block), `needs` and a module, or `no-run` and "
                f"the reason."
            )
    return scripts


def below(text: str, block: Block) -> str:
    """Put the block below the text, at the line where it stands on the page."""
    return text + "\n" * (block.line - 1 - text.count("\n")) + block.text + "\n"


def commands_of(page: str) -> list[str]:
    """Single commands; chained ones on one line are split."""
    lines = [
        line.removeprefix("$ ")
        for block in blocks_of(page)
        if block.language == "console"
        for line in block.text.splitlines()
        if line.startswith("$ ")
    ]
    return [command.strip() for line in lines for command in re.split(r"&&|\|\||[;|]", line)]


def words_of(command: str) -> list[str]:
    """The command's words, comments and leading NAME=value settings left out."""
    words = shlex.split(command, comments=True)
    while words and re.match(r"\w+=", words[0]):
        words.pop(0)
    return words


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))


def environment() -> dict[str, str]:
    """The environment of a user who has this procbus installed."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def run_python(
    *arguments: str, cwd: Path, errors: int = subprocess.STDOUT
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        timeout=SCRIPT_LIMIT_S,
    )


def same_output(shown: str, printed: str) -> bool:
    """Whether a script printed the output that its page shows."""
    return doctest.OutputChecker().check_output(f"{shown}\n", printed, doctest.ELLIPSIS)


def unknown_in(command: str, cwd: Path) -> str:
    """Name the parts of the command that do not exist; nothing if all do."""
    match words_of(command):
        case ["make", *arguments]:
            targets = {word for word in arguments if "=" not in word and word[0] != "-"}
            return ", ".join(f"make target {name}" for name in sorted(targets - make_targets()))
        case ["procbus", name, *_] if not name.startswith("-"):
            shown = run_python("-m", "procbus", name, "--help", cwd=cwd)
            return "" if shown.returncode == 0 else f"procbus command {name}: {shown.stdout}"
        case ["procbus", *options]:
            shown = run_python("-m", "procbus", *(options or ["--help"]), cwd=cwd)
            return "" if shown.returncode == 0 else f"procbus {options}: {shown.stdout}"
        case [name, *_] if name not in COMMANDS_OF_OTHERS:
            return f"command {name}"
    return ""


def relative(page: Path) -> str:
    return str(page.relative_to(ROOT))


def scripts_of_file(page: Path) -> list[Script]:
    try:
        return scripts_of(page.read_text(encoding="utf-8"))
    except ValueError as error:
        error.add_note(f"in {relative(page)}")
        raise


@pytest.mark.parametrize(
    ("page", "script"),
    [
        pytest.param(
            page,
            script,
            id=f"{relative(page)}:{script.line}",
            marks=[
                pytest.mark.skipif(page.name == "dask.md" and not HAS_DASK, reason=NO_DASK),
                pytest.mark.skipif(
                    bool(script.needs and find_spec(script.needs) is None),
                    reason=f"{script.needs} is not installed",
                ),
                *([] if page.name in QUICK_PAGES else [pytest.mark.slow]),
            ],
        )
        for page in PAGES
        for script in scripts_of_file(page)
    ],
)
def test_the_python_on_a_page_runs(page: Path, script: Script, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(script.text, encoding="utf-8")
    ran = run_python("example.py", cwd=tmp_path, errors=subprocess.PIPE)
    said = f"{relative(page)}, script at line {script.line}:\n{ran.stdout}\n{ran.stderr}"

    assert ran.returncode == 0, said
    assert script.output is None or same_output(script.output, ran.stdout), said


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_the_commands_on_a_page_exist(page: Path, tmp_path: Path) -> None:
    commands = commands_of(page.read_text(encoding="utf-8"))
    unknown = [
        f"{command}: {said}" for command in commands if (said := unknown_in(command, tmp_path))
    ]

    assert not unknown, "\n".join(unknown)


def test_a_block_is_a_script_with_the_line_numbers_of_its_page() -> None:
    page = "# Title\n\n```python\nx = 1\n```\n\n```python\ny = 2\n```\n"

    assert scripts_of(page) == [Script(4, "\n\n\nx = 1\n"), Script(8, "\n" * 7 + "y = 2\n")]


def test_a_block_that_continues_is_added_to_the_one_before() -> None:
    page = "```python\nx = 1\n```\nand\n```python continue\nprint(x)\n```\n"

    assert scripts_of(page) == [Script(2, "\nx = 1\n\n\n\nprint(x)\n")]


def test_a_block_in_a_list_loses_its_indentation() -> None:
    page = "- so:\n\n  ```python\n  if True:\n      pass\n  ```\n"

    assert scripts_of(page) == [Script(4, "\n\n\nif True:\n    pass\n")]


def test_the_output_below_a_script_is_its_output() -> None:
    page = "```python\nprint(1, id(2))\n```\n\n```text output\n1 ...\n```\n"

    assert scripts_of(page) == [Script(2, "\nprint(1, id(2))\n", "1 ...")]
    assert same_output("1 ...", "1 4711\n")
    assert not same_output("1 ...", "2 4711\n")
    with pytest.raises(ValueError, match="no script before it"):
        scripts_of("```text output\n1\n```\n")


def test_a_block_is_passed_over_only_for_a_reason() -> None:
    assert scripts_of("```python no-run shows a mistake\nx = \n```\n") == []
    with pytest.raises(ValueError, match="not understood"):
        scripts_of("```python no-run\nx = \n```\n")


def test_a_block_that_needs_another_library_names_it() -> None:
    page = "```python needs pyee\nx = 1\n```\n"

    assert scripts_of(page) == [Script(2, "\nx = 1\n", needs="pyee")]
    with pytest.raises(ValueError, match="not understood"):
        scripts_of("```python needs\nx = 1\n```\n")


@pytest.mark.parametrize(
    ("page", "mistake"),
    [
        ("```python continue\nx = 1\n```\n", "not understood"),
        ("```python skip this\nx = 1\n```\n", "not understood"),
        ("```py\nx = 1\n```\n", "use python or console"),
        ("```python\nx = 1\n", "never closed"),
    ],
)
def test_a_block_that_would_be_passed_over_is_a_mistake(page: str, mistake: str) -> None:
    with pytest.raises(ValueError, match=mistake):
        scripts_of(page)


def test_commands_are_taken_one_by_one_and_output_is_not() -> None:
    page = textwrap.dedent(
        """
        ```console
        $ cd procbus && PYTHON=python3.12 make test  # all of them
        12 passed
        ```
        """
    )

    assert [words_of(command) for command in commands_of(page)] == [
        ["cd", "procbus"],
        ["make", "test"],
    ]


@pytest.mark.parametrize(
    ("command", "unknown"),
    [
        ("make help", ""),
        ("make VENV=elsewhere -j2 test lint", ""),
        ("make tea", "make target tea"),
        ("pip install procbus", ""),
        ("brew install procbus", "command brew"),
    ],
)
def test_commands_that_do_not_exist_are_named(command: str, unknown: str, tmp_path: Path) -> None:
    assert unknown_in(command, tmp_path) == unknown


def test_a_procbus_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "procbus command juggle" in unknown_in("procbus juggle", tmp_path)
    assert unknown_in("procbus demo", tmp_path) == ""
