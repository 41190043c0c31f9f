"""Fetch the pages whose addresses are in `urls.txt`, from no host more than 50 in a second."""

from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from aiolimiter import AsyncLimiter

from procbus import EventBus, subscribe

client = httpx.AsyncClient()
limits: dict[str, AsyncLimiter] = defaultdict(lambda: AsyncLimiter(50, time_period=1))


@subscribe(retries=3, backoff=0.2, retry_on=httpx.HTTPError, concurrency=50)
async def fetch(url: str) -> None:
    async with limits[urlsplit(url).netloc]:
        answer = (await client.get(url)).raise_for_status()
    Path("pages", url.replace("/", "_")).write_bytes(answer.content)


Path("pages").mkdir(exist_ok=True)
with EventBus() as bus:
    for receipt in bus.stream(Path("urls.txt").read_text().split()):
        if receipt.has_failure:
            print(receipt.event, "failed")
print(len(list(Path("pages").iterdir())), "pages")
