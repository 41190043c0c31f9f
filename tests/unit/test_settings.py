# SPDX-License-Identifier: MIT
"""The options of a bus: accepted values and refusals."""

import functools
import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procbus.core.errors import OptionError, SerializationError
from procbus.core.handler import OPTIONS_OF_A_HANDLER
from procbus.core.options import options_of
from procbus.settings import BusOptions, Settings, make_settings

who: ContextVar[str] = ContextVar("who")


def make(**options: Any) -> Settings:
    return make_settings(options)


def refusal(**options: Any) -> str:
    """Make settings that must be refused; give the message."""
    with pytest.raises(OptionError) as caught:
        make(**options)
    return str(caught.value)


def test_settings_have_the_given_options():
    def letter_box(letter: object) -> None: ...

    settings = make(
        cpu_workers=2,
        io_workers=3,
        max_pending=4,
        on_full="raise",
        worker_init=set_up,
        max_events_per_worker=5,
        worker_max_memory="1.5 GB",
        worker_nice=7,
        on_failure=letter_box,
        shared_memory_limit="1 MiB",
        shared_memory_threshold=8192,
        on_oversize="fail",
        journal=Path("run.db"),
        durability="power",
        keep="2 days",
        keep_results=True,
        journal_codec="json",
        on_sigterm="put_away",
        grace=7,
        carry=iter([who, who]),
        live=True,
    )
    assert {each.name: getattr(settings, each.name) for each in fields(settings)} == {
        "cpu": "processes",
        "cpu_workers": 2,
        "io_workers": 3,
        "max_pending": 4,
        "on_full": "raise",
        "worker_init": set_up,
        "max_events_per_worker": 5,
        "worker_max_memory": 1_500_000_000,
        "worker_nice": 7,
        "worker_env": None,
        "on_failure": letter_box,
        "shared_memory_limit": 1 << 20,
        "shared_memory_threshold": 8192,
        "on_oversize": "fail",
        "journal": "run.db",
        "durability": "power",
        "keep": 172_800.0,
        "keep_results": True,
        "journal_codec": "json",
        "on_sigterm": "put_away",
        "grace": 7.0,
        "carry": (who,),
        "live": True,
    }


def test_settings_have_defaults_that_are_checked_too():
    settings = make()
    assert (settings.cpu_workers, settings.max_pending, settings.on_full) == (None, 10_000, "block")
    assert (settings.keep, settings.grace, settings.carry) == (0.0, 25.0, ())
    assert settings == Settings(keep=0.0)


def test_every_option_that_may_be_written_is_declared_and_no_other():
    assert set(BusOptions.__annotations__) == set(options_of(Settings))
    assert {field.name for field in fields(Settings)} == set(options_of(Settings))


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


def test_absurd_number_of_workers_is_refused():
    assert "from 1 to 10000, not 10001" in refusal(cpu_workers=10_001)


@pytest.mark.parametrize("value", [2, "dask", "tcp://127.0.0.1:8786"])
def test_cpu_is_a_pool_and_not_an_address(value: Any):
    expected = f'cpu must be "processes", "threads", "auto" or a DaskPool, not {value!r}'
    assert refusal(cpu=value) == expected


def test_cpu_that_is_nearly_a_word_is_refused_with_that_word():
    assert refusal(cpu="thread").endswith("not 'thread'; did you mean threads?")


def test_cpu_may_be_processes_threads_or_none_for_the_default():
    assert [make(cpu=each).cpu for each in (None, "processes", "threads")] == [
        "processes",
        "processes",
        "threads",
    ]


def test_interpreters_are_refused_with_the_reason_and_the_places_that_work():
    message = refusal(cpu="interpreters")

    assert message.startswith("cpu='interpreters' is not offered: numpy, psutil and msgspec do not")
    assert '"processes", or "threads"' in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_events_per_worker", 5),
        ("worker_max_memory", "1 GiB"),
        ("worker_nice", 3),
        ("worker_env", dict),
    ],
)
def test_threads_refuse_what_only_a_process_can_do(name: str, value: Any):
    message = refusal(cpu="threads", **{name: value})

    assert message.startswith(f'{name} is for worker processes: leave it out with cpu="threads"')


def test_set_up_for_threads_need_not_travel():
    lock = threading.Lock()

    assert make(cpu="threads", worker_init=lock.acquire).worker_init == lock.acquire


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (5, "carry must be a list of ContextVars, such as [var], not 5"),
        (None, "carry must be a list of ContextVars"),
        (who, "carry must be a list of ContextVars"),
        ("who", "carry must be a list of ContextVars"),
        (["who"], "carry takes ContextVars alone, not 'who'"),
        ([who, threading.local()], "carry takes ContextVars alone, not <_thread._local"),
    ],
)
def test_object_that_is_no_context_variable_is_not_carried(value, says):
    assert says in refusal(carry=value)


@pytest.mark.parametrize("value", ["drop", "", None, 1, "Block", ["block"]])
def test_on_full_is_one_of_two_words(value):
    assert 'on_full must be "block" or "raise"' in refusal(on_full=value)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("cpu_worker", "did you mean cpu_workers=?"), ("zzz", "It has: handlers, cpu, cpu_workers")],
)
def test_an_unknown_option_gets_a_hint(name, hint):
    assert hint in refusal(**{name: 1})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"journal": 5}, "journal must be the path of a file, not 5"),
        ({"journal": ""}, "journal must be the path of a file"),
        ({"durability": "disk"}, 'durability must be "process" or "power"'),
        ({"keep": "everything"}, 'keep must be "unfinished", "all", or how long'),
        ({"keep": -1}, 'keep must be "unfinished", "all", or how long'),
        ({"keep_results": "yes"}, "keep_results must be True or False"),
        ({"journal_codec": "yaml"}, 'journal_codec must be "pickle" or "json"'),
    ],
)
def test_options_of_the_journal_that_make_no_sense_are_refused(options, says):
    assert says in refusal(**options)


def test_an_option_that_handlers_have_too_is_accepted():
    assert {*options_of(Settings)} & {*OPTIONS_OF_A_HANDLER} == {"grace"}
    assert make_settings({"grace": 8}).grace == 8


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
    assert caught.value.__cause__ is None, "the message has it"


@pytest.mark.parametrize(
    ("limit", "size"),
    [("2 GiB", 2 << 30), ("1.5 GB", 1_500_000_000), (1 << 20, 1 << 20), (0, 0), ("0 B", 0)],
)
def test_a_limit_of_shared_memory_comes_out_in_bytes_and_may_be_0(limit: int | str, size: int):
    assert make(shared_memory_limit=limit).shared_memory_limit == size


@pytest.mark.parametrize(("threshold", "size"), [("1 MiB", 1 << 20), (4096, 4096)])
def test_a_threshold_of_shared_memory_comes_out_in_bytes(threshold: int | str, size: int):
    assert make(shared_memory_threshold=threshold).shared_memory_threshold == size


@given(st.integers(0, 1 << 50))
def test_a_limit_of_shared_memory_is_0_or_a_mebibyte_at_least(limit: int):
    if limit == 0 or limit >= 1 << 20:
        assert make(shared_memory_limit=limit).shared_memory_limit == limit
    else:
        assert refusal(shared_memory_limit=limit) == (
            f"shared_memory_limit must be 1 MiB at least, or 0 for none, not {limit}"
        )


@given(st.integers(0, 1 << 50))
def test_a_threshold_of_shared_memory_is_four_kibibytes_at_least(threshold: int):
    if threshold >= 1 << 12:
        assert make(shared_memory_threshold=threshold).shared_memory_threshold == threshold
    else:
        assert refusal(shared_memory_threshold=threshold) == (
            f"shared_memory_threshold must be 4 KiB at least, not {threshold}"
        )


@pytest.mark.parametrize("option", ["shared_memory_limit", "shared_memory_threshold"])
@pytest.mark.parametrize("value", [-1, 1.5, True, "much", "2G", [1 << 20]])
def test_value_that_is_no_amount_of_shared_memory_is_refused(option: str, value: Any):
    message = refusal(**{option: value})
    assert message.startswith(f"{option}: ")
    assert repr(value) in message


@pytest.mark.parametrize("value", ["drop", "", None, 1, "Pipe", ["pipe"]])
def test_on_oversize_is_one_of_two_words(value: Any):
    assert refusal(on_oversize=value) == f'on_oversize must be "pipe" or "fail", not {value!r}'
