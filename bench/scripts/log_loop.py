"""Count the requests in `server.log` by path and status, in one process."""

import re
from collections import Counter
from mmap import ACCESS_READ, mmap
from pathlib import Path

LOG = Path("server.log")
REQUEST = re.compile(rb'"[A-Z]+ ([^ ?"]+)[^"]*" (\d{3}) ')

with LOG.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as log:
    requests = Counter(found.groups() for found in REQUEST.finditer(log))
errors = sum(count for (_, status), count in requests.items() if status >= b"500")
print(requests.total(), "requests,", errors, "errors")
