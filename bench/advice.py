"""Does the bus tell the right kind of a handler? By a set of handlers of which people agree.

Each is declared io, and cpu where it can be; and it runs alone, 16 deliveries pending at a time, or
with three others at once while other processes keep half of the cores busy.

    python -m bench.advice [alone | loaded] [SECONDS ...] [NAME ...]

prints a confusion table for docs/advice.md, and what is wrong or silent.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .advice_set import HANDLERS, Labelled
from .model import PROCBUS, Question, Row, Settings, Target

if TYPE_CHECKING:
    from procbus import EventBus
    from procbus.advice.advice import Advice

Way = Literal["alone", "loaded"]
#: Seconds for one handler, and for four at once.
FULL_S: dict[Way, float] = {"alone": 1.0, "loaded": 4.0}
PENDING = 16
TOGETHER = 4
Kind = Literal["io", "cpu"]


@dataclass(frozen=True)
class Answer:
    """The bus's advice on one handler."""

    handler: Labelled
    advice: Advice
    #: Whether this process has a GIL.
    gil: bool

    @property
    def is_right(self) -> bool:
        """Whether it said what the label says; "either" takes both.

        Without a GIL threads compute as well as processes: a handler with the label "cpu" belongs
        to threads, or to the processes that it has already.
        """
        if self.handler.label == "either":
            return True
        if self.gil or self.handler.label == "io":
            return self.advice.kind == self.handler.label
        return self.advice.kind in ("threads", "cpu" if self.advice.declared == "cpu" else None)

    @property
    def mark(self) -> str:
        if self.advice.kind is None:
            return "silent"
        return "right" if self.is_right else "WRONG"


@contextmanager
def answering() -> Iterator[int]:
    """A server that takes 10 ms for each answer, in a process of its own; gives its port."""
    code = (
        "import socket, threading, time\n"
        "def answer(c):\n"
        "    c.recv(100); time.sleep(0.01); c.sendall(b'answer'); c.close()\n"
        "s = socket.create_server(('127.0.0.1', 0), backlog=128)\n"
        "print(s.getsockname()[1], flush=True)\n"
        "while True:\n"
        "    threading.Thread(target=answer, args=(s.accept()[0],), daemon=True).start()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            yield port
        finally:
            server.kill()


@contextmanager
def burning(count: int) -> Iterator[None]:
    """As many processes that compute all the time."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def ready(_event: Any) -> None:
    """Answer once there is a worker."""


def feed(bus: EventBus, topic: str, event: Any, pending: int, seconds: float) -> None:
    """Publish for some seconds, with a number of deliveries pending, and wait for them."""
    room = threading.Semaphore(pending)
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        room.acquire()
        bus.publish(topic, event).when_done(lambda _: room.release())
    for _ in range(pending):
        room.acquire()


def ask(
    bus: EventBus, together: Sequence[Labelled], kind: Kind, seconds: float, port: int
) -> list[Answer]:
    """Run handlers at once for some seconds, and collect the bus's advice on them."""
    from procbus.core.gil import gil_is_on

    feeders = []
    for handler in together:
        bus.subscribe(handler.name, handler.function, kind=kind, name=handler.name)
        event = port if handler.name == "ask_over_socket" else handler.make_event()
        job = bus, handler.name, event, PENDING // len(together), seconds
        feeders.append(threading.Thread(target=feed, args=job))
    for feeder in feeders:
        feeder.start()
    for feeder in feeders:
        feeder.join()
    advice = {each.handler: each for each in bus.advice()}
    for handler in together:
        bus.unsubscribe(handler.function)
    return [Answer(handler, advice[handler.name], gil_is_on()) for handler in together]


def ask_all(way: Way, seconds: float, workers: int, names: Sequence[str] = ()) -> list[Answer]:
    """Ask about each handler of the set, declared either way."""
    from procbus import EventBus

    chosen = [handler for handler in HANDLERS if not names or handler.name in names]
    size = TOGETHER if way == "loaded" else 1
    kinds: tuple[Kind, ...] = ("io", "cpu")
    answers: list[Answer] = []
    with ExitStack() as stack:
        port = stack.enter_context(answering())
        if way == "loaded":
            stack.enter_context(burning(max(1, workers // 2)))
        for kind in kinds:
            handlers = [handler for handler in chosen if kind in handler.kinds]
            random.Random(4).shuffle(handlers)
            with EventBus([], cpu_workers=workers) as bus:
                bus.subscribe("ready?", ready, kind=kind)
                for receipt in [bus.publish("ready?", number) for number in range(64)]:
                    receipt.result()
                for first in range(0, len(handlers), size):
                    answers += ask(bus, handlers[first : first + size], kind, seconds, port)
    return answers


def percentages(answers: Sequence[Answer]) -> dict[str, float]:
    """Sum answers up: how many are right where it speaks, silent, and wrong at WARNING."""
    marks = Counter(answer.mark for answer in answers)
    spoken = marks["right"] + marks["WRONG"]
    return {
        "right where it speaks": 100 * marks["right"] / max(1, spoken),
        "silent": 100 * marks["silent"] / len(answers),
        "wrong at WARNING": sum(
            answer.mark == "WRONG" and answer.advice.level == "warning" for answer in answers
        ),
    }


def confusion(answers: Sequence[Answer]) -> str:
    """The table of the advice, in Markdown."""
    kinds = ("io", "cpu") if all(answer.gil for answer in answers) else ("io", "threads", "cpu")
    says = "".join(f" says {kind} |" for kind in kinds)
    lines = [f"| it is | declared |{says} silent |", f"|---|---|{'---|' * (len(kinds) + 1)}"]
    for label in ("io", "cpu", "either"):
        for declared in ("io", "cpu"):
            said = Counter(
                answer.advice.kind
                for answer in answers
                if answer.handler.label == label and answer.advice.declared == declared
            )
            counts = "".join(f" {said[kind]} |" for kind in (*kinds, None))
            lines.append(f"| {label} | {declared} |{counts}")
    return "\n".join(lines)


def figures(settings: Settings) -> dict[str, float]:
    """Take the sample: both ways, one after the other."""
    names = () if settings.scale >= 1 else ("count_loop", "sleep_short", "hash_large", "tiny")
    found = {}
    for way, seconds in FULL_S.items():
        answers = ask_all(way, settings.seconds(seconds), settings.workers, names)
        for what, figure in percentages(answers).items():
            found[f"{way}: {what}"] = figure
    return found


def _rows() -> Iterator[Row]:
    for way in FULL_S:
        yield Row(f"{way}: right where it speaks", "%", (Target(90, at_least=True, unit="%"),))
        yield Row(f"{way}: silent", "%", (Target(15, at_least=False, unit="%"),))
        yield Row(f"{way}: wrong at WARNING", "handlers", (Target(0, at_least=False),))


QUESTION = Question(
    name="advice",
    asks="Does the bus tell the right kind of a handler?",
    rows=tuple(_rows()),
    contenders={PROCBUS: figures},
    time_limit=600.0,
    rounds=1,
)


def main(arguments: Sequence[str]) -> None:
    """Print the advice."""
    ways = [way for way in FULL_S if way in arguments[:1]] or list(FULL_S)
    names = [each for each in arguments if each in {handler.name for handler in HANDLERS}]
    numbers = [float(each) for each in arguments if each.replace(".", "").isdigit()]
    workers = len(os.sched_getaffinity(0))
    for position, way in enumerate(ways):
        seconds = numbers[position] if position < len(numbers) else FULL_S[way]
        answers = ask_all(way, seconds, workers, names)
        for answer in answers:
            advice = answer.advice
            if answer.mark != "right" or names:
                print(f"{answer.mark:6} {advice.level:7} is {answer.handler.label:6} {advice.text}")
                print(f"       {advice.evidence}")
        print(f"\n{way}, {seconds:g} s each\n\n{confusion(answers)}\n")
        print(percentages(answers), len(HANDLERS), "handlers,", len(answers), "answers", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
