"""A web service that computes on all cores, and answers 504 after a second: `GET /primes/1000`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, HTTPException

from procbus import EventBus, HandlerTimeout

bus = EventBus(handlers=[])


@bus.subscribe(int, kind="cpu", timeout=1)
def primes(below: int) -> int:
    return sum(all(number % d for d in range(2, number)) for number in range(2, below))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with bus:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/primes/{below}")
async def count_primes(below: int) -> dict[str, int]:
    receipt = await bus.apublish(below)
    try:
        return {"primes": await receipt}
    except HandlerTimeout as error:
        raise HTTPException(504, "this takes more than a second") from error
