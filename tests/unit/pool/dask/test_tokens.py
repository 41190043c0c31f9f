"""Tokens in a pipe: each is taken once."""

import os
import threading

from procbus.pool.dask.child import PipeTokens


def test_given_tokens_can_all_be_taken() -> None:
    tokens = PipeTokens.create()
    assert not tokens.acquire(False)
    tokens.release(0)
    assert not tokens.acquire(False)
    tokens.release(3)
    assert [tokens.acquire(False) for _ in range(4)] == [True, True, True, False]
    tokens.close()
    tokens.close()


def test_at_most_the_requested_tokens_are_taken_at_once() -> None:
    tokens = PipeTokens.create()
    tokens.release(5)
    assert tokens.take(2) == 2
    assert tokens.take(100) == 3
    assert tokens.take(1) == 0
    tokens.close()


def test_no_token_is_taken_twice() -> None:
    tokens = PipeTokens.create()
    tokens.release(10_000)
    taken = [0] * 4

    def take(number: int) -> None:
        while tokens.acquire(False):
            taken[number] += 1

    takers = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(55)
    assert sum(taken) == 10_000
    tokens.close()


def test_no_token_is_left_once_the_giver_is_gone() -> None:
    taking, giving = os.pipe()
    os.set_blocking(taking, False)
    tokens = PipeTokens(taking)
    os.write(giving, b"1")
    os.close(giving)
    assert tokens.acquire(False)
    assert not tokens.acquire(False)
    assert tokens.take(5) == 0
    tokens.close()
