"""Handlers whose use of the machine people agree on, to compare the bus's advice with.

Each has a label with a reason: the kind that is right on two cores or more, or "either" if both are
as good. Handlers that hold the GIL while they compute are "cpu"; handlers that wait are "io";
handlers that compute without the GIL use all cores either way. Events are small unless noted.
"""

from __future__ import annotations

import ast
import asyncio
import bz2
import collections
import csv
import difflib
import hashlib
import html.parser
import io
import json
import lzma
import os
import pickle
import random
import re
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

Label = Literal["io", "cpu", "either"]


@dataclass(frozen=True)
class Labelled:
    """A handler, its label, and why it has that."""

    function: Callable[[Any], Any]
    label: Label
    why: str
    make_event: Callable[[], Any]

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def kinds(self) -> tuple[Literal["io", "cpu"], ...]:
        """The kinds that it can be declared with."""
        if asyncio.iscoroutinefunction(self.function) or self.name.startswith("unpicklable"):
            return ("io",)
        return ("io", "cpu")


HANDLERS: list[Labelled] = []


def labelled(
    label: Label, why: str, make_event: Callable[[], Any] = lambda: 1
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        HANDLERS.append(Labelled(function, label, why, make_event))
        return function

    return decorate


# Objects that they work on, made once in each process.


@cache
def text() -> str:
    words = ["lorem", "ipsum", "dolor", "sit", "amet", "a@b.example", "2024-01-31", "42"]
    return " ".join(random.Random(1).choices(words, k=12_000))


@cache
def noise() -> bytes:
    return os.urandom(1 << 20)


@cache
def rows() -> list[dict[str, Any]]:
    return [{"id": n, "name": f"name {n}", "tags": ["a", "b", str(n)]} for n in range(3_000)]


@cache
def rows_json() -> str:
    return json.dumps(rows())


@cache
def source() -> str:
    return "\n".join(
        f"def f{n}(a, b):\n    return [a + i * b for i in range({n})]" for n in range(250)
    )


def a_file() -> str:
    """A file that is large, there on every machine, and in the cache."""
    return os.path.realpath(sys.executable)


def spin(iterations: int) -> int:
    x = 1
    for _ in range(iterations):
        x = (x * 1103515245 + 12345) & 0x7FFFFFFF
    return x


HOLDS = "pure Python holds the GIL"
C_HOLDS = "C code that keeps the GIL"
FREE = "C code that releases the GIL: all cores either way"
WAITS = "waits: a thread costs less than a process"


# Pure Python.


@labelled("cpu", HOLDS)
def count_loop(_event: Any) -> int:
    return spin(60_000)


@labelled("cpu", HOLDS)
def count_long(_event: Any) -> int:
    return spin(600_000)


@labelled("cpu", HOLDS + "; 0.3 ms are still many times its transport")
def count_short(_event: Any) -> int:
    return spin(4_000)


@labelled("cpu", HOLDS)
def sieve(_event: Any) -> int:
    flags = [True] * 30_000
    for n in range(2, 180):
        if flags[n]:
            for multiple in range(n * n, len(flags), n):
                flags[multiple] = False
    return sum(flags)


@labelled("cpu", HOLDS)
def recursion(_event: Any) -> int:
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    return fib(19)


@labelled("cpu", HOLDS)
def sort_by_key(_event: Any) -> Any:
    return sorted(rows(), key=lambda row: row["name"][::-1])[0]


@labelled("cpu", HOLDS)
def count_words(_event: Any) -> int:
    counts: dict[str, int] = {}
    for word in text().split():
        counts[word.lower()] = counts.get(word.lower(), 0) + 1
    return len(counts)


@labelled("cpu", HOLDS)
def matrix_of_lists(_event: Any) -> float:
    n = 40
    a = [[float(i * j % 7) for j in range(n)] for i in range(n)]
    return sum(sum(a[i][k] * a[k][j] for k in range(n)) for i in range(n) for j in range(n))


@labelled("cpu", HOLDS)
def fractions(_event: Any) -> Any:
    return float(sum((Fraction(1, n) for n in range(1, 300)), Fraction(0)))


@labelled("cpu", HOLDS)
def statistics_of(_event: Any) -> float:
    return statistics.stdev(range(8_000))


@labelled("cpu", HOLDS)
def diff(_event: Any) -> float:
    words = text().split()
    return difflib.SequenceMatcher(None, words[:400], words[200:600]).ratio()


class _Links(html.parser.HTMLParser):
    count = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.count += 1


@labelled("cpu", HOLDS)
def parse_html(_event: Any) -> int:
    parser = _Links()
    parser.feed("<p class='a'>text <a href='x'>link</a></p>" * 400)
    return parser.count


# C code that keeps the GIL.


@labelled("cpu", C_HOLDS)
def regex_find(_event: Any) -> int:
    return len(re.findall(r"[\w.]+@[\w.]+|\d{4}-\d\d-\d\d", text()))


@labelled("cpu", C_HOLDS)
def regex_replace(_event: Any) -> int:
    return len(re.sub(r"(\w+) (\w+)", r"\2 \1", text()))


@labelled("cpu", C_HOLDS)
def json_write(_event: Any) -> int:
    return len(json.dumps(rows()))


@labelled("cpu", C_HOLDS)
def json_read(_event: Any) -> int:
    return len(json.loads(rows_json()))


@labelled("cpu", C_HOLDS)
def ast_parse(_event: Any) -> int:
    return len(ast.parse(source()).body)


@labelled("cpu", C_HOLDS)
def compile_source(_event: Any) -> Any:
    return compile(source(), "x", "exec").co_name


@labelled("cpu", C_HOLDS)
def pickle_round(_event: Any) -> int:
    return len(pickle.loads(pickle.dumps(rows())))


@labelled("cpu", C_HOLDS)
def read_csv(_event: Any) -> int:
    return sum(1 for _ in csv.reader(io.StringIO("a,b,c,d,e\n" * 10_000)))


@labelled("cpu", C_HOLDS)
def parse_xml(_event: Any) -> int:
    return len(ElementTree.fromstring("<r>" + "<i a='1'>text</i>" * 5_000 + "</r>"))


@labelled("cpu", C_HOLDS)
def counter(_event: Any) -> int:
    return len(collections.Counter(text() * 4))


@labelled("cpu", "hashing less than 2 KiB at a time keeps the GIL")
def hash_small(_event: Any) -> str:
    digest = hashlib.sha256()
    for _ in range(10_000):
        digest.update(b"x" * 64)
    return digest.hexdigest()


# C code that releases the GIL.


@labelled("either", FREE)
def hash_large(_event: Any) -> str:
    return hashlib.sha256(noise() * 4).hexdigest()


@labelled("either", FREE)
def hash_password(_event: Any) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", b"secret", b"salt", 10_000)


@labelled("either", FREE)
def zlib_compress(_event: Any) -> int:
    return len(zlib.compress(noise()[:400_000], 6))


@labelled("either", FREE)
def zlib_small(_event: Any) -> int:
    return sum(len(zlib.compress(text()[:20_000].encode())) for _ in range(10))


@labelled("either", FREE)
def bz2_compress(_event: Any) -> int:
    return len(bz2.compress(noise()[:150_000]))


@labelled("either", FREE)
def lzma_compress(_event: Any) -> int:
    return len(lzma.compress(text()[:30_000].encode(), preset=1))


@labelled("either", "SQLite computes without the GIL")
def sqlite_query(_event: Any) -> Any:
    with sqlite3.connect(":memory:") as connection:
        query = (
            "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 60000) "
            "SELECT sum(x * x % 7) FROM c"
        )
        found = connection.execute(query).fetchone()
    connection.close()
    return found


# Waiting.


@labelled("io", WAITS)
def sleep_short(_event: Any) -> None:
    time.sleep(0.002)


@labelled("io", WAITS)
def sleep_long(_event: Any) -> None:
    time.sleep(0.05)


@labelled("io", WAITS)
def wait_for_event(_event: Any) -> None:
    threading.Event().wait(0.01)


_lock = threading.Lock()


@labelled("io", "waits for a lock, which threads share and processes do not")
def wait_for_lock(_event: Any) -> None:
    with _lock:
        time.sleep(0.003)


@labelled("io", WAITS)
def ask_over_socket(event: Any) -> bytes:
    with socket.create_connection(("127.0.0.1", event), timeout=10) as connection:
        connection.sendall(b"question")
        return connection.recv(100)


@labelled("io", WAITS)
def wait_for_pipe(_event: Any) -> None:
    receiver, sender = os.pipe()
    timer = threading.Timer(0.01, os.write, (sender, b"x"))
    timer.start()
    os.read(receiver, 1)
    timer.join()
    os.close(receiver)
    os.close(sender)


@labelled("io", "a child process that waits, and a thread that waits for it")
def run_sleep(_event: Any) -> int:
    return subprocess.run(["/bin/sleep", "0.05"], check=True).returncode


@labelled("either", "a child process computes: on any core, whichever worker waits for it")
def run_python(_event: Any) -> int:
    code = "x = 0\nfor i in range(1000000): x += i"
    return subprocess.run([sys.executable, "-S", "-c", code], check=True).returncode


@labelled("io", "waits for the disk")
def write_and_sync(_event: Any) -> None:
    file, path = tempfile.mkstemp(prefix="procbus-advice-")
    try:
        os.write(file, b"x" * 4_000)
        os.fsync(file)
        time.sleep(0.005)  # disks of virtual machines answer at once
    finally:
        os.close(file)
        os.unlink(path)


@labelled("either", "the kernel copies from its cache, without the GIL")
def read_file(_event: Any) -> int:
    with open(a_file(), "rb") as opened:
        return len(opened.read(8_000_000))


@labelled("either", "half Python, half kernel")
def list_directory(_event: Any) -> int:
    return sum(len(os.listdir(path)) for path in ["/proc", "/usr/bin", "/etc"] * 3)


# Mixtures.


@labelled("io", "waits five times as long as it computes: 32 threads do that side by side")
def fetch_and_parse(_event: Any) -> int:
    time.sleep(0.04)
    return spin(80_000)


@labelled("cpu", "computes ten times as long as it waits")
def parse_and_ask(_event: Any) -> int:
    time.sleep(0.001)
    return spin(120_000)


@labelled("either", "waits as long as it computes: two cores do one thing, one GIL the other")
def half_and_half(_event: Any) -> int:
    time.sleep(0.006)
    return spin(80_000)


@labelled("io", "waits, and computes without the GIL")
def sleep_and_compress(_event: Any) -> int:
    time.sleep(0.03)
    return len(zlib.compress(noise()[:100_000]))


@labelled("either", "half of what it computes holds the GIL: one core for that, one for the rest")
def python_and_compress(_event: Any) -> int:
    return spin(80_000) + len(zlib.compress(noise()[:250_000]))


@labelled("cpu", "reads a little and parses a lot")
def read_and_parse(_event: Any) -> int:
    with open(a_file(), "rb") as opened:
        opened.read(10_000)
    return len(json.loads(rows_json()))


# Handlers whose event matters.


@labelled("either", "nothing to do: what it costs is the bus")
def tiny(_event: Any) -> None:
    return None


@labelled("io", "sends a long list away to do next to nothing", lambda: list(range(200_000)))
def tiny_work_long_list(event: Any) -> int:
    return int(event[0])


@labelled("cpu", "computes longer than it takes to copy 1 MB", lambda: bytes(1_000_000))
def long_work_large_event(event: Any) -> int:
    return len(event) + spin(120_000)


@labelled("io", "its event cannot travel", threading.Lock)
def unpicklable_event(_event: Any) -> int:
    return spin(60_000)


# On the event loop.


@labelled("io", WAITS)
async def async_sleep(_event: Any) -> None:
    await asyncio.sleep(0.01)


@labelled("cpu", "computes on the event loop, where nothing else goes on meanwhile")
async def async_compute(_event: Any) -> int:
    return spin(60_000)


@labelled("io", "waits twenty times as long as it computes")
async def async_fetch(_event: Any) -> int:
    await asyncio.sleep(0.04)
    return spin(15_000)


if find_spec("numpy") is not None:
    import numpy

    @cache
    def numbers() -> Any:
        return numpy.random.default_rng(1).random((400, 400))

    @labelled("cpu", "many small arrays: Python calls most of the time")
    def numpy_small(_event: Any) -> float:
        a = numbers()[0, :20]
        return float(sum((a + n).sum() for n in range(1_500)))

    @labelled("either", FREE)
    def numpy_large(_event: Any) -> float:
        return float((numbers() @ numbers()).sum())

    @labelled("either", FREE)
    def numpy_sort(_event: Any) -> float:
        return float(numpy.sort(numbers(), axis=None)[0])
