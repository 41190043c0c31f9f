# SPDX-License-Identifier: MIT
"""Metrics of the demo: cases counted by hand, and whole programs against a model."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.demo.metrics import FunctionMetrics, measure_source


def measure_one(body: str) -> FunctionMetrics:
    (function,) = measure_source("def f(a, b, c):\n" + textwrap.indent(textwrap.dedent(body), "  "))
    return function


@pytest.mark.parametrize(
    ("body", "complexity", "nesting"),
    [
        ("pass", 1, 0),
        ("assert a, b", 1, 0),
        ("if a: pass", 2, 1),
        ("if a: pass\nelse: pass", 2, 1),
        ("if a: pass\nelif b: pass\nelif c: pass\nelse: pass", 4, 1),
        ("if a:\n pass\nelse:\n if b:\n  pass", 3, 2),
        ("if a:\n pass\nelse:\n pass\n if b:\n  pass", 3, 2),
        ("if a:\n pass\nelif b:\n if c: pass", 4, 2),
        ("if a:\n if b:\n  if c: pass", 4, 3),
        ("return a if b else c", 2, 0),
        ("return a if b else b if c else a", 3, 0),
        ("for x in a: pass\nelse: pass", 2, 1),
        ("while a: break\nelse: pass", 2, 1),
        ("with a, b: pass", 1, 1),
        ("with a:\n  with b: pass", 1, 2),
        ("try: pass\nfinally: pass", 1, 1),
        ("try: pass\nexcept A: pass\nexcept B: pass\nelse: pass", 3, 1),
        ("try: pass\nexcept* A: pass", 2, 1),
        ("try: pass\nexcept A:\n  if a: pass", 3, 2),
        ("return a and b", 2, 0),
        ("return a and b and c", 3, 0),
        ("return a and b or c", 3, 0),
        ("return not a", 1, 0),
        ("return 1 < a < 2", 1, 0),
        ("if a or b: pass", 3, 1),
        ("return [x for x in a]", 2, 0),
        ("return {x for x in a if x}", 3, 0),
        ("return {x: y for x in a if x if b for y in x}", 5, 0),
        ("return sum(x for x in a if x and b)", 4, 0),
        ("return lambda: a", 1, 0),
        ("return lambda: a if b else c", 2, 0),
        ("match a:\n case 1: pass", 2, 1),
        ("match a:\n case 1: pass\n case _: pass", 2, 1),
        ("match a:\n case 1: pass\n case other: pass", 2, 1),
        ("match a:\n case x if x: pass", 2, 1),
        ("match a:\n case 1 if b and c: pass", 4, 1),
        ("match a:\n case 1 | 2 | 3: pass", 4, 1),
        ("match a:\n case [1 | 2, _] as x: pass", 3, 1),
        ("match a:\n case 1:\n  if b: pass", 3, 2),
        ("class C:\n  if a: pass", 2, 1),
    ],
)
def test_complexity_and_nesting_are_as_counted_by_hand(
    body: str, complexity: int, nesting: int
) -> None:
    function = measure_one(body)
    assert (function.complexity, function.nesting) == (complexity, nesting)


def test_coroutines_count_like_functions() -> None:
    source = """
async def f(a):
    async for x in a:
        async with x:
            await (x or a)
"""
    assert measure_source(source) == (FunctionMetrics("f", 2, 3, 4, 2),)


def test_length_runs_from_def_to_the_end_of_the_body() -> None:
    source = """\
@decorator
def f(
    a,
):
    '''Docstring.'''

    # a comment
    return a
    # after the end

def g(): pass
"""
    assert [(f.name, f.line, f.length) for f in measure_source(source)] == [
        ("f", 2, 7),
        ("g", 11, 1),
    ]


def test_names_are_qualified_and_functions_come_in_order_of_line() -> None:
    source = """
class A:
    def m(self):
        def inner():
            class B:
                def deep(self): pass
    class C:
        async def n(self): pass
if True:
    def g(): pass
"""
    assert [f.name for f in measure_source(source)] == [
        "A.m",
        "A.m.<locals>.inner",
        "A.m.<locals>.inner.<locals>.B.deep",
        "A.C.n",
        "g",
    ]


def test_an_inner_function_is_measured_on_its_own() -> None:
    source = """
def outer(a, b):
    if a:
        @(decorate if a else b)
        def inner(x=a or b):
            for _ in x:
                pass
"""
    outer, inner = measure_source(source)
    assert (outer.complexity, outer.nesting) == (4, 1)  # if, conditional decorator, or
    assert (inner.complexity, inner.nesting) == (2, 1)


def test_code_outside_functions_is_not_reported() -> None:
    assert measure_source("if a or b: pass\nclass C:\n  x = 1 if a else 2\n") == ()


def test_an_empty_module_has_no_functions() -> None:
    assert measure_source("") == ()


def test_deeper_code_than_python_may_recurse_is_measured() -> None:
    terms = sys.getrecursionlimit() + 500
    source = "def f(a):\n  return " + "+".join(["a"] * terms) + " + (1 if a else 2)"
    assert measure_source(source)[0].complexity == 2


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("def f(:\n", SyntaxError),
        ("x = '\0'", (SyntaxError, ValueError)),
        ("x = '\ud800'", ValueError),
        ("(" * 300 + ")" * 300, (SyntaxError, RecursionError, MemoryError)),
    ],
)
def test_text_that_is_not_python_raises(
    source: str, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    with pytest.raises(error):
        measure_source(source)


def test_dubious_code_is_measured_without_a_warning() -> None:
    source = r"def f(a): return '\d' if a is 1 else 2"
    script = f"from procbus.demo.metrics import measure_source\nprint(measure_source({source!r}))"
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", script], capture_output=True, text=True, timeout=150
    )
    assert run.stderr == ""
    assert "complexity=2" in run.stdout


# A model: programs are built together with the metrics they must have.


@dataclass(frozen=True)
class Block:
    lines: tuple[str, ...]
    predicates: int
    nesting: int


def one_statement(text: str, predicates: int) -> Block:
    return Block((text,), predicates, 0)


LEAVES = st.sampled_from(
    [
        one_statement("pass", 0),
        one_statement("x = a and b or c", 2),
        one_statement("x = [y for y in a if y]", 2),
        one_statement("x = lambda: a if b else c", 1),
        one_statement("assert a or b", 1),
    ]
)


HEADERS: list[tuple[tuple[str, ...], int]] = [
    (("if a:",), 1),
    (("if a and b:", "else:"), 2),
    (("if a:", "elif b:", "else:"), 2),
    (("for x in a:", "else:"), 1),
    (("while a or b:",), 2),
    (("with a as x:",), 0),
    (("try:", "finally:"), 0),
    (("try:", "except A:", "except B:"), 2),
]


def blocks(inner: st.SearchStrategy[Block]) -> st.SearchStrategy[Block]:
    def build(header: tuple[tuple[str, ...], int], bodies: list[Block]) -> Block:
        heads, predicates = header
        lines: list[str] = []
        nesting = 0
        for head, body in zip(heads, bodies, strict=False):
            lines += [head, *(f"  {line}" for line in body.lines)]
            predicates += body.predicates
            nesting = max(nesting, body.nesting)
        return Block(tuple(lines), predicates, nesting + 1)

    nested = st.builds(build, st.sampled_from(HEADERS), st.lists(inner, min_size=3, max_size=3))
    sequence = st.builds(
        lambda one, two: Block(
            one.lines + two.lines, one.predicates + two.predicates, max(one.nesting, two.nesting)
        ),
        inner,
        inner,
    )
    return nested | sequence


PROGRAMS = st.recursive(LEAVES, blocks, max_leaves=12)


@given(PROGRAMS)
def test_any_program_measures_as_the_sum_of_its_parts(program: Block) -> None:
    source = "def f(a, b, c):\n" + "".join(f"  {line}\n" for line in program.lines)
    expected = FunctionMetrics(
        "f", 1, 1 + program.predicates, 1 + len(program.lines), program.nesting
    )
    assert measure_source(source) == (expected,)


@given(PROGRAMS, PROGRAMS)
def test_an_inner_function_changes_nothing_but_the_length_of_the_outer(
    outer: Block, inner: Block
) -> None:
    lines = ["def f(a, b, c):", *(f"  {line}" for line in outer.lines), "  def g(a, b, c):"]
    lines += [f"    {line}" for line in inner.lines]
    measured_outer, measured_inner = measure_source("\n".join(lines))
    assert measured_outer.complexity == 1 + outer.predicates
    assert measured_outer.nesting == outer.nesting
    assert measured_inner.complexity == 1 + inner.predicates
    assert measured_inner.nesting == inner.nesting


def qualified_names(code: CodeType) -> list[str]:
    """Names that the compiler itself gives to the functions in `code`, classes left out."""
    names: list[str] = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_flags & inspect.CO_NEWLOCALS and not constant.co_name.startswith("<"):
                names.append(constant.co_qualname)
            names += qualified_names(constant)
    return names


@pytest.mark.parametrize("module", ["argparse", "dataclasses", "functools", "inspect", "enum"])
def test_names_agree_with_the_compiler(module: str) -> None:
    source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_text(encoding="utf-8")
    expected = qualified_names(compile(source, module, "exec"))
    assert expected
    assert sorted(f.name for f in measure_source(source)) == sorted(expected)


def failing_parse(failures: int) -> Callable[..., ast.Module]:
    """`ast.parse` with failures before it, like CPython 3.11's beside other threads."""
    left, real = iter(range(failures)), ast.parse

    def parse(source: str, filename: str) -> ast.Module:
        for _ in left:
            raise SystemError("AST constructor recursion depth mismatch (before=27, after=18)")
        return real(source, filename)

    return parse


def test_parsing_is_tried_again_where_python_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ast, "parse", failing_parse(4))
    assert [function.name for function in measure_source("def f(): pass")] == ["f"]


def test_parsing_that_fails_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ast, "parse", failing_parse(5))
    with pytest.raises(SystemError, match="depth mismatch"):
        measure_source("def f(): pass")
