"""Settings of a script travel to its workers."""

from __future__ import annotations

import pickle
import sys
import warnings

import pytest

from procbus.pool.script import ScriptSettings
from tests.parts import WARNINGS_BY_CONTEXT


class Mine(UserWarning):
    pass


@WARNINGS_BY_CONTEXT
def test_settings_travel_and_hold_once_applied() -> None:
    limit = sys.getrecursionlimit()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Mine)
            wanted = list(warnings.filters)
            sys.setrecursionlimit(limit + 7)
            taken = pickle.loads(pickle.dumps(ScriptSettings.taken()))
            sys.setrecursionlimit(limit)
            warnings.simplefilter("ignore")
            taken.apply()
            assert sys.getrecursionlimit() == limit + 7
            assert warnings.filters == wanted
            with pytest.raises(Mine):
                warnings.warn("text", Mine, stacklevel=1)
    finally:
        sys.setrecursionlimit(limit)


def test_a_category_that_is_not_known_here_is_left_out() -> None:
    taken = ScriptSettings.taken()._replace(
        warning_filters=(
            ("error", None, ("no_such_module", "Odd"), None, 0),
            ("error", None, ("builtins", "NoSuchWarning"), None, 0),
            ("ignore", None, ("builtins", "UserWarning"), None, 0),
        )
    )
    with warnings.catch_warnings():
        taken.apply()
        assert warnings.filters == [("ignore", None, UserWarning, None, 0)]
