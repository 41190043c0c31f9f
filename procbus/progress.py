# SPDX-License-Identifier: MIT
"""A progress bar around a stream of receipts."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from procbus.core.delivery import DeliveryState
from procbus.core.receipt import Receipt

#: Interval between two updates, in seconds; because one costs as much as several events.
_EVERY_S = 0.1


def with_progress(receipts: Iterator[Receipt], total: int | None) -> Iterator[Receipt]:
    """Show a bar on stderr while receipts pass, with the number of failed events.

    Args:
        receipts: settled receipts.
        total: number of receipts; None if not known.
    """
    from rich.console import Console

    columns = (
        TextColumn("events"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    done = failed = 0
    shown_at = monotonic()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("events", total=total, failed=0)
        for receipt in receipts:
            done += 1
            failed += any(d.state is DeliveryState.FAILED for d in receipt.deliveries)
            if monotonic() - shown_at > _EVERY_S:
                shown_at = monotonic()
                progress.update(task, completed=done, failed=failed)
            yield receipt
        progress.update(task, completed=done, failed=failed)
