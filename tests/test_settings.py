# SPDX-License-Identifier: MIT
"""The options of a bus: what passes and what is refused."""

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.errors import OptionError, SerializationError
from procbus.settings import Settings, make_settings


def make(**options: Any) -> Settings:
    known: dict[str, Any] = {
        "cpu_workers": None,
        "io_workers": None,
        "max_pending": 10_000,
        "on_full": "block",
        "journal": None,
        "worker_init": None,
        "max_events_per_worker": None,
        "worker_max_memory": None,
        "on_failure": None,
        "shared_memory_limit": None,
        "shared_memory_threshold": 131072,
        "on_oversize": "pipe",
    }
    unknown = {k: v for k, v in options.items() if k not in known}
    given_options = {**known, **{k: v for k, v in options.items() if k in known}}
    return make_settings(**given_options, unknown=unknown)


def refusal(**options: Any) -> str:
    """Make settings that must be refused; give the message."""
    with pytest.raises(OptionError) as caught:
        make(**options)
    return str(caught.value)


def test_settings_have_what_was_asked_for():
    def letter_box(letter: object) -> None: ...

    settings = make(
        cpu_workers=2,
        io_workers=3,
        max_pending=4,
        on_full="raise",
        worker_init=set_up,
        max_events_per_worker=5,
        worker_max_memory="1.5 GB",
        on_failure=letter_box,
        shared_memory_limit="1 MiB",
        shared_memory_threshold=8192,
        on_oversize="fail",
    )
    assert settings == Settings(
        2, 3, 4, "raise", set_up, 5, 1_500_000_000, letter_box, 1 << 20, 8192, "fail"
    )


def test_what_is_not_asked_for_is_left_open():
    assert make() == Settings(
        None, None, 10_000, "block", None, None, None, None, None, 131072, "pipe"
    )


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1))
def test_whole_numbers_from_one_up_pass(cpu, io, pending):
    settings = make(
        cpu_workers=cpu, io_workers=io, max_pending=pending, max_events_per_worker=pending
    )
    assert (settings.cpu_workers, settings.io_workers) == (cpu, io)
    assert (settings.max_pending, settings.max_events_per_worker) == (pending, pending)


@given(
    st.sampled_from(["cpu_workers", "io_workers", "max_pending", "max_events_per_worker"]),
    st.one_of(
        st.integers(max_value=0),
        st.floats(),
        st.booleans(),
        st.text(max_size=10),
        st.lists(st.integers(), max_size=3),
    ),
)
def test_anything_else_is_refused_with_the_name_and_the_value(name, value):
    message = refusal(**{name: value})
    assert message.startswith(f"{name} must be a whole number from 1")
    assert repr(value) in message


def test_more_workers_than_anybody_means_are_refused():
    assert "from 1 to 10000, not 10001" in refusal(cpu_workers=10_001)


@pytest.mark.parametrize("value", ["drop", "", None, 1, "Block", ["block"]])
def test_on_full_is_one_of_two_words(value):
    assert 'on_full must be "block" or "raise"' in refusal(on_full=value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cpu_worker", "did you mean cpu_workers=?"), ("zzz", "It has: handlers, cpu_workers")],
)
def test_an_unknown_option_gets_a_hint(name, hint):
    assert hint in refusal(**{name: 1})


def test_options_of_later_versions_are_named():
    assert "journal= is not supported by this version" in refusal(journal="events.sqlite")


@pytest.mark.parametrize("name", ["kind", "timeout", "retries", "max_memory", "concurrency"])
def test_an_option_of_a_handler_is_refused_with_where_it_belongs(name: str):
    message = refusal(**{name: None})
    assert message == f"{name}= is an option of a handler, not of EventBus: @subscribe({name}=...)"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("512M", 'did you mean "512 MB" or "512 MiB"?'),
        ("31 MiB", "less than an empty Python process needs"),
        (-1, "such as"),
        (1.5, "such as"),
    ],
)
def test_a_worker_max_memory_that_makes_no_sense_is_refused(value: Any, reason: str):
    message = refusal(worker_max_memory=value)
    assert message.startswith(f"worker_max_memory: {value!r} ")
    assert reason in message


def set_up(threads: int = 1) -> None: ...
def needs_one(first: int) -> None: ...
def needs_two(first: int, second: int) -> None: ...
async def asynchronous(*letters: object) -> None: ...


def generates(*letters: object) -> Any:
    yield letters


@pytest.mark.parametrize("function", [set_up, functools.partial(needs_one, 1), dict, print])
def test_a_worker_init_is_called_without_arguments(function: Callable[..., Any]):
    assert make(worker_init=function).worker_init is function


@pytest.mark.parametrize("function", [set_up, needs_one, functools.partial(needs_two, 1), print])
def test_on_failure_is_called_with_the_dead_letter(function: Callable[..., Any]):
    assert make(on_failure=function).on_failure is function


@pytest.mark.parametrize(
    ("option", "function", "reason"),
    [
        ("worker_init", "set_up", "must be a function that takes no argument, not 'set_up'"),
        ("worker_init", needs_one, "needs_one must be a function that takes no argument"),
        ("worker_init", asynchronous, "asynchronous is async"),
        ("worker_init", generates, "generates is a generator function"),
        ("on_failure", True, "must be a function that takes the dead letter, not True"),
        ("on_failure", needs_two, "needs_two must be a function that takes the dead letter"),
        ("on_failure", lambda: None, "<lambda> must be a function that takes the dead letter"),
        ("on_failure", asynchronous, "asynchronous is async"),
        ("on_failure", generates, "generates is a generator function"),
    ],
)
def test_any_other_function_is_refused(option: str, function: Any, reason: str):
    message = refusal(**{option: function})
    assert message.startswith(option)
    assert reason in message


def test_a_worker_init_that_closes_over_data_can_travel():
    rates = [1.5]

    def load() -> None:
        rates.append(2.0)

    assert make(worker_init=load).worker_init is load


def test_a_worker_init_that_cannot_travel_is_refused_with_the_variable_at_fault():
    lock = threading.Lock()

    def load() -> None:
        lock.acquire()

    with pytest.raises(SerializationError, match=r"worker_init=.*load.* variable 'lock'") as caught:
        make(worker_init=load)
    assert caught.value.path.endswith("closure variable 'lock'")
    assert isinstance(caught.value.__cause__, TypeError)


def test_shared_memory_is_given_in_bytes_or_words_and_may_be_none() -> None:
    settings = make(shared_memory_limit="2 GiB", shared_memory_threshold="1 MiB")
    assert settings.shared_memory_limit == 2 << 30
    assert settings.shared_memory_threshold == 1 << 20
    assert make(shared_memory_limit=0).shared_memory_limit == 0
    assert make().shared_memory_limit is None
    assert make(on_oversize="fail").on_oversize == "fail"


@pytest.mark.parametrize(
    "options",
    [
        {"shared_memory_limit": 1000},
        {"shared_memory_limit": -1},
        {"shared_memory_limit": "much"},
        {"shared_memory_threshold": 0},
        {"shared_memory_threshold": "1 KiB"},
        {"on_oversize": "drop"},
    ],
)
def test_shared_memory_that_is_of_no_use_is_refused(options: dict[str, Any]) -> None:
    [name] = options
    with pytest.raises(OptionError, match=name):
        make(**options)
