# SPDX-License-Identifier: MIT
"""The pytest plugin: `procbus_bus`, a bus that fails its test for overlooked failures.

pytest loads this module in every run, so it imports nothing until a test asks for the bus.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from procbus.testing import InlineBus


@pytest.fixture
def procbus_bus_options() -> dict[str, Any]:
    """Options of `procbus_bus`: override this fixture to return options of `InlineBus`."""
    return {}


@pytest.fixture
def procbus_bus(procbus_bus_options: dict[str, Any]) -> Iterator[InlineBus]:
    """A bus that runs handlers at once, in the test's own thread.

    The test fails if a handler failed and the test did not look at the failure, on the receipt or
    among the dead letters.
    """
    from procbus.testing import InlineBus  # only now: most tests need none

    with InlineBus(**procbus_bus_options) as made:
        yield made
    try:
        made.assert_no_failures()
    except AssertionError as error:
        pytest.fail(str(error), pytrace=False)
