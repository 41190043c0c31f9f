# SPDX-License-Identifier: MIT
"""Stacks of handlers in this process."""

import threading
import traceback

from procbus.system.thread_stack import stack_of_thread, stack_text


def inner() -> traceback.StackSummary:
    return traceback.extract_stack()


def test_stack_leaves_out_the_frames_that_called_the_handler() -> None:
    frames = inner()
    caller = frames[0].filename
    assert caller != __file__

    text = stack_text(frames, caller)

    lines = text.splitlines()
    assert lines[0] == "Stack (most recent call last):"
    assert "in inner" in lines[-2]
    assert "return traceback.extract_stack()" in lines[-1]
    assert caller not in text


def test_a_stack_without_the_caller_is_shown_as_it_is() -> None:
    assert stack_text(inner(), "no such file").count(", in inner\n") == 1


def test_stack_without_frames_below_the_caller_is_empty() -> None:
    assert stack_text(inner(), __file__) == ""
    assert stack_text([], __file__) == ""


def test_stack_of_another_thread_ends_where_that_thread_is() -> None:
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        over.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    begun.wait(60)
    text = stack_of_thread(thread.ident, "no such file")
    over.set()
    thread.join(60)

    assert ", in hold\n" in text
    assert stack_of_thread(thread.ident, "no such file") == "", "it has ended"
    assert stack_of_thread(None, "no such file") == "", "it was never started"
