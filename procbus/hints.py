# SPDX-License-Identifier: MIT
"""Words for error messages: what was given, and what was probably meant."""

from __future__ import annotations

from collections.abc import Sequence

#: Characters of a value that a message shows.
_SHOWN = 200


def did_you_mean(given: object, known: Sequence[str], suffix: str = "") -> str:
    """Suggest the nearest of the known words, as the end of a sentence; empty if none is near.

    Args:
        given: what was written in place of one of them.
        known: the words.
        suffix: follows the word suggested, such as the ``=`` of an option.
    """
    import difflib  # only when something is wrong

    lowered = {word.lower(): word for word in known}
    close = difflib.get_close_matches(str(given).lower(), list(lowered), n=1)
    return f"; did you mean {lowered[close[0]]}{suffix}?" if close else ""


def shown(value: object) -> str:
    """The repr of a value, not too long, and there even if its own fails."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - a repr is the user's code; that of a huge int fails too
        return f"a value of type {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
