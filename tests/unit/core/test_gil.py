"""Whether the GIL is on: asked of the interpreter, each time."""

from __future__ import annotations

import subprocess
import sys
import sysconfig

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
