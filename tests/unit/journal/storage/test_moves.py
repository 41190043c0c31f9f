# SPDX-License-Identifier: MIT
"""Records leave the same rows in the database, however many moves they come in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from procbus.journal.storage.changes import Changes
from procbus.journal.storage.database import Store
from procbus.journal.storage.records import (
    SHIFT,
    pack_discarded,
    pack_failed,
    pack_published,
    pack_result,
    pack_retry,
    pack_revived,
    pack_succeeded,
)

#: Each fate of a delivery, and the one table that has it in the end.
FATES = [
    ("fail", "dead"),
    ("fail clear", "done"),
    ("fail replay", "pending"),
    ("fail replay succeed", "done"),
    ("retry fail replay return", "done"),
    ("fail replay retry", "pending"),
    ("fail replay retry fail", "dead"),
    ("fail replay fail clear", "done"),
    ("fail replay fail replay", "pending"),
    ("fail replay fail replay succeed", "done"),
]


def records_of(event_id: int, given_id: str | None, fate: str) -> list[bytes]:
    """Lay out the records of an event with one delivery."""
    number = event_id << SHIFT | 1
    steps = {
        "fail": pack_failed(number, 2, 3.0, False, b"why"),
        "retry": pack_retry(number, 1, 4.0, b"why"),
        "replay": pack_revived(number),
        "clear": pack_discarded(number, 5.0),
        "succeed": pack_succeeded([number], 5.0),
        "return": pack_result(number, 5.0, 1, b"result"),
    }
    published = pack_published(event_id, None, 1.0, None, b"t", given_id, 1, b"data", (1,))
    return [published, *(steps[step] for step in fate.split())]


def ways_to_move(count: int) -> Iterator[list[int]]:
    """Yield the move that each of some records comes in: all ways with one cut, and one by one."""
    for cut in range(count):
        yield [int(at >= cut) for at in range(count)]
    yield list(range(count))


@pytest.mark.parametrize(("given", "keep_all"), [(True, False), (False, False), (False, True)])
def test_a_delivery_ends_in_the_same_table_wherever_a_move_ends(
    tmp_path: Path, given: bool, keep_all: bool
) -> None:
    moves: dict[int, list[bytes]] = defaultdict(list)
    expected: dict[str, list[str]] = {"pending": [], "dead": [], "done": []}
    labels: dict[int, str] = {}
    for fate, table in FATES:
        for way in ways_to_move(1 + len(fate.split())):
            event_id = len(labels) + 1
            labels[event_id] = label = f"{fate} {way}"
            records = records_of(event_id, label if given else None, fate)
            for record, move in zip(records, way, strict=True):
                moves[move].append(record)
            if table != "done" or keep_all or given:
                expected[table].append(label)
    path = tmp_path / "journal.db"
    path.touch()
    store = Store(str(path))
    for _, frames in sorted(moves.items()):
        changes = Changes(keep_all)
        changes.add_frames(frames)
        store.write(changes, {})
    found = {
        table: [labels[n >> SHIFT] for (n,) in store.rows(f"SELECT number FROM {table} ORDER BY 1")]
        for table in expected
    }
    store.close()
    assert found == expected
