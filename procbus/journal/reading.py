# SPDX-License-Identifier: MIT
"""Shows the bytes of a journal to people, without running the code that the bytes name."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
from typing import Any, NoReturn

#: Fields that are shown of an attempt.
_FIELDS = ("kind", "text", "stack", "started_at", "ended_at", "worker_pid", "dropped_events")
#: Maximum number of names of a pickle that are shown.
_NAMES = 10


class _Plain(pickle.Unpickler):
    """Loads numbers, texts, bytes, and containers of these. It looks up no name."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, _: Any) -> NoReturn:
        raise pickle.UnpicklingError("it names something outside")


def plain_outcomes(data: bytes, codec: str) -> list[dict[str, Any]]:
    """Return outcomes as plain data. Unreadable bytes become one outcome that describes them."""
    try:
        # An error in an outcome is a pickle inside the pickle, and is not loaded.
        found = json.loads(data) if codec == "json" else _Plain(io.BytesIO(data)).load()
        return [{name: _simple(each[name]) for name in _FIELDS} for each in found]
    except Exception as error:  # noqa: BLE001 - unreadable bytes are shown, not run
        text = f"not as a bus writes it, and not loaded: {type(error).__name__}: {error}"
        if names := names_in(data):
            text += f". It names {', '.join(names)}"
        return [dict.fromkeys(_FIELDS) | {"kind": "unreadable", "text": text}]


def _simple(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"a {type(value).__name__} in place of a text or a number")


def names_in(data: bytes) -> list[str]:
    """Return the classes and functions that a pickle names, as far as visible without loading."""
    names: list[str] = []
    texts: list[str] = []
    memo: dict[int, str] = {}
    top = ""
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name in ("GLOBAL", "INST"):
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = top
            elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[int(str(argument))] = top
            elif opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                top = memo.get(int(str(argument)), "")
                texts.append(top)
            elif opcode.name not in ("PROTO", "FRAME"):
                top = argument if isinstance(argument, str) else ""
                if top:
                    texts.append(top)
    except Exception:  # noqa: BLE001, S110 - no pickle, or a part of one: the names so far count
        pass
    return list(dict.fromkeys(names))[:_NAMES]


def loaded(data: bytes) -> str:
    """Load a pickle, which runs its code, and return the text of the object."""
    try:
        return repr(pickle.loads(data))  # noqa: S301 - asked for by name: see the command line
    except Exception as error:  # noqa: BLE001 - the user's code, and shown to the user
        return f"it cannot be loaded: {type(error).__name__}: {error}"
