"""Whole scripts for eight jobs, with procbus, in a loop and with the best peer: seconds and lines.

Each is a file in `bench/scripts`, and runs in a fresh Python from its first import to its exit; a
web service is asked by eight clients once it listens. The tests check that all scripts of a
job print the same. Lines of code are counted: no blank ones, no comments, no docstring.
"""

from __future__ import annotations

import asyncio
import compileall
import io
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import tokenize
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from . import recipe_inputs as inputs
from .model import PROCBUS, Question, Row, Settings, Target
from .page_server import page_server
from .runner import ROOT
from .ways import SERIAL

SCRIPTS = Path(__file__).with_name("scripts")
PROCESSES, JOBLIB, PEBBLE, ASYNCIO = "ProcessPoolExecutor", "joblib", "pebble", "aiolimiter"
LIMIT_OF_SCRIPT_S = 110
CLIENTS = 8
#: Times that differ by less are equal: three rounds of one script differ by 0.1 to 2 %.
EQUAL = 0.01


class Job(NamedTuple):
    """A job that scripts do.

    Attributes:
        name: of its files in `bench/scripts`.
        shown: as in the table.
        peer: the library of `NAME_peer.py`.
        prepare: writes the inputs into a directory.
        needs: modules without which the job cannot be done.
    """

    name: str
    shown: str
    peer: str
    prepare: Callable[[Path, Settings], None]
    needs: tuple[str, ...] = ()

    def lines_row(self) -> str:
        """The row of the number of lines."""
        return f"{self.shown}: lines"


JOBS = tuple(
    job
    for job in (
        Job(
            "thumbnails",
            "thumbnails of 400 photographs",
            PROCESSES,
            lambda folder, s: inputs.write_photos(folder, s.count(400, at_least=4)),
            ("PIL",),
        ),
        Job(
            "pdfs",
            "text of 200 PDF files",
            PROCESSES,
            lambda folder, s: inputs.write_pdfs(folder, s.count(200, at_least=4)),
            ("pypdf",),
        ),
        Job(
            "orders",
            "60 MB of CSV files into SQLite",
            PROCESSES,
            lambda folder, s: inputs.write_orders(folder, int(s.scale * 60_000_000)),
        ),
        Job(
            "scraper",
            "300 pages, 50 in a second",
            ASYNCIO,
            lambda *_: None,
            ("aiolimiter", "httpx"),
        ),
        Job(
            "inference",
            "labels for 50,000 reviews, scikit-learn",
            JOBLIB,
            lambda folder, s: inputs.write_reviews(folder, s.count(50_000, at_least=100)),
            ("joblib", "sklearn"),
        ),
        Job(
            "log",
            "300 MB of log",
            PROCESSES,
            lambda folder, s: inputs.write_log(folder, int(s.scale * 300_000_000)),
        ),
        Job("sweep", "a sweep of 200 trials that can resume", PROCESSES, lambda *_: None),
        Job(
            "web",
            "400 requests to a web service",
            PEBBLE,
            lambda *_: None,
            ("fastapi", "httpx", "pebble", "uvicorn"),
        ),
    )
    if all(map(find_spec, job.needs))
)


def lines_of(script: Path) -> int:
    """Count the lines that have code: no comment, no docstring, nothing blank."""
    found: set[int] = set()
    idle = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    idle |= {tokenize.ENCODING, tokenize.ENDMARKER}
    begins = True  # whether a statement begins here
    for token in tokenize.generate_tokens(io.StringIO(script.read_text()).readline):
        if token.type == tokenize.STRING and begins and token.string.startswith('"""'):
            continue
        if token.type not in idle:
            found.update(range(token.start[0], token.end[0] + 1))
        begins = token.type in idle
    return len(found)


def environment() -> dict[str, str]:
    """The environment of a user: procbus is installed, and Python may keep byte code."""
    own = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return own | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), own.get("PYTHONPATH")]))}


def run(script: Path, folder: Path) -> str:
    """Run a script in a directory; return what it printed, in any order of its lines."""
    # As a user's file: in a package it would find its neighbours.
    shutil.copy(script, folder / "script.py")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=LIMIT_OF_SCRIPT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{script.name}: {done.stderr[-2_000:]}")
    return "\n".join(sorted(done.stdout.splitlines()))


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def serve(script: Path, folder: Path, count: int) -> float:
    """Serve a script with uvicorn; return how long its answers to `count` requests take."""
    shutil.copy(script, folder / "script.py")
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "script:app", "--port", str(port)]
    with subprocess.Popen(
        [*command, "--log-level", "warning"],
        cwd=folder,
        env=environment(),
    ) as server:
        try:
            return asyncio.run(ask(port, count))
        finally:
            server.terminate()


async def ask(port: int, count: int) -> float:
    """Have clients ask for answers, each for one after the other; return the seconds."""
    import httpx

    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, timeout=60) as http:
        for _ in range(600):  # until it listens
            try:
                await http.get("/primes/10")
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
        left = iter(range(count))

        async def client() -> None:
            for _ in left:
                answer = await http.get("/primes/2000")
                if answer.json() != {"primes": 303}:
                    raise RuntimeError(f"{answer.status_code}: {answer.text}")

        began = perf_counter()
        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return perf_counter() - began


def seconds(job: Job, script: Path, settings: Settings) -> float:
    """Do a job once, on inputs of its own."""
    with tempfile.TemporaryDirectory(prefix="procbus-bench-") as directory:
        folder = Path(directory)
        job.prepare(folder, settings)
        if job.name == "web":
            return serve(script, folder, settings.count(400))
        if job.name == "scraper":
            with page_server() as pages:
                urls = pages.urls(settings.count(300))
                (folder / "urls.txt").write_text("\n".join(urls))
                began = perf_counter()
                run(script, folder)
                return perf_counter() - began
        began = perf_counter()
        run(script, folder)
        return perf_counter() - began


def figures(contender: str, settings: Settings) -> dict[str, float]:
    """Run the contender's scripts: all jobs for procbus and the loop, its own jobs for a peer."""
    endings = {PROCBUS: ".py", SERIAL: "_loop.py"}
    found: dict[str, float] = {}
    # As pip does, so that the first round does not compile.
    compileall.compile_dir(ROOT / "procbus", quiet=1)
    for job in JOBS:
        if contender in (PROCBUS, SERIAL, job.peer):
            script = SCRIPTS / f"{job.name}{endings.get(contender, '_peer.py')}"
            found[job.shown] = seconds(job, script, settings)
            found[job.lines_row()] = lines_of(script)
    return found


PEERS = tuple(dict.fromkeys(job.peer for job in JOBS))
QUESTION = Question(
    name="recipes",
    asks="How long do whole scripts take, and how long are they, beside a loop and the best peer?",
    rows=tuple(
        Row(row, unit, (Target(1, at_least=False, against=job.peer, equal=equal),))
        for job in JOBS
        for row, unit, equal in ((job.shown, "s", EQUAL), (job.lines_row(), "lines", 0.0))
    ),
    contenders={name: partial(figures, name) for name in (PROCBUS, SERIAL, *PEERS)},
    time_limit=600.0,
    rounds=3,
)
