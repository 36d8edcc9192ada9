"""What a CUDA device is asked for by the packed pass. No GPU is needed: see `varlen_reference`."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from headstart.stages.encoders import hf
from headstart.stages.encoders.cuda import CudaBackend
from headstart.stages.encoders.encoder import EncoderSettings
from headstart.stages.encoders.files import find_encoder
from headstart.stages.encoders.packed import backend, varlen
from headstart.stages.encoders.packed.attention import CAUSAL, Token, Window, group_sequences
from headstart.stages.encoders.packed.backend import packed_backend
from headstart.stages.encoders.packed.forward import PackedForward
from headstart.stages.encoders.packed.kernels import UnfitError
from headstart.stages.encoders.packed.varlen import (
    CudaKernels,
    cuda_kernels,
    find_fused,
    find_varlen_attn,
)
from headstart.stages.encoders.padded import PaddedForward
from headstart.stages.encoders.pooling import parse_features
from headstart.stages.settings import ForwardMode, Precision
from tiny import save_tiny_encoder
from varlen_reference import ReferenceVarlen

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("token", "mask", "rows", "offsets"),
    [
        (Token.FIRST, None, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 5, 8, 10]),
        (Token.LAST, CAUSAL, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [0, 5, 8, 10]),
        (Token.FIRST, CAUSAL, [0, 5, 8], [0, 1, 2, 3]),
        (Token.FIRST, Window(1, 2), [0, 1, 2, 5, 6, 7, 8, 9], [0, 3, 6, 8]),
        (Token.LAST, Window(1, 2), [3, 4, 6, 7, 8, 9], [0, 2, 4, 6]),
    ],
)
def test_one_token_takes_the_keys_that_it_sees_and_no_other(
    token: Token, mask: Window | None, rows: list[int], offsets: list[int]
) -> None:
    seen = CudaKernels(CPU, ReferenceVarlen()).seen(group_sequences([5, 3, 2]), token, mask)
    assert (seen.rows.tolist(), seen.offsets.tolist()) == (rows, offsets)
    starts = np.repeat([0, 5, 8], np.diff(offsets))
    assert seen.positions.tolist() == (np.array(rows) - starts).tolist()
    assert seen.longest == np.diff(offsets).max()


def test_what_says_where_sequences_lie_is_placed_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    placed: list[torch.Tensor] = []
    kernels, groups = CudaKernels(CPU, ReferenceVarlen()), group_sequences([5, 5, 3])
    monkeypatch.setattr(kernels, "place", lambda tensor: placed.append(tensor) or tensor)
    for _ in range(3):
        kernels.every(groups)
        kernels.one(groups, Token.LAST)
        kernels.token_rows(groups, Token.LAST)
    assert len(placed) == 6


def test_torchs_function_takes_what_it_is_given_here() -> None:
    real = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    theirs, ours = inspect.signature(real).parameters, inspect.signature(ReferenceVarlen.__call__).parameters
    names = list(ours)[1:]
    assert list(theirs)[:7] == names[:7]
    if find_varlen_attn() is not None:
        assert set(names) <= theirs.keys()


def of_torch_2_10(query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int) -> None:
    """It had ``is_causal`` and ``return_aux`` besides."""


@pytest.mark.parametrize("absent", [False, True])
def test_a_torch_without_all_of_it_has_none(absent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    older: Any = ModuleType("torch.nn.attention.varlen")
    older.varlen_attn = of_torch_2_10
    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", None if absent else older)
    assert find_varlen_attn() is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"biased_scores": True}, "adds a bias to each score"),
        ({"dtype": torch.float32}, "this is float32"),
        ({"capability": (7, 5)}, "Ampere"),
        ({"found": None}, f"takes torch 2.12, and this is {torch.__version__}".replace("+", "\\+")),
    ],
)
def test_what_cannot_run_says_why(changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"capability": (8, 0), "dtype": torch.bfloat16, "biased_scores": False, "found": ReferenceVarlen()}

    def choose() -> CudaKernels:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: given["capability"])
        monkeypatch.setattr(varlen, "find_varlen_attn", lambda: given["found"])
        return cuda_kernels(CUDA, given["dtype"], biased_scores=given["biased_scores"])

    assert choose().varlen_attn is given["found"]
    given |= changes
    with pytest.raises(UnfitError, match=message):
        choose()


def loaded_on_a_gpu(
    folder: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch, kernels: Any, fused: Any = None
) -> tuple[PackedForward | None, str]:
    """What `hf` makes of an encoder for a GPU, whose part the CPU plays; and the note of how it runs."""
    settings = EncoderSettings(
        features=parse_features(["cls", "mean"], None),
        device=CPU,
        precision=precision,
        prefix="",
        max_length=100,
        batch_tokens=256,
    )
    files = find_encoder(str(folder))
    model = hf.load_model(files, settings.pooled)
    architecture = hf.model_architecture(model)
    assert architecture is not None
    monkeypatch.setattr(hf, "cuda_kernels", kernels)
    monkeypatch.setattr(hf, "find_fused", lambda: fused)
    padded = PaddedForward(model, settings, name="an encoder", padding=0)
    on_gpu = dataclasses.replace(settings, device=CUDA)
    try:
        forward, note = hf._try_packed(architecture, model, on_gpu, padded, segments=False)
    except UnfitError as error:
        return None, str(error)
    return forward, note or ""


def test_an_encoder_is_tried_on_the_gpu_before_it_is_trusted(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*given: Any, **options: Any) -> torch.Tensor:
        return ReferenceVarlen()(*given, **options) + 1

    def fails(*given: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image is available")

    def full(*given: Any, **options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    def tried(attn: Any, fused: Any = None, folder: Path = tiny) -> tuple[PackedForward | None, str]:
        kernels = CudaKernels(CPU, attn)
        found = loaded_on_a_gpu(folder, Precision.BFLOAT16, monkeypatch, lambda *_, **__: kernels, fused)
        assert (kernels.fused is not None) == (found[0] is not None and not found[1])
        return found

    forward, _ = tried(ReferenceVarlen())
    assert forward is not None and isinstance(forward.layers[0].attention, varlen.VarlenSelfAttention)
    assert tried(wrong)[1] == "without padding, a trial gives other features"
    assert tried(fails)[1] == "a trial fails: no kernel image is available"
    with pytest.raises(torch.OutOfMemoryError):
        tried(full)

    # Kernels of ours that fail are left out, and the user is told.
    def no_compiler(*given: Any, **options: Any) -> None:
        raise FileNotFoundError("Failed to find C compiler")

    def spoils(branch: Any, residual: Any, norms: Any, *, stream: torch.Tensor, following: torch.Tensor) -> None:
        stream.zero_()
        following.zero_()

    def embeds(tables: Any, norms: Any, *, stream: torch.Tensor, following: torch.Tensor) -> None:
        stream.zero_()
        following.zero_()

    unfused = "on this GPU, each norm and sum is a pass of its own"
    for end, told in (
        (no_compiler, "a trial fails: Failed to find C compiler"),
        (spoils, "a trial gives other features"),
    ):
        forward, note = tried(ReferenceVarlen(), SimpleNamespace(end=end, embed=embeds))
        assert note == f"{unfused}: {told}" and forward is not None
    assert tried(ReferenceVarlen())[1] == f"{unfused}: Triton is missing"
    assert tried(fails, SimpleNamespace(end=no_compiler, embed=embeds)) == (
        None,
        "a trial fails: no kernel image is available",
    )


@pytest.mark.skipif(find_fused() is None, reason="Triton is missing")
def test_an_encoder_on_a_gpu_has_fused_steps(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, fused = CudaKernels(CPU, ReferenceVarlen()), find_fused()
    forward, note = loaded_on_a_gpu(tiny, Precision.BFLOAT16, monkeypatch, lambda *_, **__: kernels, fused)
    assert forward is not None and kernels.fused is fused and not note


def test_without_triton_there_are_no_kernels_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "headstart.stages.encoders.native.fused", None)
    monkeypatch.delattr("headstart.stages.encoders.native.fused", raising=False)
    assert find_fused() is None


def test_heads_of_an_odd_width_run_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_encoder(tmp_path / "odd", hidden_size=24)
    reference = ReferenceVarlen()
    forward, reason = loaded_on_a_gpu(
        folder, Precision.BFLOAT16, monkeypatch, lambda *_, **__: CudaKernels(CPU, reference)
    )
    assert forward is None and "multiple of 8 numbers, up to 256, and these have 12" in reason


def test_a_note_says_why_an_encoder_runs_padded_on_a_gpu(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unfit(*given: Any, **options: Any) -> None:
        raise UnfitError("its attention adds a bias to each score")

    monkeypatch.setattr(hf, "_try_packed", unfit)
    settings = EncoderSettings(
        features=parse_features(["cls"], None), device=CPU, precision=Precision.FLOAT32, prefix="", max_length=100
    )
    encoder = hf.load_encoder(find_encoder(str(tiny)), settings)
    assert encoder.path is ForwardMode.PADDED
    (note,) = encoder.notes
    assert note.endswith("(bert) runs padded on this GPU: its attention adds a bias to each score")


def test_the_packed_pass_of_a_gpu_copies_beside_the_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "CopyStream", lambda device: device)
    forward: Any = PackedForward.__new__(PackedForward)
    made = packed_backend(forward, CUDA)
    assert isinstance(made, CudaBackend) and made.forward is forward
