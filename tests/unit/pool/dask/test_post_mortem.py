"""The logbook that a dead Dask worker leaves in its directory."""

import os
import subprocess
import sys
from pathlib import Path

from procbus.pool.dask.post_mortem import last_page_in, new_file, sweep
from procbus.pool.logbook import Logbook, Page


def logbook_in(file: Path) -> Logbook:
    return Logbook.create(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))


def test_last_page_is_read_and_the_file_removed(tmp_path: Path) -> None:
    file = tmp_path / "logbook"
    logbook = logbook_in(file)
    logbook.open_batch(7)
    logbook.begin(0, 1.0)
    logbook.finish(1, b"result")
    logbook.begin(1, 2.5)
    logbook.close()

    page = last_page_in(str(file), None)

    assert page is not None
    assert Page(*page) == Page(7, 1, True, 2.5, 1, 0, b"result")
    assert not file.exists()


def test_missing_file_gives_no_answer(tmp_path: Path) -> None:
    assert last_page_in(str(tmp_path / "none"), None) is None


def test_logbook_is_not_read_while_the_process_lives(tmp_path: Path) -> None:
    file = tmp_path / "logbook"
    logbook_in(file).close()

    assert last_page_in(str(file), os.getpid(), dying_s=0.05) is None
    assert file.exists()

    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert last_page_in(str(file), process.pid) is not None


def test_old_files_of_dead_hosts_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        dead.wait()
    mine, stale, fresh = new_file(tmp_path), f"procbus-{dead.pid}-a", f"procbus-{dead.pid}-b"
    files = [mine, tmp_path / f"{stale}.logbook", tmp_path / f"{fresh}.logbook"]
    for file in [*files, tmp_path / "procbus-odd.logbook"]:
        file.touch()
    for file in files[:2]:
        os.utime(file, (0, 0))

    sweep(tmp_path)

    assert [file.exists() for file in files] == [True, False, True]
