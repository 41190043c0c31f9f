# SPDX-License-Identifier: MIT
"""The plugin for pytest, in a pytest of its own."""

import subprocess
import sys

import pytest

USE = """
import pytest

@pytest.fixture
def procbus_bus_options():
    return {"handlers": []}

def fail(event):
    raise ValueError(f"no {event}")
"""


def test_a_test_gets_a_bus(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        USE
        + """
def test_it(procbus_bus):
    procbus_bus.subscribe("n", lambda n: 2 * n)
    assert procbus_bus.publish("n", 2).result() == 4
    procbus_bus.assert_published("n", count=1)
"""
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_failure_not_looked_at_fails_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        USE
        + """
def test_overlooks_it(procbus_bus):
    procbus_bus.subscribe("n", fail)
    procbus_bus.publish("n", 1)

def test_looks_at_it(procbus_bus):
    procbus_bus.subscribe("n", fail)
    with pytest.raises(ValueError):
        procbus_bus.publish("n", 1).result()

def test_looks_at_the_dead_letters(procbus_bus):
    procbus_bus.subscribe("n", fail)
    procbus_bus.publish("n", 1)
    assert len(procbus_bus.dead_letters) == 1
"""
    )
    ran = pytester.runpytest_subprocess()
    ran.assert_outcomes(passed=3, errors=1)
    ran.stdout.fnmatch_lines(["*1 failure not looked at*", "*ValueError: no 1*"])


def test_the_plugin_imports_nothing_until_a_test_asks_for_the_bus() -> None:
    code = (
        "import sys, pytest; before = set(sys.modules); import procbus.testing.plugin\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=150
    )
    assert ran.stdout.split() == ["procbus", "procbus.testing", "procbus.testing.plugin"]


def test_importing_procbus_does_not_import_the_kit() -> None:
    code = "import sys, procbus; procbus.EventBus; print('procbus.testing' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=150
    )
    assert ran.stdout.strip() == "False"
