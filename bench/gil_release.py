"""Which code lets other threads run while it works, so that threads are the right answer?

Each handler runs on as many workers as there are cores, against a plain loop in the same process
just before. The events carry what the handlers work on: a cpu lane has to carry it too.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

from . import limit
from .contenders import Opener
from .model import LIMIT, PROCBUS_CPU, PROCBUS_IO, Question, Row, Settings
from .ways import THREAD_BUS, WAYS, events_of, serial_rate, warm_rate
from .work import spin

KIB = 1024
HOLDS, RELEASES = "keeps the GIL", "releases the GIL"


class Kind(NamedTuple):
    """A handler, what makes its event, whether its library lets go of the GIL, events in 0.2 s."""

    handler: Callable[[Any], Any]
    event: Callable[[Settings], Any]
    gil: str
    full: int


def text(size: int) -> str:
    """Return a text of words and numbers, neither all alike nor random."""
    words = [
        f"order {n * 7919 % 100_003} of {n % 97} parts to place {n % 13}" for n in range(4_000)
    ]
    line = "; ".join(words)
    return (line * (size // len(line) + 1))[:size]


def parse(text: str) -> int:
    """Read JSON; the result stays here, since what it costs to carry is another question."""
    return len(json.loads(text))


def compress(data: bytes) -> int:
    """Compress the event."""
    return len(zlib.compress(data))


def digest(data: bytes) -> str:
    """Hash the whole event at once."""
    return hashlib.sha256(data).hexdigest()


def digest_pieces(data: bytes) -> int:
    """Hash the event in pieces of 1 KiB: below 2 KiB hashlib keeps the GIL."""
    pieces = (data[start : start + KIB] for start in range(0, len(data), KIB))
    return sum(hashlib.sha256(piece).digest()[0] for piece in pieces)


def find_numbers(words: str) -> int:
    """Search with a regular expression."""
    return sum(int(found[1]) for found in re.finditer(r"order (\d+) of \d+ parts", words))


def sort(numbers: Any) -> float:
    """Sort an array with NumPy."""
    import numpy as np

    return float(np.sort(numbers)[0])


def small_steps(numbers: Any) -> float:
    """Take many steps with NumPy, each of a few elements."""
    total = 0.0
    for start in range(0, 1_500, 3):
        total += float(numbers[start : start + 3].sum())
    return total


def floats(count: int, _settings: Settings) -> Any:
    """Return random numbers, the same each time."""
    import numpy as np

    return np.random.default_rng(5).random(count)


PURE_PYTHON = "pure Python, 1 ms"
KINDS: Mapping[str, Kind] = {
    PURE_PYTHON: Kind(spin, lambda settings: settings.spins_per_ms, HOLDS, 200),
    "regular expression, 64 KiB": Kind(find_numbers, lambda _: text(64 * KIB), HOLDS, 200),
    "json.loads, 64 KiB": Kind(
        parse, lambda _: json.dumps(text(60 * KIB).split("; ")), HOLDS, 1_000
    ),
    "sha256, 1 KiB at a time": Kind(digest_pieces, lambda _: text(1024 * KIB).encode(), HOLDS, 120),
    "sha256, 1 MiB at once": Kind(digest, lambda _: text(1024 * KIB).encode(), RELEASES, 200),
    "zlib.compress, 256 KiB": Kind(compress, lambda _: text(256 * KIB).encode(), RELEASES, 60),
    "NumPy, sort of 100,000": Kind(sort, partial(floats, 100_000), RELEASES, 60),
    "NumPy, 500 sums of 3": Kind(small_steps, partial(floats, 1_500), HOLDS, 120),
}
HERE = {name: kind for name, kind in KINDS.items() if find_spec("numpy") or "NumPy" not in name}


def speed_ups(opener: Opener, settings: Settings) -> dict[str, float]:
    """Measure one way of running handlers with every kind of code."""
    found = {}
    for name, kind in HERE.items():
        events = events_of(kind.event(settings), kind.full, settings)
        alone = serial_rate(kind.handler, events)
        with opener(kind.handler, settings.workers) as contender:
            found[name] = warm_rate(contender, events) / alone
    return found


def bare_speed_ups(settings: Settings) -> dict[str, float]:
    """Measure bare processes that loop over the handler, each with the data already there."""
    found = {}
    for name, kind in HERE.items():
        events = events_of(kind.event(settings), kind.full, settings)
        alone = serial_rate(kind.handler, events)
        bare = limit.bare_rate(kind.handler, events[0], len(events), settings.workers)
        found[name] = bare / alone
    return found


QUESTION = Question(
    name="gil_release",
    asks="Which code lets other threads run while it works, so that threads are right?",
    rows=tuple(Row(name, f"x the loop ({kind.gil})") for name, kind in HERE.items()),
    contenders={
        name: partial(speed_ups, WAYS[name]) for name in (THREAD_BUS, PROCBUS_IO, PROCBUS_CPU)
    }
    | {LIMIT: bare_speed_ups},
    limit="bare processes looping over the handler, the data already there",
    rounds=3,
)
