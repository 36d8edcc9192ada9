"""Products by weights that were laid out: those of torch's own linear layer, for any number of rows."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from headstart.stages.encoders.packed import linear_cpu, linear_int8
from headstart.stages.encoders.packed.linear import SHAPE_ROWS, Linear, padded_rows
from headstart.stages.encoders.packed.linear_cpu import MklLinear, OneDnnLinear, make_linear
from headstart.stages.encoders.packed.linear_int8 import SPLIT_ROWS, Int8SplitLinear
from processor import needs_digits

ROWS = 128
"""What the weights are laid out for."""
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 0.05}
WIDTHS = [(48, 48), (48, 144), (144, 48), (33, 7)]
needs_mkl = pytest.mark.skipif(not linear_cpu._has("mkl", "_mkl_linear"), reason="this torch has no MKL")
needs_onednn = pytest.mark.skipif(not linear_cpu._has("mkldnn", "_linear_pointwise"), reason="this torch has no oneDNN")
needs_bfloat16 = pytest.mark.skipif(
    not linear_cpu._onednn_multiplies(torch.bfloat16), reason="oneDNN has no bfloat16 on this processor"
)
KINDS = [
    pytest.param(MklLinear, torch.float32, marks=needs_mkl, id="mkl-float32"),
    pytest.param(OneDnnLinear, torch.float32, marks=needs_onednn, id="onednn-float32"),
    pytest.param(Int8SplitLinear, torch.float32, marks=needs_digits, id="digits-float32"),
    pytest.param(OneDnnLinear, torch.bfloat16, marks=[needs_onednn, needs_bfloat16], id="onednn-bfloat16"),
]
Kind = type[MklLinear | OneDnnLinear | Int8SplitLinear]


def made(kind: Kind, width: int, out: int, rows: int, dtype: torch.dtype) -> tuple[Linear, Linear, torch.Tensor]:
    torch.manual_seed(width + out + rows)
    weight, bias = torch.randn(out, width) / width**0.5, torch.randn(out)
    weight, bias = weight.to(dtype), bias.to(dtype)
    return Linear(weight, bias), kind(weight, bias, ROWS), torch.randn(rows, width).to(dtype)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize("rows", [1, 3, 64, ROWS, 321])
@pytest.mark.parametrize(("width", "out"), WIDTHS)
def test_a_product_is_the_plain_one(kind: Kind, width: int, out: int, rows: int, dtype: torch.dtype) -> None:
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
def test_a_short_bias_is_of_the_first_outputs(kind: Kind, rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias, values = (torch.randn(size).to(dtype) for size in ((96, 48), (32,), (rows, 48)))
    expected = torch.nn.functional.linear(values, weight, torch.cat([bias, bias.new_zeros(64)]))
    close = {"atol": 8 * TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    with torch.inference_mode():
        torch.testing.assert_close(kind(weight, bias, ROWS)(values), expected, **close)
        torch.testing.assert_close(Linear(weight, bias)(values), expected, **close)


@needs_onednn
@pytest.mark.parametrize("intel", [True, False])
def test_gelu_is_the_same_within_the_product_and_after_it(intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_cpu, "_made_by_intel", lambda: intel)
    plain, ours, values = made(OneDnnLinear, 48, 144, 64, torch.float32)
    with torch.inference_mode():
        expected = torch.nn.functional.gelu(torch.nn.functional.linear(values, plain._weight, plain._bias))
        torch.testing.assert_close(ours.gelu(values), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "dtype"), KINDS[:3])
def test_gelu_is_the_exact_one(kind: Kind, dtype: torch.dtype) -> None:
    """By the error function in float64; the tanh approximation is 5e-4 away from it."""
    _, ours, values = made(kind, 48, 144, 64, dtype)
    with torch.inference_mode():
        rows = ours(values).double()
        exact = rows * 0.5 * (1 + torch.erf(rows / 2**0.5))
        torch.testing.assert_close(ours.gelu(values).double(), exact, atol=1e-6, rtol=0)


EVEN = {
    "even": lambda values: values,
    "after a GELU": lambda values: torch.nn.functional.gelu(3 * values),
    "three large columns": lambda values: values * torch.where(torch.arange(512) % 171 == 5, 40, 1),
    "as many large columns as are set apart": lambda values: values * torch.where(torch.arange(512) % 35 == 5, 30, 1),
    "three columns far below zero": lambda values: values - torch.where(torch.arange(512) % 171 == 5, 40, 0),
    "rows of all sizes": lambda values: values * torch.logspace(-12, 12, len(values))[:, None],
}
"""Where no column that is left outweighs the rest of a row."""
UNEVEN = {
    "heavy tails": lambda values: values**3,
    "more large columns than are set apart": lambda values: values * torch.where(torch.arange(512) % 25 == 5, 30, 1),
    "one large number a row": lambda values: values.scatter(1, torch.arange(len(values))[:, None] * 7 % 512, 30.0),
}


@needs_digits
@pytest.mark.parametrize("rows", [64, SPLIT_ROWS + 64])
@pytest.mark.parametrize("name", [*EVEN, *UNEVEN])
def test_digits_lose_about_what_float32_rounds_off(name: str, rows: int) -> None:
    """By float64, for each number against the product of both vectors' lengths: float32 has 24 bits. Where single
    numbers outweigh the rest of their row they lose several times as much."""
    torch.manual_seed(0)
    values, weight = (EVEN | UNEVEN)[name](torch.randn(rows, 512)), 0.03 * torch.randn(1536, 512)
    weight[7] *= 1000
    weight[8] = 0
    weight[9:13, 100] = 3  # outweighs the rest of its row
    exact = values.double() @ weight.double().T
    lengths = (values.double().norm(dim=1, keepdim=True) * weight.double().norm(dim=1)).clamp_min(1e-30)
    bias = torch.zeros(1536)
    errors = [((p(values) - exact) / lengths) for p in (Int8SplitLinear(weight, bias, rows), Linear(weight, bias))]
    ours, plain = (error.pow(2).mean().sqrt() * 2**24 for error in errors)
    assert ours < 2 and errors[0].abs().max() * 2**24 < 32
    if name in EVEN:
        assert ours < 2 * plain


@needs_digits
@pytest.mark.parametrize("wrong", [float("inf"), -float("inf"), float("nan")])
@pytest.mark.parametrize("count", [1, 40])
def test_digits_hide_nothing_that_is_not_finite(wrong: float, count: int) -> None:
    """Nor do they carry it to another row, whether its column is set apart or not."""
    torch.manual_seed(0)
    values, weight, bias = torch.randn(8, 64), torch.randn(128, 64) / 8, torch.randn(128)
    expected = Linear(weight, bias)(values)
    values[3, :count] = wrong
    found = Int8SplitLinear(weight, bias, 64)(values)
    assert not found[3].isfinite().any()
    kept = torch.arange(8) != 3
    torch.testing.assert_close(found[kept], expected[kept], atol=1e-5, rtol=0)


@needs_digits
def test_digits_are_of_the_numbers_wherever_they_lie() -> None:
    torch.manual_seed(0)
    values, weight = torch.randn(64, 80).T, torch.randn(64, 128).T / 8
    product = Int8SplitLinear(weight, torch.zeros(128), 64)
    torch.testing.assert_close(product(values), values @ weight.T, atol=1e-5, rtol=0)


@needs_digits
def test_digits_of_nothing_leave_the_bias() -> None:
    bias = torch.randn(128)
    product = Int8SplitLinear(torch.zeros(128, 64), bias, 64)
    assert product(torch.zeros(0, 64)).shape == (0, 128)
    found = product(torch.zeros(5, 64))
    assert torch.equal(found, bias.expand(5, 128))
    digits, unit = linear_int8.split(torch.zeros(5, 64))
    assert (digits == linear_int8.ZERO_DIGIT).all() and unit.isfinite().all()


def test_rows_are_rounded_up_to_few_numbers() -> None:
    for rows in range(1, 4 * SHAPE_ROWS):
        step = SHAPE_ROWS if rows > SHAPE_ROWS else SHAPE_ROWS // 4  # a short text is not padded much
        assert padded_rows(rows) % step == 0 and rows <= padded_rows(rows) < rows + step
    assert padded_rows(2048) == 2048


@needs_mkl
@needs_onednn
@pytest.mark.parametrize(
    ("name", "dtype", "kind"),
    [
        ("Intel Xeon", torch.float32, MklLinear),
        ("AMD EPYC", torch.float32, OneDnnLinear),
        ("", torch.float32, OneDnnLinear),
        pytest.param("Intel Xeon", torch.bfloat16, OneDnnLinear, marks=needs_bfloat16),
    ],
)
def test_the_processor_decides_which_library_multiplies(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, kind: type[Linear]
) -> None:
    monkeypatch.setattr(linear_cpu, "cpu_capabilities", lambda: {"cpu_name": name})
    assert type(make_linear(torch.ones(4, 4, dtype=dtype), torch.zeros(4, dtype=dtype), rows=64)) is kind


@needs_mkl
@needs_digits
@pytest.mark.parametrize(
    ("size", "rows", "kind"),
    [
        ((2304, 768), 256, Int8SplitLinear),
        ((2304, 768), 255, MklLinear),
        ((2303, 768), 256, MklLinear),
        ((2301, 767), 256, MklLinear),
    ],
)
def test_amx_multiplies_digits_where_that_pays(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], rows: int, kind: type[Linear]
) -> None:
    monkeypatch.setattr(linear_cpu, "cpu_capabilities", lambda: {"cpu_name": "Intel Xeon", "amx_int8": True})
    assert type(make_linear(torch.ones(size), torch.zeros(size[0]), rows=rows)) is kind
    assert type(make_linear(torch.ones(size).bfloat16(), torch.zeros(size[0]).bfloat16(), rows=rows)) is OneDnnLinear


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_that_onednn_lacks_is_multiplied_by_torch(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(linear_cpu, "_onednn_multiplies", lambda dtype: dtype == torch.float32)
    plain = make_linear(torch.ones(4, 4, dtype=dtype), torch.zeros(4, dtype=dtype), rows=64)
    assert type(plain) is Linear and plain(torch.ones(3, 4, dtype=dtype)).tolist() == [[4.0] * 4] * 3


def test_digits_are_left_where_octets_are_not_multiplied_exactly() -> None:
    """oneDNN is held to instructions of before VNNI, which cut sums at 16 bits."""
    asked = "linear_int8.products_are_exact(), linear_cpu._split_pays(3072, 768, 512)"
    program = f"from headstart.stages.encoders.packed import linear_cpu, linear_int8; print({asked})"
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "False"]


def test_where_a_library_is_missing_another_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    ours = make_linear(torch.ones(4, 4), torch.zeros(4), rows=64)
    assert type(ours) in (OneDnnLinear, Linear)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    plain = make_linear(torch.ones(4, 4), torch.zeros(4), rows=64)
    assert type(plain) is Linear
    assert torch.equal(ours(torch.ones(3, 4)), plain(torch.ones(3, 4)))
