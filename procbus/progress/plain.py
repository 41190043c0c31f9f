# SPDX-License-Identifier: MIT
"""Progress where there is no terminal: a plain line on stderr every few seconds."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from procbus.progress.bar import Bar, last_line_of, line_of

#: Interval between two lines, in seconds; because a log is read later.
LINE_EVERY_S = 5.0


class PlainDisplay:
    """Writes each bar as a line."""

    every_s = LINE_EVERY_S

    def refresh(self, bars: Sequence[Bar]) -> None:
        """Write a line for each bar."""
        _write([line_of(bar.read()) for bar in bars])

    def finish(self, bar: Bar) -> None:
        """Write the last line of a bar."""
        _write([last_line_of(bar.read_last())])

    def close(self) -> None:
        """Leave the lines where they are."""


#: The display for all bars of the script.
plain = PlainDisplay()


def _write(lines: Sequence[str]) -> None:
    stream = sys.stderr
    if stream is not None:
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()
