"""The compiled loops: what torch's operators compute, by every library that this processor can run, and without one."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from extracting import settings
from headstart.stages.encoders.encoder import encode_sequences
from headstart.stages.encoders.native import loops as native
from headstart.stages.encoders.native.loops import CompiledLinear, CompiledLoops, RoundedWeight, TorchLoops
from headstart.stages.encoders.packed import attention, linear_rounded
from headstart.stages.encoders.packed.attention import CAUSAL, Heads, Window, attend, group_sequences
from headstart.stages.encoders.packed.linear_rounded import Int8Linear, _OneDnnLinear
from headstart.stages.encoders.session import EncoderSession
from processor import needs_int8
from tiny import save_tiny_encoder, tiny_rows
from torch.nn.functional import scaled_dot_product_attention

CAPABILITY = torch.backends.cpu.get_cpu_capability()
COMPILER = shutil.which("g++") is not None and CAPABILITY in ("AVX2", "AVX512")
PLAIN = TorchLoops()


def found() -> dict[str, CompiledLoops]:
    """The libraries whose instructions this processor has."""
    names = {"AVX512": ("_avx512", "_avx2"), "AVX2": ("_avx2",)}.get(CAPABILITY, ())
    paths = {name: list(Path(native.__file__).parent.glob(f"{name}.*")) for name in names}
    return {name: CompiledLoops(ctypes.CDLL(str(path[0]))) for name, path in paths.items() if path}


FOUND = found()
each_library = pytest.mark.parametrize("loops", FOUND.values(), ids=FOUND)


def rounded(out: int, width: int, apart: list[int], levels: int = 127) -> RoundedWeight:
    torch.manual_seed(out + width)
    columns = torch.tensor(apart, dtype=torch.int64)
    whole = torch.randint(-127, 128, (out, width), dtype=torch.int8).index_fill_(1, columns, 0)
    units, beside = torch.rand(out) / 100, torch.randn(len(apart) + 2, out)
    return RoundedWeight(whole=whole, units=units, apart=columns, columns=beside, levels=levels)


@pytest.mark.skipif(not COMPILER, reason="there is no g++ here, or the processor has neither AVX2 nor AVX-512")
def test_where_there_is_a_compiler_the_library_is_there() -> None:
    """If this fails, run `make test` again: installing headstart compiles it."""
    assert native.compiled() is not None and native.fastest_loops() is native.compiled() and not native.is_missing()
    assert len(FOUND) == (2 if CAPABILITY == "AVX512" else 1)


@pytest.mark.skipif(not FOUND, reason="there is no library here")
def test_the_library_is_that_of_the_sources() -> None:
    """Sources that do not compile leave the library of older ones where it is."""
    folder = Path(native.__file__).parent
    sources, libraries = folder / "loops.cpp", [*folder.glob("_avx*.*")]
    assert min(path.stat().st_mtime for path in libraries) >= sources.stat().st_mtime, "install headstart again"


@each_library
@pytest.mark.parametrize("width", [1, 5, 8, 16, 33, 384, 1000])
def test_rows_are_rounded_as_by_torch(loops: CompiledLoops, width: int) -> None:
    apart = sorted({0, width // 2, width - 1}) if width > 3 else []
    weight = rounded(3, width, apart, levels=255)
    rows = torch.randn(70, 2 * width)[:, :width] * torch.logspace(-6, 6, 70)[:, None]  # that lie apart
    rows[5], rows[6], rows[7] = 0.0, 3.0, rows[7].abs()
    whole, units, beside = loops.round_rows(rows, weight)
    expected, expected_units, expected_beside = PLAIN.round_rows(rows, weight)
    torch.testing.assert_close(units, expected_units, rtol=1e-6, atol=0)
    assert torch.equal(beside, expected_beside)
    off = whole.int() - expected.int()
    assert off.abs().max() <= 1 and (off != 0).float().mean() < 1e-3  # where a number lies between two whole ones
    if width > 3:
        assert (whole.amax(1) == 255)[:5].all() and (whole.amin(1) == 0).all()


@each_library
def test_a_number_that_is_none_spoils_its_row_alone(loops: CompiledLoops) -> None:
    weight, rows = rounded(4, 40, [3]), torch.randn(9, 40)
    alone = loops.round_rows(rows, weight)
    rows[2, 7], rows[4, 39], rows[6, 20], rows[7, 3] = torch.nan, torch.inf, -torch.inf, torch.nan
    whole, units, _ = loops.round_rows(rows, weight)
    odd = torch.tensor([2, 4, 6, 7])
    assert not units[odd].isfinite().any()
    others = torch.tensor([0, 1, 3, 5, 8])
    assert torch.equal(whole[others], alone[0][others]) and torch.equal(units[others], alone[1][others])


@each_library
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize(("count", "out"), [(1, 1), (3, 15), (4, 64), (7, 100), (33, 384)])
def test_rows_are_finished_as_by_torch(loops: CompiledLoops, count: int, out: int, added: bool, gelu: bool) -> None:
    weight = rounded(out, 20, [1, 2, 19])
    sums, units, beside = torch.randn(count, out) * 100, torch.rand(count, 1), torch.randn(count, 4)
    residual = torch.randn(count, out) if added else None
    ours, theirs = torch.empty(count, out), torch.empty(count, out)
    loops.finish_rows(sums, units, beside, weight, residual=residual, gelu=gelu, out=ours)
    PLAIN.finish_rows(sums, units, beside, weight, residual=residual, gelu=gelu, out=theirs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


@each_library
def test_gelu_is_torchs_over_its_whole_range(loops: CompiledLoops) -> None:
    numbers = torch.cat([torch.linspace(-8, 8, 100_001), torch.tensor([-1e30, -50.0, 0.0, 50.0, 1e30])])[None]
    weight = RoundedWeight(
        whole=torch.zeros(numbers.shape[1], 1, dtype=torch.int8),
        units=torch.ones(numbers.shape[1]),
        apart=torch.zeros(0, dtype=torch.int64),
        columns=torch.zeros(2, numbers.shape[1]),
        levels=127,
    )
    found = torch.empty_like(numbers)
    loops.finish_rows(numbers, torch.ones(1, 1), torch.zeros(1, 1), weight, residual=None, gelu=True, out=found)
    exact = torch.nn.functional.gelu(numbers.double())
    assert ((found - exact).abs() <= 2e-6 + 1e-6 * numbers.abs().clamp_max(100)).all()
    assert found[0, -1] == 1e30


@needs_int8
@pytest.mark.parametrize("count", [1, 5, 6, 7, 95, 96, 97, 300])
@pytest.mark.parametrize(("out", "width"), [(16, 4), (32, 384), (48, 100), (64, 64), (112, 36), (384, 1536)])
def test_a_compiled_layer_is_that_of_onednn(count: int, out: int, width: int) -> None:
    """Its whole numbers too: rows of 0 and 1 alone are rounded to the same."""
    loops, weight = native.compiled(), rounded(out, width, [1, 3])
    if loops is None or not CompiledLinear.takes(loops, weight):
        pytest.skip("this processor has no VNNI, or AMX, or there is no library")
    ours, theirs = CompiledLinear(loops, weight), _OneDnnLinear(weight, 64)
    rows, residual = torch.randint(0, 2, (count, width)).float(), torch.randn(count, out)
    for given in ({}, {"residual": residual}, {"gelu": True}):
        torch.testing.assert_close(ours(rows, **given), theirs(rows, **given), rtol=1e-5, atol=1e-4)
    assert ours(rows[:0]).shape == (0, out)


@needs_int8
def test_sums_of_the_largest_products_are_exact() -> None:
    loops, weight = native.compiled(), rounded(64, 4096, [], levels=255)
    if loops is None or not CompiledLinear.takes(loops, weight):
        pytest.skip("this processor has no VNNI, or AMX, or there is no library")
    weight.whole[0], weight.whole[1] = 127, -127
    weight.units.fill_(1.0)
    weight.columns.zero_()
    rows = torch.full((7, 4096), 255.0)
    rows[:, 0] = 0.0
    expected = rows.double() @ weight.whole.double().T
    torch.testing.assert_close(CompiledLinear(loops, weight)(rows).double(), expected, rtol=1e-6, atol=1)


@each_library
@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 128])
@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (3, 3), (6, 2)])
def test_attention_is_torchs(loops: CompiledLoops, width: int, heads: int, key_heads: int) -> None:
    for length in (1, 2, 3, 4, 15, 16, 17, 33, 70):
        torch.manual_seed(length)
        given = torch.randn(3 * length, (heads + 2 * key_heads) * width)
        out = torch.full((3 * length, heads * width), torch.nan)
        options = {"sequences": 3, "length": length, "heads": heads, "key_value_heads": key_heads, "scale": 0.3}
        loops.attend(given, **options, out=out)
        parts = given.double().view(3, length, -1, width).transpose(1, 2)
        query, key, value = parts.split([heads, key_heads, key_heads], dim=1)
        key, value = (part.repeat_interleave(heads // key_heads, dim=1) for part in (key, value))
        exact = scaled_dot_product_attention(query, key, value, scale=0.3).transpose(1, 2).reshape(3 * length, -1)
        torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-5)
        given[length : 2 * length] *= 1e20  # scores of one sequence that no float32 holds
        spoilt = torch.zeros_like(out)
        loops.attend(given, **options, out=spoilt)
        others = torch.cat([torch.arange(length), torch.arange(2 * length, 3 * length)])
        assert torch.equal(spoilt[others], out[others])


@each_library
def test_scores_that_are_far_apart_neither_overflow_nor_vanish(loops: CompiledLoops) -> None:
    given = torch.randn(40, 3 * 32)
    given[:, :32] *= 1000
    out = torch.empty(40, 32)
    loops.attend(given, sequences=1, length=40, heads=1, key_value_heads=1, scale=1.0, out=out)
    query, key, value = given.double().split(32, dim=1)
    torch.testing.assert_close(out.double(), (query @ key.T).softmax(1) @ value, rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(not FOUND, reason="there is no library here")
def test_what_is_of_another_shape_is_refused() -> None:
    loops, weight = next(iter(FOUND.values())), rounded(16, 16, [])
    with pytest.raises(ValueError, match="is not for a weight"):
        loops.round_rows(torch.randn(3, 17), weight)
    with pytest.raises(ValueError, match="is not for a weight"):
        loops.round_rows(torch.randn(3, 16).double(), weight)
    sums, units = torch.randn(3, 16), torch.ones(3, 1)
    for out in (torch.empty(2, 16), torch.empty(3, 32)[:, ::2]):
        with pytest.raises(ValueError, match="without gaps"):
            loops.finish_rows(sums, units, torch.zeros(3, 1), weight, residual=None, gelu=False, out=out)
    options = {"sequences": 2, "heads": 1, "key_value_heads": 1, "scale": 1.0}
    with pytest.raises(ValueError, match="shapes or scale"):
        loops.attend(torch.randn(8, 96), length=5, **options, out=torch.empty(8, 32))


@pytest.mark.skipif(not FOUND, reason="there is no library here")
def test_masks_are_left_to_torch_unless_they_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    loops = next(iter(FOUND.values()))
    monkeypatch.setattr(loops, "attend", lambda *given, **options: asked.append(options["length"]))
    monkeypatch.setattr(attention, "compiled", lambda: loops)
    found = torch.randn(64 * 12, 3 * 32)
    for length in (8, 20, 600):
        group = group_sequences([length])[0]
        for mask in (None, Window(10, 10), CAUSAL):
            how = Heads(heads=1, key_value_heads=1, width=32, mask=mask)
            attend(found.clone(), group, how, out=torch.empty(len(found), 32))
    assert asked == [8, 8, 20]  # in a window of 10, 8 tokens see each other; torch is quicker for 600


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_without_the_library_features_are_the_same(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding: in int8, a last bit may decide which whole number is the nearest."""
    if precision == "int8" and not linear_rounded.int8_products():
        pytest.skip("torch multiplies no 8-bit integers on this processor")
    encoder = save_tiny_encoder(tmp_path / "encoder", hidden_size=96, intermediate_size=192)
    texts, features = [text for text, _ in tiny_rows(80)], []
    for library in (native.compiled, lambda: None):
        for module in (native, attention):
            monkeypatch.setattr(module, "compiled", library)
        ours = EncoderSession(settings(encoder, precision=precision, features=("mean",))).encoder
        sequences, _ = ours.tokenize(texts)
        features.append(encode_sequences(ours, sequences)["mean"].astype(np.float64))
    off = np.abs(features[0] - features[1]).max()
    assert off < (1e-5 if precision == "float32" else 0.02)


@needs_int8
def test_an_int8_layer_takes_few_rows_where_that_costs_nothing() -> None:
    layer = Int8Linear(torch.randn(64, 64), torch.randn(64), 128, torch.zeros(0, dtype=torch.int64))
    odd = Int8Linear(torch.randn(7, 33), torch.randn(7), 128, torch.zeros(0, dtype=torch.int64))
    loops = native.compiled()
    assert layer.in_few_rows is (loops is not None and CompiledLinear.takes(loops, rounded(64, 64, [])))
    assert not odd.in_few_rows


@pytest.mark.skipif(not FOUND, reason="there is no library here")
def test_a_library_of_other_sources_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where files were updated and headstart was not installed again."""
    monkeypatch.setattr(native, "VERSION", native.VERSION + 1)
    native.compiled.cache_clear()
    try:
        assert native.compiled() is None and isinstance(native.fastest_loops(), TorchLoops) and native.is_missing()
    finally:
        native.compiled.cache_clear()


@pytest.mark.skipif(not FOUND, reason="there is no library here")
@pytest.mark.parametrize(("capability", "lanes"), [("default", None), ("avx2", 8)])
def test_the_library_keeps_to_the_instructions_that_torch_is_held_to(capability: str, lanes: int | None) -> None:
    program = (
        "from headstart.stages.encoders.native.loops import compiled; found = compiled(); "
        "print(found and found.lanes, found and found.multiplies)"
    )
    held = os.environ | {"ATEN_CPU_CAPABILITY": capability}
    ran = subprocess.run([sys.executable, "-c", program], env=held, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [str(lanes), "None" if lanes is None else "False"]
