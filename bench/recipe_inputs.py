"""Inputs for the scripts in `bench/scripts`: files, in the directory where a script will run.

The photographs need Pillow, the model needs scikit-learn.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from . import job_work

WORDS = {
    "good": ("lovely", "fast", "brilliant", "sturdy", "recommended", "perfect", "bargain"),
    "bad": ("broken", "slow", "awful", "flimsy", "refund", "useless", "disappointed"),
}
OTHER_WORDS = tuple(
    first + last
    for first in ("ma", "re", "tri", "po", "sil", "ga", "nu", "ve")
    for last in ("ket", "lon", "der", "vik", "sum", "tar", "bel", "nor")
)
ORDERS_IN_FILE = 10_000
LINES_ON_PAGE = 40


def write_photos(directory: Path, count: int) -> None:
    """Write photographs, and one file that is none."""
    photos = directory / "photos"
    photos.mkdir()
    for photo in job_work.write_photos(photos, count):
        Path(photo.path).rename(Path(photo.path).with_suffix(".jpg"))
    (photos / "broken.jpg").write_bytes(b"no photograph")


def write_pdfs(directory: Path, count: int, pages: int = 8) -> None:
    """Write PDF files with text on every page, and one file that is none."""
    folder = directory / "pdfs"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.pdf").write_bytes(pdf_of(random.Random(number), pages))
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7, and then nothing")


def pdf_of(choose: random.Random, pages: int) -> bytes:
    """Return a PDF file: a catalog, the list of pages, a font, each page and its text."""
    kids = " ".join(f"{4 + 2 * page} 0 R" for page in range(pages))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Count {pages} /Kids [{kids}] >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for page in range(pages):
        lines = (f"({' '.join(words(choose, 10))}) Tj T*" for _ in range(LINES_ON_PAGE))
        text = "BT /F1 11 Tf 14 TL 50 800 Td " + " ".join(lines) + " ET"
        packed = zlib.compress(text.encode())
        objects += [
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents {5 + 2 * page} 0 R"
            " /Resources << /Font << /F1 3 0 R >> >> >>".encode(),
            b"<< /Length %d /Filter /FlateDecode >>\nstream\n%b\nendstream" % (len(packed), packed),
        ]
    file, places = b"%PDF-1.7\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(file))
        file += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return file + (
        b"xref\n0 %d\n0000000000 65535 f \n%btrailer\n"
        b"<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (size, table, size, len(file))
    )


def words(choose: random.Random, count: int) -> list[str]:
    """Return words of no language."""
    return choose.choices(OTHER_WORDS, k=count)


def write_orders(directory: Path, size: int) -> None:
    """Write CSV files of a shop's orders, of this many bytes together."""
    folder = directory / "orders"
    folder.mkdir()
    whole = directory / "all.csv"
    job_work.write_csv(whole, size)
    with whole.open() as lines:
        number = 0
        while part := list(islice(lines, ORDERS_IN_FILE)):
            (folder / f"{number:04}.csv").write_text("".join(part))
            number += 1
    whole.unlink()


def write_log(directory: Path, size: int) -> None:
    """Write a server's log."""
    job_work.write_log(directory / "server.log", size)


def write_reviews(directory: Path, count: int) -> None:
    """Write reviews, and a model that has learned from others which of them are good."""
    import joblib
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    known = list(islice(reviews(random.Random(1)), 400))
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression())
    model.fit([text for text, _ in known], [label for _, label in known])
    joblib.dump(model, directory / "model.joblib")
    with (directory / "reviews.txt").open("w") as file:
        file.writelines(f"{text}\n" for text, _ in islice(reviews(random.Random(2)), count))


def reviews(choose: random.Random) -> Iterator[tuple[str, str]]:
    """Yield reviews with their labels, without an end."""
    while True:
        label = choose.choice(("good", "bad"))
        text = [*words(choose, 50), *choose.choices(WORDS[label], k=6)]
        choose.shuffle(text)
        yield " ".join(text), label
