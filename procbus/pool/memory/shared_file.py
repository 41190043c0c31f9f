# SPDX-License-Identifier: MIT
"""Memory that a parent and its workers share, and the layout of large parts in it.

The memory is one anonymous file, so no other process can open it, and the file is gone when the
processes have died, in any order. Each block has its own part of the file for good. The file is
sparse and larger than any machine's memory, so it never becomes fragmented. On Linux the file does
not count towards `/dev/shm`.
"""

from __future__ import annotations

import contextlib
import enum
import mmap
import os
import resource
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple, Self

from procbus.codec.encoder import decode, decode_with
from procbus.pool.logbook import anonymous_file

#: Size of the sparse file, in bytes; only written parts take memory. Filling it would take years.
SPACE = 1 << 62
#: Alignment of buffers in a block, in bytes, as the fastest loops need it.
_ALIGNED = 64
#: Size of one uninterrupted copy, in bytes; because other threads wait for the GIL meanwhile, 0.1
#: ms.
_STRIDE = 1 << 20
#: Maximum of blocks of one kind that a process maps; because the system allows some 65,000
#: mappings.
_MOST_MAPPED = 8192


class CannotMap(Exception):
    """A block cannot be mapped now: no file descriptor or no address space is left."""


class Place(NamedTuple):
    """The place of the large part of an event or a result."""

    #: Offset and capacity of the block, in bytes.
    offset: int
    capacity: int
    #: Offset in the block, and size, of each buffer, in bytes.
    parts: tuple[tuple[int, int], ...]
    #: The form of the contents, a `Form`.
    form: int


class Room:
    """A sparse file in memory, as either process sees it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._closing = weakref.finalize(self, os.close, fd)

    @classmethod
    def create(cls, name: str, size: int = SPACE) -> Self:
        """Make an empty room of `size` bytes, or of the largest file that this process may have."""
        fd = anonymous_file(name)
        most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        os.ftruncate(fd, size if most == resource.RLIM_INFINITY else min(size, most))
        return cls(fd)

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a worker that is being spawned: it gets the file descriptor."""
        return _attach, (DupFd(self.fd),)

    def map(self, offset: int, capacity: int, access: int) -> mmap.mmap:
        """Map a block.

        Raises:
            CannotMap: mapping takes a file descriptor and address space, and one of them ran out.
        """
        try:
            return mmap.mmap(self.fd, capacity, access=access, offset=offset)
        except (OSError, ValueError) as error:  # ValueError: the file may not be so large
            raise CannotMap(str(error)) from error

    def read(self, offset: int, size: int) -> bytearray:
        """Copy a part of the file. This needs no mapping."""
        copy = bytearray(size)
        with memoryview(copy) as rest:
            done = 0
            while done < size:
                done += os.preadv(self.fd, [rest[done:]], offset + done)
        return copy

    def give_back(self, mapped: mmap.mmap) -> None:
        """Give the memory of a block back to the system. The block must be mapped for writing."""
        if hasattr(mmap, "MADV_REMOVE"):  # Linux
            mapped.madvise(mmap.MADV_REMOVE)

    def give_back_between(self, begin: int, end: int) -> None:
        """Give back the memory between two offsets, of which no part may be in use.

        Parts that cannot be mapped now are freed with the file.
        """
        while (found := self._memory_from(begin)) is not None and found[0] < end:
            begin = min(found[1], end)
            with (
                contextlib.suppress(CannotMap),
                closing(self.map(found[0], begin - found[0], mmap.ACCESS_WRITE)) as mapped,
            ):
                self.give_back(mapped)

    def _memory_from(self, offset: int) -> tuple[int, int] | None:
        """Return begin and end of the first memory from an offset on; None if there is none."""
        try:
            begin = os.lseek(self.fd, offset, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole up to the end of the file
            return None
        return begin, os.lseek(self.fd, begin, os.SEEK_HOLE)

    def close(self) -> None:
        """Close the file, which lives until its last reference; mappings stay. Idempotent."""
        self._closing()
        self.fd = -1


def _attach(duplicate: Any) -> Room:
    return Room(duplicate.detach())


def most_mapped() -> int:
    """Maximum of blocks of one kind that a process may map.

    Each block takes a file descriptor, because `mmap` keeps its own copy of the descriptor. Most
    descriptors are left to the script.
    """
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MOST_MAPPED
    return max(8, min(files // 8, _MOST_MAPPED))


def capacity_for(size: int) -> int:
    """Capacity of a block for `size` bytes: whole pages, at most an eighth more than needed."""
    step = max(mmap.ALLOCATIONGRANULARITY, 1 << max(0, size.bit_length() - 4))
    return -(-size // step) * step


def parts_of(sizes: Sequence[int]) -> tuple[tuple[tuple[int, int], ...], int]:
    """Lay out buffers of these sizes; return offset and size of each, and the total size."""
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


# Objects too large for the pipe, and their forms in shared memory.
# Mostly the large part is buffers that pickle leaves out (protocol 5): arrays, tables, images.
# `bytes`, `str` and `bytearray` have no such buffer: the content of such an object is copied as it
# is. Any other large object is pickled, and its pickle is in shared memory.


class Form(enum.IntEnum):
    """The form of the contents of a block."""

    #: The buffers that pickle left out; the rest travels through the pipe.
    BUFFERS = 0
    #: The whole object, pickled.
    PICKLED = 1
    #: The content of a `bytes`, `str` or `bytearray`.
    BYTES = 2
    TEXT = 3
    BYTEARRAY = 4


#: Types whose objects consist of content alone.
PLAIN: dict[type, Form] = {bytes: Form.BYTES, str: Form.TEXT, bytearray: Form.BYTEARRAY}


def plain(obj: Any, large: float) -> tuple[Form, memoryview] | None:
    """Return the content of an object, if it consists of content alone and is large."""
    form = PLAIN.get(type(obj))
    if form is None or len(obj) < large:
        return None
    return form, memoryview(obj.encode(errors="surrogatepass") if form is Form.TEXT else obj)


def _text(content: memoryview) -> str:
    return str(content, "utf-8", "surrogatepass")


#: Functions that make an object from its only part, by form.
LOADERS: dict[int, Callable[[memoryview], Any]] = {
    int(Form.PICKLED): decode,
    int(Form.BYTES): bytes,
    int(Form.TEXT): _text,
    int(Form.BYTEARRAY): bytearray,
}


def load(form: Form, data: bytes | memoryview, views: Sequence[memoryview]) -> Any:
    """Make the object again.

    Args:
        form: form of the contents of the block.
        data: the rest of the object, which came through the pipe.
        views: the parts of the block.
    """
    if form == Form.BUFFERS:
        return decode_with(data, views)
    return LOADERS[form](views[0])
