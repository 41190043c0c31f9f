# SPDX-License-Identifier: MIT
"""The type variables of receipts and deliveries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# For a type checker a bare `Receipt` means `Receipt[Any, Any]`. `typing` has such defaults from
# Python 3.13 on. Type checkers know typing_extensions, so it need not be installed.
if TYPE_CHECKING:
    from typing_extensions import TypeVar

    EventT_co = TypeVar("EventT_co", covariant=True, default=Any)
    ResultT_co = TypeVar("ResultT_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    EventT_co = TypeVar("EventT_co", covariant=True)
    ResultT_co = TypeVar("ResultT_co", covariant=True)
