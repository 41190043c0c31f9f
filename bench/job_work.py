"""The work of `whole_jobs`, and files to do it on. Workers import this module, so it is light.

Three jobs: thumbnails of photographs, rows of a CSV file for SQLite, errors in a server's log. A
file that is one long text is worked on in blocks of whole lines.
"""

from __future__ import annotations

import csv
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

LOG_BLOCK = 1_000_000  # bytes, as are all sizes here
CSV_BLOCK = 250_000
PHOTO = (1_600, 1_200)  # pixels
THUMBNAIL = (256, 256)
KINDS = 8  # different photographs, or blocks, that a file or folder is made of
LINE = re.compile(
    rb"(?P<host>\S+) \S+ \S+ \[(?P<day>[^:]+):(?P<time>[\d:]+) [^\]]*\] "
    rb'"(?P<method>[A-Z]+) (?P<path>[^ ?"]+)[^"]*" (?P<status>\d{3}) (?P<size>\d+) "[^"]*"'
)

Row = tuple[int, str, str, int, str]


@dataclass(frozen=True)
class Photo:
    """A photograph, and the place of its thumbnail."""

    path: str
    thumbnail: str


@dataclass(frozen=True)
class Block:
    """Whole lines of a file."""

    path: str
    start: int
    size: int

    def read(self) -> bytes:
        """Read them."""
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def make_thumbnail(photo: Photo) -> str:
    """Make a small JPEG of a photograph; return its path."""
    from PIL import Image

    with Image.open(photo.path) as image:
        image.thumbnail(THUMBNAIL)
        image.save(photo.thumbnail, "JPEG", quality=85)
    return photo.thumbnail


def parse_rows(block: Block) -> list[Row]:
    """Parse and check lines of the CSV file: order, time, customer, cents, country."""
    rows: list[Row] = []
    for order, at, customer, amount, country in csv.reader(block.read().decode().splitlines()):
        whole, _, cents = amount.partition(".")
        time = datetime.fromisoformat(at).isoformat(" ")
        rows.append((int(order), time, customer.strip().title(), int(whole + cents), country))
    return rows


def count_errors(block: Block) -> Counter[str]:
    """Match every line of the log; count the server's errors by path."""
    found: Counter[str] = Counter()
    for line in LINE.finditer(block.read()):
        if line["status"].startswith(b"5"):
            found[line["path"].decode()] += 1
    return found


def blocks(path: Path, size: int) -> Iterator[Block]:
    """Divide a file into blocks of about this size that end with a line."""
    with path.open("rb") as file:
        start = 0
        while True:
            file.seek(start + size)
            file.readline()
            end = min(file.tell(), path.stat().st_size)
            if end <= start:
                return
            yield Block(str(path), start, end - start)
            start = end


def write_photos(folder: Path, count: int) -> list[Photo]:
    """Write JPEG files, of which some have the same contents."""
    from PIL import Image

    made = []
    for number in range(min(KINDS, count)):
        choose = random.Random(number)
        width, height = PHOTO
        coarse = Image.frombytes(
            "RGB", (width // 8, height // 8), choose.randbytes(width * height * 3 // 64)
        )
        path = folder / f"kind-{number}.jpeg"
        coarse.resize(PHOTO).save(path, quality=90)
        made.append(path.read_bytes())
        path.unlink()
    photos = []
    for number in range(count):
        photo = folder / f"{number}.jpeg"
        photo.write_bytes(made[number % len(made)])
        photos.append(Photo(str(photo), str(folder / f"{number}-small.jpeg")))
    return photos


def write_csv(path: Path, size: int) -> None:
    """Write orders of a shop."""
    choose = random.Random(1)
    order = 0
    with path.open("w") as file:
        while file.tell() < size:
            lines = []
            for _ in range(2_000):
                order += 1
                at = f"2026-11-{choose.randrange(1, 29):02}T10:07:{choose.randrange(10, 60)}"
                customer = choose.choice(("ada lovelace", '"hopper, grace"', " alan turing"))
                amount = f"{choose.randrange(1_000)}.{choose.randrange(10, 100)}"
                country = choose.choice(("DE", "FR", "IN", "US"))
                lines.append(f"{order},{at},{customer},{amount},{country}\n")
            file.writelines(lines)


def write_log(path: Path, size: int) -> None:
    """Write a server's log, in which some blocks are the same."""
    made = [_log_block(random.Random(number)) for number in range(KINDS)]
    with path.open("wb") as file:
        for number in range(max(1, size // LOG_BLOCK)):
            file.write(made[number % KINDS])


def _log_block(choose: random.Random) -> bytes:
    lines: list[str] = []
    written = 0
    while written < LOG_BLOCK:
        line = (
            f"10.0.{choose.randrange(256)}.{choose.randrange(256)} - - "
            f"[{choose.randrange(1, 29):02}/Nov/2026:10:07:{choose.randrange(10, 60)} +0000] "
            f'"GET /shop/{choose.randrange(300)}?id={choose.randrange(10**6)} HTTP/1.1" '
            f"{choose.choice((200, 200, 200, 304, 404, 500))} {choose.randrange(50_000)} "
            '"Mozilla"\n'
        )
        lines.append(line)
        written += len(line)
    return "".join(lines).encode()
