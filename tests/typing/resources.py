# SPDX-License-Identifier: MIT
"""Resources in use: type-checked with `mypy --strict` and pyright, without one cast."""

import io
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Self, assert_type

from procbus import CurrentWorker, EventBus, Resource, current, resource, subscribe, use
from procbus.testing import InlineBus


class Model:
    def predict(self, text: str) -> int:
        return len(text)


class Session:
    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None: ...


@resource
def model() -> Iterator[Model]:
    yield Model()


@resource(scope="bus", eager=True)
async def session() -> AsyncIterator[Session]:
    yield Session()


@resource(scope="bus")
async def awaited() -> Session:
    return Session()


@resource(scope="event")
@contextmanager
def managed(model: Model = use(model)) -> Iterator[int]:
    yield model.predict("x")


@resource
@asynccontextmanager
async def managed_async() -> AsyncIterator[str]:
    yield "x"


@resource
def settings() -> dict[str, int]:
    return {}


@resource
def file() -> io.TextIOWrapper:
    return open("x")


@resource
def database() -> sqlite3.Connection:
    return sqlite3.connect("x")


opened = resource(Session)

assert_type(model, Resource[Model])
assert_type(session, Resource[Session])
assert_type(awaited, Resource[Session])
assert_type(managed, Resource[int])
assert_type(managed_async, Resource[str])
assert_type(settings, Resource[dict[str, int]])
assert_type(file, Resource[io.TextIOWrapper])
assert_type(database, Resource[sqlite3.Connection])
assert_type(opened, Resource[Session])
assert_type(use(model), Model)


@subscribe(kind="cpu")
def predict(text: str, model: Model = use(model), number: int = use(managed)) -> int:
    assert_type(current().worker, CurrentWorker)
    assert_type(current().worker.number, int)
    return model.predict(text) + number


@subscribe("url")
async def fetch(url: str, session: Session = use(session)) -> str:
    return url


@subscribe("wrong")
def wrong(url: str, session: Session = use(model)) -> str:  # type: ignore[assignment]
    return url


bus = EventBus(worker_env=lambda number: {"GPU": str(number)})
inline = InlineBus(resources={model: Model(), session: Session()})
