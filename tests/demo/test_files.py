# SPDX-License-Identifier: MIT
"""The files that the demo finds."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from procbus.demo import DemoError
from procbus.demo.files import python_files, standard_library


def make(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def found(root: Path) -> list[str]:
    def refuse(error: OSError) -> None:
        raise error

    return [os.path.relpath(path, root) for path in python_files(root, refuse)]


def test_python_files_are_found_in_order_at_every_depth(tmp_path: Path) -> None:
    make(tmp_path, "b.py", "a.py", "pkg/z.py", "pkg/deep/y.py", "data/x.py", "notes.txt", "c.pyc")
    assert found(tmp_path) == ["a.py", "b.py", "data/x.py", "pkg/z.py", "pkg/deep/y.py"]


@pytest.mark.parametrize(
    "directory", [".venv", ".git", "__pycache__", "build", "node_modules", "lib/site-packages"]
)
def test_directories_of_other_peoples_files_are_left_out(tmp_path: Path, directory: str) -> None:
    make(tmp_path, "kept.py", f"{directory}/left_out.py", f"{directory}/deep/left_out.py")
    assert found(tmp_path) == ["kept.py"]


def test_a_virtual_environment_of_any_name_is_left_out(tmp_path: Path) -> None:
    make(tmp_path, "kept.py", "env313/pyvenv.cfg", "env313/bin/left_out.py")
    assert found(tmp_path) == ["kept.py"]


def test_directory_named_outright_is_searched_under_any_name(tmp_path: Path) -> None:
    make(tmp_path, ".venv/pyvenv.cfg", ".venv/a.py", "build/b.py")
    assert found(tmp_path / ".venv") == ["a.py"]
    assert found(tmp_path / "build") == ["b.py"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_pipe_or_directory_named_py_is_left_out(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    (tmp_path / "directory.py").mkdir()
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nothing")
    make(tmp_path, "kept.py")
    assert found(tmp_path) == ["kept.py"]


def test_a_loop_of_directory_links_ends(tmp_path: Path) -> None:
    make(tmp_path, "pkg/a.py")
    (tmp_path / "pkg/loop").symlink_to(tmp_path)
    assert found(tmp_path) == ["pkg/a.py"]


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() == 0, reason="the superuser may list every directory"
)
def test_a_directory_that_cannot_be_listed_is_reported(tmp_path: Path) -> None:
    make(tmp_path, "kept.py", "closed/a.py")
    (tmp_path / "closed").chmod(0)
    errors: list[OSError] = []
    try:
        paths = list(python_files(tmp_path, errors.append))
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert [os.path.basename(path) for path in paths] == ["kept.py"]
    assert [error.filename for error in errors] == [str(tmp_path / "closed")]


def test_a_root_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="nowhere does not exist"):
        found(tmp_path / "nowhere")


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a.py")
    with pytest.raises(DemoError, match=r"a\.py is not a directory"):
        found(tmp_path / "a.py")


def test_the_standard_library_is_that_of_this_interpreter() -> None:
    files = found(standard_library())
    assert "argparse.py" in files
    assert not any("site-packages" in file for file in files)
