"""The recipes: each page shows the script that runs here, as a user runs it, on small inputs."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

from bench import recipe_inputs as inputs
from bench import recipes
from bench.model import Settings
from bench.page_server import page_server
from bench.recipes import JOBS, SCRIPTS, Job
from tests.test_docs import blocks_of
from tests.waits import BOUND_S, eventually

PAGES = Path(__file__).parents[2] / "docs" / "recipes"
WAYS = ("", "_loop", "_peer")
ALL = sorted(
    path.stem for path in SCRIPTS.glob("*.py") if not path.stem.endswith(("_loop", "_peer", "__"))
)


def run(name: str, folder: Path) -> list[str]:
    """Run a script in a directory; return the lines that it printed."""
    return recipes.run(SCRIPTS / f"{name}.py", folder).splitlines()


@pytest.mark.parametrize("name", ALL)
def test_a_page_shows_the_script_that_is_tested(name: str) -> None:
    blocks = blocks_of((PAGES / f"{name}.md").read_text())
    scripts = [block.text for block in blocks if block.language == "python"]

    assert scripts == [(SCRIPTS / f"{name}.py").read_text().rstrip("\n")]


@pytest.mark.parametrize("name", ALL)
def test_a_script_has_no_more_lines_than_its_peer(name: str) -> None:
    ours, peer = (recipes.lines_of(SCRIPTS / f"{name}{way}.py") for way in ("", "_peer"))

    assert ours <= peer


def test_comments_docstrings_and_blank_lines_are_no_lines_of_code(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text('"""Two\nlines."""\n\n# none\nx = """a\nb"""  # two\n\nprint(\n    x\n)\n')

    assert recipes.lines_of(script) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "job", [job for job in JOBS if job.name not in ("scraper", "web")], ids=lambda job: job.name
)
def test_all_scripts_of_a_job_print_the_same(job: Job, tmp_path: Path) -> None:
    printed = []
    for way in WAYS:
        folder = tmp_path / f"with{way}"
        folder.mkdir()
        job.prepare(folder, Settings(workers=2, spins_per_ms=1_000, scale=0.005))
        printed.append(run(job.name + way, folder))

    assert printed[0]
    assert printed[1:] == [printed[0]] * 2


def test_thumbnails_are_made_and_a_broken_photograph_is_named(tmp_path: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    inputs.write_photos(tmp_path, 5)

    assert run("thumbnails", tmp_path) == ["5 thumbnails", "broken.jpg failed"]
    for number in range(5):
        with images.open(tmp_path / "small" / f"{number}.jpg") as image:
            assert image.size == (256, 192)


def test_text_of_each_page_is_written_and_a_broken_pdf_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pypdf")
    inputs.write_pdfs(tmp_path, 4, pages=3)

    assert run("pdfs", tmp_path) == ["12 pages", "broken.pdf failed"]
    for number in range(4):
        lines = (tmp_path / "text" / f"{number}.txt").read_text().split("\n")
        assert [line for line in lines if line.startswith("#")] == ["# 1", "# 2", "# 3"]
        assert len([line for line in lines if line]) == 3 * (1 + inputs.LINES_ON_PAGE)


def test_orders_of_all_files_are_in_the_database(tmp_path: Path) -> None:
    inputs.write_orders(tmp_path, 1_000_000)
    files = sorted((tmp_path / "orders").iterdir())
    lines = [line.split(",") for file in files for line in file.read_text().splitlines()]
    cents = sum(round(float(line[-2]) * 100) for line in lines)

    assert len(files) > 1
    assert run("orders", tmp_path) == [f"{len(lines)} {cents}"]
    database = sqlite3.connect(tmp_path / "orders.db")
    numbers = [row[0] for row in database.execute("SELECT number FROM orders ORDER BY number")]
    database.close()
    assert numbers == [int(line[0]) for line in lines]


def fetched_by(script: str, count: int, folder: Path) -> tuple[list[str], list[float]]:
    """Have a script fetch pages; return what it printed, and when each request came."""
    for module in ("aiolimiter", "httpx"):
        pytest.importorskip(module)
    with page_server() as pages:
        (folder / "urls.txt").write_text("\n".join(pages.urls(count)))
        return run(script, folder), pages.came_at


def test_pages_are_fetched_with_retries_and_a_missing_page_is_named(tmp_path: Path) -> None:
    printed, came_at = fetched_by("scraper", 21, tmp_path)

    assert printed[0] == "21 pages"
    assert len(printed) == 2
    assert printed[1].endswith("/pages/missing failed")
    # Three are there at the second request only; the missing one is asked for four times.
    assert len(came_at) == 21 + 3 + 4


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_way_fetches_all_pages_and_keeps_to_the_rate(way: str, tmp_path: Path) -> None:
    printed, came_at = fetched_by(f"scraper{way}", 150, tmp_path)

    assert printed[0] == "150 pages"
    assert len(printed) == 2
    # 50 may go at once, and from then on 50 in each second.
    assert came_at[-1] - came_at[0] >= (len(came_at) - 51) / 50


def test_reviews_are_labelled_in_their_order(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    inputs.write_reviews(tmp_path, 2_500)
    reviews = (tmp_path / "reviews.txt").read_text().splitlines()
    good = ["good" if set(inputs.WORDS["good"]) & set(text.split()) else "bad" for text in reviews]

    assert run("inference", tmp_path) == [f"{good.count('good')} reviews are good"]
    assert (tmp_path / "labels.txt").read_text().splitlines() == good


def test_requests_of_every_block_are_counted_once(tmp_path: Path) -> None:
    inputs.write_log(tmp_path, 9_000_000)  # three blocks, whose borders are inside lines
    text = (tmp_path / "server.log").read_bytes()
    requests, errors = text.count(b"\n"), text.count(b'" 500 ')

    assert run("log", tmp_path) == [f"{requests} requests, {errors} errors"]


def test_a_sweep_that_was_killed_runs_only_what_is_missing(tmp_path: Path) -> None:
    """The script is killed with SIGKILL; the second start leaves out the trials that were done."""
    text = (SCRIPTS / "sweep.py").read_text()
    noting = "    with open('begun', 'a') as begun:\n        begun.write(f'{trial}\\n')\n"
    first_line = "    random, now, waited ="
    assert text.count(first_line) == 1
    (tmp_path / "sweep.py").write_text(text.replace(first_line, noting + first_line))
    begun = tmp_path / "begun"

    def trials() -> list[str]:
        return begun.read_text().splitlines() if begun.exists() else []

    start = partial(
        subprocess.Popen,
        [sys.executable, "sweep.py"],
        cwd=tmp_path,
        env=recipes.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with start() as killed:
        eventually(lambda: len(trials()) >= 40)
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate(timeout=BOUND_S)  # to the end of its output: no worker is left
    before = trials()
    with start() as second:
        printed, _ = second.communicate(timeout=BOUND_S)
    after = trials()[len(before) :]
    with start() as third:
        assert third.communicate(timeout=BOUND_S)[0] == printed

    assert 40 <= len(before) < 200
    assert printed.startswith("200 trials, the longest waiting is ")
    assert len({*before, *after}) == 200
    # Those under way, and those whose results were on their way to the journal, begin again.
    assert len(set(before) & set(after)) <= 10
    assert len(trials()) == len(before) + len(after)  # the third start has nothing to do


def test_a_web_service_answers_and_cuts_off_what_takes_too_long() -> None:
    httpx, _ = pytest.importorskip("httpx"), pytest.importorskip("fastapi")

    async def ask(module: ModuleType) -> list[tuple[int, object]]:
        transport = httpx.ASGITransport(app=module.app)
        async with (
            module.app.router.lifespan_context(module.app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            numbers = (100, 10_000_000, 1_000)
            answers = await asyncio.gather(*(client.get(f"/primes/{n}") for n in numbers))
            after = await client.get("/primes/10")  # on the worker that took the other's place
            return [(answer.status_code, answer.json()) for answer in (*answers, after)]

    assert asyncio.run(ask(importlib.import_module("bench.scripts.web"))) == [
        (200, {"primes": 25}),
        (504, {"detail": "this takes more than a second"}),
        (200, {"primes": 168}),
        (200, {"primes": 4}),
    ]


@pytest.mark.parametrize("way", WAYS)
def test_a_web_service_behind_uvicorn_answers_every_client(way: str, tmp_path: Path) -> None:
    for module in ("fastapi", "httpx", "uvicorn", *(["pebble"] if way == "_peer" else [])):
        pytest.importorskip(module)

    assert recipes.serve(SCRIPTS / f"web{way}.py", tmp_path, 16) > 0  # it checks each answer
