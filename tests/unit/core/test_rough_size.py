# SPDX-License-Identifier: MIT
"""The rough size of an object."""

import sys
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

from procbus.core.rough_size import rough_size

TEXT = "x" * 1000
ONE = sys.getsizeof(TEXT)


@dataclass
class Page:
    url: str
    body: str


@dataclass(slots=True)
class Slotted:
    url: str
    body: str


class Pair(NamedTuple):
    url: str
    body: str


@pytest.mark.parametrize(
    ("found", "texts"),
    [
        (TEXT, 1),
        ([TEXT] * 500, 500),
        ((TEXT,) * 500, 500),
        ({str(number) + TEXT for number in range(500)}, 500),
        (dict.fromkeys(range(500), TEXT), 500),
        (deque([TEXT] * 500), 500),
        ([[TEXT] * 10 for _ in range(50)], 500),
        ([Page("a", TEXT)] * 500, 500),
        (Page(TEXT, TEXT), 2),
        (Slotted(TEXT, TEXT), 2),
        (Pair(TEXT, TEXT), 2),
        (bytearray(1_000_000), 1_000_000 / ONE),
        (memoryview(bytes(1_000_000)), 1_000_000 / ONE),
    ],
)
def test_size_of_containers_and_objects_is_about_that_of_their_contents(found, texts):
    assert 0.9 * texts * ONE <= rough_size(found) <= 1.3 * texts * ONE + 300


def test_size_of_an_array_is_that_of_its_part_even_if_it_is_a_view():
    numpy = pytest.importorskip("numpy")
    assert 1_000_000 <= rough_size(numpy.zeros(1_000_000, dtype="u1")[:]) < 1_001_000
    assert rough_size([numpy.zeros(1000)] * 100) >= 800_000


@pytest.mark.parametrize("found", [None, 1, 1.5, True, "", [], {}, set(), (), object(), len, int])
def test_small_objects_are_small(found):
    assert 0 <= rough_size(found) < 1000


def test_an_object_that_cannot_be_looked_into_is_small():
    class Broken:
        def __sizeof__(self) -> int:
            raise RuntimeError

    loop: list[Any] = []
    loop.append(loop)
    unset = Slotted.__new__(Slotted)
    assert rough_size(Broken()) < 100
    assert rough_size(loop) < 1000
    assert rough_size(unset) < 1000
