"""Loops of the packed pass that torch has no single operators for, compiled from ``loops.cpp`` at installation.

Where no C++ compiler was at hand, or the processor has neither AVX2 nor AVX-512, torch's operators compute the same,
each in a pass over memory of its own. The library is called by ctypes: it depends on no release of Python or torch.
"""

from __future__ import annotations

import abc
import ctypes
import dataclasses
import functools
import sys
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

from ...devices import cpu_capabilities

Tensor = torch.Tensor
VERSION = 1
"""Of the functions and their arguments in ``loops.cpp``, where it also stands: a library of another is not called."""
MOST_KEYS = 512
"""Of more, torch's attention takes less time with AVX2 (``bench/attention.py``)."""
_NAMES = {"AVX512": "_avx512", "AVX2": "_avx2"}  # by torch's name for what it may use of the processor
_PANEL = 4  # vectors of outputs whose weights lie together
_SCORE_ROWS = 4  # whose scores the library keeps beside the keys


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RoundedWeight:
    """The weight of a linear layer of rounded numbers, and what is added to the products of these.

    Attributes:
        whole: (out, in) int8; 0 in the columns apart.
        units: (out,) float32, that the whole numbers count.
        apart: (k,) int64: columns of the rows that are multiplied as they are.
        columns: (k + 2, out) float32: the weight of the columns apart; what a row's smallest number, which its whole
            numbers count from, is multiplied by; and the bias.
        levels: The largest whole number of a row, at most 255; the smallest is 0.
    """

    whole: Tensor
    units: Tensor
    apart: Tensor
    columns: Tensor
    levels: int

    @functools.cached_property
    def kept(self) -> Tensor:
        """(in,) float32: 0 for the columns apart, else 1."""
        return torch.ones(self.whole.shape[1]).index_fill_(0, self.apart, 0)


class Loops(abc.ABC):
    """What a linear layer of rounded numbers computes besides its products."""

    @abc.abstractmethod
    def round_rows(self, rows: Tensor, weight: RoundedWeight) -> tuple[Tensor, Tensor, Tensor]:
        """Round each row to whole numbers from 0, for its smallest number, to ``levels``, for its largest.

        Takes (n, in) float32. Returns the whole numbers, (n, in) uint8; each row's unit, (n, 1) float32, which is not
        finite where a number of the row is not; and what stands beside them, (n, k + 1) float32: the columns apart, and
        the smallest number of the others and of 0.
        """

    @abc.abstractmethod
    def finish_rows(
        self,
        sums: Tensor,
        units: Tensor,
        beside: Tensor,
        weight: RoundedWeight,
        *,
        residual: Tensor | None,
        gelu: bool,
        out: Tensor,
    ) -> None:
        """Write the layer's result: sums x units + beside x columns + bias, plus the residual; or the GELU of it.

        Args:
            sums: (n, out) float32, in the weight's units.
            units: (n, 1) float32, as `round_rows` returns them, like ``beside``.
            beside: (n, k + 1) float32.
            weight: The layer's.
            residual: (n, out) float32.
            gelu: Whether to apply the exact GELU (by erf) in the end.
            out: (n, out) float32.
        """


class TorchLoops(Loops):
    """By torch's operators."""

    def round_rows(self, rows: Tensor, weight: RoundedWeight) -> tuple[Tensor, Tensor, Tensor]:
        together = rows * weight.kept
        smallest, largest = together.amin(dim=1, keepdim=True), together.amax(dim=1, keepdim=True)
        units = largest.sub_(smallest).clamp_min_(1e-30).div_(weight.levels)
        whole = together.sub_(smallest).mul_(units.reciprocal()).add_(0.5).to(torch.uint8)  # rounds, as all are above 0
        return whole, units, torch.cat([rows.index_select(1, weight.apart), smallest], dim=1)

    def finish_rows(
        self,
        sums: Tensor,
        units: Tensor,
        beside: Tensor,
        weight: RoundedWeight,
        *,
        residual: Tensor | None,
        gelu: bool,
        out: Tensor,
    ) -> None:
        torch.addmm(weight.columns[-1], beside, weight.columns[:-1], out=out).addcmul_(sums, units)
        if residual is not None:
            out += residual
        if gelu:
            torch.ops.aten.gelu_(out)


class CompiledLoops(Loops):
    """By the library, for float32 on a CPU; numbers of a row lie side by side."""

    def __init__(self, library: ctypes.CDLL) -> None:
        pointer, long, number, flag = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
        rows: list[Any] = [pointer, *[long] * 2, *[pointer] * 2, *[long] * 2, number]
        self.round = library.headstart_round_rows
        self.round.argtypes = [*rows, *[pointer] * 3]
        self.finish = library.headstart_finish_rows
        self.finish.argtypes = [pointer, long, long, pointer, pointer, long, pointer, pointer, flag, pointer]
        self.attention = library.headstart_attend
        self.attention.argtypes = [pointer, long, long, long, long, long, long, number, pointer, pointer]
        for function in (self.round, self.finish, self.attention):
            function.restype = None
        self.lanes: int = library.headstart_lanes()  # float32 numbers in a vector
        self.multiplies = hasattr(library, "headstart_linear")
        if self.multiplies:
            self.linear, self.scratch = library.headstart_linear, library.headstart_scratch
            self.linear.restype, self.scratch.restype, self.scratch.argtypes = None, long, [long, long]
            self.linear.argtypes = [*rows, *[pointer] * 2, long, *[pointer] * 2, flag, *[pointer] * 2]

    def round_rows(self, rows: Tensor, weight: RoundedWeight) -> tuple[Tensor, Tensor, Tensor]:
        count, width = rows.shape
        whole = torch.empty(count, width, dtype=torch.uint8)
        units, beside = rows.new_empty(count, 1), rows.new_empty(count, len(weight.apart) + 1)
        self.round(*_rounding(rows, weight), whole.data_ptr(), units.data_ptr(), beside.data_ptr())
        return whole, units, beside

    def finish_rows(
        self,
        sums: Tensor,
        units: Tensor,
        beside: Tensor,
        weight: RoundedWeight,
        *,
        residual: Tensor | None,
        gelu: bool,
        out: Tensor,
    ) -> None:
        count, width = sums.shape
        besides = len(weight.apart) + 1
        factors = _at(sums), count, width, _at(units, (count, 1)), _at(beside, (count, besides)), besides
        added = None if residual is None else _at(residual, sums.shape)
        self.finish(*factors, _at(weight.columns, (besides + 1, width)), added, gelu, _at(out, sums.shape))

    def attends(self, query_key_value: Tensor, length: int, width: int) -> bool:
        """Whether `attend` takes so many tokens, and heads of that width."""
        return query_key_value.dtype == torch.float32 and length <= MOST_KEYS and width % self.lanes == 0

    def attend(
        self,
        query_key_value: Tensor,
        *,
        sequences: int,
        length: int,
        heads: int,
        key_value_heads: int,
        scale: float,
        out: Tensor,
    ) -> None:
        """Scaled dot-product attention of every token to all tokens of its sequence, and to no other.

        Args:
            query_key_value: (sequences x length, (heads + 2 x key-value heads) x head width) float32: queries, keys,
                values.
            sequences: How many there are.
            length: Tokens in each.
            heads: Of the queries.
            key_value_heads: A divisor of that.
            scale: Of the scores, above 0.
            out: (sequences x length, heads x head width) float32, contiguous; written.
        """
        width = query_key_value.shape[1] // (heads + 2 * key_value_heads)
        if out.shape != (sequences * length, heads * width) or len(query_key_value) != len(out) or scale <= 0:
            raise ValueError(f"shapes or scale are wrong: {tuple(query_key_value.shape)}, {tuple(out.shape)}, {scale}")
        padded = -(-length // self.lanes) * self.lanes
        scratch = query_key_value.new_empty((width + _SCORE_ROWS) * padded)
        sizes = query_key_value.stride(0), sequences, length, heads, key_value_heads, width
        self.attention(query_key_value.data_ptr(), *sizes, scale, _at(out), _at(scratch))


class CompiledLinear:
    """A linear layer of rounded numbers by the library, which finishes rows while their sums are in registers."""

    def __init__(self, loops: CompiledLoops, weight: RoundedWeight) -> None:
        self._linear, self._weight = loops.linear, weight
        panels = torch.split(weight.whole, _PANEL * loops.lanes)
        self._laid_out = torch.cat([panel.view(len(panel), -1, 4).transpose(0, 1).reshape(-1) for panel in panels])
        self._scratch = loops.scratch(weight.whole.shape[1], len(weight.apart))

    @staticmethod
    def takes(loops: CompiledLoops, weight: RoundedWeight) -> bool:
        """Whether the library has such products for a weight, and they are the fastest there are here."""
        has, (out, width) = cpu_capabilities(), weight.whole.shape
        vnni = bool(has.get("avx512_vnni")) and not has.get("amx_int8")  # with AMX, oneDNN is faster
        return loops.multiplies and vnni and width % 4 == 0 and out % loops.lanes == 0

    def __call__(self, rows: Tensor, residual: Tensor | None = None, *, gelu: bool = False) -> Tensor:
        """(n, in) float32 to (n, out) float32: the product plus the bias plus the residual, or the GELU of it."""
        weight, count = self._weight, len(rows)
        output = rows.new_empty(count, len(weight.units))
        added = None if residual is None else _at(residual, output.shape)
        scratch = torch.empty(self._scratch, dtype=torch.uint8)
        factors = self._laid_out.data_ptr(), _at(weight.units), len(weight.units), _at(weight.columns)
        self._linear(*_rounding(rows, weight), *factors, added, gelu, output.data_ptr(), scratch.data_ptr())
        return output


def compiled_linear(weight: RoundedWeight) -> CompiledLinear | None:
    """The library's layer, where it has one that is the fastest here."""
    loops = compiled()
    return CompiledLinear(loops, weight) if loops is not None and CompiledLinear.takes(loops, weight) else None


def fastest_loops() -> Loops:
    """The fastest that this installation has."""
    return compiled() or TorchLoops()


@functools.cache
def compiled() -> CompiledLoops | None:
    """The library's, for the instructions that torch may use here; None where there is none."""
    name = _NAMES.get(torch.backends.cpu.get_cpu_capability())
    for suffix in EXTENSION_SUFFIXES if name else ():
        path = Path(__file__).with_name(f"{name}{suffix}")
        if path.is_file():
            library = ctypes.CDLL(str(path))
            if library.headstart_version() == VERSION:
                return CompiledLoops(library)
    return None


def is_missing() -> bool:
    """Whether there is no library of this version, though g++ could compile one for this machine at installation."""
    return sys.platform != "win32" and torch.backends.cpu.get_cpu_capability() in _NAMES and compiled() is None


def _rounding(rows: Tensor, weight: RoundedWeight) -> tuple[int | float, ...]:
    """What the library takes for rows that are to be rounded."""
    count, width = rows.shape
    if rows.dtype != torch.float32 or rows.stride(1) != 1 or width != weight.whole.shape[1]:
        raise ValueError(f"{rows.dtype} {tuple(rows.shape)} is not for a weight of {tuple(weight.whole.shape)}")
    sizes = width, len(weight.apart), weight.levels
    return rows.data_ptr(), rows.stride(0), count, _at(weight.kept), weight.apart.data_ptr(), *sizes


def _at(tensor: Tensor, shape: Sequence[int] | None = None) -> int:
    """Where the numbers of a float32 tensor lie; it has that shape, and no gaps."""
    if tensor.dtype != torch.float32 or not tensor.is_contiguous() or (shape is not None and tensor.shape != shape):
        wanted = "" if shape is None else f" of {tuple(shape)}"
        raise ValueError(f"{tensor.dtype} of {tuple(tensor.shape)} where float32{wanted} without gaps is expected")
    return tensor.data_ptr()
