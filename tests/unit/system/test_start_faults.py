"""An error of the operating system at the start of a process comes with a remedy."""

from __future__ import annotations

import errno
import os

import pytest

from procbus.system.start_faults import remedy_for


@pytest.mark.parametrize(
    ("number", "part"),
    [
        (errno.EMFILE, "ulimit -n"),
        (errno.EAGAIN, "ulimit -u"),
        (errno.ENOMEM, "fewer cpu_workers"),
    ],
)
def test_known_error_has_a_remedy(number: int, part: str) -> None:
    assert part in remedy_for(OSError(number, os.strerror(number)))


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSYS, errno.ENOENT])
def test_directory_of_semaphores_that_cannot_be_written_is_named(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(os, "access", lambda path, mode: path != "/dev/shm")

    assert "/dev/shm" in remedy_for(OSError(number, os.strerror(number)))


@pytest.mark.parametrize("error", [None, ValueError("other"), OSError(errno.EIO, "other")])
def test_other_errors_have_none(
    error: BaseException | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: True)

    assert remedy_for(error) == ""
