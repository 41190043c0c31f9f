"""A web service that computes in its own process, without a time limit: `GET /primes/1000`."""

from fastapi import FastAPI

app = FastAPI()


def primes(below: int) -> int:
    return sum(all(number % d for d in range(2, number)) for number in range(2, below))


@app.get("/primes/{below}")
def count_primes(below: int) -> dict[str, int]:
    return {"primes": primes(below)}
