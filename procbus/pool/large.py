# SPDX-License-Identifier: MIT
"""What is too large for the pipe: in which form it lies in shared memory.

Most of it is buffers that pickle leaves out (protocol 5): arrays, tables, images. `bytes`, `str`,
`bytearray` have no such buffer; where one of them is all there is, its content is copied as it is.
Anything else that is large lies there as pickled.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any

from procbus.codec import decode, decode_with


class Form(enum.IntEnum):
    """What lies in a block."""

    #: The buffers that pickle left out; the rest travels in the pipe.
    BUFFERS = 0
    #: All of it, pickled.
    PICKLED = 1
    #: The content of an object of this type.
    BYTES = 2
    TEXT = 3
    BYTEARRAY = 4


#: Types whose objects are content alone.
PLAIN: dict[type, Form] = {bytes: Form.BYTES, str: Form.TEXT, bytearray: Form.BYTEARRAY}


def plain(obj: Any, large: float) -> tuple[Form, memoryview] | None:
    """The content of an object, if it is all there is to it and of `large` bytes or more."""
    form = PLAIN.get(type(obj))
    if form is None or len(obj) < large:
        return None
    return form, memoryview(obj.encode(errors="surrogatepass") if form is Form.TEXT else obj)


def load(form: Form, data: bytes | memoryview, views: Sequence[memoryview]) -> Any:
    """Make the object again.

    Args:
        form: what lies in the block.
        data: the rest of it, that came by the pipe.
        views: the parts of the block.
    """
    if form == Form.BUFFERS:
        return decode_with(data, views)
    if form == Form.PICKLED:
        return decode(views[0])
    if form == Form.TEXT:
        return str(views[0], "utf-8", "surrogatepass")
    return bytes(views[0]) if form == Form.BYTES else bytearray(views[0])
