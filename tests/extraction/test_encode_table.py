"""The pass over a table: the encoder goes from one window to the next without a pause, and an error loses no block."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extracting import SMALL_BLOCKS, datasets, holding, room_for, settings
from extracting import run_small_blocks as run
from headstart.cache.errors import EncoderError, StorageError
from headstart.cache.reader import open_cache
from headstart.cache.writer import CacheWriter
from headstart.stages.encoders.backend import Backend
from headstart.stages.encoders.cuda import CudaBackend
from headstart.stages.encoders.encoder import Encoder, EncoderWork
from headstart.stages.encoders.packed.backend import PackedCpuBackend
from headstart.stages.encoders.packed.forward import PackedForward
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.extract import extract
from headstart.stages.extraction.row_index import RowIndex
from headstart.stages.prefetch import BackgroundThread
from headstart.stages.progress import Event, Step
from tiny import tiny_rows

ROWS, WINDOW, WINDOWS = 90, 16, 6
Table = dict[str, list[str]]


@pytest.fixture
def table() -> Table:
    """90 rows in 6 windows of 2 blocks, without copies but for some of the first window's rows in the fourth."""
    texts = [f"{text} {' '.join(str(number))} plot" for number, (text, _) in enumerate(tiny_rows(ROWS))]
    texts[50:53] = texts[3:6]
    return {"text": texts, "label": [label for _, label in tiny_rows(ROWS)]}


class Device:
    """A device beside the machine: a thread works off what is queued, and `CudaBackend` believes that it is a GPU.

    ``events`` holds (what, window) in order: a batch was begun, is computed, was fetched. ``before`` is called with a
    batch's window before the device computes it; ``room`` is the most tokens for which there is memory.
    """

    def __init__(self, windows: dict[bytes, int]) -> None:
        self.events: list[tuple[str, int]] = []
        self.before: Callable[[int], None] = lambda window: None
        self.room = 1 << 30
        self._windows = windows
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "device")

    def encode_all(self, forward: Any, batches: Any) -> Any:
        copies: Any = self

        def begin(sequences: Any) -> Any:
            if sum(map(len, sequences)) > self.room:
                raise torch.OutOfMemoryError("CUDA out of memory")
            window = self._windows[sequences[0].tobytes()]
            self.events.append(("begun", window))
            return window, self._thread.submit(self._compute, window, forward, sequences)

        begin.mode = forward.mode  # type: ignore[attr-defined]
        yield from CudaBackend(begin, copies).encode_all(batches)  # type: ignore[arg-type]

    def on_device(self) -> Any:
        return contextlib.nullcontext()

    def to_host(self, queued: Any) -> Callable[[], Any]:
        def wait() -> Any:
            window, features = queued[0], queued[1].result()
            self.events.append(("fetched", window))
            return {name: values.numpy() for name, values in features.items()}

        return wait

    def _compute(self, window: int, forward: Any, sequences: Any) -> Any:
        self.before(window)
        with torch.inference_mode():
            features = forward(sequences)
        self.events.append(("computed", window))
        return features

    def place(self, what: str, window: int, *, last: bool = False) -> int:
        """When something happened to the first, or the last, batch of a window."""
        places = [place for place, event in enumerate(self.events) if event == (what, window)]
        return places[-1 if last else 0]


@pytest.fixture
def device(table: Table, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """Encoders run on such a device."""
    sequences, _ = EncoderSession(settings(tiny)).encoder.tokenize(table["text"])
    windows: dict[bytes, int] = {}
    for row, sequence in enumerate(sequences):
        windows.setdefault(sequence.tobytes(), row // WINDOW)
    made = Device(windows)
    monkeypatch.setattr(PackedCpuBackend, "encode_all", lambda self, batches: made.encode_all(self.forward, batches))
    yield made
    made._thread.shutdown()


def wait_for(event: threading.Event) -> None:
    """Wait for what another thread must do meanwhile; a thread that waits for this one in turn would never do it."""
    assert event.wait(60), "it did not come"


def test_the_next_window_is_begun_before_the_last_one_is_fetched(
    table: Table, device: Device, tiny: Path, tmp_path: Path
) -> None:
    run(table, tmp_path / "c.h5", tiny)
    for window in range(WINDOWS - 1):
        assert device.place("begun", window + 1) < device.place("fetched", window, last=True)
    begun = [window for what, window in device.events if what == "begun"]
    assert begun == sorted(begun) and len(begun) > 2 * WINDOWS


def test_a_window_is_prepared_while_the_device_works_on_the_one_before(
    table: Table, device: Device, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch takes until the next window's metadata is written and its batches are composed."""
    prepared, made = threading.Event(), []

    class Work(EncoderWork):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)
            if len(made) == 2:
                prepared.set()

    def before(window: int) -> None:
        if not window:
            wait_for(prepared)

    monkeypatch.setattr("headstart.stages.extraction.encode_table.EncoderWork", Work)
    device.before = before
    run(table, tmp_path / "c.h5", tiny)
    assert len(made) == WINDOWS


def test_collecting_and_writing_a_window_hold_up_no_batch_of_the_next(
    table: Table, device: Device, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first window's features are put together once all batches of the second are computed."""
    computed = threading.Event()
    whole, _ = run(table, tmp_path / "whole.h5", tiny)
    batches = device.events.count(("computed", 1))
    device.events.clear()

    def before(window: int) -> None:
        if window == 2:
            assert device.events.count(("computed", 1)) == batches
            computed.set()

    class Work(EncoderWork):
        def result(self) -> Any:
            wait_for(computed)
            return super().result()

    monkeypatch.setattr("headstart.stages.extraction.encode_table.EncoderWork", Work)
    device.before = before
    run(table, tmp_path / "c.h5", tiny)
    assert datasets(tmp_path / "c.h5") == datasets(whole.path)


BOOM = ValueError("of the fourth window")


def fail_at(step: str, patch: pytest.MonkeyPatch, marked: str, sequence: Any) -> None:
    """Let one step fail for the fourth window, which begins with a text, whose sequence this is."""
    tokenize, add_first, write_block = Encoder.tokenize, RowIndex.add_first, CacheWriter.write_block

    def tokenizing(encoder: Encoder, texts: Any, pairs: Any = None) -> Any:
        if marked in texts[:1] and len(texts) > 1:
            raise BOOM
        return tokenize(encoder, texts, pairs)

    def preparing(index: RowIndex, rows: slice) -> Any:
        if rows.start == 3 * WINDOW:
            raise BOOM
        return add_first(index, rows)

    def writing(writer: CacheWriter, block: int, **arrays: Any) -> None:
        if block == 6:
            raise BOOM
        write_block(writer, block, **arrays)

    match step:
        case "tokenizing":
            patch.setattr(Encoder, "tokenize", tokenizing)
        case "preparing":
            patch.setattr(RowIndex, "add_first", preparing)
        case "writing":
            patch.setattr(CacheWriter, "write_block", writing)
        case _:
            spoil(patch, sequence, raising=step == "encoding")


def spoil(patch: pytest.MonkeyPatch, marked: Any, *, raising: bool) -> None:
    """Let the pass fail for batches with one sequence, or give it features that are not finite."""
    original = PackedForward.__call__

    def call(self: PackedForward, sequences: Any) -> Any:
        features, found = original(self, sequences), [np.array_equal(sequence, marked) for sequence in sequences]
        if raising and any(found):
            raise BOOM
        return {name: values.masked_fill(torch.tensor(found)[:, None], np.nan) for name, values in features.items()}

    patch.setattr(PackedForward, "__call__", call)


@pytest.mark.parametrize("kind", ["device", "cores"])
@pytest.mark.parametrize("step", ["tokenizing", "preparing", "encoding", "checking", "writing"])
def test_an_error_in_a_later_window_leaves_all_blocks_before_it(
    step: str, kind: str, table: Table, tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "device":
        request.getfixturevalue("device")
    run(table, tmp_path / "whole.h5", tiny)
    marked = table["text"][3 * WINDOW]
    (sequence,), _ = EncoderSession(settings(tiny)).encoder.tokenize([marked])
    expected = (
        (EncoderError, f"row {3 * WINDOW + 1}: .* is not finite") if step == "checking" else (ValueError, "fourth")
    )
    with pytest.MonkeyPatch.context() as patch, pytest.raises(expected[0], match=expected[1]):
        fail_at(step, patch, marked, sequence)
        run(table, tmp_path / "c.h5", tiny)
    assert holding(tmp_path / "c.h5") == {0, 1, 2, 3, 4, 5}
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("headstart-")] == []
    cache, _ = run(table, tmp_path / "c.h5", tiny)
    assert cache.record["kept_blocks"] == 6
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "whole.h5")


@pytest.mark.parametrize("kind", ["device", "cores"])
def test_a_text_of_a_later_window_that_takes_too_much_memory_is_named(
    kind: str, table: Table, tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    row = 4 * WINDOW + 5
    table["text"][row] = "the film " * 40
    with pytest.MonkeyPatch.context() as patch:
        room_for(patch, 70)
        if kind == "device":
            request.getfixturevalue("device").room = 70
        with pytest.raises(StorageError, match=rf"row {row + 1}: .*82 tokens"):
            run(table, tmp_path / "c.h5", tiny)
    assert holding(tmp_path / "c.h5") == set(range(8))


def test_a_text_is_named_whose_window_is_not_the_last_that_was_begun(
    table: Table, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of its window's last batch, so that the cores have the next window's first by then."""
    sequences, _ = EncoderSession(settings(tiny)).encoder.tokenize(table["text"])
    works: list[EncoderWork] = []

    class Work(EncoderWork):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            works.append(self)

    monkeypatch.setattr("headstart.stages.extraction.encode_table.EncoderWork", Work)
    run(table, tmp_path / "whole.h5", tiny)
    failing = list(works[1].batches())[-1][-1]
    row = next(row for row, sequence in enumerate(sequences) if np.array_equal(sequence, failing))
    assert WINDOW <= row < 2 * WINDOW
    original = PackedForward.__call__

    def call(self: PackedForward, batch: Any) -> Any:
        if any(np.array_equal(sequence, failing) for sequence in batch):
            raise MemoryError
        return original(self, batch)

    monkeypatch.setattr(PackedForward, "__call__", call)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with pytest.raises(StorageError, match=rf"row {row + 1}: .* {len(failing)} tokens"):
        run(table, tmp_path / "c.h5", tiny)


def test_every_backend_writes_the_same_bytes_resumed_or_not(
    table: Table, tiny: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Batches one after the other, of a run whose steps wait for each other, have the bytes of all others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.stages.extraction.encode_table.prefetch", in_one_thread)
        patch.setattr(BackgroundThread, "run", lambda self, call: call())
        patch.setattr(PackedCpuBackend, "encode_all", Backend.encode_all)
        run(table, tmp_path / "slow.h5", tiny)
    expected = datasets(tmp_path / "slow.h5")
    assert datasets(run(table, tmp_path / "cores.h5", tiny)[0].path) == expected
    request.getfixturevalue("device")
    assert datasets(run(table, tmp_path / "device.h5", tiny)[0].path) == expected
    for batches in range(0, 20, 3):
        out = tmp_path / f"{batches}.h5"
        with interrupted_after_fetching(batches), pytest.raises(KeyboardInterrupt):
            run(table, out, tiny)
        assert datasets(run(table, out, tiny)[0].path) == expected


def in_one_thread(items: Iterator[Any]) -> Iterator[Any]:
    """The same items, each made when it is asked for."""
    yield from items


@contextlib.contextmanager
def interrupted_after_fetching(batches: int) -> Iterator[None]:
    """Press Ctrl-C when so many batches were fetched."""
    original, left = EncoderWork.take, batches

    def take(self: EncoderWork, *arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        original(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EncoderWork, "take", take)
        yield


def test_progress_tells_of_no_window_before_its_turn(table: Table, tiny: Path, tmp_path: Path) -> None:
    """Later windows are prepared by then, and their long texts known."""
    steps: list[Step] = []

    def report(event: Event) -> None:
        if isinstance(event, Step) and event.phase == "encoding":
            steps.append(event)

    table["text"][2 * WINDOW] = "the film was very good " * 9
    options = settings(tiny, **SMALL_BLOCKS, long="chunks", max_length=32)
    chunks = -(-open_cache(extract(table, tmp_path / "c.h5", options, report=report)).lengths.astype(int) // 32)
    assert chunks[:WINDOW].max() == 1 < chunks.max()
    for before, after in itertools.pairwise(steps):
        assert before.done <= after.done and before.tokens <= after.tokens
    for step in steps:
        so_far = chunks[: -(-step.done // WINDOW) * WINDOW]
        split = so_far[so_far > 1]
        assert step.detail == (f"{len(split)} texts in {split.sum()} chunks" if len(split) else "")
    assert steps[-1].done == ROWS
