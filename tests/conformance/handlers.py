"""Handlers that workers import by name: nothing heavy is imported here."""

from __future__ import annotations

import asyncio
import decimal
import fcntl
import gc
import os
import re
import signal
import subprocess
import sys
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from procbus import current


def double(number: int) -> int:
    return number * 2


class Counted:
    """A handler that knows how many of its kind there are where it runs, one of each number."""

    def __call__(self, event: object) -> int:
        gc.collect()
        return sum(isinstance(each, Counted) for each in gc.get_objects())


def nothing(event: object) -> None:
    pass


def echo(event: Any) -> Any:
    return event


def type_name(event: object) -> str:
    return type(event).__name__


def fail(event: object) -> None:
    raise ValueError(f"cannot take {event!r}")


def raise_it(kind: type[BaseException]) -> None:
    raise kind("from a handler")


class Two(Exception):
    def __init__(self, one: int, *, two: int) -> None:
        super().__init__(f"{one} and {two}")
        self.one, self.two = one, two


def fail_with_an_error_of_two_arguments(event: object) -> None:
    error = Two(1, two=2)
    error.add_note("a note")
    raise error


def fail_with_a_class_that_cannot_travel(event: object) -> None:
    class Rooted(LookupError):
        lock = threading.Lock()

    raise Rooted(event)


def make_a_lock(event: object) -> dict[str, Any]:
    return {"fine": 1, "lock": threading.Lock()}


def publish_two(event: str) -> str:
    current().publish("found.word", event)
    current().publish(event + "!")
    return "published"


def publish_then_fail(event: object) -> None:
    current().publish("found.word", event)
    raise ValueError("after publishing")


def ask_for_a_receipt(how: str) -> object:
    made: Any = current().publish("found.word", how)
    if how != "await":
        return getattr(made, how)

    async def wait() -> object:
        return await made

    return asyncio.run(wait())


def ask_none_for_something_else(event: object) -> object:
    made: Any = current().publish("found.word", event)
    return made.strip()


def publish_to_a_pattern(event: object) -> None:
    current().publish("found.*", event)


def describe_current(event: object) -> tuple[str, int, int | None, str | None, int]:
    at = current()
    return at.handler, at.event_id, at.parent_id, at.topic, at.attempt


kept: list[object] = []


def keep(thing: object) -> None:
    kept.append(thing)


def what_is_kept(event: object) -> object:
    [thing] = kept
    return thing


def forget_what_is_kept(event: object) -> None:
    kept.clear()


def size_of(event: Any) -> int:
    return len(event)


def keep_and_tell(event: bytes) -> list[object]:
    """Keep an event and give all that are kept."""
    kept.append(event)
    return list(kept)


def numbered(number: int) -> bytes:
    """16,000 bytes that tell which event they belong to."""
    return (b"%09d" % number * 1_778)[:16_000]


def sized_or_exit(size: int | str) -> bytes:
    if isinstance(size, str):
        os._exit(7)
    return bytes(size)


class FailsToLoad:
    """Pickles, and fails to unpickle."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self) -> Any:
        return fail_to_load, (self.content,)


def fail_to_load(content: bytes) -> None:
    raise LookupError(f"cannot load {len(content)} bytes")


def odd_ones_fail_to_load(number: int) -> object:
    return FailsToLoad(bytes(9_000)) if number % 2 else bytes(9_000)


def first_item(array: Any) -> float:
    return float(array[0])


def is_writable(array: Any) -> bool:
    writable: bool = array.flags.writeable
    return writable


def a_class_of_the_worker(number: int) -> object:
    """Make an instance of a class that exists in the worker alone, always the same."""
    if "made_here" not in globals():

        @dataclass
        class MadeHere:
            number: int

        globals()["made_here"] = MadeHere
    return globals()["made_here"](number)


def number_of(event: Any) -> int:
    number: int = event.number
    return number


def hold(gate: str) -> str:
    """Say that it has begun, then wait until the test opens the gate. See `Gate`."""
    with open(f"{gate}.begun", "w") as begun:
        begun.write("begun")
    with open(gate) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
    return "held"


def report_and_hold(gate: str) -> str:
    """Report twice how far it is, then hold."""
    current().progress(1, 5000, "loading")
    current().progress(4211, 5000, "parsing \u00e4")
    return hold(gate)


def hold_the_gil(gate: str) -> None:
    """Say that it has begun, then compute in C for ever, and let no other thread run."""
    with open(f"{gate}.begun", "w") as begun:
        begun.write("begun")
    re.match(r"(a+)+$", "a" * 64 + "b")


def hold_with_a_child(gate: str) -> None:
    with subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"]) as child:
        with open(f"{gate}.child", "w") as file:
            file.write(str(child.pid))
        hold(gate)


def exit_at_once(code: int) -> None:
    os._exit(code)


def killed_at_once(event: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave_a_thread(event: object) -> None:
    threading.Thread(target=threading.Event().wait, daemon=False).start()


who: ContextVar[str] = ContextVar("who", default="nobody")
amount: ContextVar[Any] = ContextVar("amount")


def set_context(name: str, prec: int) -> None:
    who.set(name)
    decimal.getcontext().prec = prec


def look_and_leave(event: object) -> tuple[str, int]:
    """Return the values that are set, and set other ones."""
    found = who.get(), decimal.getcontext().prec
    set_context("left behind", 5)
    amount.set("left behind")
    return found


def amount_here(event: object) -> Any:
    return amount.get(None)


@dataclass
class Point:
    x: int


class CannotBeLoaded:
    def __reduce__(self) -> Any:
        return fail, ("this",)
