"""Count the requests in `server.log` by path and status, with ProcessPoolExecutor."""

import re
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from mmap import ACCESS_READ, mmap
from pathlib import Path

LOG, BLOCK = Path("server.log"), 4_000_000  # bytes
REQUEST = re.compile(rb'"[A-Z]+ ([^ ?"]+)[^"]*" (\d{3}) ')


def count(start: int) -> Counter[tuple[bytes, ...]]:
    with LOG.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as log:
        first = log.find(b"\n", start - 1) + 1 if start else 0  # the lines that begin in the block
        last = log.find(b"\n", start + BLOCK - 1) + 1 or len(log)
        return Counter(found.groups() for found in REQUEST.finditer(log, first, last))


if __name__ == "__main__":
    requests: Counter[tuple[bytes, ...]] = Counter()
    with ProcessPoolExecutor() as pool:
        for counted in pool.map(count, range(0, LOG.stat().st_size, BLOCK)):
            requests.update(counted)
    errors = sum(count for (_, status), count in requests.items() if status >= b"500")
    print(requests.total(), "requests,", errors, "errors")
