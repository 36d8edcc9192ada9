"""Work beside the encoder: in order, with its errors, and with no thread left behind; and memory that is kept."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from headstart.stages.encoders.memory import freed_memory_kept
from headstart.stages.prefetch import BackgroundThread, prefetch


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("headstart-")] == []


def failing(count: int, error: BaseException) -> Iterator[int]:
    yield from range(count)
    raise error


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_items_come_in_order_and_end(count: int) -> None:
    assert list(prefetch(iter(range(count)))) == list(range(count))


def test_one_item_is_made_while_the_last_is_worked_on_and_no_more() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(5):
            made.append(number)
            yield number

    for item in prefetch(items()):
        deadline = time.monotonic() + 10
        while len(made) < min(item + 2, 5) and time.monotonic() < deadline:  # made without being asked for
            time.sleep(0.001)
        time.sleep(0.005)
        assert len(made) == min(item + 2, 5)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_comes_in_its_turn(error: BaseException) -> None:
    got: list[int] = []
    with pytest.raises(type(error)):
        for item in prefetch(failing(3, error)):
            got.append(item)
    assert got == [0, 1, 2]


def test_a_caller_that_stops_early_leaves_nothing_running() -> None:
    coming = prefetch(iter(range(100)))
    assert next(coming) == 0
    coming.close()  # type: ignore[attr-defined]


def test_calls_run_one_by_one_in_order() -> None:
    done: list[int] = []
    with BackgroundThread() as behind:
        for number in range(20):
            behind.run(lambda number=number: (time.sleep(0.001), done.append(number))[1])
        behind.wait()
        assert done == list(range(20))
        behind.run(lambda: done.append(20))
    assert done == list(range(21))


def fail() -> None:
    raise OSError(28, "No space left on device")


def test_what_a_call_raises_is_raised_at_the_next_wait_or_at_the_end() -> None:
    with BackgroundThread() as behind:
        behind.run(fail)
        with pytest.raises(OSError, match="No space"):
            behind.wait()
        behind.wait()  # said once
    with pytest.raises(OSError, match="No space"), BackgroundThread() as behind:
        behind.run(fail)


def test_what_was_handed_over_is_done_even_where_the_caller_fails_and_its_error_stands() -> None:
    done: list[int] = []
    with pytest.raises(KeyboardInterrupt), BackgroundThread() as behind:
        behind.run(fail)
        behind.run(lambda: (time.sleep(0.02), done.append(1))[1])
        raise KeyboardInterrupt
    assert done == [1]


class Glibc:
    """Notes what it is asked for; of an old one, a threshold beyond 32 MiB is refused."""

    def __init__(self, old: bool) -> None:
        self.old, self.calls = old, []

    def mallopt(self, option: int, value: int) -> int:
        self.calls.append((option, value))
        return int(not (self.old and option == -3 and value > 1 << 25))

    def malloc_trim(self, padding: int) -> int:
        self.calls.append(("trim", padding))
        return 1


@pytest.mark.parametrize("old", [False, True])
def test_freed_memory_is_kept_until_the_end_even_of_a_failure(monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    libc = Glibc(old)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    with pytest.raises(ZeroDivisionError), freed_memory_kept():
        assert (-3, 1 << 25 if old else 1 << 30) == libc.calls[-2]
        assert libc.calls[-1] == (-1, 1 << 30)
        libc.calls.clear()
        raise ZeroDivisionError
    assert libc.calls == [(-3, 1 << 25), (-1, 1 << 26), ("trim", 0)]


@pytest.mark.parametrize("found", [OSError("no such library"), TypeError("a name is needed"), object()])
def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch, found: Any) -> None:
    def load(name: None) -> Any:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(ctypes, "CDLL", load)
    done = False
    with freed_memory_kept():
        done = True
    assert done
    with pytest.raises(ZeroDivisionError), freed_memory_kept():
        raise ZeroDivisionError


def test_on_this_machine_it_can_be_entered_again_and_again() -> None:
    for _ in range(3):
        with freed_memory_kept(), freed_memory_kept():
            assert bytes(1 << 26)[-1] == 0
