# SPDX-License-Identifier: MIT
"""Fixtures of tests that need no other process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from procbus.routing.registry import default_registry


@pytest.fixture
def registry() -> Iterator[None]:
    """Handlers that the test adds to the default registry are gone after it."""
    before = default_registry.handlers
    yield
    for handler in default_registry.handlers:
        if handler not in before:
            default_registry.remove(handler)
