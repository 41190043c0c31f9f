"""Whether the GIL is on: asked of the interpreter, each time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from procbus.core.gil import gil_is_on

IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


@pytest.mark.skipif(IS_FREE_THREADED, reason="this build can run without a GIL")
def test_gil_is_on_where_python_cannot_run_without_it() -> None:
    assert gil_is_on() is True


@pytest.mark.skipif(not IS_FREE_THREADED, reason="this build always has a GIL")
@pytest.mark.parametrize("setting", ["0", "1"])
def test_gil_is_as_the_interpreters_option_says(setting: str) -> None:
    code = "from procbus.core.gil import gil_is_on; print(int(gil_is_on()))"
    done = subprocess.run(
        [sys.executable, "-X", f"gil={setting}", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout.strip() == setting


SCRIPT = """
from procbus import EventBus
from procbus.core.gil import gil_is_on

def in_worker(event):
    from procbus.core.gil import gil_is_on
    return gil_is_on()

with EventBus([], cpu_workers=1) as bus:
    bus.subscribe("x", in_worker, kind="cpu")
    print(int(bus.publish("x", 1).result(60)), int(gil_is_on()))
"""


@pytest.mark.skipif(not IS_FREE_THREADED, reason="this build always has a GIL")
@pytest.mark.parametrize("setting", ["0", "1"])
@pytest.mark.parametrize("given", ["option", "environment"])
def test_gil_of_workers_is_as_the_script_was_told(setting: str, given: str) -> None:
    option = ["-X", f"gil={setting}"] if given == "option" else []
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    if given == "environment":
        surroundings["PYTHON_GIL"] = setting
    done = subprocess.run(
        [sys.executable, *option, "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=60,
        env=surroundings,
    )

    assert (done.stdout.split(), done.stderr) == ([setting, setting], "")


@pytest.mark.skipif(not IS_FREE_THREADED, reason="this build always has a GIL")
def test_no_module_of_procbus_brings_the_gil_back() -> None:
    code = """
import importlib, pkgutil, procbus
for module in pkgutil.walk_packages(procbus.__path__, "procbus."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ImportError:  # it needs an extra that is not installed
            pass
from procbus.core.gil import gil_is_on
print(int(gil_is_on()))
"""
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=surroundings
    )

    assert (done.stdout.split(), done.stderr) == (["0"], "")


def extras_of_users() -> dict[str, list[str]]:
    """The extras of the project that a user's script may need, with their requirements."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    return {name: extras[name] for name in extras.keys() - {"bench", "dev", "pythons", "test"}}


@pytest.mark.skipif(not IS_FREE_THREADED, reason="this build always has a GIL")
@pytest.mark.parametrize("extra", sorted(extras_of_users()))
def test_no_package_of_an_extra_brings_the_gil_back(extra: str) -> None:
    wanted = {
        re.split(r"[^\w.-]", requirement)[0].lower() for requirement in extras_of_users()[extra]
    }
    there = {
        name
        for name, packages in metadata.packages_distributions().items()
        if wanted & {package.lower() for package in packages} and name.isidentifier()
    }
    if not there:
        pytest.skip(f"nothing of the extra {extra} is installed")
    code = f"""
import {", ".join(sorted(there))}
from procbus.core.gil import gil_is_on
print(int(gil_is_on()))
"""
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=surroundings
    )

    assert (done.stdout.split(), done.returncode) == (["0"], 0), done.stderr
