# SPDX-License-Identifier: MIT
"""Times from another machine, whose `time.monotonic()` counts from another zero than ours."""

from __future__ import annotations

from pathlib import Path

from procbus.core.progress import Progress
from procbus.pool.interface import Ended, Report


def boot_id() -> str:
    """The id of this machine's boot; empty if unknown. Processes with the same id share a clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def progress_here(progress: Progress | None, ahead_s: float) -> Progress | None:
    """Convert the time of a handler's report, as `report_here` does."""
    return None if progress is None else progress._replace(at=progress.at + ahead_s)


def report_here(report: Report, ahead_s: float) -> Report:
    """Convert the times of a report to this machine's clock, which is `ahead_s` ahead."""
    if not ahead_s:
        return report
    times = [(began + ahead_s, end + ahead_s, zero) for began, end, zero in report.successes.times]
    return report._replace(
        successes=report.successes._replace(times=times), ends=ends_here(report.ends, ahead_s)
    )


def ends_here(ends: list[Ended], ahead_s: float) -> list[Ended]:
    """Convert the times of ends of deliveries, as `report_here` does."""
    return [
        (o._replace(started_at=o.started_at + ahead_s, ended_at=o.ended_at + ahead_s), events)
        for o, events in ends
    ]
