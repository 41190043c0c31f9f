"""The text of each answer about the GIL, with its reason: plain words around the run's own figures.

No figure stands in this file. Words that depend on the findings are chosen by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import (
    convoy,
    crossover,
    io_scaling,
    payload_curve,
    payload_curve_work,
    pipelines,
    python_probe,
)
from .cpu_scaling import row_of as workers_row
from .found import Found
from .model import LIMIT, PROCBUS, PROCBUS_CPU, PROCBUS_IO
from .report import short
from .ways import THREAD_BUS

#: A ratio nearer to 1 than this is called even.
EVEN = 1.05

#: Points of the curve that the text has: kind, size, and whether it is a result.
POINTS_TOLD = (
    (payload_curve_work.BYTES, 1_000, False),
    (payload_curve_work.BYTES, 31_000, False),
    (payload_curve_work.BYTES, 1_000_000, False),
    (payload_curve_work.ARRAY, 1_000_000, False),
    (payload_curve_work.RECORDS, 100, False),
    (payload_curve_work.RECORDS, 1_000, False),
    (payload_curve_work.BYTES, 31_000, True),
    (payload_curve_work.RECORDS, 1_000, True),
)

#: Ways of running a whole job, in words.
WAYS_OF_JOBS = {
    PROCBUS: "both lanes",
    PROCBUS_IO: "all on procbus's threads",
    PROCBUS_CPU: "all but storing on procbus's processes",
    THREAD_BUS: "the thread-pool bus",
}


def said(figure: float | None) -> str:
    """Write a figure; say so where there is none."""
    return "(no figure)" if figure is None else short(figure)


def short_or_dash(figure: float | None) -> str:
    """Write a figure; a dash where there is none."""
    return "-" if figure is None else short(figure)


def row_of_io(what: str) -> str:
    """Name a row of the io lane in the question about the Pythons."""
    return python_probe.row_of(python_probe.LANE_IO, what)


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
        f"The handlers compute in pure Python for 1 ms. With {cores} workers on {cores} cores the "
        f"cpu lane ran them {said(value(at, PROCBUS_CPU))} times as fast as a plain loop. Bare "
        f"processes, the limit, came to {said(value(at, LIMIT))} times. Threads gained nothing: "
        f"{said(value(at, PROCBUS_IO))} times on procbus's io lane, "
        f"{said(value(at, THREAD_BUS))} on the thread-pool bus.\n\n"
        f"Why: the global interpreter lock, the GIL, lets one thread of a process run Python code "
        f"at a time. So threads take turns, however many cores you have. A process has a GIL of "
        f"its own, and a core runs one process at a time. So you gain nothing from more workers "
        f"than cores: with {counts[-1]} workers the cpu lane is at "
        f"{said(value(most, PROCBUS_CPU))} times."
    )


def of_io_scaling(found: Found, _cores: int) -> str:
    """Handlers that wait."""
    most = io_scaling.CONCURRENT[-1]
    sleep = io_scaling.row_of(io_scaling.MEMORY_KIND, most)
    socket = next(row for row in found.rows if row.startswith("socket") and f" {most} " in row)
    memory = io_scaling.MEMORY.format(most)
    each = found.middle(memory, "ProcessPoolExecutor")

    per_process = "" if each is None else f", {short(each / most)} MB for each handler that waits"

    def rate(row: str, name: str) -> str:
        return said(found.middle(row, name))

    return (
        f"{most} handlers slept for 10 ms each, all at a time. In events per second, of at most "
        f"{rate(sleep, LIMIT)}:\n\n"
        f"- procbus: {rate(sleep, PROCBUS_IO)} on threads, {rate(sleep, io_scaling.ASYNC)} with "
        f"`async def`;\n"
        f"- asyncio alone: {rate(sleep, 'asyncio')}; ThreadPoolExecutor: "
        f"{rate(sleep, 'ThreadPoolExecutor')};\n"
        f"- {most} processes: {rate(sleep, 'ProcessPoolExecutor')}.\n\n"
        f"They took {said(found.middle(memory, PROCBUS_IO))} MB on the io lane's threads, "
        f"{said(found.middle(memory, io_scaling.ASYNC))} MB with `async def`, and {said(each)} MB "
        f"in processes{per_process}. With {most} requests to a server on this machine, which "
        f"shares the cores, the rates were {rate(socket, PROCBUS_IO)} on threads, "
        f"{rate(socket, io_scaling.ASYNC)} with `async def` and "
        f"{rate(socket, 'ProcessPoolExecutor')} in processes.\n\n"
        f"Why: a handler that waits needs neither the GIL nor a core. It needs memory while it "
        f"waits: an object for a coroutine, a stack for a thread, a whole interpreter for a "
        f"process. Put your blocking code on the io lane as it is. If hundreds of handlers wait at "
        f"a time, `async def` costs you least."
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
            f", {short(still)} times as late as with the cpu lane"
            if still > EVEN
            else ", no later than with the cpu lane"
        )
    return (
        f"Pure-Python work kept all {cores} cores busy. Meanwhile an io handler began, at p99, "
        f"{ms(p99, THREAD_BUS)} after its event was published if everything ran on the thread-pool "
        f"bus, and after {ms(p99, PROCBUS_IO)} if everything ran on procbus's io lane. With the "
        f"computing on the cpu lane it began after {ms(p99, PROCBUS)}, {said(lower)} times sooner "
        f"than on the thread-pool bus. The limit, a thread behind a queue beside bare processes, "
        f"is {ms(p99, LIMIT)}.\n\n"
        f"Why: a thread that wakes up needs the GIL before it can do anything. The thread that "
        f"has the GIL computes on until its switch interval is over, {five:g} ms by default, and "
        f"then another thread may be first in the queue. A handler of several steps queues several "
        f"times. This is the convoy: handlers that compute slow down handlers that wait, and "
        f"nothing is wrong with either. A shorter interval is a part of the cure: with "
        f"`sys.setswitchinterval({half / 1e3:g})` the thread-pool bus is at "
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
        text = f"- {row}: {said(io)} on threads, {said(cpu)} on processes"
        where = threads if ratio > EVEN else processes if ratio < 1 / EVEN else even
        where.append(text)
    parts = [
        f"{title}:\n\n" + "\n".join(rows)
        for title, rows in (
            ("Faster on the io lane's threads", threads),
            ("Faster on the cpu lane's processes", processes),
            ("As fast on either", even),
        )
        if rows
    ]
    return (
        f"Each lane had {cores} workers. The figures say how many times as fast as a plain loop "
        f"they were.\n\n" + "\n\n".join(parts) + "\n\n"
        "Why: C code that touches no Python objects may let go of the GIL while it works. Then "
        "threads do run side by side, and share one memory, so no data has to be carried to "
        "another process. hashlib lets go for more than 2 KiB at once, zlib always, NumPy for "
        "most operations on arrays. Regular expressions, json and all other code that goes "
        "through Python objects one by one keep the GIL. So if your handler hashes or compresses "
        "much data at once, or works on large arrays, declare it io, although it uses the cpu."
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
    for since in (batched, alone):
        texts.append(f"from handlers of {since} on" if since else "at no length that was measured")
    return (
        f"The cpu lane was faster than threads and than a plain loop {texts[0]}. Without its "
        f"batches, one event at a time, it was faster {texts[1]}. Handlers of {shortest} are too "
        f"short for any bus: they ran at {said(found.middle(shortest, PROCBUS_CPU))} times the "
        f"speed of a plain loop on the cpu lane, {said(found.middle(shortest, PROCBUS_IO))} on the "
        f"io lane and {said(found.middle(shortest, THREAD_BUS))} on the thread-pool bus.\n\n"
        f"Why: publishing an event, carrying it to another process and bringing its result back "
        f"costs your script some microseconds, however short the handler is. If your handler is "
        f"shorter than that, call it, or give it larger events: lists of a hundred items, say. You "
        f"need not make batches of events. The cpu lane does: about 20 ms of work share the cost "
        f"of a message and a wake-up."
    )


def of_payload_curve(found: Found, _cores: int) -> str:
    """Each kind of payload, beside pools."""
    head = "| | procbus | ProcessPoolExecutor | mp.Pool | limit |\n|---|---|---|---|---|\n"
    rows = (payload_curve.Point(*point).row for point in POINTS_TOLD)
    columns = (PROCBUS, "ProcessPoolExecutor", "mp.Pool", LIMIT)
    table = "\n".join(
        f"| {row} | {' | '.join(said(found.middle(row, name)) for name in columns)} |"
        for row in rows
    )
    return (
        f"Events per second, one publish or submit for each, to handlers that do nothing:\n\n"
        f"{head}{table}\n\n"
        "The plot shows the time for each event. Compare it with your handler: if the handler "
        "computes for longer than that, it gains from another process.\n\n"
        "Why: pools write each event to a pipe of 64 KiB, and wait whenever the pipe is full. "
        "procbus copies small events into memory that it shares with the worker, many at a time. "
        "A large array is copied into shared memory once, and read there. Dicts and other objects "
        "have to be pickled and unpickled, whichever way they go: from a hundred records on, that "
        "is nearly all of the time. Results cost more than events, because your script alone has "
        "to unpickle them all. If your payload is large and your handler short, publish the name "
        "of the file, and let the handler read it."
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
        ways = ", ".join(
            f"{WAYS_OF_JOBS.get(name, name)} {said(times[name])} s"
            for name in sorted(times, key=times.__getitem__)
        )
        parts.append(f"- *{job}*: {ways}; the limit {said(found.middle(job, LIMIT))} s.")
    return (
        "From the start of the workers to the last stored result, fastest first:\n\n"
        + "\n".join(parts)
        + "\n\n"
        f"Why: a job has parts of both kinds. On threads alone, the parsing of all files takes "
        f"turns on one core. In processes alone, a worker that waits for the server keeps its core "
        f"idle, unless you start more workers than cores. The files of *{pipelines.INDEX}* are in "
        f"memory already: there a process loses nothing if it reads them itself, and saves the "
        f"carrying of their text. A pool that forks also starts sooner, with copies of your "
        f"script's threads and locks. procbus starts fresh interpreters. You find three more jobs, "
        f"beside joblib, in the [figures](figures.md#whole-jobs)."
    )


def of_pythons(found: Found, cores: int) -> str:
    """Each interpreter."""
    versions = [name for name in found.contenders if name != LIMIT]
    ways = [way for way in python_probe.WAYS if way != python_probe.LANE_AUTO]
    head = f"| | {' | '.join(ways)} |\n|{'---|' * (len(ways) + 1)}\n"
    table = "\n".join(
        f"| {version} | "
        + " | ".join(
            " / ".join(
                short_or_dash(found.middle(python_probe.row_of(way, length), version))
                for length in python_probe.LENGTHS_MS
            )
            for way in ways
        )
        + " |"
        for version in versions
    )
    missing = (
        f"\n\nNot on this machine, and so left out: {listed(found.not_installed)}."
        if found.not_installed
        else ""
    )
    free = [name for name in versions if name.endswith("t")]
    publishing = "".join(
        f" With {version} the io lane of one bus ran {short(one)} tiny events a second that one "
        f"thread published, and {short(two)} that two threads published."
        for version in free[-1:]
        if (one := found.middle(row_of_io(python_probe.TINY), version)) is not None
        and (two := found.middle(row_of_io(python_probe.TINY_TWO), version)) is not None
    )
    return (
        f"Each figure says how many times as fast as a loop on the same Python {cores} workers "
        f"were, with pure-Python handlers of {' / '.join(python_probe.LENGTHS_MS)}:\n\n"
        f"{head}{table}{missing}\n\n"
        f"Why: on every CPython with a GIL, threads take turns. Interpreters in one process, for "
        f"which Python has a pool since 3.14, have a GIL each. The free-threaded build has no GIL, "
        f"at some cost to each single thread. "
        + (
            "The free-threaded builds above (t) show the gain."
            if free
            else "Install one of them, and you see the effect in a run of your own."
        )
        + publishing
        + ' `cpu="auto"` runs your handlers on threads where there is no GIL, and in processes '
        "elsewhere."
    )


GIL_TEXTS: dict[str, tuple[str, Callable[[Found, int], str]]] = {
    "cpu_scaling": ("Pure Python on more workers", of_cpu_scaling),
    "io_scaling": ("Handlers that wait", of_io_scaling),
    "convoy": ("The convoy: waiting beside computing", of_convoy),
    "gil_release": ("Code that releases the GIL", of_gil_release),
    "crossover": ("How long must a handler be?", of_crossover),
    "payload_curve": ("How large may an event be?", of_payload_curve),
    "pipelines": ("Whole jobs", of_pipelines),
    "pythons": ("Other Pythons", of_pythons),
}
