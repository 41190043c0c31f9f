"""The text of each answer about the GIL, with its reason: plain words around the run's own figures.

No figure stands in this file. Words that depend on the findings are chosen by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import convoy, crossover, io_scaling, payload_crossover, pipelines, python_probe
from .cpu_scaling import row_of as workers_row
from .found import Found
from .model import LIMIT, PROCBUS, PROCBUS_CPU, PROCBUS_IO
from .report import short
from .ways import THREAD_BUS

#: A ratio nearer to 1 than this is called even.
EVEN = 1.05


def said(figure: float | None) -> str:
    """Write a figure; say so where there is none."""
    return "(no figure)" if figure is None else short(figure)


def listed(parts: Sequence[str]) -> str:
    """Join with commas and a last `and`.

    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join(part for part in (", ".join(parts[:-1]), *parts[-1:]) if part)


def of_cpu_scaling(found: Found, cores: int) -> str:
    """Pure Python on more and more workers."""
    counts = [int(row.split()[0]) for row in found.rows]
    at, most = workers_row(cores), workers_row(counts[-1])
    value = found.middle
    return (
        f"With {cores} workers on {cores} cores the cpu lane ran handlers of 1 ms of pure Python "
        f"{said(value(at, PROCBUS_CPU))} times as fast as a plain loop; bare processes, the limit, "
        f"{said(value(at, LIMIT))} times. On as many threads it was "
        f"{said(value(at, PROCBUS_IO))} times on procbus's io lane and "
        f"{said(value(at, THREAD_BUS))} on the thread-pool bus.\n\n"
        f"Why: the global interpreter lock, the GIL, lets one thread of a process run Python code "
        f"at a time, so threads only take turns, however many cores there are. A process has a "
        f"GIL of its own. A core runs one process at a time, so you gain nothing from more "
        f"workers than cores: with {counts[-1]} of them the cpu lane is at "
        f"{said(value(most, PROCBUS_CPU))} times."
    )


def of_io_scaling(found: Found, _cores: int) -> str:
    """Handlers that wait."""
    most = io_scaling.CONCURRENT[-1]
    sleep = io_scaling.row_of(io_scaling.MEMORY_KIND, most)
    socket = next(row for row in found.rows if row.startswith("socket") and f" {most} " in row)
    memory = io_scaling.MEMORY.format(most)
    each = found.middle(memory, "ProcessPoolExecutor")
    rates = ", ".join(
        f"{name} {said(found.middle(sleep, name))}"
        for name in (PROCBUS_IO, io_scaling.ASYNC, "asyncio", "ThreadPoolExecutor")
    )
    per_process = "" if each is None else f", {short(each / most)} MB for each handler that waits"
    return (
        f"With {most} sleeps of 10 ms at a time, in events per second: {rates}; the arithmetic "
        f"allows {said(found.middle(sleep, LIMIT))}. {most} processes came to "
        f"{said(found.middle(sleep, 'ProcessPoolExecutor'))}. Memory for those {most}: "
        f"{said(found.middle(memory, PROCBUS_IO))} MB with the io lane's threads, "
        f"{said(found.middle(memory, io_scaling.ASYNC))} MB with `async def` handlers, and "
        f"{said(each)} MB with processes{per_process}. Asking a server on the "
        f"loopback, {most} at a time: {said(found.middle(socket, PROCBUS_IO))} on threads, "
        f"{said(found.middle(socket, io_scaling.ASYNC))} with `async def`, "
        f"{said(found.middle(socket, 'ProcessPoolExecutor'))} in processes; the server shares the "
        f"cores there.\n\n"
        f"Why: a handler that waits needs neither the GIL nor a core. You pay for each handler "
        f"that waits: a coroutine is an object, a thread is a stack, a process is a whole "
        f"interpreter that has to be started, fed and looked after. Put your blocking code on the "
        f"io lane as it is; if hundreds of handlers wait at a time, `async def` costs you least."
    )


def of_convoy(found: Found, cores: int) -> str:
    """Latency beside cpu work."""
    five, half = convoy.INTERVALS_MS
    p99, p99_half = convoy.row_of("p99", five), convoy.row_of("p99", half)

    def ms(row: str, name: str) -> str:
        value = found.middle(row, name)
        return "(no figure)" if value is None else f"{short(value / 1e3)} ms"

    lower = found.ratio(p99, THREAD_BUS, PROCBUS)
    still = found.ratio(p99_half, THREAD_BUS, PROCBUS)
    cure = ""
    if still is not None:
        cure = (
            f": {short(still)} times what it is with the cpu lane"
            if still > EVEN
            else ": no more than with the cpu lane"
        )
    return (
        f"While {cores} chains of pure-Python work kept the machine busy, an io handler was "
        f"reached after {ms(p99, THREAD_BUS)} (p99) with everything on the thread-pool bus and "
        f"{ms(p99, PROCBUS_IO)} with everything on procbus's io lane. With the cpu work on the "
        f"cpu lane it was {ms(p99, PROCBUS)}, {said(lower)} times less than on the thread-pool "
        f"bus; the limit, a thread behind a queue beside bare processes, is {ms(p99, LIMIT)}.\n\n"
        f"Why: a thread that wakes up needs the GIL before it can do anything. The thread that "
        f"has it computes on until the switch interval is over ({five:g} ms, as Python comes), "
        f"and then others may be first in the queue; a handler that needs several steps queues "
        f"several times. This is the convoy: handlers that compute slow down handlers that wait, "
        f"and nothing is wrong with either. A shorter interval is a part of the cure: with "
        f"`sys.setswitchinterval({half / 1e3:g})` the p99 on the thread-pool bus is "
        f"{ms(p99_half, THREAD_BUS)}{cure}. Work in another process does not take your "
        f"script's GIL at all."
    )


def of_gil_release(found: Found, cores: int) -> str:
    """Code that lets others run."""
    threads: list[str] = []
    processes: list[str] = []
    even: list[str] = []
    for row in found.rows:
        ratio = found.ratio(row, PROCBUS_IO, PROCBUS_CPU)
        if ratio is None:
            continue
        io, cpu = found.middle(row, PROCBUS_IO), found.middle(row, PROCBUS_CPU)
        text = f"{row} ({said(io)} times the loop on threads, {said(cpu)} on processes)"
        where = threads if ratio > EVEN else processes if ratio < 1 / EVEN else even
        where.append(text)
    parts = [
        f"{title}: {'; '.join(rows)}."
        for title, rows in (
            ("The io lane's threads were faster with", threads),
            ("The cpu lane was faster with", processes),
            ("Even were", even),
        )
        if rows
    ]
    return (
        f"On {cores} workers each. {' '.join(parts)}\n\n"
        f"Why: C code that touches no Python objects may let go of the GIL while it works, and "
        f"then threads do run side by side, in one memory: nothing has to be carried to another "
        f"process. hashlib does so for more than 2 KiB at once, zlib always, NumPy for most "
        f"operations on arrays. Regular expressions, json and all other code that goes through "
        f"Python objects one by one keep it. So if your handler hashes or compresses much data at "
        f"once, or works on large arrays, declare it io, although it uses the cpu."
    )


def gain_from(found: Found, contender: str) -> str | None:
    """Name the length from which on one way beats the loop and all ways on threads."""
    since: str | None = None
    for length in crossover.LENGTHS_US:
        row = crossover.row_of(length)
        mine = found.middle(row, contender)
        others = [found.middle(row, name) or 0.0 for name in (THREAD_BUS, PROCBUS_IO)]
        gains = mine is not None and mine > max(1.0, *others)
        since = (since or row) if gains else None
    return since


def of_crossover(found: Found, _cores: int) -> str:
    """Short and long handlers."""
    batched, alone = gain_from(found, PROCBUS_CPU), gain_from(found, crossover.ALONE)
    shortest = crossover.row_of(crossover.LENGTHS_US[0])
    texts = []
    for name, since in (("with its batches", batched), ("with batches of one", alone)):
        texts.append(
            f"{name} from handlers of {since} on"
            if since
            else f"{name} with no length that was measured"
        )
    return (
        f"The cpu lane was faster than a plain loop and than threads {texts[0]}, and {texts[1]}. "
        f"Handlers of {shortest} ran at {said(found.middle(shortest, PROCBUS_CPU))} times the loop "
        f"on the cpu lane, {said(found.middle(shortest, PROCBUS_IO))} on the io lane and "
        f"{said(found.middle(shortest, THREAD_BUS))} on the thread-pool bus.\n\n"
        f"Why: publishing an event, carrying it to another process and bringing its result back "
        f"costs your script some microseconds, however short the handler is. A shorter handler is "
        f"faster as a plain call, on no bus at all; give it larger events. The lane makes batches "
        f"by itself: the events of about 20 ms of work share the cost of a pipe and a wake-up."
    )


def of_payload_crossover(found: Found, _cores: int) -> str:
    """Small and large events."""
    parts = []
    for size in payload_crossover.SIZES:
        since: str | None = None
        for length in payload_crossover.LENGTHS_US:
            row = payload_crossover.row_of(size, length)
            ratio = found.ratio(row, PROCBUS_CPU, PROCBUS_IO)
            gains = ratio is not None and ratio >= EVEN
            since = (since or crossover.row_of(length)) if gains else None
        name = payload_crossover.size_name(size)
        parts.append(f"{name}: {f'from {since} on' if since else 'at no length measured'}")
    return (
        f"The cpu lane was the faster one, by the payload of an event: {'; '.join(parts)}.\n\n"
        f"Why: threads share their memory, so a payload costs them nothing. To another process it "
        f"has to be copied, and a copy takes time that grows with its size, while your gain grows "
        f"with the length of the handler. These are `bytes`; NumPy arrays go through shared "
        f"memory with one copy less. If your payload is large and its handler short, send the "
        f"name of the file, and let the handler read it."
    )


def of_pipelines(found: Found, _cores: int) -> str:
    """Whole jobs."""
    parts = []
    for job in found.rows:
        times = {
            name: value
            for name in found.contenders
            if name != LIMIT and (value := found.middle(job, name)) is not None
        }
        best = min(times, key=times.__getitem__)
        parts.append(
            f"*{job}*: both lanes {said(times.get(PROCBUS))} s, the thread-pool bus "
            f"{said(times.get(THREAD_BUS))} s, all on procbus's threads "
            f"{said(times.get(PROCBUS_IO))} s, all but storing on procbus's processes "
            f"{said(times.get(PROCBUS_CPU))} s, ProcessPoolExecutor "
            f"{said(times.get('ProcessPoolExecutor'))} s; the limit "
            f"{said(found.middle(job, LIMIT))} s. Fastest: "
            f"{'both lanes' if best == PROCBUS else best}."
        )
    return (
        f"{' '.join(parts)}\n\n"
        f"Why: a job has parts of both kinds. On threads alone the parsing of all files takes "
        f"turns on one core. In processes alone a worker that waits for the server holds a core's "
        f"place and does nothing with it, unless there are more workers than cores. The job "
        f"*{pipelines.INDEX}* reads files that are in memory already, so a process that reads "
        f"for itself loses nothing, and need not have the text carried to it. The start of the "
        f"workers is in the figures, as it is in your script: a pool that forks starts sooner, "
        f"and copies threads and locks as they are; procbus starts fresh interpreters. Three more "
        f"jobs, beside joblib, are in [figures](figures.md#whole-jobs)."
    )


def of_pythons(found: Found, cores: int) -> str:
    """Each interpreter."""
    parts = []
    for version in (name for name in found.contenders if name != LIMIT):
        figures = ", ".join(
            f"{way} {short(value)}"
            for way in (
                *(python_probe.THREADS, python_probe.PROCESSES, python_probe.INTERPRETERS),
                *(PROCBUS_IO, PROCBUS_CPU),
            )
            if (value := found.middle(way, version)) is not None
        )
        parts.append(f"{version}: {figures}")
    missing = (
        f" Not on this machine, and so left out: {listed(found.not_installed)}."
        if found.not_installed
        else ""
    )
    free = any(name.endswith("t") for name in found.contenders if name != LIMIT)
    return (
        f"Speed-up over a loop on the same Python, {cores} workers, pure-Python handlers of 10 ms. "
        f"{'; '.join(parts)}.{missing}\n\n"
        f"Why: every CPython with a GIL is alike in this: threads take turns. Interpreters in one "
        f"process, which Python has a pool for since 3.14, have a GIL each, and the free-threaded "
        f"build has none, at some cost to each single thread. "
        + (
            "The free-threaded builds above show what that gives here."
            if free
            else "Install one of them, and you see the effect in a run of your own."
        )
    )


GIL_TEXTS: dict[str, tuple[str, Callable[[Found, int], str]]] = {
    "cpu_scaling": ("Pure Python on more workers", of_cpu_scaling),
    "io_scaling": ("Handlers that wait", of_io_scaling),
    "convoy": ("The convoy: waiting beside computing", of_convoy),
    "gil_release": ("Code that releases the GIL", of_gil_release),
    "crossover": ("How long must a handler be?", of_crossover),
    "payload_crossover": ("How large may an event be?", of_payload_crossover),
    "pipelines": ("Whole jobs", of_pipelines),
    "pythons": ("Other Pythons", of_pythons),
}
