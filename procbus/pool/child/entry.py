# SPDX-License-Identifier: MIT
"""The orders of a worker process, as the script names them.

The script need not import all that the worker runs: its first worker starts sooner for that.
"""

from __future__ import annotations

from typing import Any


def prepare(*about: Any) -> None:
    """Set the process up: see `main`."""
    from procbus.pool.child import main

    main.prepare(*about)


def serve(init: bytes) -> None:
    """Work until the parent says stop: see `main`."""
    from procbus.pool.child import main

    main.serve(init)
