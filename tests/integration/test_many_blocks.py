# SPDX-License-Identifier: MIT
"""Very many large events and results at once: a mapping takes a file descriptor, and they end."""

from tests.integration.conftest import Run

# 320 KB each; a process may have 256 files open. The workers inherit that.
SCRIPT = """
    import resource
    import numpy as np
    from procbus import EventBus

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    kept = []

    def made(n):
        return np.full(40_000, float(n))

    def keep(a):
        kept.append(a)
        return [float(each[0]) for each in kept] if len(kept) == 600 else None

    def first(a):
        return float(a[0])

    with EventBus([], cpu_workers=1) as bus:
        bus.subscribe("make", made, kind="cpu")
        bus.subscribe("keep", keep, kind="cpu")
        bus.subscribe("first", first, kind="cpu")
    """


def script(body: str) -> str:
    return SCRIPT + body


def test_a_script_may_keep_more_results_than_it_may_open_files(run: Run) -> None:
    ended = run(
        script("""
        results = [receipt.result() for receipt in bus.stream(range(600), topic="make")]
        assert sorted(result[0] for result in results) == list(range(600))
        assert all((result == result[0]).all() for result in results)
    print("all there")
    """)
    )
    assert ended.check() == "all there\n"


def test_a_handler_may_keep_more_events_than_it_may_open_files(run: Run) -> None:
    ended = run(
        script("""
        arrays = (made(n) for n in range(600))
        results = [r.result() for r in bus.stream(arrays, topic="keep", ordered=True)]
        assert results[-1] == list(range(600)), results[-1]
        assert bus.stats().shared_memory.kept > 0
    print("all there")
    """)
    )
    assert ended.check() == "all there\n"


def test_more_events_may_wait_than_the_script_may_open_files(run: Run) -> None:
    ended = run(
        script("""
        receipts = [bus.publish("first", made(n)) for n in range(600)]
        assert [receipt.result() for receipt in receipts] == list(range(600))
        receipts = [bus.publish("first", made(n)[: 35_000 + n]) for n in range(600)]
        assert [receipt.result() for receipt in receipts] == list(range(600))
    print("all there")
    """)
    )
    assert ended.check() == "all there\n"
