# SPDX-License-Identifier: MIT
"""Large arrays of several joblib calls are mapped from one copy; small and single ones are not."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from procbus.joblib.arrays import SharedArrays
from procbus.joblib.calls import InFile

LEAST = 1000

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="arrays are shared where the system has memfd_create"
)


@pytest.fixture
def shared() -> Iterator[SharedArrays]:
    made = SharedArrays(LEAST, "r")
    yield made
    made.close()


def second(shared: SharedArrays, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """The call that is sent when the same arguments come for the second time."""
    shared.share((print, args, kwargs))
    return shared.share((print, args, kwargs))


@pytest.mark.parametrize("order", ["C", "F"])
def test_array_that_comes_twice_is_read_from_a_file(shared, order):
    array = np.asarray(np.arange(600.0).reshape(20, 30), order=order)
    first = shared.share((print, (array,), {"of": array}))
    _, [sent], _ = second(shared, array)

    assert first[1][0] is array
    assert type(sent) is InFile
    np.testing.assert_array_equal(sent.load(), array)
    assert sent.load().flags.f_contiguous == array.flags.f_contiguous
    assert not sent.load().flags.writeable


def test_named_argument_is_shared_too(shared):
    array = np.ones(LEAST)
    _, args, kwargs = second(shared, 1, of=array)

    assert (args, type(kwargs["of"])) == ([1], InFile)


@pytest.mark.parametrize(
    "value",
    [
        np.ones(LEAST // 8 - 1),
        np.array([object()] * LEAST),
        np.ma.masked_array(np.ones(LEAST)),
        "a" * 5000,
    ],
    ids=["small", "objects", "subclass", "text"],
)
def test_other_argument_travels_as_it_is(shared, value):
    _, [sent], _ = second(shared, value)

    assert sent is value


def test_mapped_file_of_the_user_is_mapped_and_not_copied(shared, tmp_path):
    mapped = np.memmap(tmp_path / "data", np.float64, "w+", shape=(LEAST,))
    mapped[:] = 7
    mapped.flush()
    _, [sent], _ = shared.share((print, (mapped,), {}))

    assert sent.path == str(tmp_path / "data")
    np.testing.assert_array_equal(sent.load(), mapped)


@pytest.mark.parametrize(("least", "mode"), [(None, "r"), (LEAST, None)])
def test_nothing_is_shared_if_joblib_says_so(least, mode):
    array = np.ones(LEAST)
    _, [sent], _ = second(SharedArrays(least, mode), array)

    assert sent is array


def test_closing_lets_go_of_descriptors_and_may_be_repeated(shared):
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    second(shared, np.ones(LEAST))
    shared.close()
    shared.close()

    assert sys.platform != "linux" or len(os.listdir("/proc/self/fd")) == before
