# SPDX-License-Identifier: MIT
"""The commands ``procbus journal ...``: to look into a journal, and to put it right."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from time import time
from typing import TYPE_CHECKING, Any

from procbus.core.errors import JournalError
from procbus.core.text import printable, table
from procbus.core.validation import format_size, parse_keep

if TYPE_CHECKING:
    from procbus.journal.inspection import Line, Visit

#: Maximum of deliveries that `list` shows by default.
_SHOWN = 50
_STATES = ("pending", "delayed", "retrying", "dead", "succeeded", "discarded")

Command = Callable[[argparse.Namespace], int]


def add_journal(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command ``journal`` with its actions."""
    journal = commands.add_parser(
        "journal",
        help="look into the journal of a bus, retry dead letters, export it or copy it",
        description="Look into the journal of a bus, retry its dead letters, export it or copy it. "
        "Each action works while the bus runs; the last second may be missing then.",
    )
    actions = journal.add_subparsers(metavar="ACTION", required=True)
    _add(actions, "status", _status, "number of deliveries of each handler", json_too=True)
    listing = _add(actions, "list", _list, "deliveries, in order of their events", json_too=True)
    _add_filters(listing)
    listing.add_argument(
        "--limit",
        type=int,
        default=_SHOWN,
        metavar="N",
        help=f"maximum number, {_SHOWN} by default",
    )
    show = _add(actions, "show", _show, "all facts about a delivery", json_too=True)
    show.add_argument("id", nargs="+", help="number of an event, or EVENT:HANDLER")
    show.add_argument(
        "--unpickle",
        action="store_true",
        help="load the event too, and show it: that may run code of the file",
    )
    _add(actions, "jobs", _jobs, "jobs, with the number of their deliveries", json_too=True)
    retry = _add(actions, "retry", _retry, "run dead letters again")
    retry.add_argument("id", nargs="*", help="number of an event, or EVENT:HANDLER")
    retry.add_argument("--all", action="store_true", help="all dead letters")
    retry.add_argument(
        "--handler", metavar="NAME", help="with --all: of handlers with this name; * matches"
    )
    purge = _add(actions, "purge", _purge, "forget finished deliveries, and their ids")
    purge.add_argument(
        "--older-than", type=_duration, default=0.0, metavar="TIME", help='such as "7 days"'
    )
    purge.add_argument("--dead", action="store_true", help="dead letters too")
    export = _add(actions, "export", _export, "everything, one JSON object on each line")
    export.add_argument("--json", action="store_true", help="the only format")
    _add_filters(export)
    backup = _add(actions, "backup", _backup, "copy the journal, also while a bus has it")
    backup.add_argument("dest", help="the file to be made")


def _add(
    actions: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[Visit, argparse.Namespace], None],
    what: str,
    *,
    json_too: bool = False,
) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=what, description=f"{what[0].upper()}{what[1:]}.")
    parser.add_argument("file", help="the journal")
    if json_too:
        parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.set_defaults(run=_visiting(run, change=run in (_retry, _purge)))
    return parser


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--state", choices=_STATES, help="only deliveries in this state")
    parser.add_argument(
        "--handler", metavar="NAME", help="only of handlers with this name; * matches"
    )


def _visiting(run: Callable[[Visit, argparse.Namespace], None], *, change: bool) -> Command:
    def command(options: argparse.Namespace) -> int:
        # Here, not above: `procbus --help` needs none of this.
        from procbus.journal.inspection import Visit

        try:
            with Visit(options.file, change=change) as visit:
                run(visit, options)
        except JournalError as error:
            print(f"procbus journal: {error}", file=sys.stderr)
            return 2
        return 0

    return command


def _duration(text: str) -> float:
    try:
        return parse_keep(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _print_json(thing: object) -> None:
    print(json.dumps(thing, ensure_ascii=False))


def _status(visit: Visit, options: argparse.Namespace) -> None:
    status = visit.status()
    if options.json:
        _print_json(status)
        return
    owner = {None: "no bus has it", 0: "a bus has it"}.get(
        status["owner"], f"process {status['owner']} has it"
    )
    print(
        f"{status['path']}: {owner}, {format_size(status['bytes'])}, {status['codec']}; "
        f"{status['events']:,} events, {status['given_ids']:,} ids that were given"
    )
    rows = [
        [_cell(name), *(f"{counts[state]:,}" for state in _STATES)]
        for name, counts in sorted(status["handlers"].items())
    ]
    print(f"\n{table(('handler', *_STATES), rows)}\n")
    if status["schedules"]:
        heads = ("schedule", "times", "last tick (UTC)")
        rows = [
            [_cell(each["name"]), _cell(each["times"]), _seconds_of(each["last_at"])]
            for each in status["schedules"]
        ]
        print(f"{table(heads, rows, left=set(heads))}\n")
    for each in status["lost"]:
        print(f"LOST: {_clean(each)}")


def _list(visit: Visit, options: argparse.Namespace) -> None:
    lines = list(islice(visit.lines(options.state, options.handler), options.limit + 1))
    more = len(lines) > options.limit
    lines = lines[: options.limit]
    if options.json:
        _print_json([line.plain() for line in lines])
        return
    head = ("id", "state", "attempts", "when (UTC)", "topic or class", "given id")
    rows: list[list[str]] = []
    for line in lines:
        plain = line.plain()
        what = line.topic or line.type_name or "no longer kept"
        when = _seconds_of(plain["at"] or plain["published_at"] or "")
        cells = (line.name, line.state, str(line.attempts), when, what, line.given_id or "")
        rows.append([_cell(text) for text in cells])
    print(f"\n{table(head, rows, left=set(head) - {'attempts'})}\n")
    if more:
        print(f"and more: --limit shows more than {options.limit}")


def _seconds_of(time_of_day: str) -> str:
    """A time in ISO format, to the second."""
    return time_of_day[:19].replace("T", " ")


def _show(visit: Visit, options: argparse.Namespace) -> None:
    found = [_all_of(visit, line, unpickle=options.unpickle) for line in visit.find(options.id)]
    if options.json:
        _print_json(found)
        return
    for each in found:
        outcomes, event, jobs = (each.pop(name) for name in ("outcomes", "event", "jobs"))
        for name, value in each.items():
            print(f"{name}: {_clean(str(value))}")
        if jobs:
            print(f"jobs: {_clean(', '.join(jobs))}")
        print(f"event: {_clean(_short(event))}")
        for number, outcome in enumerate(outcomes, 1):
            print(f"attempt {number}: {outcome['kind']}: {_clean(str(outcome['text']))}")
            if outcome["stack"]:
                print(_clean(str(outcome["stack"]).rstrip()))
        print()


def _jobs(visit: Visit, options: argparse.Namespace) -> None:
    jobs = visit.jobs()
    if options.json:
        _print_json(jobs)
        return
    ends = ("succeeded", "failed", "cancelled", "pending")
    head = ("id", "name", "state", *ends, "done (UTC)")
    rows = [
        [
            _cell(job["id"]),
            _cell(job["name"]),
            job["state"],
            *(f"{job[end]:,}" for end in ends),
            (job["done_at"] or "")[:19].replace("T", " "),
        ]
        for job in jobs
    ]
    print(f"\n{table(head, rows, left=set(head) - set(ends))}\n")


def _short(event: dict[str, Any]) -> str:
    if not event["kept"]:
        return "no longer kept"
    if "json" in event:
        return json.dumps(event["json"], ensure_ascii=False)
    if "repr" in event:
        return str(event["repr"])
    names = f" with {', '.join(event['names'])}" if event["names"] else ""
    return f"a pickle of {event['bytes']:,} bytes{names}"


def _retry(visit: Visit, options: argparse.Namespace) -> None:
    if bool(options.id) == options.all:
        raise JournalError("give the ids of dead letters, or --all")
    if options.all:
        lines: Iterable[Line] = visit.lines("dead", options.handler)
    else:
        lines = [line for line in visit.find(options.id) if line.state == "dead"]
    count = visit.retry(list(lines))
    when = "at the next start" if visit.owner is None else "by the bus that is running"
    print(f"{count:,} dead letters will be run again {when}")


def _purge(visit: Visit, options: argparse.Namespace) -> None:
    visit.purge(time() - options.older_than, dead=options.dead)
    print("done; the file does not get smaller, but the next records use the room")


def _export(visit: Visit, options: argparse.Namespace) -> None:
    for line in visit.lines(options.state, options.handler):
        _print_json(_all_of(visit, line))


def _backup(visit: Visit, options: argparse.Namespace) -> None:
    visit.back_up(options.dest)
    print(f"{options.dest} is a journal of its own, with all that was accepted until now")


def _all_of(visit: Visit, line: Line, *, unpickle: bool = False) -> dict[str, Any]:
    event = visit.event(line, unpickle=unpickle)
    about = {"jobs": visit.jobs_of(line), "outcomes": visit.outcomes(line), "event": event}
    return line.plain() | about


def _clean(text: str) -> str:
    """A text without characters that a terminal would take for a command."""
    return "\n".join(map(printable, text.split("\n")))


def _cell(text: str) -> str:
    """A text as of `_clean` on one line, for a cell of a table."""
    return _clean(text).replace("\n", "\\n")
