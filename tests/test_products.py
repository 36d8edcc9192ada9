"""Products by oneDNN: those of torch's own linear layer, for any number of rows."""

from __future__ import annotations

import pytest
import torch
from headstart.stages.products import SHAPE_ROWS, FusedProduct, Product, make_product, padded_rows

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
WIDTHS = [(48, 48), (48, 144), (144, 48), (33, 7)]
fused = pytest.mark.skipif(
    type(make_product(torch.zeros(1, 1), torch.zeros(1), rows=1)) is Product, reason="this torch has no fused products"
)


def made(width: int, out: int, rows: int, dtype: torch.dtype) -> tuple[Product, FusedProduct, torch.Tensor]:
    torch.manual_seed(width + out + rows)
    weight, bias = torch.randn(out, width) / width**0.5, torch.randn(out)
    weight, bias = weight.to(dtype), bias.to(dtype)
    return Product(weight, bias), FusedProduct(weight, bias, 128), torch.randn(rows, width).to(dtype)


@fused
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("rows", [1, 3, 64, 128, 321])
@pytest.mark.parametrize(("width", "out"), WIDTHS)
def test_a_fused_product_is_the_plain_one(width: int, out: int, rows: int, dtype: torch.dtype) -> None:
    plain, ours, values = made(width, out, rows, dtype)
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    before = values.clone()
    with torch.inference_mode():
        torch.testing.assert_close(ours(values), plain(values), **close)
        torch.testing.assert_close(ours.gelu(values), plain.gelu(values), **close)
        for kind in {dtype, torch.float32}:
            residual = torch.randn(rows, out).to(kind)
            kept = residual.clone()
            found = ours.plus(values, residual)
            assert found.dtype == kind
            torch.testing.assert_close(found, plain.plus(values, residual), **close)
            assert torch.equal(residual, kept)
    assert torch.equal(values, before)


@fused
def test_gelu_is_the_exact_one() -> None:
    """By the error function in float64; the tanh approximation is 5e-4 away from it."""
    _, ours, values = made(48, 144, 64, torch.float32)
    with torch.inference_mode():
        rows = ours(values).double()
        exact = rows * 0.5 * (1 + torch.erf(rows / 2**0.5))
        torch.testing.assert_close(ours.gelu(values).double(), exact, atol=1e-6, rtol=0)


def test_rows_are_rounded_up_to_few_numbers() -> None:
    for rows in range(1, 4 * SHAPE_ROWS):
        assert padded_rows(rows) % SHAPE_ROWS == 0 and rows <= padded_rows(rows) < rows + SHAPE_ROWS
    assert padded_rows(2048) == 2048


def test_where_the_operators_are_missing_the_plain_ones_do_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert type(make_product(torch.zeros(4, 4), torch.zeros(4), rows=64)) is Product
