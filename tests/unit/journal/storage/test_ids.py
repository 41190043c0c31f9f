"""Receipts by the ids from publishers."""

import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from procbus.journal.storage.ids import Ids
from tests.parts import BOUND_S, in_thread

THREADS, EACH = 4, 2_000


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
def test_each_claim_is_counted() -> None:
    ids = Ids()
    together = threading.Barrier(THREADS)

    def claim(first: int) -> None:
        together.wait(BOUND_S)
        for number in range(first, first + EACH):
            receipt: Any = SimpleNamespace(id=number)
            ids.claim(str(number), receipt)

    threads = [in_thread(lambda n=n: claim(n * EACH)) for n in range(THREADS)]
    for thread in threads:
        thread.join(BOUND_S)
    assert ids.claimed == THREADS * EACH
