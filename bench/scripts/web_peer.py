"""A web service that computes on all cores, and answers 504 after a second, with pebble."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from os import cpu_count

from fastapi import FastAPI, HTTPException
from pebble import ProcessPool


def primes(below: int) -> int:
    return sum(all(number % d for d in range(2, number)) for number in range(2, below))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    with ProcessPool(cpu_count() or 1) as app.state.pool:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/primes/{below}")
async def count_primes(below: int) -> dict[str, int]:
    future = app.state.pool.schedule(primes, args=[below], timeout=1)
    try:
        return {"primes": await asyncio.wrap_future(future)}
    except TimeoutError as error:
        raise HTTPException(504, "this takes more than a second") from error
