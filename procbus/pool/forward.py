# SPDX-License-Identifier: MIT
"""Log records and warnings of a worker reach the parent as if they had been made there."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable
from typing import Any

from procbus.codec import decode, encode_alone
from procbus.pool.wire import Tag

Send = Callable[..., None]


def forward_logging(send: Send, levels: dict[str, int]) -> None:
    """In a worker: send every record and warning to the parent.

    Args:
        send: sends a message to the parent; from any thread.
        levels: level of each logger that has one in the parent, so that records nobody wants
            there are not made here. The root logger's name is "".
    """
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger().handlers[:] = [_Forward(send)]

    def show(
        message: Any, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any
    ) -> None:
        text = str(message)
        send(Tag.WARNING.value, encode_alone((text, category, filename, lineno)))

    warnings.showwarning = show


class _Forward(logging.Handler):
    def __init__(self, send: Send) -> None:
        super().__init__()
        self._send_message = send

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # Arguments and exceptions may not pickle, and may change: only their text travels.
            fields = dict(record.__dict__, msg=record.getMessage(), args=None)
            if record.exc_info:
                fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
            fields["exc_info"] = None
            try:
                data = pickle.dumps(fields)
            except Exception:  # noqa: BLE001 - some value that the user attached with extra=
                plain = {k: v for k, v in fields.items() if isinstance(v, str | int | float | None)}
                data = pickle.dumps(plain)
            self._send_message(Tag.LOG.value, data)
        except Exception:  # noqa: BLE001 - as every logging handler does
            self.handleError(record)


def levels_here() -> dict[str, int]:
    """In the parent: the level of each logger that has one of its own."""
    root = logging.getLogger()
    levels = {"": root.level}
    for name, logger in list(root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    return levels


#: Which warnings were shown, as `warnings` keeps it for each module.
_shown: dict[Any, Any] = {}


def take_in(tag: Tag, data: memoryview) -> None:
    """In the parent: handle a record or a warning that a worker sent."""
    if tag is Tag.LOG:
        record = logging.makeLogRecord(decode(data))
        logger = logging.getLogger(record.name)
        if logger.isEnabledFor(record.levelno):
            logger.handle(record)
        return
    text, category, filename, lineno = decode(data)
    try:
        warnings.warn_explicit(text, category, filename, lineno, registry=_shown)
    except Warning as warning:  # the user asked for errors, but there is no caller to get it
        logging.getLogger("procbus").warning("warning in a worker: %r", warning)
