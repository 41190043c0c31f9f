# SPDX-License-Identifier: MIT
"""procbus's own log, for threads that others depend on: the user's logging cannot stop them."""

from __future__ import annotations

import logging
import traceback
from typing import Any


class _HarmlessLog(logging.LoggerAdapter[logging.Logger]):
    """The logger `procbus`. What the user's filters and log handlers raise is printed on stderr.

    Thread-safe. It is for places that must come to their end: a delivery that is being settled,
    the threads of a lane.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log as `Logger.log` does, and raise nothing."""
        try:
            self.logger.log(level, msg, *args, stacklevel=2, **kwargs)  # 2: who called this
        except Exception:  # noqa: BLE001 - it is the user's code
            traceback.print_exc()


log = _HarmlessLog(logging.getLogger("procbus"))
