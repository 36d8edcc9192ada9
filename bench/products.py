"""A BERT layer's products by each library: how fast, beside the machine's own rate of multiplying matrices.

    .venv/bin/python bench/products.py [--rows 2048] [--width 768] [--apart 16]

Ways take turns; shown is the median over rounds of the ratio to torch.mm of (2048 x 768) by (768 x 3072) in float32,
timed just before. `headstart.stages.encoders.packed.linear_cpu.make_linear` chooses by what this prints.
The rounded ones take rows in float32 and give them, as `Int8Linear` does.
With ``--apart``, oneDNN also gets an input with so many more numbers from row to row: rows of 4,096 bytes share places
in the cache.
"""

from __future__ import annotations

import argparse
import statistics
import time
import unittest.mock
from collections.abc import Callable
from typing import Any

import torch
from facts import cpu_name
from headstart.stages.encoders.packed import linear_rounded
from headstart.stages.encoders.packed.linear import Linear
from headstart.stages.encoders.packed.linear_cpu import MklLinear, OneDnnLinear
from headstart.stages.encoders.packed.linear_int8 import Int8SplitLinear
from headstart.stages.encoders.packed.linear_rounded import Int8Linear

ROUNDS = 5
SECONDS = 0.25


def rounded(weight: torch.Tensor, bias: torch.Tensor, rows: int) -> Linear:
    """A layer of rounded numbers, without columns apart: by the compiled loops where they are the fastest."""
    return Int8Linear(weight, bias, rows, torch.zeros(0, dtype=torch.int64))


def rounded_by_onednn(weight: torch.Tensor, bias: torch.Tensor, rows: int) -> Linear:
    """The same by oneDNN's product."""
    with unittest.mock.patch.object(linear_rounded, "compiled_linear", lambda weight: None):
        return rounded(weight, bias, rows)


KINDS: dict[str, Callable[[torch.Tensor, torch.Tensor, int], Linear]] = {
    "plain": lambda weight, bias, rows: Linear(weight, bias),
    "MKL, laid out": MklLinear,
    "oneDNN, laid out": OneDnnLinear,
    "8-bit digits": Int8SplitLinear,
    "rounded, oneDNN": rounded_by_onednn,
    "rounded, compiled": rounded,
}


class RowsApart(OneDnnLinear):
    """The same, of an input whose rows are further apart."""


FLOAT32_ALONE = (MklLinear, Int8SplitLinear, rounded_by_onednn, rounded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--apart", type=int, default=0)
    given = parser.parse_args()
    if given.apart:
        KINDS["oneDNN, rows apart"] = RowsApart
    width, half = given.width, torch.ops.mkldnn._is_mkldnn_bf16_supported()
    dtypes = [torch.float32, *([torch.bfloat16] if half else [])]
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, {given.rows:,} rows\n")
    print("| (in, out) | dtype | " + " | ".join(KINDS) + " |\n|---|---|" + "---|" * len(KINDS))
    for size in ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)):
        for dtype in dtypes:
            ratios = [f"{ratio:.2f}" if ratio else "" for ratio in compared(given.rows, *size, dtype, given.apart)]
            print(f"| {size} | {str(dtype).removeprefix('torch.')} | {' | '.join(ratios)} |", flush=True)
    weight, bias = torch.randn(4 * width, width), torch.randn(4 * width)
    spent = [f"{name} {seconds(kind, weight, bias, given.rows) * 1000:.1f} ms" for name, kind in KINDS.items()]
    print(f"\nto lay out a weight of {(width, 4 * width)} in float32: {', '.join(spent)}")


@torch.inference_mode()
def seconds(kind: Callable[[torch.Tensor, torch.Tensor, int], Linear], *given: Any) -> float:
    """What it takes to make a product; the median of `ROUNDS`, after one that is not timed."""
    kind(*given)
    taken = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        kind(*given)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


@torch.inference_mode()
def compared(rows: int, width: int, out: int, dtype: torch.dtype, apart: int) -> list[float | None]:
    """For each kind of product, its rate as a share of the reference; None where it has no such dtype."""
    left, right, found = torch.randn(2048, 768), torch.randn(768, 3072), torch.empty(2048, 3072)
    values, weight, bias = (torch.randn(size).to(dtype) for size in ((rows, width), (out, width), (out,)))
    further = torch.randn(rows, width + apart).to(dtype)[:, :width]
    kinds = [kind for kind in KINDS.values() if dtype == torch.float32 or kind not in FLOAT32_ALONE]
    products = {kind: kind(weight, bias, rows) for kind in kinds}
    ratios: dict[Any, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        reference = rate(lambda: torch.mm(left, right, out=found), 2 * 2048 * 768 * 3072)
        for kind, product in products.items():
            given = further if kind is RowsApart else values
            speed = rate(lambda product=product, given=given: product(given), 2 * rows * width * out)  # type: ignore[misc]
            ratios[kind].append(speed / reference)
    return [statistics.median(ratios[kind]) if kind in ratios else None for kind in KINDS.values()]


def rate(work: Callable[[], Any], flop: int) -> float:
    """FLOP/s over `SECONDS` of calls; one call before that is not timed."""
    work()
    done, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < SECONDS:
        work()
        done += 1
    return done * flop / spent


if __name__ == "__main__":
    main()
