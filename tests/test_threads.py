"""`ordered_map`: results come in order, and torch's threads are shared out and given back."""

from __future__ import annotations

import concurrent.futures
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from headstart.stages.threads import MAX_WORKERS, ordered_map


@pytest.fixture(params=[1, 2, 3, MAX_WORKERS + 1])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Set torch's number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items(threads: int) -> None:
    def slower_at_first(number: int) -> int:
        time.sleep(0.001 * (20 - number))
        return number * number

    assert list(ordered_map(slower_at_first, range(20))) == [number * number for number in range(20)]
    assert list(ordered_map(slower_at_first, [])) == []


def test_torchs_threads_are_shared_out_and_given_back(threads: int) -> None:
    each = 1 if threads <= MAX_WORKERS else 2
    assert set(ordered_map(lambda _: torch.get_num_threads(), range(6))) == {each if threads > 1 else 1}
    assert torch.get_num_threads() == threads
    assert list(ordered_map(lambda _: torch.get_num_threads(), [0])) == [threads]  # a single item gets all of them


def test_as_many_items_run_at_once_as_there_are_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    together = threading.Barrier(3, timeout=30)
    try:
        list(ordered_map(lambda _: together.wait(), range(6)))  # otherwise the barrier times out
    finally:
        torch.set_num_threads(before)


def test_items_are_asked_for_when_there_is_room(threads: int) -> None:
    asked: list[int] = []

    def items() -> Iterator[int]:
        for number in range(40):
            asked.append(number)
            yield number

    workers, found = (threads if threads <= MAX_WORKERS else threads // 2), 0
    for found, result in enumerate(ordered_map(lambda number: number, items())):
        assert result == found
        assert len(asked) <= min(40, found + 1 + (workers if workers > 1 else 0))
    assert found == 39


def test_an_error_in_asking_for_an_item_ends_the_work(threads: int) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(ordered_map(lambda number: number, items()))
    assert torch.get_num_threads() == threads


def test_an_error_is_raised_in_its_turn_and_ends_the_work(threads: int) -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 2:
            raise ValueError("the third")
        return number

    found = []
    with pytest.raises(ValueError, match="the third"):
        for result in ordered_map(work, range(1000)):
            found.append(result)
    assert found == [0, 1]
    assert len(begun) < 20
    assert torch.get_num_threads() == threads


def test_a_closed_generator_starts_nothing_more(threads: int) -> None:
    begun: list[int] = []
    results = ordered_map(begun.append, range(1000))
    next(results)
    results.close()
    after = len(begun)
    time.sleep(0.05)
    assert len(begun) == after < 30
    assert torch.get_num_threads() == threads


def test_ctrl_c_starts_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while the first two items run and the third waits, or is about to be submitted."""
    before, begun = torch.get_num_threads(), []
    torch.set_num_threads(2)
    second, ending = threading.Event(), threading.Event()
    leave = concurrent.futures.ThreadPoolExecutor.__exit__

    def leave_pool(pool: concurrent.futures.ThreadPoolExecutor, *error: Any) -> bool | None:
        ending.set()
        return leave(pool, *error)

    monkeypatch.setattr(concurrent.futures.ThreadPoolExecutor, "__exit__", leave_pool)

    def work(number: int) -> None:
        begun.append(number)
        if number:
            second.set()
            ending.wait(60)
            return
        second.wait(60)
        for _ in range(60):  # Python sees a signal only at the next one, where it comes just as a wait begins
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if ending.wait(1):
                return

    try:
        with pytest.raises(KeyboardInterrupt):
            list(ordered_map(work, range(3)))
        assert sorted(begun) == [0, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
