"""The short answer, for who asks "threads or processes?": a line for each kind of handler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from . import convoy, io_scaling
from .cpu_scaling import row_of as workers_row
from .found import Found
from .gil_texts import gain_from, said
from .model import PROCBUS, PROCBUS_CPU, PROCBUS_IO
from .ways import THREAD_BUS


def short_answer(found: Mapping[str, Found], cores: int) -> str:
    """Return the table of the measurements."""
    rows = list(lines(found, cores))
    if not rows:
        return ""
    head = "| your handler | right side | measured here |\n|---|---|---|\n"
    return "## The short answer\n\n" + head + "\n".join(rows)


def lines(found: Mapping[str, Found], cores: int) -> Iterator[str]:
    """Write one line for each kind of handler."""
    if scaling := found.get("cpu_scaling"):
        row = workers_row(cores)
        yield (
            f'| computes in Python | processes, `kind="cpu"` | '
            f"{said(scaling.middle(row, PROCBUS_CPU))} times a plain loop on {cores} cores; "
            f"threads {said(scaling.middle(row, PROCBUS_IO))} |"
        )
    if waiting := found.get("io_scaling"):
        most = io_scaling.CONCURRENT[-1]
        memory = io_scaling.MEMORY.format(most)
        yield (
            f'| waits for the network, a disk, time | threads or `async def`, `kind="io"` | '
            f"{most} that wait: {said(waiting.middle(memory, PROCBUS_IO))} MB on threads, "
            f"{said(waiting.middle(memory, 'ProcessPoolExecutor'))} MB in processes |"
        )
    if late := found.get("convoy"):
        row = convoy.row_of("p99", convoy.INTERVALS_MS[0])
        ratio = late.ratio(row, THREAD_BUS, PROCBUS)
        yield (
            f"| waits, beside others that compute | io, and the others cpu | latency p99 "
            f"{said(ratio)} times lower than with all on threads |"
        )
    if release := found.get("gil_release"):
        for row in release.rows:
            if "sha256" in row and "releases" in release.units[row]:
                yield (
                    f'| calls C code that releases the GIL | threads, `kind="io"` | {row}: '
                    f"{said(release.middle(row, PROCBUS_IO))} times a plain loop on threads, "
                    f"{said(release.middle(row, PROCBUS_CPU))} on processes |"
                )
    if crossing := found.get("crossover"):
        since = gain_from(crossing, PROCBUS_CPU)
        yield (
            "| is very short | a plain call, or larger events | the cpu lane gains "
            f"{f'from handlers of {since} on' if since else 'at no length that was measured'} |"
        )
