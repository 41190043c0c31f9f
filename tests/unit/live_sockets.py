# SPDX-License-Identifier: MIT
"""A directory for the sockets of each test alone. Its path is short, as a socket's must be."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def sockets(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    tmp_path_factory.getbasetemp()  # pytest's own directory lies elsewhere, and stays
    home = Path(tempfile.mkdtemp(prefix="live"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    yield home / "procbus"
    shutil.rmtree(home, ignore_errors=True)
