"""The order of the rows, their batches and their dropout masks."""

from __future__ import annotations

import numpy as np
import pytest
from headstart.stages.heads.sampling import (
    dropout_threshold,
    epoch_order,
    keep_scale,
    random_bits,
    training_batches,
)
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 5), st.integers(1, 5))
def test_an_epoch_has_every_row_once(rows: int, batch_size: int, seed: int, epoch: int) -> None:
    order = epoch_order(rows, batch_size=batch_size, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(rows))
    assert np.array_equal(order, epoch_order(rows, batch_size=batch_size, seed=seed, epoch=epoch))


def test_orders_differ_by_seed_and_epoch_and_runs_have_any_offset() -> None:
    orders = [epoch_order(5000, batch_size=4096, seed=seed, epoch=epoch) for seed in (0, 1) for epoch in (1, 2, 3)]
    assert len({order.tobytes() for order in orders}) == 6
    starts = [np.bincount(order[np.flatnonzero(np.diff(order, prepend=-9) != 1)] % 32).argmax() for order in orders]
    assert len(set(starts)) > 1  # the offset of the runs changes from epoch to epoch


def test_a_batch_of_a_table_sorted_by_class_holds_every_class_in_its_share() -> None:
    """100,000 sorted rows. A batch has 128 runs, so the share of a class deviates by at most 4 x 0.5 / sqrt(128)."""
    labels = np.repeat([0, 1, 2], [20_000, 30_000, 50_000])
    for batch_size in (4096, 256, 32):
        order = epoch_order(len(labels), batch_size=batch_size, seed=0, epoch=1)
        shares = [np.bincount(labels[order[at : at + batch_size]], minlength=3) / batch_size for at in (0, batch_size)]
        runs = min(batch_size, max(64, batch_size // 32))
        for share in shares:
            np.testing.assert_allclose(share, [0.2, 0.3, 0.5], atol=4 * 0.5 / np.sqrt(runs))


@pytest.mark.parametrize("dropout", [0.1, 0.3, 0.5, 0.85])
def test_masks_have_their_rate_and_scale_and_are_independent(dropout: float) -> None:
    rows, width = 1024, 500
    masks = []
    for batches in training_batches(rows, width, epochs=2, batch_size=512, dropout=dropout, seed=5):
        masks.append(np.concatenate([mask for _, mask in batches]))
    kept = [(mask > 0).astype(np.float64) for mask in masks]
    deviation = np.sqrt(dropout * (1 - dropout))
    for mask, keep in zip(masks, kept, strict=True):
        assert set(np.unique(mask)) == {np.float32(0), np.float32(keep_scale(dropout))}
        assert abs(keep.mean() - (1 - dropout)) < 4 * deviation / np.sqrt(rows * width)
        # Columns, rows, and neighbours in both directions stay within 4.5 standard deviations.
        assert np.abs(keep.mean(0) - (1 - dropout)).max() < 4.5 * deviation / np.sqrt(rows)
        assert np.abs(keep.mean(1) - (1 - dropout)).max() < 4.5 * deviation / np.sqrt(width)
        for a, b in ((keep[1:], keep[:-1]), (keep[:, 1:], keep[:, :-1]), (keep[256:], keep[:-256])):
            assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4.5 / np.sqrt(a.size)
    assert abs(np.corrcoef(kept[0].ravel(), kept[1].ravel())[0, 1]) < 4.5 / np.sqrt(rows * width)


@given(st.floats(0, 0.999))
def test_the_scale_matches_the_actual_dropout_rate(dropout: float) -> None:
    """Of 65,536 equally likely values, `dropout_threshold` are dropped; the scale is 1 / (the others' share)."""
    share = dropout_threshold(dropout) / 65536
    assert abs(share - dropout) <= 1 / 131072
    assert keep_scale(dropout) == pytest.approx(1 / (1 - share), rel=1e-15)


def test_random_bits_are_uniform() -> None:
    bits = random_bits(256, 768, seed=0, epoch=1, chunk=3)
    counts = np.bincount(bits.ravel() >> 8, minlength=256)
    expected = bits.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 4 * np.sqrt(2 * 255)  # chi squared
    counts = np.bincount(bits.ravel() & 255, minlength=256)
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 4 * np.sqrt(2 * 255)


def test_masks_of_several_rates_are_nested() -> None:
    low, high = (
        np.concatenate(
            [mask for _, mask in next(training_batches(500, 20, epochs=1, batch_size=128, dropout=p, seed=0))]
        )
        for p in (0.2, 0.6)
    )
    assert ((high > 0) <= (low > 0)).all()
