# SPDX-License-Identifier: MIT
"""When a handler of kind "auto" moves to the other lane: not for one look, and not to and fro."""

from __future__ import annotations

from procbus.verdict import Verdict

#: The other lane has to be so many times as fast to move there; to be told of, less is enough.
WORTH_A_MOVE = 1.5
#: So many judgements in a row have to agree.
AGREEING = 2
#: After its first move a handler stays for so many seconds at least; after each further one for
#: twice as long, up to the second figure.
_STAY_S = 2.0
_LONGEST_STAY_S = 300.0


class Mover:
    """Decides on the moves of one handler. It belongs to one thread."""

    def __init__(self) -> None:
        self._agreed = 0
        self._stay_s = _STAY_S
        self._may_move_at = 0.0

    def moves(self, kind: str, verdict: Verdict, now: float) -> bool:
        """Whether it is to move now.

        Args:
            kind: the lane that it is on.
            verdict: on its runs there.
            now: in seconds of `time.monotonic()`.
        """
        if verdict.kind in (None, kind) or verdict.gain < WORTH_A_MOVE:
            self._agreed = 0
            return False
        self._agreed += 1
        if self._agreed < AGREEING or now < self._may_move_at:
            return False
        self._agreed = 0
        self._may_move_at = now + self._stay_s
        self._stay_s = min(2 * self._stay_s, _LONGEST_STAY_S)
        return True
