"""Fetch the pages whose addresses are in `urls.txt`, with asyncio and aiolimiter."""

import asyncio
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from aiolimiter import AsyncLimiter

limits: dict[str, AsyncLimiter] = defaultdict(lambda: AsyncLimiter(50, time_period=1))


async def fetch(client: httpx.AsyncClient, places: asyncio.Semaphore, url: str) -> None:
    for pause in (0.2, 0.4, 0.8, 0):
        async with places, limits[urlsplit(url).netloc]:
            with suppress(httpx.HTTPError):
                answer = (await client.get(url)).raise_for_status()
                Path("pages", url.replace("/", "_")).write_bytes(answer.content)
                return
        await asyncio.sleep(pause)
    print(url, "failed")


async def main() -> None:
    Path("pages").mkdir(exist_ok=True)
    places = asyncio.Semaphore(50)
    async with httpx.AsyncClient() as client, asyncio.TaskGroup() as tasks:
        for url in Path("urls.txt").read_text().split():
            tasks.create_task(fetch(client, places, url))
    print(len(list(Path("pages").iterdir())), "pages")


asyncio.run(main())
