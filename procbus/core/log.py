# SPDX-License-Identifier: MIT
"""procbus's own log, for threads that others depend on: the user's logging cannot stop them."""

from __future__ import annotations

import logging
import threading
import traceback
from typing import Any


class _HarmlessLog(logging.LoggerAdapter[logging.Logger]):
    """The logger `procbus`. What the user's filters and log handlers raise is printed on stderr.

    Thread-safe. It cannot be disabled; a level silences it. It is for places that must come to
    their end: a delivery that is being settled, the threads of a lane.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log as `Logger.log` does, and raise nothing but Ctrl-C."""
        # `logging.config` disables loggers that it is not told of, and failures would go unseen.
        self.logger.disabled = False
        try:
            self.logger.log(level, msg, *args, stacklevel=2, **kwargs)  # 2: who called this
        except BaseException as error:
            # Ctrl-C comes to the main thread alone. Elsewhere this is what user code raised.
            no_error = not isinstance(error, Exception)
            if no_error and threading.current_thread() is threading.main_thread():
                raise
            traceback.print_exc()


log = _HarmlessLog(logging.getLogger("procbus"))
