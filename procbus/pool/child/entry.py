# SPDX-License-Identifier: MIT
"""The functions of a worker process that the script names in its orders.

The script imports this small module in place of the code that the worker runs. So its first worker
starts sooner.
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
