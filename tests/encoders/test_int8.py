"""``precision=int8``: products of 8-bit integers, as exact as their bits allow, and features close to float32's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from extracting import flip_a_byte, run, settings
from headstart.cache.errors import EncoderError, IdentityError, SettingsError
from headstart.cache.reader import Cache, open_cache
from headstart.stages.devices import choose_precision
from headstart.stages.encoders import hf, int8
from headstart.stages.encoders.encoder import encode_sequences
from headstart.stages.encoders.native import loops
from headstart.stages.encoders.packed import quantized
from headstart.stages.encoders.packed.linear_rounded import LARGEST_STATE, Int8Linear
from headstart.stages.encoders.packed.quantized import COLUMNS_APART
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.export import export
from headstart.stages.model import load as load_classifier
from headstart.stages.progress import Note
from headstart.stages.repair import repair
from headstart.stages.settings import ExtractSettings, ForwardMode, Precision
from headstart.stages.train_head import train_head
from headstart.stages.verify import verify
from processor import needs_int8
from safetensors.torch import load_file, save_file
from tiny import save_tiny_encoder, tiny_rows

pytestmark = needs_int8
TEXTS = [text for text, _ in tiny_rows(60)]


def layer(weight: torch.Tensor, bias: torch.Tensor, apart: list[int]) -> Int8Linear:
    return Int8Linear(weight, bias, 128, torch.tensor(apart, dtype=torch.int64))


def units_of(weight: torch.Tensor) -> torch.Tensor:
    """(out, 1), by the definition: neither a weight nor the sum of two neighbours has more than 127 of its output."""
    pairs = torch.nn.functional.pad(weight, (0, weight.shape[1] % 2)).view(len(weight), -1, 2).sum(2)
    return torch.maximum(weight.abs().amax(1), pairs.abs().amax(1))[:, None] / 127


def largest_error(weight: torch.Tensor, rows: torch.Tensor, apart: list[int]) -> torch.Tensor:
    """(rows, out) float64: what rounding can do at most, by the definition: half a unit of each state and weight."""
    weight, rows = weight.double().index_fill(1, torch.tensor(apart), 0), rows.double()
    rows = rows.index_fill(1, torch.tensor(apart), 0)
    of_states = (rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)) / LARGEST_STATE
    of_weights = units_of(weight)
    return of_states / 2 * (weight.abs().sum(1) + of_weights.T / 2 * weight.shape[1]) + rows.abs().sum(
        1, keepdim=True
    ) * (of_weights.T / 2)


@pytest.mark.parametrize("count", [1, 3, 64, 321, 1100])
@pytest.mark.parametrize(("width", "out"), [(48, 144), (144, 48), (33, 7), (8, 5), (3072, 64)])
def test_a_product_is_off_by_no_more_than_rounding(count: int, width: int, out: int) -> None:
    torch.manual_seed(width + out + count)
    weight, bias = torch.randn(out, width) / width**0.5, torch.randn(out)
    rows = torch.randn(count, width) * torch.logspace(-4, 4, count)[:, None]  # of all sizes
    rows[: count // 2] = rows[: count // 2].abs()  # as after an activation
    apart = [1, 5, 7]
    rows[:, apart] *= 1000.0
    exact = rows.double() @ weight.double().T + bias.double()
    before, residual = rows.clone(), torch.randn(count, out)
    most = largest_error(weight, rows, apart) + 1e-5 * (rows.double().abs() @ weight.double().abs().T + 1)
    linear = layer(weight, bias, apart)
    found = linear(rows)
    assert ((found.double() - exact).abs() <= most).all()
    assert ((linear.plus(rows, residual).double() - exact - residual).abs() <= most).all()
    torch.testing.assert_close(linear.gelu(rows), torch.nn.functional.gelu(found))
    assert torch.equal(rows, before)
    if count > 3:
        assert ((found.double() - exact).abs() > 1e-3 * most).any()  # or nothing was rounded


def test_each_number_becomes_the_nearest_that_there_is() -> None:
    """Shown one by one, by weights, and then rows, that have a single 1."""
    torch.manual_seed(2)
    single, numbers = torch.eye(64), torch.randn(200, 64)
    numbers[:, 5] = 100.0
    together = numbers.index_fill(1, torch.tensor([5]), 0)
    unit = (together.amax(1, keepdim=True) - together.amin(1, keepdim=True)) / LARGEST_STATE
    found = layer(single, torch.empty(0), [5])(numbers)
    assert ((found - numbers).abs() <= 0.501 * unit).all()
    torch.testing.assert_close(found[:, 5], numbers[:, 5])
    weight = numbers.index_fill(1, torch.tensor([5]), 0.5)
    off = layer(weight, torch.empty(0), [5])(single).T - weight
    most = units_of(weight.index_fill(1, torch.tensor([5]), 0))
    assert (off.abs() <= 0.501 * most).all()
    assert off[:, 5].abs().max() < 1e-5


@pytest.mark.parametrize("width", [64, 768, 3072])
def test_whole_numbers_are_multiplied_exactly(width: int) -> None:
    """The largest numbers too, of one sign: a sum of two products must not be cut at 16 bits."""
    generator = torch.Generator().manual_seed(width)
    weight = torch.randint(-63, 64, (32, width), generator=generator).float()
    weight[:, 0], weight[:, 1] = 127.0, 0.0
    weight[0], weight[1], weight[2] = 64.0, -64.0, 127.0
    weight[:2, 1::2], weight[2, 1::2] = weight[:2, 1::2].sign() * 63, 0.0
    rows = torch.randint(0, LARGEST_STATE + 1, (96, width), generator=generator).float()
    rows[:, 0], rows[:, 1], rows[0] = 0.0, float(LARGEST_STATE), float(LARGEST_STATE)
    rows[0, 0] = 0.0
    exact = rows.double() @ weight.double().T
    found = layer(weight, torch.empty(0), [])(rows)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize("width", [64, 33])
def test_two_neighbours_of_the_largest_rows_fit_into_16_bits(width: int) -> None:
    """Which is all that processors without VNNI have for the sum of two products, wherever this test runs."""
    torch.manual_seed(width)
    whole = layer(torch.randn(200, width) + 0.5, torch.empty(0), [])._compute._weight.whole.long()
    pairs = torch.nn.functional.pad(whole, (0, width % 2)).view(200, -1, 2)
    assert (LARGEST_STATE * pairs.sum(2)).abs().max() < 2**15
    assert pairs.sum(2).abs().max() >= 126  # and hardly a bit is given away


def test_rows_that_are_odd() -> None:
    """Of zeros, of one number, of numbers that are no numbers; none spoils another."""
    torch.manual_seed(0)
    weight, bias = torch.randn(16, 64), torch.randn(16)
    linear, rows = layer(weight, bias, [3]), torch.randn(8, 64)
    rows[1], rows[2], rows[3], rows[4] = 0.0, 5.0, -1e-20, 1e15
    alone = linear(rows)
    rows[6, 10], rows[7, 3] = torch.nan, torch.inf
    found = linear(rows)
    assert not found[6].isfinite().any() and not found[7].isfinite().all()
    assert torch.equal(found[:6], alone[:6]) and found[:6].isfinite().all()
    torch.testing.assert_close(found[1], bias)
    torch.testing.assert_close(found[2], 5 * weight.sum(1) + bias, rtol=0.02, atol=0.5)
    assert len(linear(rows[:0])) == 0


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(1)
    linear, rows = layer(torch.randn(48, 96), torch.randn(48), [0, 4]), torch.randn(700, 96)
    together = linear(rows)
    for row in (0, 1, 511, 512, 699):
        torch.testing.assert_close(linear(rows[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-4)


def extracted(encoder: Path, out: Path, precision: str, **options: Any) -> Cache:
    return run(TEXTS, out, encoder, precision=precision, label_column=None, **options)[0]


@pytest.fixture
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that is wide enough to have large columns."""
    return save_tiny_encoder(tmp_path_factory.mktemp("wide") / "encoder", hidden_size=96, intermediate_size=192)


@pytest.mark.parametrize("names", [("cls",), ("mean", "layer1.max"), ("cls", "mean", "pooler")])
def test_features_are_close_to_those_of_float32(wide: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    ours, plain = (extracted(wide, tmp_path / f"{p}.h5", p, features=names) for p in ("int8", "float32"))
    assert (ours.identity.precision, ours.identity.quantization) == ("float32", "int8")
    assert ours.identity.computed_in == "int8" and plain.identity.computed_in == "float32"
    lowest = []
    for name in ours.layout.widths:
        a, b = ours.features(name).astype(float), plain.features(name).astype(float)
        assert not np.array_equal(a, b)
        lowest.append(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())
    assert min(lowest) > 0.99
    told = ours.record["likeness"]  # of some of these texts
    assert told["texts"] == len(TEXTS) and min(lowest) == pytest.approx(told["lowest"], abs=2e-3)
    assert told["lowest"] <= told["median"] <= 1.0001
    assert "likeness" not in plain.record


def test_columns_that_outweigh_the_others_cost_no_bits(
    tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As real encoders have them: multiplied with the others, they would leave these next to none."""
    encoder = Path(shutil.copytree(wide, tmp_path / "encoder"))
    weights = load_file(encoder / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith("LayerNorm.weight"):
            weight[[3, 17]] *= 60
        elif ".layer." in name and weight.ndim == 2:
            weight.mul_(8)  # so that what layers add counts
            if weight.shape[1] == 96 and "output" not in name:  # of these columns little, as in real encoders
                weight[:, [3, 17]] /= 60
    save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    plain = EncoderSession(settings(encoder, features=("mean",))).encoder
    sequences, _ = plain.tokenize(TEXTS)
    expected = apart_from_the_mean(encode_sequences(plain, sequences)["mean"])
    lowest = []
    for columns in (COLUMNS_APART, (0,)):
        monkeypatch.setattr(quantized, "COLUMNS_APART", columns)
        ours = EncoderSession(settings(encoder, precision="int8", features=("mean",))).encoder
        found = apart_from_the_mean(encode_sequences(ours, sequences)["mean"])
        lowest.append((found * expected).sum(1).min())
    assert lowest[0] > 0.98
    assert lowest[1] < 0.9


def apart_from_the_mean(features: Any) -> Any:
    """(rows, width) of the length 1, but for the two large columns: what tells texts apart."""
    others = np.delete(features.astype(float) - features.mean(0), [3, 17], axis=1)
    return others / np.linalg.norm(others, axis=1, keepdims=True)


def test_the_last_layer_of_cls_stays_in_float32_and_the_others_do_not(wide: Path) -> None:
    encoder = EncoderSession(settings(wide, precision="int8")).encoder
    first, last = encoder.backend.forward.layers  # type: ignore[attr-defined]
    assert isinstance(first.attention.query_key_value, Int8Linear) and isinstance(first.feed_forward.up, Int8Linear)
    assert isinstance(first.feed_forward.down.projection, Int8Linear)
    assert isinstance(first.feed_forward.attention_output.projection, Int8Linear)
    assert not isinstance(last.feed_forward.up, Int8Linear)


def test_the_next_run_gives_the_same_bits_without_transformers(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "kept"))
    first = extracted(wide, tmp_path / "a.h5", "int8")
    monkeypatch.setattr(hf, "load_encoder", None)
    np.testing.assert_array_equal(extracted(wide, tmp_path / "b.h5", "int8").features(), first.features())


def test_a_cache_lives_on(wide: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    """It is updated, checked, repaired, trained on and predicted with, and mixed with no other."""
    rows, out = tiny_rows(80), tmp_path / "c.h5"
    whole, _ = run(write_csv(rows), tmp_path / "whole.h5", wide, precision="int8")
    run(write_csv(rows[:50]), out, wide, precision="int8")
    updated, _ = run(write_csv(rows), out, wide, precision="int8", update=True)
    np.testing.assert_allclose(updated.features(), whole.features(), atol=0.1 * np.abs(whole.features()).max())
    verify(out, encoder=str(wide), sample=20)
    flip_a_byte(out, "features/cls", 3)
    repair(out, write_csv(rows))
    np.testing.assert_allclose(
        open_cache(out).features(), updated.features(), atol=0.1 * np.abs(whole.features()).max()
    )
    made = train_head(out, tmp_path / "run", solver="exact")
    assert json.loads((made / "run.json").read_text())["identity"]["quantization"] == "int8"
    kept = pyarrow.parquet.read_table(made / "predictions.parquet").to_pylist()  # by the features of the cache
    found = load_classifier(made).predict_proba([rows[row["row"]][0] for row in kept])
    expected = [[row["probability_class0"], row["probability_class1"]] for row in kept]
    np.testing.assert_allclose(found, expected, atol=0.05)
    with pytest.raises(IdentityError, match="quantization, of the encoder's products"):
        run(write_csv(rows), tmp_path / "d.h5", wide, reuse=[out])
    card = (export(made, tmp_path / "numpy", to="numpy") / "README.md").read_text()
    assert "trained on features in int8" in card


def test_the_command_line_says_what_it_costs(wide: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    out = tmp_path / "c.h5"
    asked = ["extract", write_csv(tiny_rows(30)), "--encoder", wide, "--precision", "int8", "--out", out]
    command = [sys.executable, "-m", "headstart", *map(str, asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "precision  int8: as asked for" in done.stdout
    likeness = open_cache(out).record["likeness"]
    middle, lowest = f"{likeness['median']:.4f} in the middle", f"{likeness['lowest']:.4f} at the least"
    assert f"int8       cosine with float32: {middle}, {lowest}, of 30 texts" in done.stdout


def test_a_user_is_told_where_the_compiled_loops_are_missing(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing in (True, False):
        monkeypatch.setattr(loops, "is_missing", lambda missing=missing: missing)
        for precision in (Precision.INT8, Precision.FLOAT32):
            heard: list[Any] = []
            settings = ExtractSettings(encoder=str(wide), precision=precision)
            assert EncoderSession(settings, heard.append).encoder.path is ForwardMode.PACKED
            notes = [event.text for event in heard if isinstance(event, Note)]
            assert (int8.UNCOMPILED in notes) == (missing and precision is Precision.INT8)


def test_shards_say_what_it_costs(wide: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    """By the first rows of the table."""
    cache, _ = run(write_csv(tiny_rows(30)), tmp_path / "c.h5", wide, precision=Precision.INT8, shards=3)
    assert cache.record["likeness"]["texts"] == 10 and cache.record["likeness"]["lowest"] > 0.99


def test_what_cannot_be_done_is_refused(tmp_path: Path, wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padded = save_tiny_encoder(tmp_path / "rembert", kind="rembert")
    with pytest.raises(SettingsError, match=r"rembert\) runs padded, and int8 is for encoders .* `precision` float32"):
        extracted(padded, tmp_path / "c.h5", "int8")
    with pytest.raises(SettingsError, match="is for CPUs, and this device is cuda"):
        choose_precision(Precision.INT8, torch.device("cuda"))
    assert choose_precision(Precision.AUTO, torch.device("cpu"))[0] is not Precision.INT8
    with monkeypatch.context() as few:
        few.setattr(int8, "_TEXTS", ("",))
        with pytest.raises(EncoderError, match="hardly any tokens: 1 sequences of 2 tokens are too few"):
            extracted(wide, tmp_path / "e.h5", "int8")
    monkeypatch.setattr(int8, "int8_products", lambda: False)
    with pytest.raises(SettingsError, match="multiplies no 8-bit integers on this machine"):
        extracted(wide, tmp_path / "d.h5", "int8")
    assert not list(tmp_path.glob("*.h5"))


def test_products_are_exact_where_older_instructions_cut_sums_of_8_by_8_bits() -> None:
    """Which is why neighbours among the weights share 127."""
    program = (
        "from headstart.stages.encoders.packed.linear_int8 import products_are_exact as exact\n"
        "print(exact(64), exact(127))"
    )
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False"]
