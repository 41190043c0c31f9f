"""The forms in which large things lie in shared memory."""

import pickle
from collections import UserString
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.codec.encoder import PARENT, Encoder
from procbus.pool.memory.shared_file import Form, load, plain

LARGE = 1000


class Text(str):
    """A string that may have more to it."""

    __slots__ = ()


def there_and_back(obj: Any) -> Any:
    found = plain(obj, 0)
    assert found is not None
    form, content = found
    return load(form, b"", [content])


@given(st.binary() | st.text(st.characters()) | st.binary().map(bytearray))
def test_content_comes_back_as_it_was(obj: bytes | str | bytearray) -> None:
    back = there_and_back(obj)
    assert type(back) is type(obj)
    assert back == obj


def test_half_of_a_surrogate_pair_comes_back() -> None:
    assert there_and_back("\udcff\ud800") == "\udcff\ud800"


def test_loaded_object_is_a_copy() -> None:
    sent = bytearray(b"a" * LARGE)
    found = plain(sent, LARGE)
    assert found is not None
    back = load(found[0], b"", [found[1]])
    back[0] = 0
    back.append(0)
    assert sent == b"a" * LARGE


@pytest.mark.parametrize("obj", [b"a" * LARGE, "a" * LARGE, bytearray(LARGE)])
def test_object_of_threshold_size_is_large(obj: Any) -> None:
    assert plain(obj, LARGE) is not None
    assert plain(obj, LARGE + 1) is None
    assert plain(obj, inf) is None


@pytest.mark.parametrize(
    "obj", [Text("a" * LARGE), UserString("a" * LARGE), [0] * LARGE, memoryview(bytes(LARGE)), None]
)
def test_subclass_with_more_than_content_is_left_to_pickle(obj: Any) -> None:
    assert plain(obj, LARGE) is None


def test_buffers_left_out_by_pickle_are_put_in_without_a_copy() -> None:
    encoder = Encoder(PARENT, LARGE)
    data = encoder.encode({"name": "a", "array": np.arange(LARGE)})
    views = [memoryview(bytes(buffer)) for buffer in encoder.buffers]
    event = load(Form.BUFFERS, data, views)
    assert event["name"] == "a"
    assert np.array_equal(event["array"], np.arange(LARGE))
    assert np.shares_memory(event["array"], np.frombuffer(views[0], np.uint8))


def test_large_object_without_buffers_lies_there_pickled() -> None:
    event = list(range(LARGE))
    assert load(Form.PICKLED, b"", [memoryview(pickle.dumps(event))]) == event
