# SPDX-License-Identifier: MIT
"""Log records and warnings on their way from a worker to the parent.

The parent handles them as if they had been made in the parent, and adds their origin.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import sys
import threading
import traceback
import warnings
from typing import Any

from procbus.codec.encoder import decode, encode_alone
from procbus.core.log import pool_log
from procbus.core.log_origin import ONCE, Origin, about
from procbus.core.user_objects import class_name, words_of
from procbus.pool.wire import Tag

#: Not as harmless as `pool_log` makes it: `take_in` itself sees to errors.
log = pool_log.logger

#: Types that load anywhere. Not their subclasses, which may exist only in the worker.
_PLAIN = (str, int, float, bool, type(None))


def pack_record(record: logging.LogRecord, origin: Origin) -> bytes:
    """Lay out a record as bytes. Raises an error of formatting the record's message.

    The arguments of the record may not pickle, and may change, so only their text travels. The
    exception travels as text, and as an object if it pickles, like other objects attached to the
    record. If the record has an attribute that the origin has too, the record's value stays.
    """
    fields = {**record.__dict__, "msg": record.getMessage(), "args": None, "exc_info": None}
    if record.exc_info:
        fields["exc_text"] = logging.Formatter().formatException(record.exc_info)
    plain: dict[str, Any] = origin._asdict()
    attached: dict[str, bytes] = {}
    for name, value in fields.items():
        if type(value) in _PLAIN:
            plain[name] = value
            continue
        try:
            attached[name] = pickle.dumps(value)
        except BaseException:  # noqa: BLE001, S112 - a lock, for example: pickling runs user code
            continue
    if type(record.msg) is dict:  # a structured record, which formatters read as a dict
        with contextlib.suppress(BaseException):  # pickling runs the user's code
            attached["msg"] = pickle.dumps(record.msg)
    if record.exc_info and record.exc_info[1] is not None:
        # Many log handlers read the exception, above all those that report errors. If it does not
        # pickle, its text arrives alone.
        with contextlib.suppress(BaseException):  # pickling runs the user's code
            attached["exc_info"] = encode_alone((*record.exc_info[:2], None))
    return pickle.dumps((plain, attached, tuple(origin)))


def pack_warning(
    text: str, category: type[Warning], filename: str, lineno: int, origin: Origin
) -> bytes:
    """Lay out a warning as bytes."""
    try:
        kind = encode_alone(category)
    except BaseException:  # noqa: BLE001 - pickling runs the user's code
        kind = b""
    plain = (text, filename, lineno, category.__name__, tuple(origin))
    return pickle.dumps((plain, kind))


def levels_here() -> dict[str, int]:
    """The level of each logger of the parent that has one set."""
    root = logging.getLogger()
    levels = {"": root.level}
    for name, logger in list(root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger) and logger.level:
            levels[name] = logger.level
    return levels


def take_in(tag: Tag, data: memoryview) -> None:
    """Handle a record or warning from a worker, in the parent. From any thread.

    This function raises nothing: a fault in the message, or in the script's logging, becomes a log
    line.
    """
    try:
        if tag is Tag.LOG:
            _handle_record(data)
        else:
            _show_warning(data)
    except BaseException as error:  # noqa: BLE001 - this runs the user's filters and log handlers
        try:
            log.warning(
                "a %s from a worker could not be handled: %s: %s",
                "log record" if tag is Tag.LOG else "warning",
                class_name(error),
                words_of(error),
                exc_info=True,
            )
        except BaseException:  # noqa: BLE001 - the script's logging fails with any record
            if logging.raiseExceptions and sys.stderr is not None:
                traceback.print_exc()


def _handle_record(data: memoryview) -> None:
    plain, attached, its_origin = decode(data)
    key = plain.pop(ONCE, None)
    if key is not None and not _is_first(key):
        return
    origin = Origin(*its_origin)
    record = logging.makeLogRecord(plain)
    for name, value in attached.items():
        try:
            setattr(record, name, decode(value))
        except BaseException as error:  # noqa: BLE001 - loading runs the user's code
            if name == "exc_info":
                continue
            log.warning(
                "the attribute %s of a log record from %s could not be loaded: %s: %s. Its "
                "text is: %s",
                name,
                origin,
                class_name(error),
                words_of(error),
                record.getMessage(),
                extra=about(origin),
            )
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


#: Keys of records that are handled only once, even if several workers make them.
_handled: dict[str, None] = {}


def _is_first(key: str) -> bool:
    if len(_handled) > _MOST_SHOWN:
        _handled.clear()
    before = len(_handled)
    _handled[key] = None
    return len(_handled) > before


#: Warnings shown already, by file name; `warnings` keeps such a dict in each module.
_shown: dict[str, dict[Any, Any]] = {}
#: Maximum of warnings remembered for one file, and of files; because texts may all differ.
_MOST_SHOWN = 1_000

#: In the thread that shows a worker's warning: its origin, in the attribute `origin`.
_showing = threading.local()


class _FromWorker(logging.Filter):
    """Adds the origin to a warning that becomes a record (`logging.captureWarnings`)."""

    def filter(self, record: logging.LogRecord) -> bool:
        origin: Origin | None = getattr(_showing, "origin", None)
        if origin is not None:
            record.__dict__.update(origin._asdict())
        return True


_from_worker = _FromWorker()


def _show_warning(data: memoryview) -> None:
    (text, filename, lineno, name, its_origin), kind = decode(data)
    origin = Origin(*its_origin)
    category: type[Warning] = UserWarning
    try:
        category = decode(kind)
    except BaseException:  # noqa: BLE001 - the class exists only in the worker
        text = f"{name}: {text}"
    if len(_shown) > _MOST_SHOWN:
        _shown.clear()
    registry = _shown.setdefault(filename, {})
    if len(registry) > _MOST_SHOWN:
        registry.clear()
    logging.getLogger("py.warnings").addFilter(_from_worker)
    _showing.origin = origin
    try:
        warnings.warn_explicit(text, category, filename, lineno, registry=registry)
    except Warning as warning:  # a filter makes it an error, but here is no caller to raise it to
        log.warning("warning of %s: %r", origin, warning, extra=about(origin))
    finally:
        _showing.origin = None
