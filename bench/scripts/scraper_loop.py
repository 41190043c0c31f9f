"""Fetch the pages whose addresses are in `urls.txt` one by one, at most 50 in a second."""

import time
from pathlib import Path

import httpx


def fetch(client: httpx.Client, url: str) -> None:
    for pause in (0.2, 0.4, 0.8, 0):
        time.sleep(0.02)
        try:
            answer = client.get(url).raise_for_status()
        except httpx.HTTPError:
            time.sleep(pause)
        else:
            Path("pages", url.replace("/", "_")).write_bytes(answer.content)
            return
    print(url, "failed")


Path("pages").mkdir(exist_ok=True)
with httpx.Client() as client:
    for url in Path("urls.txt").read_text().split():
        fetch(client, url)
print(len(list(Path("pages").iterdir())), "pages")
