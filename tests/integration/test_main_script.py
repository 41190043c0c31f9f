"""Handlers, events, results and exceptions that a script defines itself, without a main guard."""

from tests.integration.conftest import Run


def test_script_without_a_main_guard_uses_its_own_definitions(run: Run) -> None:
    ended = run(
        """
        import os
        from dataclasses import dataclass
        from procbus import EventBus, subscribe

        print("main runs in", "main")

        @dataclass(frozen=True)
        class Page:
            text: str

        @dataclass(frozen=True)
        class Words:
            count: int
            pid: int

        class Empty(Exception):
            def __init__(self, page):
                super().__init__(page)
                self.page = page

        @subscribe(kind="cpu")
        def count(page: Page) -> Words:
            if not page.text:
                raise Empty(page)
            return Words(len(page.text.split()), os.getpid())

        with EventBus(cpu_workers=1) as bus:
            words = bus.publish(Page("a b c")).result()
            assert type(words) is Words and words.count == 3 and words.pid != os.getpid()
            again = bus.publish(Page("d")).result()
            assert type(again) is Words and again == Words(1, words.pid)
            try:
                bus.publish(Page("")).result()
            except Empty as error:
                assert type(error.page) is Page and error.page == Page("")
                assert "raise Empty(page)" in str(error.__cause__), error.__cause__
                print("caught", error.page)
        """
    )
    assert ended.code == 0, ended.err
    assert ended.out == "main runs in main\ncaught Page(text='')\n"
    assert ended.err.count("raise Empty(page)") == 1, "the failure is logged once"


def test_text_executed_as_in_a_notebook_uses_its_own_definitions(run: Run) -> None:
    ended = run(
        '''
        import __main__

        CELLS = ["""
        from dataclasses import dataclass
        from procbus import EventBus, subscribe
        factor = 10
        """, """
        @dataclass
        class Number:
            value: int
        """, """
        bus = EventBus(cpu_workers=1)
        @bus.subscribe(kind="cpu")
        def scale(number: Number) -> Number:
            return Number(number.value * factor)
        """, """
        print(bus.publish(Number(4)).result())
        """, """
        @dataclass
        class Number:  # the cell is changed and run again
            value: int
            unit: str = "m"
        @bus.subscribe(kind="cpu")
        def scale(number: Number) -> Number:
            return Number(number.value * factor, number.unit * 2)
        print(bus.publish(Number(5)).result())
        """, """
        bus.close()
        """]
        import textwrap
        for cell in CELLS:
            exec(compile(textwrap.dedent(cell), "<cell>", "exec"), __main__.__dict__)
        '''
    )
    assert ended.check() == "Number(value=40)\nNumber(value=50, unit='mm')\n"


def test_a_handler_is_sent_once_and_keeps_its_globals_between_events(run: Run) -> None:
    ended = run(
        """
        from procbus import EventBus, subscribe

        cache = {}

        class Loud:
            "Notes where and how often it is unpickled."
            def __setstate__(self, state):
                cache["loads"] = cache.get("loads", 0) + 1

        loud = Loud()
        loud.state = 1

        @subscribe("n", kind="cpu")
        def remember(n):
            loud
            cache[n] = n
            return [k for k in cache if k != "loads"], cache["loads"]

        with EventBus(cpu_workers=1) as bus:
            for n in range(3):
                print(bus.publish("n", n).result())
        print(cache)
        """
    )
    assert ended.check() == "([0], 1)\n([0, 1], 1)\n([0, 1, 2], 1)\n{}\n"


def test_workers_do_not_import_the_script_again(run: Run) -> None:
    ended = run(
        """
        import os, sys
        from pathlib import Path
        fd = os.open("imported", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(fd, b"once\\n")
        os.close(fd)
        from procbus import EventBus

        def helper(n):
            return n + 1

        bus = EventBus(cpu_workers=2)

        @bus.subscribe("n", kind="cpu")
        def handle(n):
            main = sys.modules["__main__"]
            return helper(n), getattr(main, "__file__", None), "__mp_main__" in sys.modules

        bus.start()
        for n in range(4):
            value, file, spawned_main = bus.publish("n", n).result()
            assert value == n + 1
            assert file != __file__, file
        bus.close()
        print(Path("imported").read_text(), end="")
        """
    )
    assert ended.check() == "once\n"


def test_a_script_may_hand_over_a_lambda_a_partial_and_a_method(run: Run) -> None:
    ended = run(
        """
        import functools
        from procbus import EventBus

        class Scaler:
            def __init__(self, factor):
                self.factor = factor
            def scale(self, n):
                return n * self.factor

        def power(exponent, n):
            return n ** exponent

        with EventBus([], cpu_workers=1) as bus:
            bus.subscribe("a", lambda n: n + 1, kind="cpu")
            bus.subscribe("b", functools.partial(power, 3), kind="cpu")
            bus.subscribe("c", Scaler(7).scale, kind="cpu")
            print([bus.publish(topic, 2).result() for topic in "abc"])
        """
    )
    assert ended.check() == "[3, 8, 14]\n"


def test_an_event_class_of_a_module_beside_the_script_is_imported_by_workers(run: Run) -> None:
    ended = run(
        """
        from pathlib import Path
        Path("events_of_the_job.py").write_text(
            "from dataclasses import dataclass\\n@dataclass\\nclass Order:\\n    id: int\\n"
        )
        from events_of_the_job import Order
        from procbus import EventBus

        with EventBus([], cpu_workers=1) as bus:
            @bus.subscribe(kind="cpu")
            def next_one(order: Order) -> Order:
                return Order(order.id + 1)
            answer = bus.publish(Order(1)).result()
            print(answer, type(answer) is Order)
        """
    )
    assert ended.check() == "Order(id=2) True\n"
