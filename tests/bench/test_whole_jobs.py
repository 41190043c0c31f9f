"""The whole jobs: each way does all of them, and a job that lost something is an error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import job_work, whole_jobs
from bench.model import Settings
from bench.whole_jobs import JOBLIB, THUMBNAILS

SETTINGS = Settings(workers=2, spins_per_ms=1_000, scale=0.02)
NAMES = (THUMBNAILS, whole_jobs.ROWS, whole_jobs.LOG)


def job_of(name: str) -> Any:
    if name not in whole_jobs.JOBS:
        pytest.skip("the thumbnails need Pillow, of the extra `bench`")
    return whole_jobs.JOBS[name](SETTINGS)


# joblib keeps processes beyond the test. The quick run of the question, in processes of its own,
# has it do the jobs, and checks that they are done.
@pytest.mark.bench
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", [name for name in whole_jobs.RUNS if name != JOBLIB])
def test_every_way_does_the_whole_job(way: str, name: str) -> None:
    with job_of(name) as job:
        whole_jobs.RUNS[way](job, SETTINGS.workers)
        job.finished()  # raises unless all of it is done


@pytest.mark.bench
@pytest.mark.parametrize("name", NAMES)
def test_a_job_that_lost_a_part_is_an_error(name: str) -> None:
    with job_of(name) as job:
        for part in job.parts[1:]:
            job.keep(job.work(part))
        with pytest.raises(RuntimeError):
            job.finished()


def test_thumbnails_are_left_out_exactly_where_pillow_is_missing() -> None:
    rows = {row.name for row in whole_jobs.QUESTION.rows}
    assert (THUMBNAILS in rows) == bool(find_spec("PIL"))
    assert (whole_jobs.QUESTION.not_here == ()) == bool(find_spec("PIL"))


@pytest.mark.parametrize("size", [1, 10, 11, 12, 25, 1_000])
def test_blocks_are_whole_lines_and_all_of_the_file(size: int, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_bytes(b"".join(b"line %d\n" % number for number in range(50)) + b"no end")
    found = [block.read() for block in job_work.blocks(file, size)]
    assert b"".join(found) == file.read_bytes()
    assert all(block.endswith(b"\n") for block in found[:-1])


def test_an_empty_file_has_no_blocks(tmp_path: Path) -> None:
    file = tmp_path / "empty"
    file.touch()
    assert list(job_work.blocks(file, 10)) == []


def test_rows_are_parsed_and_checked(tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text('7,2026-11-03T10:07:11,"hopper, grace",12.50,US\n')
    (block,) = job_work.blocks(file, 1_000)
    assert job_work.parse_rows(block) == [(7, "2026-11-03 10:07:11", "Hopper, Grace", 1_250, "US")]


def test_made_files_have_the_requested_size(tmp_path: Path) -> None:
    write: tuple[Callable[[Path, int], None], ...] = (job_work.write_csv, job_work.write_log)
    for each in write:
        each(tmp_path / "file", 2_000_000)
        assert 1_900_000 <= (tmp_path / "file").stat().st_size <= 2_200_000


def test_workers_import_nothing_heavy_for_the_jobs() -> None:
    """A module that a worker imports is part of its start."""
    code = "import bench.job_work, bench.one_call, bench.log_job, sys; print(*sys.modules)"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert {"asyncio", "sqlite3", "PIL", "loky"}.isdisjoint(done.stdout.split())
