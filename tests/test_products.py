"""Products by weights that were laid out: those of torch's own linear layer, for any number of rows."""

from __future__ import annotations

import pytest
import torch
from headstart.stages import products
from headstart.stages.products import SHAPE_ROWS, MklProduct, OneDnnProduct, Product, make_product, padded_rows

ROWS = 128
"""What the weights are laid out for."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
WIDTHS = [(48, 48), (48, 144), (144, 48), (33, 7)]
needs_mkl = pytest.mark.skipif(not products._has("mkl", "_mkl_linear"), reason="this torch has no MKL")
needs_onednn = pytest.mark.skipif(not products._has("mkldnn", "_linear_pointwise"), reason="this torch has no oneDNN")
KINDS = [
    pytest.param(MklProduct, torch.float32, marks=needs_mkl, id="mkl-float32"),
    pytest.param(OneDnnProduct, torch.float32, marks=needs_onednn, id="onednn-float32"),
    pytest.param(OneDnnProduct, torch.bfloat16, marks=needs_onednn, id="onednn-bfloat16"),
]


def made(
    kind: type[MklProduct | OneDnnProduct], width: int, out: int, rows: int, dtype: torch.dtype
) -> tuple[Product, Product, torch.Tensor]:
    torch.manual_seed(width + out + rows)
    weight, bias = torch.randn(out, width) / width**0.5, torch.randn(out)
    weight, bias = weight.to(dtype), bias.to(dtype)
    return Product(weight, bias), kind(weight, bias, ROWS), torch.randn(rows, width).to(dtype)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("rows", [1, 3, 64, ROWS, 321])
@pytest.mark.parametrize(("width", "out"), WIDTHS)
def test_a_product_is_the_plain_one(
    kind: type[MklProduct | OneDnnProduct], width: int, out: int, rows: int, dtype: torch.dtype
) -> None:
    plain, ours, values = made(kind, width, out, rows, dtype)
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    before = values.clone()
    with torch.inference_mode():
        expected = torch.nn.functional.linear(values, plain._weight, plain._bias)
        torch.testing.assert_close(ours(values), expected, **close)
        torch.testing.assert_close(ours.gelu(values), torch.nn.functional.gelu(expected), **close)
        for residual_dtype in {dtype, torch.float32}:
            residual = torch.randn(rows, out).to(residual_dtype)
            kept = residual.clone()
            found = ours.plus(values, residual)
            assert found.dtype == residual_dtype
            torch.testing.assert_close(found, expected + residual, **close)
            assert torch.equal(residual, kept)
    assert torch.equal(values, before)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("rows", [64, ROWS])
def test_a_short_bias_is_of_the_first_outputs(
    kind: type[MklProduct | OneDnnProduct], rows: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight, bias, values = (torch.randn(size).to(dtype) for size in ((96, 48), (32,), (rows, 48)))
    expected = torch.nn.functional.linear(values, weight, torch.cat([bias, bias.new_zeros(64)]))
    close = {"atol": 8 * TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    with torch.inference_mode():
        torch.testing.assert_close(kind(weight, bias, ROWS)(values), expected, **close)
        torch.testing.assert_close(Product(weight, bias)(values), expected, **close)


@needs_onednn
@pytest.mark.parametrize("intel", [True, False])
def test_gelu_is_the_same_within_the_product_and_after_it(intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_made_by_intel", lambda: intel)
    plain, ours, values = made(OneDnnProduct, 48, 144, 64, torch.float32)
    with torch.inference_mode():
        expected = torch.nn.functional.gelu(torch.nn.functional.linear(values, plain._weight, plain._bias))
        torch.testing.assert_close(ours.gelu(values), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "dtype"), KINDS[:2])
def test_gelu_is_the_exact_one(kind: type[MklProduct | OneDnnProduct], dtype: torch.dtype) -> None:
    """By the error function in float64; the tanh approximation is 5e-4 away from it."""
    _, ours, values = made(kind, 48, 144, 64, dtype)
    with torch.inference_mode():
        rows = ours(values).double()
        exact = rows * 0.5 * (1 + torch.erf(rows / 2**0.5))
        torch.testing.assert_close(ours.gelu(values).double(), exact, atol=1e-6, rtol=0)


def test_rows_are_rounded_up_to_few_numbers() -> None:
    for rows in range(1, 4 * SHAPE_ROWS):
        assert padded_rows(rows) % SHAPE_ROWS == 0 and rows <= padded_rows(rows) < rows + SHAPE_ROWS
    assert padded_rows(2048) == 2048


@needs_mkl
@needs_onednn
@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        ("Intel Xeon", torch.float32, MklProduct),
        ("AMD EPYC", torch.float32, OneDnnProduct),
        ("", torch.float32, OneDnnProduct),
        ("Intel Xeon", torch.bfloat16, OneDnnProduct),
    ],
)
def test_the_processor_decides_which_library_multiplies(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, kind: type[Product]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": name})
    assert type(make_product(torch.ones(4, 4, dtype=dtype), torch.zeros(4, dtype=dtype), rows=64)) is kind


def test_where_a_library_is_missing_another_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    ours = make_product(torch.ones(4, 4), torch.zeros(4), rows=64)
    assert type(ours) in (OneDnnProduct, Product)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = make_product(torch.ones(4, 4), torch.zeros(4), rows=64)
    assert type(plain) is Product
    assert torch.equal(ours(torch.ones(3, 4)), plain(torch.ones(3, 4)))
