"""Take one sample in this process and print its figures: ``python -m bench.sample``.

The runner starts a fresh process for every sample, so that nothing of one contender (threads,
memory, imported modules, a warm pool) is there when the next is measured.
"""

from __future__ import annotations

import json
import sys

from .model import Settings
from .questions import load


def main(question: str, contender: str, settings: str) -> None:
    """Print the figures as the last line of the output.

    Args:
        question: name of the question.
        contender: which of its contenders.
        settings: a `Settings` as JSON.
    """
    figures = load(question).contenders[contender](Settings(**json.loads(settings)))
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
