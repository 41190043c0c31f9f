# SPDX-License-Identifier: MIT
"""Objects that raise or lie when they are looked at are looked at all the same."""

from typing import Any

import pytest

from procbus.core.user_objects import (
    attribute,
    cause_of,
    class_name,
    full_name,
    is_a,
    is_any,
    named,
    origin_of,
    restore_origin,
    set_cause,
    short_repr,
    text_of,
    words_of,
)

RAISED = [ValueError("no"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()]


def test_exceptions_of_an_object_never_get_out() -> None:
    # Not in the module, where pytest would look at it.
    class Meta(type):
        """The class itself lies, too."""

        def __getattribute__(cls, name: str) -> Any:
            raise SystemExit(name)

    class Hostile(Exception, metaclass=Meta):
        def _refuse(self, *_: Any) -> Any:
            raise SystemExit("refused")

        __bool__ = __len__ = __iter__ = __str__ = __repr__ = __getattribute__ = _refuse
        __setattr__ = __delattr__ = __eq__ = __hash__ = _refuse

    error, cause = Hostile(), ValueError("cause")
    set_cause(error, cause)

    assert cause_of(error) is cause
    assert class_name(error) == "Hostile"
    assert is_a(error, Exception)
    assert is_any(error, (OSError, Exception))
    assert not is_a(error, OSError)
    assert words_of(error) == "(its message cannot be read)"
    assert named(error) == "Hostile: (its message cannot be read)"
    assert short_repr(error) == "<Hostile object, whose repr fails>"
    assert full_name(Hostile) == "Hostile"
    assert attribute(error, "name") is None
    assert "Hostile" in text_of(error, None)


@pytest.mark.parametrize("raised", RAISED, ids=repr)
def test_any_exception_of_repr_and_str_is_caught(raised: BaseException) -> None:
    class Speechless(Exception):
        def __str__(self) -> str:
            raise raised

        __repr__ = __str__

    assert "Speechless" in short_repr([Speechless()]) or "list" in short_repr([Speechless()])
    assert named(Speechless()) == "Speechless: (its message cannot be read)"


class Loud(str):
    def __format__(self, spec: str) -> str:
        raise SystemExit(spec)


def test_message_is_a_plain_string_for_any_result_of_str() -> None:
    class Said(Exception):
        def __str__(self) -> str:
            return Loud("words")

    assert type(words_of(Said())) is str
    assert named(Said()) == "Said: words"


def test_a_number_too_long_to_be_shown_is_named() -> None:
    assert short_repr(10**5000).startswith("<int ")


def test_an_exception_that_python_cannot_print_has_its_frames_and_message() -> None:
    class Noteless(Exception):
        @property
        def __notes__(self) -> Any:  # type: ignore[override]
            raise SystemExit("no notes")

    try:
        raise Noteless("words")
    except Noteless as error:
        text = text_of(error, error.__traceback__)
    assert 'raise Noteless("words")' in text
    assert text.endswith("Noteless: words\n")


def test_an_exception_that_was_raised_elsewhere_comes_from_its_origin_again() -> None:
    error = ValueError("first")
    error.__context__ = KeyError("handled then")
    origin = origin_of(error)
    try:
        raise OSError
    except OSError:
        with pytest.raises(ValueError, match="first"):
            raise error  # noqa: B904 - the context is the point
    assert isinstance(error.__context__, OSError)

    restore_origin(error, origin)
    assert isinstance(error.__context__, KeyError)
    assert error.__traceback__ is None
