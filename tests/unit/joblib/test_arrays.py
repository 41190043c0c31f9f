# SPDX-License-Identifier: MIT
"""Large arrays of several joblib calls are mapped from one copy; small ones are not."""

import gc
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from procbus.joblib.arrays import SharedArrays
from procbus.joblib.calls import InFile, OneCall

LEAST = 1000

pytestmark = pytest.mark.skipif(
    not hasattr(os, "memfd_create"), reason="arrays are shared where the system has memfd_create"
)


@pytest.fixture
def shared() -> Iterator[SharedArrays]:
    made = SharedArrays(LEAST, "r")
    yield made
    made.close()


def sent_of(shared: SharedArrays, *args: Any, **kwargs: Any) -> OneCall:
    """The call that is sent for one with these arguments."""
    [sent] = shared.share([(print, args, kwargs)])
    return sent


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("order", ["C", "F"])
def test_array_of_several_calls_is_read_from_one_file(shared, order):
    array = np.asarray(np.arange(600.0).reshape(20, 30), order=order)
    (_, [sent], _), (_, [again], named) = shared.share(
        [(print, (array,), {}), (print, (array,), {"of": array})]
    )

    assert type(sent) is InFile
    assert sent == again == named["of"] == sent_of(shared, array)[1][0]
    np.testing.assert_array_equal(sent.load(), array)
    assert sent.load().flags.f_contiguous == array.flags.f_contiguous
    assert not sent.load().flags.writeable


@pytest.mark.parametrize(
    "array",
    [np.arange(2000.0)[::2], np.arange(2000.0)[::-1], np.ones((10, 20, 30)).transpose(1, 0, 2)],
    ids=["each second", "backwards", "turned"],
)
def test_view_with_gaps_arrives_with_its_numbers(shared, array):
    _, [sent], _ = sent_of(shared, array)

    np.testing.assert_array_equal(sent.load(), array)


def test_structured_dates_and_times_arrive(shared):
    array = np.zeros(LEAST, [("at", "M8[s]"), ("price", "f4")])
    array["price"] = 3
    _, [sent], _ = sent_of(shared, array)

    np.testing.assert_array_equal(sent.load(), array)


def test_file_ends_with_its_array():
    shared, array = SharedArrays(LEAST, "r"), np.ones(LEAST)
    before = descriptors()
    sent = sent_of(shared, array)
    held = descriptors()
    del array
    gc.collect()

    assert (held, descriptors()) == (before + 1, before)
    assert type(sent[1][0]) is InFile


def test_named_argument_is_shared_too(shared):
    array = np.ones(LEAST)
    _, args, kwargs = sent_of(shared, 1, of=array)

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
    _, [sent], _ = sent_of(shared, value)

    assert sent is value


def test_mapped_file_of_the_user_is_mapped_and_not_copied(shared, tmp_path):
    mapped = np.memmap(tmp_path / "data", np.float64, "w+", shape=(LEAST,))
    mapped[:] = 7
    mapped.flush()
    _, [sent], _ = sent_of(shared, mapped)

    assert sent.path == str(tmp_path / "data")
    np.testing.assert_array_equal(sent.load(), mapped)


@pytest.mark.parametrize(("least", "mode"), [(None, "r"), (LEAST, None)])
def test_nothing_is_shared_if_joblib_says_so(least, mode):
    array = np.ones(LEAST)
    _, [sent], _ = sent_of(SharedArrays(least, mode), array)

    assert sent is array


def test_closing_lets_go_of_descriptors_and_may_be_repeated(shared):
    array, before = np.ones(LEAST), descriptors()
    sent_of(shared, array)
    shared.close()
    shared.close()

    assert descriptors() == before


def test_closed_one_shares_an_array_anew(shared):
    array = np.ones(LEAST)
    sent_of(shared, array)
    shared.close()
    _, [sent], _ = sent_of(shared, array)

    np.testing.assert_array_equal(sent.load(), array)
