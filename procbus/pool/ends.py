# SPDX-License-Identifier: MIT
"""How a delivery ended in a worker, laid out for the parent: its result, or why there is none."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import Any

from procbus.codec import ClassNumber, Encoder, decode
from procbus.pool.large import PLAIN
from procbus.pool.process import told
from procbus.pool.wire import REST, Ending, pack_definition, pack_end, pack_success
from procbus.pool.worker_memory import WorkerMemory
from procbus.user_objects import bases_of, full_name, is_a


class Ends:
    """Lays out ends, each with the time of it. It belongs to the worker's main thread.

    What is neither large nor can go wrong the worker lays out itself, without a call.

    Args:
        encoder: of the worker, for results.
        memory: where large results go.
    """

    def __init__(self, encoder: Encoder, memory: WorkerMemory) -> None:
        self._encoder = encoder
        self._memory = memory

    def succeeded(
        self,
        value: Any,
        published: Sequence[tuple[str | None, Any]],
        started_at: float,
        ended_at: float,
    ) -> tuple[bytes, float]:
        """Lay out what a handler returned and published; that it failed if this cannot travel."""
        try:
            if (
                value.__class__ in PLAIN
                and not published
                and (ahead := self._memory.put_plain(value))
            ):
                return ahead + pack_end(started_at, ended_at, REST), ended_at
            whole = (int(Ending.SUCCEEDED), value, published) if published else value
            frame = self._encoder.encode(whole)
            # Taken away from the encoder: a view of the event would count as kept by the handler.
            ahead = b""
            if self._encoder.buffers or len(frame) >= self._memory.large:
                buffers, self._encoder.buffers = self._encoder.buffers, []
                ahead, frame = self._memory.put(
                    frame, buffers, partial(self._encoder.encode_whole, whole)
                )
        except BaseException as error:  # noqa: BLE001 - pickling runs the user's code
            from procbus.blame import path_of_fault  # only now: it is rarely needed

            path = path_of_fault(value, "result") or path_of_fault(
                [event for _, event in published], "published"
            )
            return self.failed(Ending.NO_RESULT, error, started_at, len(published), path)
        if made := self._encoder.take_definitions():
            ahead = _packed(made) + ahead
        pack = pack_end if published else pack_success
        return ahead + pack(started_at, ended_at, frame), ended_at

    def failed(
        self, ending: Ending, error: BaseException, started_at: float, dropped: int, path: str = ""
    ) -> tuple[bytes, float]:
        """Lay out why a delivery failed; it ends now.

        Args:
            ending: what failed.
            error: with what.
            started_at: when the delivery began, in seconds of `time.monotonic()`.
            dropped: how many events it had published, which nobody will get.
            path: where the fault sits in what cannot travel, if that is known.
        """
        ended_at = monotonic()
        missing, text, summary = told(error)
        travelling: bytes | None = None
        kinds: tuple[str, ...] = ()
        if ending is Ending.RAISED:
            travelling = self._travelling(error)
            if travelling is None:
                kinds = tuple(map(full_name, bases_of(type(error))))
        value = (travelling, summary, text, path, missing if type(missing) is str else None, kinds)
        frame = self._encoder.encode_whole((int(ending), value, dropped))
        made = _packed(self._encoder.take_definitions())
        return made + pack_end(started_at, ended_at, frame), ended_at

    def _travelling(self, error: BaseException) -> bytes | None:
        """The exception of a handler as pickled; None for one that would not arrive.

        Many exceptions pickle but do not unpickle. That shows here, where it harms nobody.
        """
        for reduced_to_what_travels in (False, True):
            with contextlib.suppress(BaseException):  # pickling runs the user's code
                data = self._encoder.encode_error(error, reduced_to_what_travels)
                if is_a(decode(data), BaseException):
                    return data
        return None


def _packed(definitions: Sequence[tuple[ClassNumber, bytes]]) -> bytes:
    return b"".join(pack_definition(number, definition) for number, definition in definitions)
