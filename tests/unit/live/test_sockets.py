# SPDX-License-Identifier: MIT
import os
import tempfile
from pathlib import Path

import pytest

from procbus.live.sockets import (
    BusSocket,
    UnsafePlace,
    check_directory,
    directories,
    make_directory,
    place_for,
    places,
)


def test_a_directory_is_made_for_its_user_alone(sockets: Path) -> None:
    make_directory(str(sockets))
    make_directory(str(sockets))

    assert sockets.stat().st_mode & 0o777 == 0o700


def test_a_directory_that_others_may_enter_is_refused(sockets: Path) -> None:
    sockets.mkdir()
    sockets.chmod(0o750)

    with pytest.raises(UnsafePlace, match=r"others may enter .*: chmod 700"):
        make_directory(str(sockets))


def test_a_directory_of_someone_else_is_refused(
    sockets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets.mkdir(0o700)
    own = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: own + 1)

    with pytest.raises(UnsafePlace, match=f"belongs to user {own}, and you are user {own + 1}"):
        check_directory(str(sockets))


def test_a_link_to_a_directory_is_refused(sockets: Path, tmp_path: Path) -> None:
    sockets.symlink_to(tmp_path)

    with pytest.raises(UnsafePlace, match="is no directory"):
        make_directory(str(sockets))


def test_a_path_that_is_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(UnsafePlace, match="longer than a socket's path may be"):
        place_for("/" + "x" * 100, 4711, 1)


def test_without_a_runtime_directory_that_of_temporary_files_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = os.path.join(tempfile.gettempdir(), f"procbus-{os.geteuid()}")

    assert directories()[1:] == [own]
    for unusable in ("", "relative", "/no/such/directory"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", unusable)
        assert directories() == [own]


def test_sockets_are_listed_by_process_and_number(sockets: Path) -> None:
    make_directory(str(sockets))
    for name in ("12-2.sock", "7-1.sock", "12-1.sock", ".ab12", "x-1.sock", "7.sock", "notes"):
        (sockets / name).touch()

    assert [place[:2] for place in places()] == [(7, 1), (12, 1), (12, 2)]
    assert [BusSocket(12, n, "").name for n in (1, 2)] == ["12", "12-2"]
