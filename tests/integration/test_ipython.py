# SPDX-License-Identifier: MIT
"""Cells in a real IPython: each may be run again, as it is or edited."""

import importlib.util

import pytest

from tests.integration.conftest import Run

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("IPython") is None,
    reason="IPython is not installed; tests/test_redefinition.py imitates it",
)


def test_cells_may_be_run_again_in_ipython(run: Run) -> None:
    ended = run(
        '''
        from IPython.core.interactiveshell import InteractiveShell

        CELLS = {
            "named": """
        @subscribe("named")
        def named(event): ran.append(1)
        """,
            "lambda": "bus.subscribe('lambda', lambda event: ran.append(1))",
            "looped": """
        for n in range(3):
            @bus.subscribe("looped")
            def looped(event, n=n): ran.append(n)
        """,
            "made": """
        def make(n):
            def inner(event): ran.append(n)
            return inner
        for n in range(3): bus.subscribe("made", make(n))
        """,
            "method": """
        class Store:
            def take(self, event): ran.append(1)
        bus.subscribe("method", Store().take)
        """,
            "twice": """
        @bus.subscribe("twice")
        def _(event): ran.append(1)
        @bus.subscribe("twice.more")
        def _(event): ran.append(2)
        """,
            "stacked": """
        @bus.subscribe("stacked.too")
        @bus.subscribe("stacked")
        def stacked(event): ran.append(1)
        """,
            "process": """
        @bus.subscribe("process", kind="cpu")
        def process(event): return 1
        """,
        }
        EDITED = {"lambda", "made"}  # known by their statement alone
        shell = InteractiveShell.instance()

        def execute(cell):
            shell.run_cell(cell, store_history=True).raise_error()

        execute("from procbus import EventBus, subscribe; ran = []; bus = EventBus(cpu_workers=1)")
        bus, ran = shell.user_ns["bus"], shell.user_ns["ran"]
        for topic, cell in CELLS.items():
            expected = {"looped": [0, 1, 2], "made": [0, 1, 2], "process": []}.get(topic, [1])
            for text in (cell, cell, cell if topic in EDITED else cell + "\\n# edited"):
                execute(text)
                ran.clear()
                assert bus.publish(topic, 0).wait(55)
                assert sorted(ran) == expected, (topic, ran)
                if topic == "process":
                    assert bus.publish(topic, 0).results(55) == [1]
        execute("class Page: pass\\nbus.subscribe(Page, lambda page: ran.append(1))")
        execute("class Page: pass")
        ran.clear()
        assert bus.publish(shell.user_ns["Page"]()).wait(55)
        assert ran == [1]
        bus.close()
        print("all as expected")
        '''
    )
    assert ended.code == 0, ended.err
    assert ended.out.endswith("all as expected\n"), ended.out


def test_resource_that_is_run_again_replaces_the_old_one_in_ipython(run: Run) -> None:
    ended = run(
        '''
        from IPython.core.interactiveshell import InteractiveShell

        shell = InteractiveShell.instance()

        def execute(cell):
            shell.run_cell(cell, store_history=True).raise_error()

        MODEL = """
        @resource
        def model():
            print("open VERSION", flush=True)
            yield "VERSION"
            print("close VERSION", flush=True)
        """
        execute("from procbus import EventBus, resource, use")
        execute("bus = EventBus([], cpu_workers=1, io_workers=1)")
        execute(MODEL.replace("VERSION", "one"))
        execute("""
        @resource
        def client(of=use(model)):
            yield f"client of {of}"
        """)
        execute("""
        @bus.subscribe("cpu", kind="cpu")
        def cpu(event, given=use(client)): return given
        @bus.subscribe("io")
        def io(event, given=use(client)): return given
        """)
        bus = shell.user_ns["bus"]
        for topic in ("cpu", "io"):
            assert bus.publish(topic, 0).result(55) == "client of one"
        execute(MODEL.replace("VERSION", "one"))  # the same text again
        execute(MODEL.replace("VERSION", "two"))
        for topic in ("cpu", "io"):
            assert bus.publish(topic, 0).result(55) == "client of two"
        bus.close()
        '''
    )
    assert ended.code == 0, ended.err
    lines = [line for line in ended.out.splitlines() if line]
    assert sorted(lines) == sorted(2 * ["open one", "close one", "open two", "close two"]), lines
