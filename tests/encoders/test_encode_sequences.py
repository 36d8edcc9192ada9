"""The one unit of work: sequences in, features out, in the order of the sequences."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from extracting import settings
from headstart.stages.encoders.backend import Backend
from headstart.stages.encoders.encoder import BatchReport, Encoder, EncoderWork, encode_in_turn, encode_sequences
from headstart.stages.encoders.memory import MemoryFullError
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.settings import ForwardMode

TEXTS = ["good film", "the plot was bad", "good film", "a", "very very very good", "a", "love", "the phone broke"]


@pytest.fixture(scope="module")
def encoder(tiny: Path) -> Encoder:
    return EncoderSession(settings(tiny, max_length=100, features=("cls", "mean"))).encoder


def alone(encoder: Encoder, sequences: Any) -> dict[str, Any]:
    each = [encoder.backend.encode([sequence]) for sequence in sequences]
    return {name: np.concatenate([features[name] for features in each]) for name in encoder.features}


@pytest.mark.parametrize("batch_tokens", [1, 8, 1000])
@pytest.mark.parametrize("path", ForwardMode)
def test_equal_sequences_are_encoded_once_and_the_order_stays(
    encoder: Encoder, encoded: list[list[int]], batch_tokens: int, path: ForwardMode
) -> None:
    sequences, _ = encoder.tokenize(TEXTS)
    features = encode_sequences(encoder, sequences, batch_tokens=batch_tokens, path=path)
    assert sorted(encoded) == sorted(sequence.tolist() for sequence in encoder.tokenize(sorted(set(TEXTS)))[0])
    assert list(features) == ["cls", "mean"]
    for name, expected in alone(encoder, sequences).items():
        assert features[name].shape == (8, encoder.widths["cls"]) and features[name].dtype == np.float32
        np.testing.assert_allclose(features[name], expected, atol=1e-6)
    encoded.clear()
    encode_sequences(encoder, sequences, distinct=True, batch_tokens=batch_tokens, path=path)
    assert len(encoded) == 8


@pytest.mark.parametrize("distinct", [True, False])
def test_a_batch_in_which_nothing_is_needed_is_left_out_and_the_others_stay(encoder: Encoder, distinct: bool) -> None:
    sequences, _ = encoder.tokenize(TEXTS)
    reports: dict[str, list[BatchReport]] = {"all": [], "needed": []}
    options: dict[str, Any] = {"distinct": distinct, "batch_tokens": 8}
    encode_sequences(encoder, sequences, **options, on_batch=reports["all"].append)
    needed = np.zeros(8, bool)
    needed[[2, 4]] = True
    features = encode_sequences(encoder, sequences, **options, needed=needed, on_batch=reports["needed"].append)
    batches = {kind: [report.sequences.tolist() for report in found] for kind, found in reports.items()}
    copies = {2} if distinct else {0, 2}  # the first of equal sequences stands for all of them
    assert batches["needed"] == [batch for batch in batches["all"] if {4, *copies} & set(batch)]
    assert 0 < len(batches["needed"]) < len(batches["all"])
    np.testing.assert_allclose(features["cls"][needed], alone(encoder, sequences)["cls"][needed], atol=1e-6)


def test_each_batch_is_reported(encoder: Encoder) -> None:
    sequences, _ = encoder.tokenize(TEXTS)
    reports: list[BatchReport] = []
    features = encode_sequences(encoder, sequences, batch_tokens=8, on_batch=reports.append)
    assert [(report.number, report.batches) for report in reports] == [
        (n, len(reports)) for n in range(1, 1 + len(reports))
    ]
    assert sorted(np.concatenate([report.sequences for report in reports])) == [0, 1, 3, 4, 6, 7]
    for report in reports:
        assert report.tokens == sum(len(sequences[number]) for number in report.sequences) and report.seconds > 0
        np.testing.assert_array_equal(report.features["mean"], features["mean"][report.sequences])


@pytest.mark.parametrize("distinct", [True, False])
def test_a_sequence_that_the_memory_does_not_hold_is_named_by_its_number(
    encoder: Encoder, distinct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, _ = encoder.tokenize(TEXTS)
    original = Backend._run

    def run(self: Backend, batch: Any) -> Any:
        if any(np.array_equal(sequence, sequences[4]) for sequence in batch):
            raise MemoryError
        return original(self, batch)

    monkeypatch.setattr(type(encoder.backend), "_run", run)
    with pytest.raises(MemoryFullError) as raised:
        encode_sequences(encoder, sequences, distinct=distinct)
    assert raised.value.sequence == 4


def test_no_sequences_have_no_features(encoder: Encoder) -> None:
    assert encode_sequences(encoder, [])["cls"].shape == (0, encoder.widths["cls"])


def works(encoder: Encoder, *counts: int, **options: Any) -> list[EncoderWork]:
    """Works of so many of the texts' sequences each."""
    sequences, _ = encoder.tokenize(TEXTS)
    return [EncoderWork(encoder, sequences[:count], batch_tokens=8, **options) for count in counts]


def test_works_come_in_order_also_those_without_batches(encoder: Encoder) -> None:
    expected, given = alone(encoder, encoder.tokenize(TEXTS)[0]), works(encoder, 0, 8, 0, 0, 3, 8, 0)
    done = []
    for work in encode_in_turn(encoder, iter(given)):
        assert work.is_done
        done.append(work)
    assert done == given
    for work, count in zip(done, (0, 8, 0, 0, 3, 8, 0), strict=True):
        np.testing.assert_allclose(work.result()["mean"], expected["mean"][:count], atol=1e-6)


def test_without_batches_no_work_waits_for_later_ones(encoder: Encoder) -> None:
    """A long table of which all is there has as many of them as windows: they must not gather in memory."""
    made: list[EncoderWork] = []

    def coming() -> Iterator[EncoderWork]:
        for work in works(encoder, *[0] * 100):
            made.append(work)
            yield work

    for number, work in enumerate(encode_in_turn(encoder, coming())):
        assert work is made[number] and len(made) <= number + 2 + torch.get_num_threads()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_row_of_the_work_that_comes_next_is_named(
    encoder: Encoder, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, _ = encoder.tokenize([*TEXTS, "fine phone"])
    given = [EncoderWork(encoder, sequences[:8], batch_tokens=8) for _ in range(3)]
    given[failing] = EncoderWork(encoder, [*sequences[:5], sequences[8]], batch_tokens=8)
    original = Backend._run

    def run(self: Backend, batch: Any) -> Any:
        if any(np.array_equal(sequence, sequences[8]) for sequence in batch):
            raise MemoryError
        return original(self, batch)

    monkeypatch.setattr(type(encoder.backend), "_run", run)
    done = []
    with pytest.raises(MemoryFullError) as raised:
        for work in encode_in_turn(encoder, given):
            done.append(work)
    assert (done, raised.value.sequence) == (given[:failing], 5)


def test_an_error_in_making_a_work_is_raised_when_the_works_before_are_done(encoder: Encoder) -> None:
    given, done = works(encoder, 8, 3), []

    def coming() -> Iterator[EncoderWork]:
        yield from given
        raise ValueError("no tokens")

    with pytest.raises(ValueError, match="no tokens"):
        for work in encode_in_turn(encoder, coming()):
            done.append(work)
    assert done == given


def test_making_a_work_does_not_count_as_waiting_for_the_encoder(
    encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    reports: list[BatchReport] = []

    def spend(seconds: float) -> None:
        nonlocal now
        now += seconds

    def coming() -> Iterator[EncoderWork]:
        for work in works(encoder, 8, 8, on_batch=reports.append):
            spend(1000)
            yield work
        spend(1000)

    class Slow(Backend):
        def _run(self, sequences: Any) -> Any:
            spend(1)
            return super()._run(sequences)

    monkeypatch.setattr("headstart.stages.encoders.encoder.time", SimpleNamespace(perf_counter=lambda: now))
    monkeypatch.setattr(encoder, "backend", Slow(encoder.backend.forward))
    list(encode_in_turn(encoder, coming()))
    assert [report.seconds for report in reports] == [1] * len(reports)
