"""Fetch the pages whose addresses are in `urls.txt`, from no host more than 50 in a second."""

from pathlib import Path
from urllib.parse import urlsplit

import httpx

from procbus import EventBus, subscribe

client = httpx.AsyncClient()


@subscribe(
    rate="50/s",
    rate_key=lambda url: urlsplit(url).netloc,
    concurrency=50,
    retries=3,
    backoff=0.2,
    retry_on=httpx.HTTPError,
)
async def fetch(url: str) -> None:
    answer = (await client.get(url)).raise_for_status()
    Path("pages", url.replace("/", "_")).write_bytes(answer.content)


Path("pages").mkdir(exist_ok=True)
with EventBus() as bus:
    for receipt in bus.stream(Path("urls.txt").read_text().split()):
        if receipt.has_failure:
            print(receipt.event, "failed")
print(len(list(Path("pages").iterdir())), "pages")
