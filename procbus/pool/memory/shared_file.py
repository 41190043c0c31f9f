# SPDX-License-Identifier: MIT
"""Memory that a parent and its workers share, and how the large parts of an object lie in it.

It is one anonymous file in memory without a name, so that nobody else can open it and nothing is
left behind, whoever dies first. Each block is a part of it that is never another's: the file is
sparse and larger than any machine's memory, so that nothing is ever fragmented. On Linux it is no
part of `/dev/shm`, whose size does not matter.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import resource
import weakref
from collections.abc import Sequence
from contextlib import closing
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple, Self

from procbus.codec.encoder import decode, decode_with
from procbus.pool.logbook import anonymous_file

#: Bytes of the sparse file, which only what is written takes memory of: years of the fastest.
SPACE = 1 << 62
#: Buffers in a block begin at multiples of this, as the fastest loops want it.
_ALIGNED = 64
#: Copied without a break: other threads wait for the GIL meanwhile, 0.1 ms.
_STRIDE = 1 << 20
#: Blocks of one kind that a process has mapped at most: the system allows some 65,000 mappings.
_MOST_MAPPED = 8192


class CannotMap(Exception):
    """No block can be mapped now: no file descriptor or no address space is left."""


class Place(NamedTuple):
    """Where what is large of an event, or of a result, lies."""

    #: Of the block, in bytes.
    offset: int
    capacity: int
    #: Start in the block and size of each buffer, in bytes.
    parts: tuple[tuple[int, int], ...]
    #: In which form: see `large`.
    form: int


class Room:
    """A sparse file in memory, seen from either process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._closing = weakref.finalize(self, os.close, fd)

    @classmethod
    def create(cls, name: str) -> Self:
        """Make an empty one."""
        fd = anonymous_file(name)
        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        os.ftruncate(fd, SPACE if most == resource.RLIM_INFINITY else min(SPACE, most))
        return cls(fd)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker that is being spawned: it gets the file descriptor."""
        return _attach, (DupFd(self.fd),)

    def map(self, offset: int, capacity: int, access: int) -> mmap.mmap:
        """Map a block.

        Raises:
            CannotMap: it takes a file descriptor and address space, and there is none left.
        """
        try:
            return mmap.mmap(self.fd, capacity, access=access, offset=offset)
        except (OSError, ValueError) as error:  # ValueError: the file may not be so large
            raise CannotMap(str(error)) from error

    def read(self, offset: int, size: int) -> bytearray:
        """Copy a part out, which takes no mapping."""
        copy = bytearray(size)
        with memoryview(copy) as rest:
            done = 0
            while done < size:
                done += os.preadv(self.fd, [rest[done:]], offset + done)
        return copy

    def give_back(self, mapped: mmap.mmap) -> None:
        """Give the memory of a block back to the system. It has to be mapped for writing."""
        if hasattr(mmap, "MADV_REMOVE"):  # Linux
            mapped.madvise(mmap.MADV_REMOVE)

    def give_back_between(self, begin: int, end: int) -> None:
        """Give back what memory there is between two offsets; none of it may be in use.

        What cannot be mapped now goes with the file.
        """
        while (found := self._memory_from(begin)) is not None and found[0] < end:
            begin = min(found[1], end)
            with (
                contextlib.suppress(CannotMap),
                closing(self.map(found[0], begin - found[0], mmap.ACCESS_WRITE)) as mapped,
            ):
                self.give_back(mapped)

    def _memory_from(self, offset: int) -> tuple[int, int] | None:
        """Where the first memory from an offset on begins and ends; None where there is none."""
        try:
            begin = os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole, up to the end of the file
            return None
        return begin, os.lseek(self.fd, begin, os.SEEK_HOLE)

    def close(self) -> None:
        """Let the file go, as with the last reference; what is mapped stays. Idempotent."""
        self._closing()
        self.fd = -1


def _attach(duplicate: Any) -> Room:
    return Room(duplicate.detach())


def most_mapped() -> int:
    """Blocks of one kind that a process may have mapped.

    Each takes a file descriptor, for `mmap` keeps one of its own. Most are left to the script.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_MAPPED
    return max(8, min(files // 8, _MOST_MAPPED))


def capacity_for(size: int) -> int:
    """Bytes of a block that holds so many: whole pages, at most an eighth more than needed."""
    step = max(mmap.ALLOCATIONGRANULARITY, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def parts_of(sizes: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], int]:
    """Lay buffers of these sizes out; give start and size of each, and the size of all."""
    parts = []
    end = 0
    for size in sizes:
        parts.append((end, size))
        end += -(-size // _ALIGNED) * _ALIGNED
    return tuple(parts), max(end, 1)


def fill(
    target: memoryview, parts: Sequence[tuple[int, int]], buffers: Sequence[memoryview]
) -> None:
    """Copy buffers to their places."""
    for (start, size), buffer in zip(parts, buffers, strict=True):
        if buffer.ndim != 1 or buffer.format != "B":
            buffer = buffer.cast("B")
        for begin in range(0, size, _STRIDE):
            end = min(begin + _STRIDE, size)
            target[start + begin : start + end] = buffer[begin:end]


# What is too large for the pipe: in which form it lies in shared memory.
#
# Most of it is buffers that pickle leaves out (protocol 5): arrays, tables, images. `bytes`,
# `str`, `bytearray` have no such buffer; where one of them is all there is, its content is copied
# as it is. Anything else that is large lies there as pickled.


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
