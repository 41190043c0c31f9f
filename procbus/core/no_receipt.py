# SPDX-License-Identifier: MIT
"""Explains the error of a cpu handler that takes the None of `current().publish()` for a receipt.

Loaded when a handler that has published events raises.
"""

from __future__ import annotations

from contextlib import suppress

#: The parts of a receipt that a handler may ask None for.
_OF_A_RECEIPT = ("wait", "result", "results", "done", "deliveries", "cancel")

_NOTE = (
    "current().publish() returns None in a cpu handler: the event leaves the worker only if the "
    "handler succeeds, so the handler cannot wait for it. Have a handler of that event do the "
    'rest, or subscribe this one with kind="io", where current().publish() returns a receipt'
)


def explain_missing_receipt(error: BaseException) -> None:
    """Add a note to an error, if the error says that None is no receipt.

    Args:
        error: the exception of a cpu handler that has published events.
    """
    if _asks_none_for_a_receipt(error):
        with suppress(Exception):  # it may be the user's class
            error.add_note(_NOTE)


def _asks_none_for_a_receipt(error: BaseException) -> bool:
    if type(error) is AttributeError:
        return error.obj is None and error.name in _OF_A_RECEIPT
    # Python's words for `await None`.
    return type(error) is TypeError and "NoneType" in str(error) and "await" in str(error)
