# SPDX-License-Identifier: MIT
"""The paper that the demo prints on."""

from __future__ import annotations

import pytest

from procbus.demo.page import Printout


@pytest.fixture
def page() -> Printout:
    return Printout()
