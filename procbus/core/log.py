# SPDX-License-Identifier: MIT
"""procbus's own log: an error in the user's logging cannot stop a thread of procbus.

A filter or a log handler of yours may raise. In a thread that settles deliveries, such an exception
would leave receipts open for ever. So it is printed on stderr, and the thread goes on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import traceback
from typing import Any


class _HarmlessLog(logging.LoggerAdapter[logging.Logger]):
    """A logger of procbus. An exception from the user's filters or log handlers goes to stderr.

    Thread-safe. The log cannot be disabled; a level silences it. Use it where code must get to its
    end: while a delivery is settled, in the threads of a lane.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log as `Logger.log` does, and raise nothing but Ctrl-C."""
        # `logging.config` disables loggers that it does not know, and failures would go unseen.
        self.logger.disabled = False
        try:
            self.logger.log(level, msg, *args, stacklevel=2, **kwargs)  # 2: who called this
        except BaseException as error:
            # Only the main thread receives Ctrl-C. In another thread this is an exception of user
            # code.
            no_error = not isinstance(error, Exception)
            if no_error and threading.current_thread() is threading.main_thread():
                raise
            with contextlib.suppress(Exception):  # stderr may be closed
                traceback.print_exc()


#: The log of procbus, and the logs below it: docs/logs.md says which records go to which log.
log = _HarmlessLog(logging.getLogger("procbus"))
advice_log = _HarmlessLog(logging.getLogger("procbus.advice"))
journal_log = _HarmlessLog(logging.getLogger("procbus.journal"))
live_log = _HarmlessLog(logging.getLogger("procbus.live"))
pool_log = _HarmlessLog(logging.getLogger("procbus.pool"))
LOGS = (log, advice_log, journal_log, live_log, pool_log)
