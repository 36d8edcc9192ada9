"""An update opens the encoder without transformers, to the same bits; and whatever is odd, transformers loads it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
from extracting import SMALL_BLOCKS, datasets, flip_a_byte, run
from headstart.cache.errors import TableError
from headstart.cache.reader import Cache, open_cache
from headstart.cache.writer import CacheWriter, copy_with_labels
from headstart.stages.encoders import fast_load, hf
from headstart.stages.encoders.config import tokenizer_sha256
from headstart.stages.encoders.cuda import CudaBackend
from headstart.stages.encoders.encoder import Encoder, EncoderSettings
from headstart.stages.encoders.files import find_encoder
from headstart.stages.encoders.packed import backend
from headstart.stages.encoders.packed.bert import Bert
from headstart.stages.encoders.packed.kernels import UnfitError
from headstart.stages.encoders.packed.roberta import Roberta
from headstart.stages.encoders.packed.varlen import CudaKernels, find_fused
from headstart.stages.encoders.pooling import parse_features
from headstart.stages.extract import extract, extract_tables
from headstart.stages.extraction import reopen
from headstart.stages.settings import ExtractSettings, Precision
from tiny import require_kind, save_tiny_encoder, tiny_rows
from varlen_reference import ReferenceVarlen

Change = Callable[[dict[str, Any]], Any]
OLD = [text for text, _ in tiny_rows(60)]
GROWN = [*OLD[::2], *(text for text, _ in tiny_rows(40, seed=1)), "A good DAY", *OLD[1::2]]


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What transformers was asked to load."""
    found: list[Any] = []
    original = hf.load_encoder

    def load(*arguments: Any) -> Encoder:
        found.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(hf, "load_encoder", load)
    return found


def forge(path: Path, change: Change = lambda record: None, features: Callable[[Any], Any] = lambda f: f) -> None:
    """Write a finished cache anew with another record or other features: every checksum holds."""
    cache, scratch = open_cache(path), path.with_name("forged.h5")
    record = json.loads(json.dumps(cache.record))
    change(record)
    copy_with_labels(cache, scratch, labels=cache.labels, label_names=cache.label_names)
    with CacheWriter(scratch) as writer:
        for block in range(cache.layout.blocks):
            rows = cache.layout.block_slice(block)
            changed = {name: features(cache.features(name)[rows]) for name in cache.layout.widths}
            writer.write_block(block, features=changed, **cache.row_metadata(rows))
        writer.finish(record, path)


def assert_new_rows_are_right(cache: Cache, encoder: Path, folder: Path, **options: Any) -> None:
    """As a fresh run gives them, whatever the old ones are."""
    fresh, _ = run(GROWN, folder / "fresh.h5", encoder, **options)
    new = [row for row, text in enumerate(GROWN) if text not in OLD]
    cache.check()
    for name in cache.identity.features:
        np.testing.assert_allclose(cache.features(name)[new], fresh.features(name)[new], atol=1e-5, rtol=0)
    for fact in ("token_hashes", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(cache, fact), getattr(fresh, fact))


COMMAND = "import sys; from headstart.__main__ import run\nrun(); print('transformers' in sys.modules)"
ROBERTA = {"pad_token_id": 1}
"""Without it, a token of every text is padding; no RoBERTa that is published has it otherwise."""


@pytest.mark.parametrize(
    ("kind", "changes", "options"),
    [
        ("bert", {}, {}),
        ("bert", {"num_hidden_layers": 1}, {"precision": "bfloat16"}),
        ("bert", {}, {"prefix": "a very ", "max_length": 9}),
        ("bert", {}, {"features": "cls,mean,max,pooler,layer*.mean"}),
        ("bert", {}, {"storage": "float16", "features": "layer1.max"}),
        ("bert", {}, {"text_pair_column": "second", "max_length": 12}),
        ("electra", {}, {"text_pair_column": "second", "features": "cls,mean"}),
        ("roberta", ROBERTA, {"features": "cls,pooler"}),
        ("xlm-roberta", ROBERTA, {"text_pair_column": "second"}),
        ("distilbert", {}, {"features": "cls,layer1.cls"}),
        ("mpnet", {}, {"features": "cls,mean"}),
        ("modernbert", {}, {"features": "cls,layer1.mean"}),
        ("albert", {"num_hidden_groups": 2}, {"text_pair_column": "second", "features": "cls,pooler,layer1.mean"}),
        ("deberta-v2", {}, {"features": "mean,layer1.cls"}),
        ("nomic_bert", {}, {"text_pair_column": "second", "features": "cls,mean"}),
        ("gte", {"type_vocab_size": 0}, {"features": "mean,layer1.cls"}),
        ("jina_embeddings_v3", {}, {"features": "cls,mean,pooler"}),
    ],
)
def test_an_update_without_transformers_gives_the_same_bits(
    kind: str, changes: dict[str, Any], options: dict[str, str | int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_kind(kind)
    encoder = save_tiny_encoder(tmp_path / "encoder", kind=kind, **changes)
    given = {"precision": "float32", "batch_tokens": 64, "max_length": 60, **options}
    pairs = "text_pair_column" in options
    for name, texts in (("old", OLD), ("grown", GROWN)):
        lines = [f"{text},the plot of {text[::-3]}\n" if pairs else f"{text}\n" for text in texts]
        (tmp_path / f"{name}.csv").write_text(("text,second\n" if pairs else "text\n") + "".join(lines))
    chosen = {**given, "encoder": str(encoder), "label_column": None}
    if "features" in options:
        chosen["features"] = tuple(str(options["features"]).split(","))
    settings = ExtractSettings(**chosen)  # type: ignore[arg-type]
    extract(tmp_path / "old.csv", tmp_path / "quick.h5", settings)
    shutil.copy(tmp_path / "quick.h5", tmp_path / "slow.h5")
    with monkeypatch.context() as patch:
        patch.setattr(hf, "load_encoder", None)
        extract(tmp_path / "grown.csv", tmp_path / "quick.h5", settings, update=True)
    monkeypatch.setattr(reopen, "reopen", lambda *_, **__: None)
    extract(tmp_path / "grown.csv", tmp_path / "slow.h5", settings, update=True)
    quick, slow = (open_cache(tmp_path / f"{name}.h5") for name in ("quick", "slow"))
    assert quick.plan["path"] == "packed" and quick.record["sequences_encoded"] > 0
    assert datasets(quick.path) == datasets(slow.path)
    assert quick.record["encoder"]["packed"] == slow.record["encoder"]["packed"] is not None


@pytest.mark.parametrize("columns", [["text"], ["text", "second"]])
def test_no_process_of_an_update_imports_transformers(tiny: Path, tmp_path: Path, columns: list[str]) -> None:
    pair = {"text_pair_column": columns[1]} if len(columns) > 1 else {}
    for name, texts in (("old", OLD), ("grown", GROWN)):
        rows = "".join(",".join([text] * len(columns)) + "\n" for text in texts)
        (tmp_path / f"{name}.csv").write_text(",".join(columns) + "\n" + rows)
    run(tmp_path / "old.csv", tmp_path / "c.h5", tiny, label_column=None, **pair)
    command = [sys.executable, "-c", COMMAND, "extract", tmp_path / "grown.csv", "--encoder", tiny, "--no-labels"]
    command += ["--out", tmp_path / "c.h5", "--update", "--quiet", "--precision", "float32", "--batch-tokens", "64"]
    command += ["--text-pair-column", "second"] if pair else []
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
    assert open_cache(tmp_path / "c.h5").rows == len(GROWN)


def packed(name: str, value: Any) -> Change:
    """A change of what a record says of the packed encoder."""
    return lambda record: record["encoder"]["packed"].update({name: value})


def shape(name: str, value: Any) -> Change:
    return lambda record: record["encoder"]["packed"]["shape"].update({name: value})


FORGERIES: dict[str, Change] = {
    "another transformers": lambda record: record["versions"].update(transformers="4.0.0"),
    "another torch": lambda record: record["versions"].update(torch="2.0.0"),
    "another headstart": lambda record: record.update(headstart="0.0.1"),
    "versions that are none": lambda record: record.update(versions=["torch"]),
    "no recipe": lambda record: record["encoder"].pop("packed"),
    "a recipe that is none": lambda record: record["encoder"].update(packed=[1, 2]),
    "no shape": packed("shape", None),
    "other heads": shape("heads", 1),
    "heads that do not divide": shape("heads", 3),
    "heads in words": shape("heads", "2"),
    "no heads": shape("heads", 0),
    "heads that are true": shape("heads", True),
    "fewer layers": shape("layers", 1),
    "more layers": shape("layers", 3),
    "another epsilon": shape("epsilon", 1e-5),
    "an epsilon that is negative": shape("epsilon", -1e-12),
    "another kind": shape("model_type", "electra"),
    "a kind that is none": shape("model_type", "os.system"),
    "positions counted as in RoBERTa": shape("position_padding", 1),
    "positions before the first": shape("position_padding", -1),
    "another width": packed("width", 64),
    "no width": packed("width", None),
    "segments in words": packed("segments", "yes"),
    "a version too long for a number": lambda record: record["versions"].update(torch="9" * 5000),
    "another tokenizer": packed("tokenizer_sha256", "0" * 64),
}


@pytest.mark.parametrize("name", ["nothing", *FORGERIES])
def test_a_record_that_is_odd_is_not_followed(name: str, tiny: Path, tmp_path: Path, loads: list[Any]) -> None:
    run(OLD, tmp_path / "c.h5", tiny)
    forge(tmp_path / "c.h5", FORGERIES.get(name, lambda record: None))
    loads.clear()
    cache, _ = run(GROWN, tmp_path / "c.h5", tiny, update=True)
    assert len(loads) == (0 if name == "nothing" else 1)
    assert_new_rows_are_right(cache, tiny, tmp_path)


def misread(patch: pytest.MonkeyPatch, **fields: Any) -> None:
    """Let the configuration be read as a forged record says."""

    def find(config: dict[str, Any]) -> Roberta:  # which without padding has BERT's positions
        return Roberta(**{**dataclasses.asdict(Bert.from_config(config)), **fields})

    patch.setattr(fast_load, "find_architecture", find)


@pytest.mark.parametrize(("name", "value"), [("heads", 1), ("epsilon", 1e-3), ("position_padding", 1)])
def test_what_the_configuration_does_not_tell_the_sample_does(
    name: str, value: Any, tiny: Path, tmp_path: Path, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(OLD, tmp_path / "c.h5", tiny)
    forge(tmp_path / "c.h5", shape(name, value))
    loads.clear()
    misread(monkeypatch, **{name: value})
    cache, _ = run(GROWN, tmp_path / "c.h5", tiny, update=True)
    assert len(loads) == 1
    assert_new_rows_are_right(cache, tiny, tmp_path)


def test_in_half_precision_no_large_number_hides_what_is_wrong(tiny: Path, tmp_path: Path, loads: list[Any]) -> None:
    """As published encoders have it: one column of every feature is many times the rest, and the same in all texts."""
    encoder = shutil.copytree(tiny, tmp_path / "encoder")
    weights = safetensors.torch.load_file(encoder / "model.safetensors")
    weights["encoder.layer.1.output.LayerNorm.bias"][3] = 60
    safetensors.torch.save_file(weights, encoder / "model.safetensors", {"format": "pt"})
    for padding, expected in ((None, 0), (1, 1)):
        run(OLD, tmp_path / "c.h5", encoder, precision="bfloat16", overwrite=True)
        forge(tmp_path / "c.h5", shape("position_padding", padding))
        loads.clear()
        with pytest.MonkeyPatch.context() as patch:
            misread(patch, position_padding=padding)
            run(GROWN, tmp_path / "c.h5", encoder, precision="bfloat16", update=True)
        assert len(loads) == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_long_text_is_cut_where_the_encoder_says_whatever_the_cache_does(
    tiny: Path, tmp_path: Path, loads: list[Any], side: str
) -> None:
    """The sample may hold no text that is cut, so it could not tell."""
    encoder = shutil.copytree(tiny, tmp_path / "encoder")
    settings = json.loads((encoder / "tokenizer_config.json").read_text())
    (encoder / "tokenizer_config.json").write_text(json.dumps({**settings, "truncation_side": side}))
    grown = [*OLD, "the plot of a very good film was not bad but the screen was and the phone broke on the day " * 3]
    for forged in (False, True):
        run(OLD, tmp_path / "c.h5", encoder, max_length=40, overwrite=True)
        if forged:
            other = tokenizers.Tokenizer.from_file(str(encoder / "tokenizer.json"))
            other.enable_truncation(40, direction={"left": "right", "right": "left"}[side])
            other.no_padding()
            forge(tmp_path / "c.h5", packed("tokenizer_sha256", tokenizer_sha256(other)))
        loads.clear()
        cache, _ = run(grown, tmp_path / "c.h5", encoder, max_length=40, update=True)
        assert len(loads) == forged
        fresh, _ = run(grown, tmp_path / "fresh.h5", encoder, max_length=40, overwrite=True)
        assert cache.truncated[len(OLD)]
        np.testing.assert_array_equal(cache.token_hashes, fresh.token_hashes)


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("off", [0.01, np.nan])
def test_features_that_the_encoder_does_not_give_prove_nothing(
    storage: str, off: float, tiny: Path, tmp_path: Path, loads: list[Any]
) -> None:
    run(OLD, tmp_path / "c.h5", tiny, storage=storage)
    forge(tmp_path / "c.h5", features=lambda values: values * (1 + off))
    loads.clear()
    cache, _ = run(GROWN, tmp_path / "c.h5", tiny, storage=storage, update=True)
    assert len(loads) == 1
    assert_new_rows_are_right(cache, tiny, tmp_path, storage=storage)
    if np.isnan(off):  # such blocks are damaged, so all rows are encoded again
        assert np.isfinite(cache.features()).all()


def test_tokens_that_the_tokenizer_does_not_make_prove_nothing(
    tiny: Path, tmp_path: Path, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(OLD, tmp_path / "c.h5", tiny)
    loads.clear()
    original = Encoder.tokenize

    def tokenize(self: Encoder, texts: Any, pairs: Any = None) -> Any:
        sequences, truncated = original(self, texts, pairs)
        return ([ids[::-1] for ids in sequences] if not loads else sequences), truncated

    monkeypatch.setattr(Encoder, "tokenize", tokenize)
    cache, _ = run(GROWN, tmp_path / "c.h5", tiny, update=True)
    assert len(loads) == 1
    assert_new_rows_are_right(cache, tiny, tmp_path)


def test_rows_that_are_not_shared_whole_and_near_prove_nothing(
    tiny: Path, tmp_path: Path, loads: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen rows at the top of each are looked at; a block is of 8."""
    monkeypatch.setattr(reopen, "FIRST_ROWS", 16)
    numbered = [f"good film {number:03}" for number in range(60)]
    new = [f"bad plot {number:03}" for number in range(20)]
    for name, table, damaged, expected in (
        ("none", new, (), 1),
        ("far", [*new, *numbered], (), 1),
        ("near", [*new[:13], *numbered], (), 0),
        ("one alone", [*new[:15], *numbered], (), 1),
        ("damaged", [*numbered, *new], (0, 8), 1),
        ("one block whole", [*numbered, *new], (0,), 0),
    ):
        run(numbered, tmp_path / f"{name}.h5", tiny, **SMALL_BLOCKS)
        for row in damaged:
            flip_a_byte(tmp_path / f"{name}.h5", "features/cls", row)
        loads.clear()
        cache, _ = run(table, tmp_path / f"{name}.h5", tiny, update=True, **SMALL_BLOCKS)
        assert len(loads) == expected, name
        fresh, _ = run(table, tmp_path / "fresh.h5", tiny, overwrite=True, **SMALL_BLOCKS)
        np.testing.assert_allclose(cache.features(), fresh.features(), atol=1e-5, rtol=0)


def prefixed(weights: dict[str, Any]) -> dict[str, Any]:
    """As those of a larger model, of the time when norms had a gamma and a beta."""
    renamed = {f"bert.{name}": weight for name, weight in weights.items()}
    for new, old in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
        renamed = {name.replace(new, old): weight for name, weight in renamed.items()}
    return {**renamed, "cls.predictions.bias": torch.zeros(7)}


def saved(encoder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = encoder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(file)), file, {"format": "pt"})


def sharded(encoder: Path) -> None:
    weights = safetensors.torch.load_file(encoder / "model.safetensors")
    names = {f"model-0000{n}-of-00002.safetensors": sorted(weights)[n - 1 :: 2] for n in (1, 2)}
    for file, held in names.items():
        safetensors.torch.save_file({name: weights[name] for name in held}, encoder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in names.items() for name in held}}
    (encoder / "model.safetensors.index.json").write_text(json.dumps(index))
    (encoder / "model.safetensors").unlink()


def pickled(encoder: Path) -> None:
    torch.save(safetensors.torch.load_file(encoder / "model.safetensors"), encoder / "pytorch_model.bin")
    (encoder / "model.safetensors").unlink()


def splitting(encoder: Path) -> None:
    """The tokenizer reads special tokens that a text spells out as text, which its JSON does not say."""
    config = json.loads((encoder / "tokenizer_config.json").read_text())
    (encoder / "tokenizer_config.json").write_text(json.dumps({**config, "split_special_tokens": True}))


def of_vocabulary(encoder: Path) -> None:
    """No tokenizer.json: transformers makes one of the words alone."""
    words = json.loads((encoder / "tokenizer.json").read_text())["model"]["vocab"]
    (encoder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(words, key=words.__getitem__)))
    (encoder / "tokenizer.json").unlink()
    (encoder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda encoder: saved(encoder, prefixed), 0),
        (lambda encoder: saved(encoder, lambda found: {n: weight.half() for n, weight in found.items()}), 0),
        (lambda encoder: saved(encoder, lambda found: {**found, "bert.pooler.dense.bias": torch.zeros(32)}), 1),
        (sharded, 0),
        (pickled, 1),
        (splitting, 1),
        (of_vocabulary, 1),
    ],
    ids=["prefix and old names", "half precision", "a name twice", "shards", "pickle", "special tokens", "vocabulary"],
)
def test_files_of_many_kinds_are_read_right(
    change: Callable[[Path], None], expected: int, tiny: Path, tmp_path: Path, loads: list[Any]
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny, encoder)
    change(encoder)
    options = {"allow_pickled_weights": True, "max_length": 60}
    run(OLD, tmp_path / "c.h5", encoder, **options)
    loads.clear()
    cache, _ = run(GROWN, tmp_path / "c.h5", encoder, update=True, **options)
    assert len(loads) == expected
    assert_new_rows_are_right(cache, encoder, tmp_path, **options)


def test_an_encoder_that_is_padded_takes_transformers(tmp_path: Path, loads: list[Any]) -> None:
    encoder = save_tiny_encoder(tmp_path / "rembert", kind="rembert")
    first, _ = run(OLD, tmp_path / "c.h5", encoder)
    loads.clear()
    cache, _ = run(GROWN, tmp_path / "c.h5", encoder, update=True)
    assert "packed" not in first.record["encoder"] and len(loads) == 1
    assert_new_rows_are_right(cache, encoder, tmp_path)


def test_every_way_to_come_by_a_donor_is_quick(
    tiny: Path, tmp_path: Path, loads: list[Any], write_csv: Callable[..., Path]
) -> None:
    first, _ = run(OLD, tmp_path / "c.h5", tiny)
    assert len(loads) == 1
    assert first.record["encoder"]["packed"]["shape"]["model_type"] == "bert"
    run(GROWN, tmp_path / "reused.h5", tiny, reuse=[tmp_path / "c.h5"])
    run(GROWN, tmp_path / "c.h5", tiny, update=True)
    cache, _ = run([*GROWN, "plot"], tmp_path / "c.h5", tiny, update=True)  # by what an update wrote in its turn
    tables = [write_csv([(text, "x") for text in OLD[start:]], f"{start}.csv") for start in (0, 7)]
    settings = ExtractSettings(encoder=str(tiny), precision="float32", batch_tokens=64)  # type: ignore[arg-type]
    extract_tables([tables[0], tables[1]], tmp_path / "caches", settings, reuse=[tmp_path / "c.h5"])
    assert len(loads) == 1 and cache.record["sequences_encoded"] == 1
    run(GROWN, tmp_path / "c.h5", tiny, overwrite=True)
    assert len(loads) == 2


@pytest.mark.usefixtures("large_table")
def test_a_table_that_changes_after_its_first_reading_is_refused(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(write_csv([(text, "x") for text in OLD]), tmp_path / "c.h5", tiny)
    before = (tmp_path / "c.h5").read_bytes()
    table = write_csv([(text, "x") for text in GROWN])
    original = reopen.reopen

    def change_first(*arguments: Any, **options: Any) -> Any:
        write_csv([(text, "x") for text in reversed(GROWN)])
        return original(*arguments, **options)

    monkeypatch.setattr(reopen, "reopen", change_first)
    with pytest.raises(TableError, match="changed while it was read"):
        run(table, tmp_path / "c.h5", tiny, update=True)
    assert (tmp_path / "c.h5").read_bytes() == before


def loaded_on_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch, kernels: Callable[..., Any]) -> Encoder | None:
    """An encoder loaded for a GPU, whose part the CPU plays, by what its loading on the CPU left."""
    settings = EncoderSettings(
        features=parse_features(["cls", "mean"], None),
        device=torch.device("cpu"),
        precision=Precision.BFLOAT16,
        prefix="",
        max_length=100,
        batch_tokens=256,
    )
    files = find_encoder(str(folder))
    config = hf.load_encoder(files, settings).config
    assert config is not None
    monkeypatch.setattr(fast_load, "cuda_kernels", kernels)
    monkeypatch.setattr(backend, "CopyStream", lambda device: device)
    return fast_load.load_packed(files, dataclasses.replace(settings, device=torch.device("cuda")), config.to_record())


@pytest.mark.skipif(find_fused() is None, reason="Triton is missing")
def test_a_gpu_gets_its_encoder_without_transformers_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = CudaKernels(torch.device("cpu"), ReferenceVarlen())
    encoder = loaded_on_a_gpu(tiny, monkeypatch, lambda *_, **__: kernels)
    assert encoder is not None and isinstance(encoder.backend, CudaBackend) and kernels.fused is find_fused()
    monkeypatch.undo()
    on_cpu = hf.load_encoder(
        find_encoder(str(tiny)),
        EncoderSettings(
            features=parse_features(["cls", "mean"], None),
            device=torch.device("cpu"),
            precision=Precision.FLOAT32,
            prefix="",
            max_length=100,
        ),
    )
    sequences, _ = encoder.tokenize(OLD[:9])
    with torch.inference_mode():
        found, expected = encoder.backend.forward(sequences), on_cpu.backend.forward(sequences)
    for name, values in expected.items():
        assert (found[name] - values).norm() <= 0.02 * values.norm()


def test_what_runs_in_another_way_on_a_gpu_is_loaded_by_transformers(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unfit(*_: Any, **__: Any) -> None:
        raise UnfitError("without padding, it takes a GPU of the Ampere generation or a newer one")

    assert loaded_on_a_gpu(tiny, monkeypatch, unfit) is None
    plain = CudaKernels(torch.device("cpu"), ReferenceVarlen())
    monkeypatch.setattr(fast_load, "find_fused", lambda: None)
    assert loaded_on_a_gpu(tiny, monkeypatch, lambda *_, **__: plain) is None
