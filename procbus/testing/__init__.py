# SPDX-License-Identifier: MIT
"""For tests of code that uses procbus: a bus that runs handlers at once, and a clock to turn.

`import procbus` does not import this package. Its names are loaded on first use, because pytest
imports the package in every run, for its plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from procbus.testing.captured import Captured
    from procbus.testing.clock import Clock
    from procbus.testing.inline_bus import InlineBus

__all__ = ["Captured", "Clock", "InlineBus"]

_HOMES = {"Captured": "captured", "Clock": "clock", "InlineBus": "inline_bus"}


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
