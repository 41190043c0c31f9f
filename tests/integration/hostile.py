"""Objects of users that misbehave, plugged into every place where a bus touches one.

Run as a script it throws combinations of (place, special method, mood) at buses, and prints as JSON
which promises were broken: `python -m tests.integration.hostile --count 300 --seed 1`.

A mood says how the special method misbehaves: it raises, or it returns nonsense. Innocent events
surround each hostile one. The promises: each event settles once, innocent ones succeed and run
once, and `close` returns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import json
import logging
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from procbus import EventBus, Receipt, current
from procbus.testing import InlineBus

#: A combination that takes longer than this has hung: all stacks are printed and the script ends.
HANG_S = 150
#: How long to wait for a receipt, in seconds.
SETTLE_S = 30
#: Combinations that one bus has to survive before it is closed and a new one is made.
PER_BUS = 100

RAISING: dict[str, type[BaseException]] = {
    "Exception": ValueError,
    "SystemExit": SystemExit,
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
    "RecursionError": RecursionError,
}
LIES: dict[str, Any] = {
    "none": None,
    "number": 10**5000,
    "text": "x",
    "itself": ...,
    "not": NotImplemented,
}
MOODS = [*RAISING, *LIES]

METHODS = [
    "__bool__",
    "__class__",
    "__copy__",
    "__deepcopy__",
    "__del__",
    "__dict__",
    "__eq__",
    "__format__",
    "__getattr__",
    "__getattribute__",
    "__getnewargs_ex__",
    "__getstate__",
    "__hash__",
    "__iter__",
    "__len__",
    "__lt__",
    "__name__",
    "__ne__",
    "__next__",
    "__reduce__",
    "__reduce_ex__",
    "__repr__",
    "__setattr__",
    "__setstate__",
    "__sizeof__",
    "__str__",
    "__traceback__",
    "__cause__",
    "__notes__",
    "__await__",
    "__call__",
    "__index__",
    "__buffer__",
    "__module__",
    "__doc__",
    "__wrapped__",
    "event_type",
    "args",
    "add_note",
    "with_traceback",
    "class __name__",
    "class __module__",
    "class __eq__",
    "class __hash__",
    "class __bool__",
    "class __repr__",
    "class __getattribute__",
    "class __instancecheck__",
    "class __subclasscheck__",
    "class __reduce_ex__",
    "class __mro__",
]
#: Prefix of the methods in which the object's class misbehaves.
_OF_CLASS = "class "
#: Of these Python reads an attribute instead of calling a method.
ATTRIBUTES = {
    "__class__",
    "__dict__",
    "__name__",
    "__mro__",
    "__traceback__",
    "__cause__",
    "__notes__",
    "__module__",
    "__doc__",
    "__wrapped__",
    "event_type",
    "args",
}


class Hostility(NamedTuple):
    """How one object misbehaves."""

    method: str
    mood: str


def act(mood: str, itself: object) -> Any:
    """Misbehave."""
    if mood in RAISING:
        raise RAISING[mood](f"hostile ({mood})")
    lie = LIES[mood]
    return itself if lie is ... else lie


def hostile_class(hostility: Hostility, base: type) -> type:
    """Make a class that misbehaves in one special method, or whose instances do."""
    method, mood = hostility
    if method.startswith(_OF_CLASS):
        body = misbehaving(method.removeprefix(_OF_CLASS), mood, type(base))
        made: type = type("Meta", (type(base),), body)("Hostile", (base,), {})
        return made
    return type("Hostile", (base,), misbehaving(method, mood, base))


def misbehaving(method: str, mood: str, base: type) -> dict[str, Any]:
    """Make the body of a class whose instances misbehave in one special method."""

    def misbehave(self: object, *args: object, **kwargs: object) -> Any:
        return act(mood, self)

    if method == "__getattribute__":  # else nothing can be done with it at all

        def misbehave(self: object, name: str = "", *args: object) -> Any:  # type: ignore[misc]
            if name in ("__class__", "__reduce_ex__", "__dict__"):
                return base.__getattribute__(self, name)  # type: ignore[call-arg, arg-type] # type's own takes both
            return act(mood, self)

    body: dict[str, Any] = {method: property(misbehave) if method in ATTRIBUTES else misbehave}
    if method == "__eq__":
        body["__hash__"] = base.__hash__
    return body


def hostile(hostility: Hostility, base: type = object, *args: Any) -> Any:
    """Make an object that misbehaves."""
    return hostile_class(hostility, base)(*args)


# Handlers. A handler that is itself the place makes the hostile object from a `Hostility`.


class Innocent(NamedTuple):
    number: int
    path: str


def innocent(event: Innocent) -> int:
    fd = os.open(event.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, f"{event.number}\n".encode())
    finally:
        os.close(fd)
    return event.number


def takes(event: Any) -> None:
    """Take anything."""


def returns(event: Hostility) -> Any:
    return hostile(event)


def returns_inside(event: Hostility) -> Any:
    return [1, {"a": hostile(event)}]


def raises(event: Hostility) -> None:
    raise hostile(event, Exception, "text")


def raises_base(event: Hostility) -> None:
    raise hostile(event, BaseException, "text")


def raises_with(event: Hostility) -> None:
    error = ValueError("text", hostile(event))
    error.__dict__["detail"] = hostile(event)
    raise error


def raises_from(event: Hostility) -> None:
    raise ValueError("text") from hostile(event, Exception, "cause")


def raises_group(event: Hostility) -> None:
    raise BaseExceptionGroup("text", [ValueError("one"), hostile(event, Exception, "two")])


def raises_mood(event: Hostility) -> None:
    act(event.mood, None)


def publishes(event: Hostility) -> None:
    current().publish("takes", hostile(event))


def publishes_plain(event: Hostility) -> None:
    current().publish(hostile(event))


def publishes_topic(event: Hostility) -> None:
    current().publish(hostile(event, str, "takes"), 1)


def logs(event: Hostility) -> None:
    logging.getLogger("hostile").warning("logged %s", hostile(event))


def warns(event: Hostility) -> None:
    warnings.warn(hostile(event, UserWarning, "text"), stacklevel=1)


IN_HANDLER = [
    returns,
    returns_inside,
    raises,
    raises_base,
    raises_with,
    raises_from,
    raises_group,
    raises_mood,
    publishes,
    publishes_plain,
    publishes_topic,
    logs,
    warns,
]


def lane_functions(lane: str) -> dict[str, Any]:
    """Give subscribe options of a lane."""
    return {"kind": "cpu" if lane == "cpu" else "io"}


def on_lane(lane: str, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a handler for a lane of a plain function."""
    if lane != "async":
        return function

    async def handler(event: Any) -> Any:
        return function(event)

    handler.__name__ = handler.__qualname__ = f"{function.__name__}_async"
    return handler


class Scene:
    """One bus with handlers on one lane, and the faults that were found in it."""

    def __init__(self, lane: str, folder: Path, make: Callable[..., EventBus], number: int) -> None:
        self.lane = lane
        self.path = str(folder / f"ran-{lane}-{number}")
        self.wrong: list[str] = []
        self.expected = 0
        self.pending = 0
        #: In a bus for tests a retry waits until the test moves the clock.
        self.retries = 0 if lane == "inline" else 1
        self.letters: Counter[str] = Counter()
        self.mood_of_hook = "none"
        self.bus = make(handlers=[], on_failure=self.hook)
        options = lane_functions(lane)
        self.bus.subscribe("innocent", on_lane(lane, innocent), **options)
        self.bus.subscribe("takes", on_lane(lane, takes), **options)
        self.bus.subscribe(object, on_lane(lane, takes_anything), where=is_hostile, **options)
        for function in IN_HANDLER:
            self.bus.subscribe(function.__name__, on_lane(lane, function), **options)
            self.bus.subscribe(
                f"again.{function.__name__}",
                on_lane(lane, function),
                name=f"again.{function.__name__}",
                retries=self.retries,
                backoff=0.0,
                **options,
            )

    def hook(self, letter: object) -> None:
        act(self.mood_of_hook, letter)

    # Places: each plugs in a hostile object, and yields the published events.

    def published(self, publish: Callable[[], Any]) -> list[Receipt]:
        """Publish; refusing is fine."""
        try:
            receipt = publish()
        except BaseException:  # noqa: BLE001 - the publisher is told, whatever it is
            return []
        return [receipt] if isinstance(receipt, Receipt) else []

    def place_event(self, h: Hostility) -> list[Receipt]:
        return self.published(lambda: self.bus.publish("takes", hostile(h)))

    def place_event_inside(self, h: Hostility) -> list[Receipt]:
        return self.published(lambda: self.bus.publish("takes", [1, {"a": hostile(h)}]))

    def place_event_key(self, h: Hostility) -> list[Receipt]:
        return self.published(lambda: self.bus.publish("takes", {hostile(h): 1}))

    def place_plain_event(self, h: Hostility) -> list[Receipt]:
        return self.published(lambda: self.bus.publish(hostile(h)))

    def place_event_of_number(self, h: Hostility) -> list[Receipt]:
        return self.published(lambda: self.bus.publish("takes", hostile(h, int, 7)))

    def place_event_of_text(self, h: Hostility) -> list[Receipt]:
        return self.published(lambda: self.bus.publish("takes", hostile(h, str, "text")))

    def place_event_of_dict(self, h: Hostility) -> list[Receipt]:
        return self.published(lambda: self.bus.publish("takes", hostile(h, dict)))

    def place_topic(self, h: Hostility) -> list[Receipt]:
        return self.published(lambda: self.bus.publish(hostile(h, str, "takes"), 1))

    def place_metaclass(self, h: Hostility) -> list[Receipt]:
        def publish() -> Receipt:
            meta = hostile_class(h, type)
            cls = meta("Made", (), {})
            return self.bus.publish("takes", cls())

        return self.published(publish)

    def place_callback(self, h: Hostility) -> list[Receipt]:
        receipt = self.bus.publish("takes", 1)
        with contextlib.suppress(BaseException):  # it may be done already, and is called here
            receipt.when_done(lambda r: act(h.mood, r))
        return [receipt]

    def place_hook(self, h: Hostility) -> list[Receipt]:
        self.mood_of_hook = h.mood
        receipt = self.bus.publish("raises", Hostility("nothing", "none"))
        with contextlib.suppress(BaseException):
            receipt.wait(SETTLE_S)
        self.mood_of_hook = "none"
        return [receipt]

    def _with_handler(self, h: Hostility, function: Any, **options: Any) -> list[Receipt]:
        try:
            self.bus.subscribe("own", function, **lane_functions(self.lane), **options)
        except BaseException:  # noqa: BLE001 - refusing is fine
            return []
        try:
            receipts = self.published(lambda: self.bus.publish("own", 1))
            return receipts + self.published(lambda: self.bus.publish("own", 2))
        finally:
            with contextlib.suppress(BaseException):
                self.bus.unsubscribe(function)

    def place_where(self, h: Hostility) -> list[Receipt]:
        return self._with_handler(h, on_lane(self.lane, takes_own), where=lambda e: hostile(h))

    def place_where_mood(self, h: Hostility) -> list[Receipt]:
        return self._with_handler(h, on_lane(self.lane, takes_own), where=lambda e: act(h.mood, e))

    def place_key(self, h: Hostility) -> list[Receipt]:
        return self._with_handler(h, on_lane(self.lane, takes_own), key=lambda e: hostile(h))

    def place_key_mood(self, h: Hostility) -> list[Receipt]:
        return self._with_handler(h, on_lane(self.lane, takes_own), key=lambda e: act(h.mood, e))

    def place_handler(self, h: Hostility) -> list[Receipt]:
        if h.method == "__call__":
            return []
        return self._with_handler(h, hostile(h, CallableObject))

    def place_global(self, h: Hostility) -> list[Receipt]:
        held = hostile(h)
        return self._with_handler(h, on_lane(self.lane, lambda e: id(held)))

    def place_backoff(self, h: Hostility) -> list[Receipt]:
        def always(event: Any) -> None:
            raise ValueError

        return self._with_handler(
            h,
            on_lane(self.lane, always),
            retries=self.retries,
            backoff=lambda a, o: act(h.mood, 0.0) or 0.0,
        )

    def place_child(self, h: Hostility) -> list[Receipt]:
        return self.published(lambda: self.bus.publish("publishes", h))

    def place_stream(self, h: Hostility) -> list[Receipt]:
        def events() -> Iterator[Any]:
            yield hostile(h)
            act(h.mood, None)

        got: list[Receipt] = []
        with contextlib.suppress(BaseException):
            got.extend(self.bus.stream(events(), topic="takes"))
        return got

    def place_executor(self, h: Hostility) -> list[Receipt]:
        kind: Any = "cpu" if self.lane == "cpu" else "io"
        executor = self.bus.executor(kind)
        with contextlib.suppress(BaseException):
            future = executor.submit(takes, hostile(h))
            with contextlib.suppress(BaseException):
                future.exception(SETTLE_S)
            if not future.done():
                self.wrong.append(f"a call's future is not done: {h}")
        with contextlib.suppress(BaseException):
            future = executor.submit(returns, h)
            future.add_done_callback(lambda f: act(h.mood, f))
            with contextlib.suppress(BaseException):
                future.exception(SETTLE_S)
            if not future.done():
                self.wrong.append(f"a call's future is not done (2): {h}")
        executor.shutdown(wait=False)
        return []

    def in_handler(self, name: str) -> Callable[[Hostility], list[Receipt]]:
        return lambda h: self.published(lambda: self.bus.publish(name, h))

    def places(self) -> dict[str, Callable[[Hostility], list[Receipt]]]:
        """Every place, by its name."""
        found = {
            name: getattr(self, name) for name in sorted(dir(type(self))) if name[:6] == "place_"
        }
        for function in IN_HANDLER:
            found[function.__name__] = self.in_handler(function.__name__)
            found[f"again.{function.__name__}"] = self.in_handler(f"again.{function.__name__}")
        if self.lane == "inline":  # it has neither
            for name in ("place_executor", "place_hook"):
                del found[name]
        return found

    # Checking.

    def _innocents(self, count: int) -> list[tuple[int, Receipt]]:
        first = self.expected
        self.expected += count
        return [
            (n, self.bus.publish("innocent", Innocent(n, self.path)))
            for n in range(first, self.expected)
        ]

    def try_out(self, name: str, h: Hostility) -> None:
        """Plug one hostile object in between innocent events, and check the promises."""
        label = f"{self.lane} {name} {h.method} {h.mood}"
        place = self.places()[name]
        neighbours = self._innocents(3)
        try:
            receipts = place(h)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is a finding
            self.wrong.append(f"{label}: the place itself: {error!r:.200}")
            receipts = []
        neighbours += self._innocents(3)
        for number, receipt in neighbours:
            try:
                if receipt.result(SETTLE_S) != number:
                    self.wrong.append(f"{label}: wrong result of an innocent event")
            except BaseException as error:  # noqa: BLE001 - as above
                self.wrong.append(f"{label}: an innocent event: {error!r:.300}")
        for receipt in receipts:
            try:
                settled = receipt.wait(SETTLE_S) and receipt.done
            except BaseException as error:  # noqa: BLE001 - as above
                self.wrong.append(f"{label}: waiting: {error!r:.200}")
                continue
            if not settled:
                self.wrong.append(f"{label}: not settled")
                continue
            for delivery in receipt.deliveries:
                with contextlib.suppress(BaseException):  # what it raises is the user's own
                    delivery.result()
                if delivery.state.value not in ("succeeded", "failed", "cancelled"):
                    self.wrong.append(f"{label}: settled, but {delivery.state}")

        pending = self.bus.stats().pending
        if pending > self.pending and not self.bus.drain(SETTLE_S):
            self.pending = self.bus.stats().pending
            self.wrong.append(f"{label}: {self.pending} pending when all is settled")

    def end(self) -> None:
        """Close the bus, and make the checks that need a closed bus."""
        if not self.bus.drain(SETTLE_S):
            self.wrong.append(f"{self.lane}: drain timed out: {self.bus!r}")
        if pending := self.bus.stats().pending:
            self.wrong.append(f"{self.lane}: {pending} pending after drain")
        self.bus.close(timeout=SETTLE_S)
        ran = Counter(Path(self.path).read_text().split()) if self.expected else Counter()
        twice = [number for number, count in ran.items() if count != 1]
        if twice or len(ran) != self.expected:
            self.wrong.append(
                f"{self.lane}: of {self.expected} innocent events {len(ran)} ran, "
                f"{len(twice)} more than once"
            )


class CallableObject:
    def __call__(self, event: Any) -> None:
        """Take anything."""


def takes_own(event: Any) -> None:
    """Take anything."""


def takes_anything(event: Any) -> None:
    """Take anything that has a class of its own."""


def is_hostile(event: Any) -> bool:
    return type(event).__name__ == "Hostile"


def make_bus(lane: str) -> Callable[..., EventBus]:
    if lane == "inline":
        return lambda **options: InlineBus(handlers=options["handlers"], pickling=True)
    return lambda **options: EventBus(cpu_workers=2, io_workers=4, **options)


LANES = ["io", "async", "cpu", "inline"]


def combinations(seed: int, count: int, only: str) -> Iterator[tuple[str, str, Hostility]]:
    """Give combinations of lane, place and hostility, the lane's together."""
    chance = random.Random(seed)
    lanes = [only] if only else LANES
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        for lane in lanes:
            scene = Scene(lane, Path(folder), make_bus(lane), 0)
            names[lane] = sorted(scene.places())
            scene.bus.close()
    for lane in lanes:
        for _ in range(count // len(lanes)):
            h = Hostility(chance.choice(METHODS), chance.choice(MOODS))
            yield lane, chance.choice(names[lane]), h


def say(text: str) -> None:
    """Print the combination that hung."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lane", default="")
    parser.add_argument("--one", nargs=3, metavar=("PLACE", "METHOD", "MOOD"))
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.one:
        logging.disable(logging.NOTSET)
        todo = [(options.lane, options.one[0], Hostility(*options.one[1:]))]
    else:
        sys.unraisablehook = lambda _: None
        todo = list(combinations(options.seed, options.count, options.lane))
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        scene: Scene | None = None
        tried = 0
        for lane, name, h in todo:
            if scene is None or scene.lane != lane or tried % PER_BUS == 0:
                if scene is not None:
                    scene.end()
                    wrong += scene.wrong
                scene = Scene(lane, Path(folder), make_bus(lane), tried)
            faulthandler.dump_traceback_later(HANG_S, exit=True)
            say(f"{tried} {lane} {name} {h.method} {h.mood}")
            before = len(scene.wrong)
            scene.try_out(name, h)
            for text in scene.wrong[before:]:
                say(f"   WRONG {text}")
            tried += 1
        if scene is not None:
            scene.end()
            wrong += scene.wrong
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.write(json.dumps({"tried": tried, "wrong": wrong}) + "\n")


if __name__ == "__main__":
    main()
