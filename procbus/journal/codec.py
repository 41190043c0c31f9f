# SPDX-License-Identifier: MIT
"""The codecs of a journal: events, results and outcomes to bytes and back.

`PickleCodec` uses plain pickle, which names classes and is quick, and cloudpickle where that fails.
Names of classes of the main script can be read again by the same script. `JsonCodec` is for users
who want no pickles on their disk.
"""

from __future__ import annotations

import enum
import json
import pickle
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Literal, Protocol

from procbus.codec.encoder import PROTOCOL, encode_alone
from procbus.codec.fault_path import path_of_fault
from procbus.codec.outcomes import outcome_from, plain_outcome
from procbus.core.dead_letter import summary_of
from procbus.core.errors import JournalError, SerializationError
from procbus.core.frames import useful_cause
from procbus.core.outcome import Outcome, OutcomeKind

CodecName = Literal["pickle", "json"]

_dumps = pickle.dumps


class DataForm(enum.IntEnum):
    """The format of the bytes of an event or a result."""

    #: There are no bytes: they were not to be kept, or were deleted.
    NOTHING = 0
    PICKLE = 1
    JSON = 2


class Codec(Protocol):
    """Turns events, results and outcomes into bytes and back. Thread-safe."""

    name: CodecName

    def encode(self, obj: Any, what: str) -> tuple[int, bytes]:
        """Return the form and the bytes.

        Raises:
            SerializationError: the object cannot be written; the message begins with `what`.
        """

    def decode(self, form: int, data: bytes, type_name: str) -> Any:
        """Make the object again. An error of decoding is passed on."""

    def type_name(self, cls: type) -> str:
        """Name the class of an event, for `decode` and for people."""

    def encode_outcomes(self, outcomes: Sequence[Outcome]) -> bytes:
        """Give the bytes of outcomes, without their values."""

    def decode_outcomes(self, data: bytes) -> tuple[Outcome, ...]:
        """Make outcomes again. Never raises: one outcome then describes the unreadable bytes."""


class PickleCodec:
    """Pickles, as for workers."""

    name: CodecName = "pickle"

    def encode(self, obj: Any, what: str) -> tuple[int, bytes]:
        """Return the form and the bytes."""
        try:
            return 1, _dumps(obj, PROTOCOL)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001, S110 - the second way reports its own error
            pass
        try:
            return 1, encode_alone(obj)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's code; a SystemExit does not end the script
            raise _cannot(obj, what, error) from useful_cause(error)

    def decode(self, form: int, data: bytes, type_name: str) -> Any:  # noqa: ARG002 - pickles tell
        """Make the object again."""
        if form != DataForm.PICKLE:
            raise _wrong_form(form, "pickle")
        return pickle.loads(data)  # noqa: S301 - the journal checks that only we could write it

    def type_name(self, cls: type) -> str:
        """Name a class."""
        return _name_of(cls)

    def encode_outcomes(self, outcomes: Sequence[Outcome]) -> bytes:
        """Return outcomes as bytes."""
        return _dumps([plain_outcome(outcome) for outcome in outcomes], PROTOCOL)

    def decode_outcomes(self, data: bytes) -> tuple[Outcome, ...]:
        """Make outcomes again."""
        return _outcomes(pickle.loads, data)


class JsonCodec:
    """JSON by msgspec: for dataclasses and for plain JSON types. Errors become their text.

    Raises:
        JournalError: msgspec is not installed.
    """

    name: CodecName = "json"

    def __init__(self) -> None:
        try:
            self._msgspec: Any = import_module("msgspec")
        except ImportError as error:
            raise JournalError(
                'journal_codec="json" needs msgspec, which is not installed: '
                "pip install 'procbus[json]'"
            ) from error

    def encode(self, obj: Any, what: str) -> tuple[int, bytes]:
        """Return the form and the bytes."""
        try:
            data: bytes = self._msgspec.json.encode(obj)
            again = self.decode(DataForm.JSON, data, self.type_name(type(obj)))
            same = type(again) is type(obj) and bool(again == obj)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's code; a SystemExit does not end the script
            raise _cannot(obj, what, error) from useful_cause(error)
        if not same:
            raise SerializationError(
                f"{what} cannot be written to the journal: JSON would turn it into another object "
                f"({again!r}). Give the fields of the dataclass their types, publish plain JSON "
                'data, or use journal_codec="pickle"'
            )
        return 2, data

    def decode(self, form: int, data: bytes, type_name: str) -> Any:
        """Make the object again."""
        if form != DataForm.JSON:
            raise _wrong_form(form, "json")
        if type_name.startswith("builtins:"):
            return self._msgspec.json.decode(data)
        return self._msgspec.json.decode(data, type=_class_named(type_name))

    def type_name(self, cls: type) -> str:
        """Name a class."""
        return _name_of(cls)

    def encode_outcomes(self, outcomes: Sequence[Outcome]) -> bytes:
        """Return outcomes as bytes."""
        plain = [plain_outcome(outcome) | {"error": None} for outcome in outcomes]
        return json.dumps(plain).encode()

    def decode_outcomes(self, data: bytes) -> tuple[Outcome, ...]:
        """Make outcomes again."""
        return _outcomes(json.loads, data)


def make_codec(name: CodecName) -> Codec:
    """Make a codec by its name."""
    return JsonCodec() if name == "json" else PickleCodec()


def _outcomes(load: Callable[[bytes], Any], data: bytes) -> tuple[Outcome, ...]:
    try:
        found = tuple(outcome_from(each) for each in load(data))
        if found:
            return found
        what = "there are none"
    except Exception as error:  # noqa: BLE001 - damaged bytes may raise anything
        what = summary_of(error)
    lost = JournalError(f"how its attempts failed cannot be read from the journal: {what}")
    return (Outcome(OutcomeKind.RAISED, error=lost),)


def _name_of(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _class_named(name: str) -> Any:
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _cannot(obj: Any, what: str, error: BaseException) -> SerializationError:
    try:
        path = path_of_fault(obj, what)
    except BaseException:  # noqa: BLE001 - the user's code again; the message has no path then
        path = ""
    return SerializationError(
        f"{what} cannot be written to the journal{f' because of {path}' if path else ''}: "
        f"{summary_of(error)}. Publish plain data, or leave that out of the event",
        path,
    )


def _wrong_form(form: int, codec: str) -> JournalError:
    return JournalError(
        f"it was written by another codec (form {form}), and this bus reads {codec}: open the "
        "journal with the journal_codec= that it was begun with"
    )
