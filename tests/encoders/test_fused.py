"""Kernels for GPUs: run on the CPU by Triton's interpreter beside torch's operators, and compiled for real GPUs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headstart.stages.devices import DTYPES
from headstart.stages.encoders import hf
from headstart.stages.encoders.files import find_encoder
from headstart.stages.encoders.packed.activations import ACTIVATIONS, gate
from headstart.stages.encoders.packed.attention import Heads, Rope
from headstart.stages.encoders.packed.cpu import CPU
from headstart.stages.encoders.packed.linear import Linear
from headstart.stages.encoders.packed.states import Input, PlainEnding, RowNorm
from headstart.stages.encoders.packed.varlen import CudaKernels, FusedEnding, find_fused
from headstart.stages.encoders.pooling import parse_features
from headstart.stages.settings import Precision
from varlen_reference import ReferenceVarlen

fused: Any = find_fused()
pytestmark = pytest.mark.skipif(fused is None, reason="Triton is missing")
HALF = [torch.bfloat16, torch.float16]


def norm_of(width: int, kind: str | None) -> RowNorm | None:
    """A norm with random weights: layer normalisation (with a bias or not), or by root mean squares."""
    if kind is None:
        return None
    bias = torch.randn(width) if kind == "layer" else None
    rms = CPU.rms_norm if kind == "rms" else None
    return RowNorm(weight=1 + 0.1 * torch.randn(width), bias=bias, epsilon=1e-5, rms=rms)


@pytest.mark.parametrize("dtype", [*HALF, torch.float32])
@pytest.mark.parametrize("width", [8, 384, 1000])
@pytest.mark.parametrize(
    ("branch", "of_sum", "following"),
    [
        (None, "layer", None),  # BERT
        (None, None, "layer"),  # ModernBERT
        (None, None, "unbiased"),
        (None, None, "rms"),  # Llama
        ("rms", None, "rms"),  # Gemma
        ("layer", "rms", "layer"),
        (None, None, None),
    ],
)
def test_the_end_of_a_branch(
    branch: str | None, of_sum: str | None, following: str | None, width: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(width)
    projection = Linear(torch.randn(width, 16).to(dtype), torch.randn(width).to(dtype))
    rows, residual = torch.randn(3, 16).to(dtype), 10 + 5 * torch.randn(3, width)  # a mean that is not small
    norms = {"branch_norm": norm_of(width, branch), "norm": norm_of(width, of_sum)}
    taken = Input(norm_of(width, following), dtype)
    expected = PlainEnding(projection=projection, **norms)(rows, residual, taken)
    kernels = CudaKernels(torch.device("cpu"), ReferenceVarlen(), fused)
    ending = kernels.ending(projection, **norms)
    assert isinstance(ending, FusedEnding)
    found = ending(rows, residual, taken)
    torch.testing.assert_close(found.stream, expected.stream, atol=2e-5, rtol=2e-5)
    exact = taken.norm(found.stream) if taken.norm is not None else found.stream
    assert found.input.dtype == dtype
    torch.testing.assert_close(found.input.float(), exact, atol=2e-5, rtol=torch.finfo(dtype).eps + 1e-5)
    assert (found.input is found.stream) == (following is None and dtype == torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("tables", "first_alone"), [(1, False), (2, False), (3, False), (2, True), (3, True)])
@pytest.mark.parametrize(("kind", "following"), [("layer", None), ("unbiased", "rms"), ("layer", "layer")])
def test_what_the_first_layer_begins_with(
    kind: str, following: str | None, tables: int, first_alone: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(tables)
    width, tokens = 40, 6
    looked_up: list[Any] = [(torch.randn(size, width), torch.randint(size, (tokens,))) for size in (90, 12, 2)][:tables]
    if first_alone:
        looked_up[-1] = looked_up[-1][0], None
    norm, taken = norm_of(width, kind), Input(norm_of(width, following), dtype)
    assert norm is not None
    plain = CudaKernels(torch.device("cpu"), ReferenceVarlen())
    expected = plain.embed(looked_up, norm, taken)
    found = CudaKernels(torch.device("cpu"), ReferenceVarlen(), fused).embed(looked_up, norm, taken)
    torch.testing.assert_close(found.stream, expected.stream, atol=2e-5, rtol=2e-5)
    assert found.input.dtype == dtype and found.stream.dtype == torch.float32
    torch.testing.assert_close(found.input, expected.input, atol=2e-5, rtol=2 * torch.finfo(dtype).eps + 1e-5)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # the result is right: 1 / (1 + inf)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("inner", [40, 1024, 1500])
def test_the_gate_of_a_feed_forward(activation: str, inner: int) -> None:
    rows = 4 * torch.randn(3, 2 * inner)
    torch.testing.assert_close(fused.gate(rows, activation), gate(rows, activation), atol=1e-5, rtol=1e-5)
    for dtype in HALF:
        half = rows.to(dtype)
        found, exact = fused.gate(half, activation), gate(half.float(), activation)
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), exact, atol=5e-6, rtol=torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("kind", "pairs"), [(None, 32), (None, 20), ("rms", 32), ("rms", None), ("layer", 20), ("unbiased", 20)]
)
@pytest.mark.parametrize(("heads", "width"), [(12, 64), (5, 72)])
def test_heads_are_normalised_and_turned(kind: str | None, pairs: int | None, heads: int, width: int) -> None:
    torch.manual_seed(heads)
    states = torch.randn(7, 3 * heads, width)  # queries, keys, values
    rope = None if pairs is None else Rope(frequencies=torch.rand(pairs), scale=1.3)
    turns = None if rope is None else rope.turns(torch.arange(7) + 100)
    norm = norm_of(width, kind)
    how = Heads(heads=heads, key_value_heads=heads, width=width, rope=rope, norms=norm and (norm, norm))
    expected, found = states.clone(), states.clone()
    how.prepare(expected[None, :, heads : 2 * heads], turns, of_keys=True)
    fused.prepare(found[:, heads : 2 * heads], norm and norm.parts, turns)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(found[:, :heads], states[:, :heads]) and torch.equal(
        found[:, 2 * heads :], states[:, 2 * heads :]
    )
    half = states.bfloat16()
    fused.prepare(half[:, heads : 2 * heads], norm and norm.parts, turns)
    assert (half.float() - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("precision", [Precision.BFLOAT16, Precision.FLOAT16])
def test_a_real_encoder_moves_little_where_steps_are_fused(minilm: Path, precision: Precision) -> None:
    """A third of what loading on a GPU allows."""
    features = parse_features(["cls", "mean"], 6)
    model = hf.load_model(find_encoder(str(minilm)), features)
    architecture, kernels = hf.model_architecture(model), CudaKernels(torch.device("cpu"), ReferenceVarlen())
    assert architecture is not None
    dtype = DTYPES[precision]
    forward = architecture.build(model.state_dict(), features, dtype=dtype, batch_tokens=256, kernels=kernels)
    texts = [(1000 + np.arange(length)).astype(np.int32) for length in (7, 7, 3)]
    with torch.inference_mode():
        plain = forward(texts)
        kernels.fused = fused
        moved = hf._moved(forward(texts), plain)
    assert 0 < moved < hf._ROUNDED[precision] / 3


def test_a_pass_is_computed_on_its_device_whatever_the_thread(minilm: Path) -> None:
    here = False

    class Elsewhere(CudaKernels):
        @contextlib.contextmanager
        def on_device(self) -> Any:
            nonlocal here
            here = True
            yield
            here = False

        def place(self, tensor: torch.Tensor) -> torch.Tensor:
            assert here
            return tensor

    features = parse_features(["mean"], 6)
    model = hf.load_model(find_encoder(str(minilm)), features)
    architecture, kernels = hf.model_architecture(model), Elsewhere(torch.device("cpu"), ReferenceVarlen())
    assert architecture is not None
    forward = architecture.build(model.state_dict(), features, dtype=torch.bfloat16, batch_tokens=256, kernels=kernels)
    with torch.inference_mode():
        assert forward([np.arange(5, dtype=np.int32)])["mean"].isfinite().all() and not here


def test_an_activation_that_the_kernel_does_not_know_is_not_taken_for_another() -> None:
    with pytest.raises(KeyError):
        fused.gate(torch.ones(1, 16), "tanh")


COMPILE = """
import triton
from headstart.stages.encoders.native.fused import KERNELS, _options
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

NORM = {"weight": "*fp32", "bias": "*fp32", "epsilon": "fp32"}
PARTS = ("branch", "sum", "next")
END = {"branch": "*bf16", "residual": "*fp32", "stream": "*fp32", "following": "*bf16"}
END |= {f"{part}_{name}": kind for part in PARTS for name, kind in NORM.items()} | {"width": "i32"}
HEADS = {"heads": "*fp16", "token_stride": "i32", "head_stride": "i32", **NORM, "turns": "*fp32"}
HEADS |= dict.fromkeys(("turned", "count", "width"), "i32")
ABSENT = {f"{part}_{name}": None for part in PARTS for name in ("weight", "bias")}
OF_BERT = {name: None for name in ABSENT if not name.startswith("sum")}
TABLES = ("first", "second", "third")
EMBED = {part: kind for name in TABLES for part, kind in ((name, "*fp32"), (f"of_{name}", "*i64"))}
EMBED |= {"stream": "*fp32", "following": "*bf16", "width": "i32"}
EMBED |= {f"{part}_{name}": kind for part in PARTS[1:] for name, kind in NORM.items()}
OF_WORDS = dict.fromkeys(("second", "of_second", "of_third", "sum_bias", "next_weight", "next_bias"))
CASES = [
    ("end", END, {"BRANCH": True, "OF_SUM": True, "FOLLOWING": True, "SAME": False, "BLOCK": 1024}),
    ("end", END, {**OF_BERT, "BRANCH": False, "OF_SUM": True, "FOLLOWING": False, "SAME": False, "BLOCK": 4096}),
    ("end", END, {**ABSENT, "BRANCH": False, "OF_SUM": False, "FOLLOWING": False, "SAME": True, "BLOCK": 512}),
    ("embed", EMBED, {"OF_SUM": True, "FOLLOWING": False, "SAME": False, "BLOCK": 1024}),
    ("embed", EMBED, {**OF_WORDS, "OF_SUM": True, "FOLLOWING": True, "SAME": False, "BLOCK": 1024}),
    *(
        ("gate", {"rows": "*bf16", "output": "*bf16", "inner": "i32"}, {"ACTIVATION": activation, "BLOCK": 1024})
        for activation in ("gelu", "gelu_tanh", "silu", "relu")
    ),
    ("prepare", HEADS, {"CENTRED": True, "HEADS": 16, "PAIRS": 32}),
    ("prepare", HEADS, {"weight": None, "bias": None, "CENTRED": False, "HEADS": 16, "PAIRS": 32}),
    ("prepare", HEADS, {"turns": None, "CENTRED": False, "HEADS": 4, "PAIRS": 128}),
]
for generation in (80, 86, 89, 90, 100):
    for name, types, constants in CASES:
        signature = {**types, **dict.fromkeys(constants, "constexpr")}
        source = ASTSource(fn=KERNELS[name], signature=signature, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", generation, 32), options=_options(1024))
        assert made.asm["cubin"], name
print("compiled")
"""


LAUNCH = """
import subprocess
from pathlib import Path

import torch
import triton
from headstart.stages.encoders.native import fused
from triton.backends.compiler import GPUTarget
from triton.runtime import driver, jit


class NoGpu:
    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)

    def map_python_to_cpp_type(self, kind):
        return "int"


def launch(kernel, grid):
    return lambda *given, **options: made.append(kernel.run(*given, grid=grid, warmup=True, **options))


made = []
driver.set_active(NoGpu())
jit.JITFunction.__getitem__ = launch
for width, heads, inner in ((384, 12, 1536), (768, 12, 1152), (4096, 32, 11008)):
    per_head, found = width // heads, []
    layer = torch.ones(width), torch.ones(width), 1e-12, True
    rms, of_head = ((torch.ones(size), None, 1e-6, False) for size in (width, per_head))
    for tokens in (1, 7, 16, 1000, 4097):
        branch, stream = torch.empty(tokens, width).bfloat16(), torch.empty(tokens, width)
        following, numbers = torch.empty(tokens, width).bfloat16(), torch.zeros(tokens, dtype=torch.int64)
        fused.end(branch, stream, (None, layer, None), stream=stream, following=following)
        fused.end(branch, stream, (rms, None, rms), stream=stream, following=following)
        fused.end(branch, stream, (None, layer, None), stream=stream, following=stream)
        tables = [(stream, numbers), (stream, numbers), (stream, None)]
        fused.embed(tables, (layer, None), stream=stream, following=following)
        fused.gate(torch.empty(tokens, 2 * inner).bfloat16(), "silu")
        turns = torch.ones(tokens, 1, per_head // 2, dtype=torch.complex64)
        for part in torch.empty(tokens, 3 * heads, per_head).bfloat16().split(heads, 1)[:2]:
            fused.prepare(part, None, turns)
            fused.prepare(part, of_head, turns)
        found.append(len({id(kernel) for kernel in made}))
    assert len(set(found)) == 1, "compiled again for other numbers of tokens"
ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"
for kernel in {id(kernel): kernel for kernel in made}.values():
    Path("kernel.ptx").write_text(kernel.asm["ptx"])
    command = [ptxas, "-v", "-arch=sm_90a", "kernel.ptx", "-o", "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores" in said, said
print("launched")
"""


@pytest.mark.parametrize(("program", "ends"), [(COMPILE, "compiled"), (LAUNCH, "launched")])
def test_kernels_compile_for_gpus_that_are_not_there(program: str, ends: str, tmp_path: Any) -> None:
    """For several generations; and once for all batches of an encoder, with nothing that does not fit in registers."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    del environment["TRITON_INTERPRET"]
    command = [sys.executable, "-W", "error", "-c", program]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ran.stdout.endswith(f"{ends}\n"), ran.stderr[-2000:]
