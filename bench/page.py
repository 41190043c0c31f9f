"""The report: the findings of a run as a Markdown page with plots, and as one HTML file.

``python -m bench --report DIR`` makes both from the JSON file of a run, and measures nothing.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from . import questions
from .found import Found
from .gil_plots import GIL_PLOTS
from .gil_texts import GIL_TEXTS
from .peer_plots import draw_peers
from .peer_texts import of_peers
from .plotting import save
from .report import short
from .short_answer import short_answer

NAME = "benchmarks"
#: The share of disturbed samples above which the page warns at its top.
TOO_MANY = 0.2
PEERS_TITLE = "Beside its peers"

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; padding: 0 1rem;
  background: light-dark(#ffffff, #0d1117); color: light-dark(#1f2328, #e6edf3); }
img { max-width: 100%; }
table { border-collapse: collapse; font-size: 0.85rem; display: block; overflow-x: auto; }
th, td { border: 1px solid light-dark(#d0d7de, #30363d); padding: 0.25rem 0.5rem; }
code { font-size: 0.9em; }
"""


def write(document: Mapping[str, Any], directory: Path) -> list[Path]:
    """Write the Markdown page, its plots, the HTML page, and the JSON behind them.

    Args:
        document: the JSON of a run.
        directory: where `benchmarks.md`, `benchmarks.html`, `benchmarks.json` and the directory
            `benchmarks` go.

    Returns:
        The paths of all of them.
    """
    found = {name: Found(each) for name, each in document["questions"].items()}
    cores = int(document["settings"]["workers"])
    plots = directory / NAME
    plots.mkdir(parents=True, exist_ok=True)
    drawn = draw(found, cores, plots)
    markdown = directory / f"{NAME}.md"
    text = page(document, found, cores)
    markdown.write_text(text, encoding="utf-8")
    html = directory / f"{NAME}.html"
    html.write_text(to_html(text, directory), encoding="utf-8")
    kept = directory / f"{NAME}.json"
    kept.write_text(json.dumps(document, separators=(",", ":")) + "\n", encoding="utf-8")
    return [markdown, html, kept, *drawn]


def draw(found: Mapping[str, Found], cores: int, directory: Path) -> list[Path]:
    """Draw a plot for each question of the run that has one."""
    figures = {name: draw(found[name], cores) for name, draw in GIL_PLOTS.items() if name in found}
    if any(name in found for name in questions.PEERS):
        figures["peers"] = draw_peers(found)
    paths = []
    for name, figure in figures.items():
        paths.append(directory / f"{name}.svg")
        save(figure, paths[-1])
    return paths


def page(document: Mapping[str, Any], found: Mapping[str, Found], cores: int) -> str:
    """Return the whole page as Markdown."""
    parts = [
        "# Threads or processes? The GIL, measured",
        "Find out how much you gain from threads and from processes, by the work and the length of "
        "your handler. Each section asks one question, and answers it by a measurement.",
        about(document, found),
        short_answer(found, cores),
    ]
    for name, (title, text) in GIL_TEXTS.items():
        if name in found:
            parts += [f"## {title}", picture(name, found[name].asks), text(found[name], cores)]
            parts += [limit_of(found[name]), details(name, found[name])]
    peers = {name: found[name] for name in questions.PEERS if name in found}
    if peers:
        parts += [f"## {PEERS_TITLE}", picture("peers", "Figures of procbus and its peers")]
        parts.append(of_peers(peers))
        for name, each in peers.items():
            parts += [f"`{name}`: {each.asks} {limit_of(each)}", details(name, each)]
    parts.append(closing(document))
    return "\n\n".join(part for part in parts if part) + "\n"


def about(document: Mapping[str, Any], found: Mapping[str, Found]) -> str:
    """Name the machine of the figures, and their date."""
    machine, began = document["machine"], document["machine"]["date"]
    versions = ", ".join(f"{name} {v}" for name, v in machine["libraries"].items() if v is not None)
    warning = (
        ""
        if document["settings"]["scale"] >= 1
        else "**This was a quick run: its figures mean nothing.**\n\n"
    )
    disturbed, samples = (
        sum(getattr(each, name) for each in found.values()) for name in ("disturbed", "samples")
    )
    if disturbed > TOO_MANY * samples:
        warning += (
            f"**{disturbed} of {samples} samples were begun while other programs used the cores: "
            f"these figures are a first look. Measure again on a quiet machine.**\n\n"
        )
    for label, other in machine.get("merged", {}).items():
        warning += (
            f"The figures in brackets of {label}, and figures that this run lacks, were taken on "
            f"{other['date'][:10]} on {other['workers']} cores of {other['processor']}, "
            f"{other['python']}.\n\n"
        )
    last = max((each.date for each in found.values() if not each.machine), default=began)
    return (
        f"{warning}Taken on {began[:10]} ({began[11:16]} to {last[11:16]} UTC) on "
        f"{machine['workers']} cores of {machine['processor']}, {machine['memory_gb']} GB, "
        f"{machine['system']}, {machine['python']}. {versions}.\n\n"
        f"Figures are medians of the rounds. A line on each mark or bar goes from the lowest to "
        f"the highest round, and ratios are taken within a round. Only ratios carry over to "
        f"another machine: run `procbus bench` on yours. "
        f"[bench/README.md](../bench/README.md) has the methods, the settings of the rivals and "
        f"all caveats."
    )


def picture(name: str, alt: str) -> str:
    """Return the reference to one plot."""
    return f"![{alt}]({NAME}/{name}.svg)"


def limit_of(found: Found) -> str:
    """Say the limit of one question, its rounds, and its missing figures."""
    rounds = len(found.rounds)
    parts = [f"*Limit: {found.limit}.*"] if found.limit else []
    parts.append(f"*{rounds} round{'s' if rounds > 1 else ''}.*")
    if found.machine:
        parts.append(
            f"*Taken on {found.date[:10]} on another machine: {found.machine['workers']} cores of "
            f"{found.machine['processor']}, {found.machine['python']}.*"
        )
    if found.disturbed:
        parts.append(
            f"*Of {found.samples} samples {found.disturbed} were begun while other programs used "
            f"the cores: look at the spread.*"
        )
    parts += [f"*Failed: {error}.*" for error in found.errors]
    return " ".join(parts)


def details(name: str, found: Found) -> str:
    """Return the table of one question, folded."""
    return f"<details><summary>All figures of {name}</summary>\n\n{table(found)}\n\n</details>"


def table(found: Found) -> str:
    """Return one question as a table: the median, and the lowest and highest round."""
    names = found.contenders
    lines = [
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
    ]
    for row in found.rows:
        cells = []
        for name in names:
            spread = found.spread(row, name)
            if spread is None:
                cells.append("-")
            elif spread.low == spread.high:
                cells.append(short(spread.middle))
            else:
                cells.append(f"{short(spread.middle)} ({short(spread.low)} … {short(spread.high)})")
        lines.append(f"| {row}, {found.units[row]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def closing(document: Mapping[str, Any]) -> str:
    """Say how to make this page."""
    load = document["machine"].get("load_before")
    busy = "" if load is None else f" The machine's load before the first sample was {load:.2f}."
    return (
        "---\n\nMade by `make bench-report` from the JSON file that `make bench` writes, kept as "
        f"[benchmarks.json](benchmarks.json); no figure on this page was typed.{busy}"
    )


def to_html(markdown: str, directory: Path) -> str:
    """Return the page as one HTML file with its plots in it."""
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark").enable("table").render(markdown)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width">',
            "<title>Threads or processes? The GIL, measured</title>",
            f"<style>{STYLE}</style>\n</head>\n<body>",
            "".join(with_plots(body, directory)),
            "</body>\n</html>\n",
        ]
    )


def with_plots(body: str, directory: Path) -> Iterator[str]:
    """Put each plot in the place of the reference to it."""
    for part in re.split(r'(src="[^"]+\.svg")', body):
        if part.startswith('src="'):
            data = base64.b64encode((directory / part[5:-1]).read_bytes()).decode()
            yield f'src="data:image/svg+xml;base64,{data}"'
        else:
            yield part
