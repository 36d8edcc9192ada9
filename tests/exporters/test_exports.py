"""Exports say what headstart says, carry all of a head or refuse it by name, and name no folder of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pytest
import survey
from exports import answers
from extracting import run
from headstart.cache.errors import ExportError, OutputExistsError, SettingsError
from headstart.stages.exporters import transformers as stock
from headstart.stages.exporters.source import Texts, batches
from headstart.stages.heads.dims import Dims
from headstart.stages.heads.head import Head
from headstart.stages.runs.export_folder import EXPORT
from headstart.stages.runs.run import load_head, read_run, write_run
from headstart.stages.settings import ExportSettings, Task, TrainSettings
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_tiny_encoder, tiny_rows

pytest.importorskip("onnxruntime")
pytest.importorskip("sentence_transformers")
ROWS = tiny_rows(40)
WIDTH = 32
FEATURES = ("cls", "mean", "pooler", "layer1.cls")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries that load exports


def random(*shape: int, scale: float = 1.0) -> Any:
    return (scale * np.random.default_rng(sum(shape)).normal(size=shape)).astype(np.float32)


def changes(name: str) -> dict[str, Any]:
    """What a kind of head has that a plain one lacks."""
    three = {"weight": random(3, WIDTH), "bias": random(3), "label_names": ("low", "mid", "high")}
    hidden = {"hidden_weight": random(5, WIDTH), "hidden_bias": random(5), "weight": random(3, 5)}
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "calibrated": {"temperature": 2.5},
        "thresholds": {"thresholds": (0.9, 0.4, 0.2)},
        "hidden": hidden,
        "dims": {"weight": random(3, 8), "dims": Dims(dims=8, of=WIDTH, normalized=False)},
        "cut": {"weight": random(3, 8), "dims": Dims(dims=8, of=WIDTH, normalized=True)},
        "normalized": {"normalize": True},
        "multi-label": {"task": Task.MULTI_LABEL, "thresholds": (0.3, 0.5, 0.7)},
        "ordinal": {"task": Task.ORDINAL, "weight": random(1, WIDTH), "bias": np.array([1, -1], np.float32)},
        "regression": {"task": Task.REGRESSION, "weight": random(1, WIDTH), "bias": random(1), "label_names": ()},
    }
    return {**three, **kinds[name]}


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of random heads are made in it."""
    folder = tmp_path_factory.mktemp("exports")
    table = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    run(table, folder / "c.h5", tiny, features=FEATURES, max_length=24)
    headstart.train_head(folder / "c.h5", folder / "base", TrainSettings(solver="exact", feature="cls"))
    return folder


def made(folder: Path, kind: str, feature: str, encoder: Path | None = None) -> Path:
    """A run of a random head."""
    out = folder / f"{kind}-{feature}"
    if out.exists():
        return out
    record = {k: v for k, v in read_run(folder / "base").items() if k not in ("format", "version")}
    head = load_head(folder / "base")
    identity = dataclasses.replace(head.identity, features=(feature,))
    head = Head(**{"identity": identity, **changes(kind)})
    out.mkdir()
    dims = None if head.dims is None else dataclasses.asdict(head.dims)
    record |= {"label_names": list(head.label_names), "identity": dataclasses.asdict(identity), "dims": dims}
    write_run(out, head, record | {"scaling": "normalized" if head.normalize else "none"}, [])
    return out


@pytest.mark.parametrize(
    ("to", "kind", "feature"),
    [
        ("transformers", "calibrated", "cls"),
        ("transformers", "dims", "layer1.cls"),
        ("transformers", "multi-label", "cls"),
        ("transformers", "regression", "pooler"),
        ("sentence-transformers", "cut", "mean"),
        ("sentence-transformers", "hidden", "layer1.cls"),
        ("sentence-transformers", "multi-label", "mean"),
        ("onnx", "thresholds", "layer1.cls"),
        ("onnx", "ordinal", "mean"),
        ("onnx", "multi-label", "pooler"),
        ("onnx", "hidden", "cls"),
        ("torch", "calibrated", "cls"),
        ("numpy", "thresholds", "mean"),
        ("numpy", "ordinal", "cls"),
        ("numpy", "cut", "cls"),
        ("numpy", "hidden", "cls"),
        ("numpy", "multi-label", "cls"),
        ("numpy", "regression", "cls"),
    ],
)
def test_an_export_says_what_the_head_says(folder: Path, tmp_path: Path, to: str, kind: str, feature: str) -> None:
    out = headstart.export(made(folder, kind, feature), tmp_path / "out", ExportSettings(to=to))
    compared = EXPORT.read(out)["compared"]
    assert compared["texts"] >= 32 and compared["difference"] < 1e-4
    assert compared["equal"] == (None if kind == "regression" else compared["texts"])
    assert "```python" in (out / "README.md").read_text(encoding="utf-8")
    for file in (path for path in out.rglob("*") if path.is_file()):
        for secret in (str(Path.home()), str(folder), str(tmp_path), str(Path.cwd())):
            assert secret.encode() not in file.read_bytes(), f"{file.name} names {secret}"


def test_weights_of_8_bits_keep_the_labels(folder: Path, tmp_path: Path) -> None:
    one = made(folder, "plain", "mean")
    whole = headstart.export(one, tmp_path / "whole", to="onnx")
    out = headstart.export(one, tmp_path / "out", to="onnx", int8=True)
    assert 0 < EXPORT.read(out)["compared"]["difference"] < 0.5
    assert (out / "model.onnx").stat().st_size < (whole / "model.onnx").stat().st_size
    with pytest.raises(SettingsError, match="8-bit weights would change"):
        headstart.export(made(folder, "regression", "cls"), tmp_path / "no", to="onnx", int8=True)


@pytest.mark.parametrize(
    ("to", "kind", "feature", "problem"),
    [
        ("transformers", "plain", "mean", "its feature is mean.*choose `to=sentence-transformers` or `to=onnx` or"),
        ("transformers", "normalized", "cls", "divides each vector by its length.*`to=sentence-transformers`"),
        ("transformers", "thresholds", "cls", "predicts by thresholds.*; choose `to=onnx` or `to=numpy`$"),
        ("transformers", "hidden", "cls", "has a hidden layer with a ReLU"),
        ("sentence-transformers", "ordinal", "mean", "its classes have an order; choose `to=onnx` or `to=numpy`$"),
        ("torch", "plain", "pooler", "its feature is the encoder's pooler; choose `to=transformers` or `to=onnx`"),
        ("torch", "multi-label", "cls", "the program predicts classes"),
    ],
)
def test_what_a_format_cannot_carry_is_refused(
    folder: Path, tmp_path: Path, to: str, kind: str, feature: str, problem: str
) -> None:
    with pytest.raises(SettingsError, match=problem):
        headstart.export(made(folder, kind, feature), tmp_path / "out", ExportSettings(to=to))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoder", ["distilbert", "electra", "roberta", "mpnet", "albert"])
def test_stock_classes_of_other_encoders_give_the_same_logits(tmp_path: Path, encoder: str) -> None:
    save_tiny_encoder(tmp_path / "encoder", kind=encoder)
    table = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    run(table, tmp_path / "c.h5", tmp_path / "encoder", max_length=24)
    headstart.train_head(tmp_path / "c.h5", tmp_path / "base", TrainSettings(solver="exact"))
    kind = "hidden" if encoder == "distilbert" else "plain"
    out = headstart.export(made(tmp_path, kind, "cls"), tmp_path / "out", ExportSettings(to="transformers"))
    assert EXPORT.read(out)["compared"]["difference"] < 1e-4


@pytest.mark.parametrize("encoder", ["LaBSE", "ModernBERT-base", "Qwen3-Embedding-0.6B", "embeddinggemma-300m"])
def test_encoders_of_other_kinds_leave_by_graphs_and_modules(tmp_path: Path, encoder: str) -> None:
    (row,) = [row for row in survey.ROWS if row.name.endswith(f"/{encoder}")]
    survey.save_tiny(row, tmp_path / "encoder")
    table = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    run(table, tmp_path / "c.h5", tmp_path / "encoder", features=("auto",))
    trained = headstart.train_head(tmp_path / "c.h5", tmp_path / "run", TrainSettings(solver="exact"))
    for to in ("onnx", "sentence-transformers"):
        if (to, encoder) == ("onnx", "embeddinggemma-300m"):
            with pytest.raises(ExportError, match=r"cannot make a graph of an encoder of this kind, gemma3_text"):
                headstart.export(trained, tmp_path / to, to=to)
            assert not (tmp_path / to).exists()
            continue
        out = headstart.export(trained, tmp_path / to, to=to)
        assert EXPORT.read(out)["compared"]["difference"] < 1e-4


@given(st.lists(st.sampled_from([1, 20, 900, 9000]), max_size=60), st.booleans())
def test_a_batch_that_is_compared_is_bounded_whatever_its_longest_text(lengths: list[int], with_pairs: bool) -> None:
    texts = [f"{number}".ljust(length, "x") for number, length in enumerate(lengths)]
    cut = batches(Texts(texts=texts, pairs=texts[::-1] if with_pairs else None))
    assert [text for batch in cut for text in batch.texts] == texts
    if with_pairs:
        assert [pair for batch in cut for pair in batch.pairs or ()] == texts[::-1]
    for batch in cut:
        pairs = batch.pairs or [""] * len(batch.texts)
        longest = max((len(text + pair) for text, pair in zip(batch.texts, pairs, strict=True)), default=1)
        assert len(batch.texts) <= max(1, min(16, 8192 // longest))


def test_cards_say_how_pairs_and_prompts_are_given(tiny: Path, tmp_path: Path) -> None:
    texts, labels = zip(*ROWS, strict=True)
    pairs = {"text": list(texts), "second": list(texts[::-1]), "label": list(labels)}
    run(pairs, tmp_path / "pairs.h5", tiny, text_pair_column="second", max_length=24)
    run({"text": list(texts), "label": list(labels)}, tmp_path / "prompt.h5", tiny, prefix="query: ", max_length=24)
    for name in ("pairs", "prompt"):
        trained = headstart.train_head(tmp_path / f"{name}.h5", tmp_path / name, TrainSettings(solver="exact"))
        out = headstart.export(trained, tmp_path / f"{name}-onnx", to="onnx")
        card = (out / "README.md").read_text(encoding="utf-8")
        code = card.partition("```python\n")[2].partition("\n```")[0]
        given = {"texts": list(texts), "pairs": list(texts[::-1])}
        with contextlib.chdir(out):
            exec(compile(code, name, "exec"), given)
        model = headstart.load(trained)
        expected = model.predict(list(texts), list(texts[::-1])) if name == "pairs" else model.predict(list(texts))
        assert given["labels"] == expected.tolist()
        assert ("`pairs`" in card) == (name == "pairs") and ('begins with `"query: "`' in card) == (name == "prompt")


def test_an_export_that_says_something_else_is_removed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stock, "_SCALE", 0.25)  # a tanh of such states is not linear
    with pytest.raises(ExportError, match=r"the export is not kept: .* and 0\.0001 is allowed"):
        headstart.export(made(folder, "plain", "cls"), tmp_path / "out", ExportSettings(to="transformers"))
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_long_is_cut_or_fails(folder: Path, tmp_path: Path) -> None:
    import transformers

    out = headstart.export(made(folder, "plain", "cls"), tmp_path / "out", ExportSettings(to="transformers"))
    long = "good film " * 40
    whole = transformers.pipeline("text-classification", model=str(out))
    with pytest.raises(RuntimeError):
        whole(long)
    cut = transformers.pipeline("text-classification", model=str(out), truncation=True)
    assert cut(long)[0]["label"] == headstart.load(made(folder, "plain", "cls")).predict(long)


def test_an_export_is_uploaded_only_when_asked(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []

    class Hub:
        def create_repo(self, repository: str, **options: Any) -> None:
            calls.append((repository, options))

        def upload_folder(self, **options: Any) -> None:
            calls.append(("files", options["folder_path"]))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    headstart.export(made(folder, "plain", "cls"), tmp_path / "kept", ExportSettings(to="numpy"))
    assert not calls
    headstart.export(made(folder, "plain", "cls"), tmp_path / "sent", ExportSettings(to="numpy", push="org/name"))
    assert calls == [("org/name", {"private": True, "exist_ok": True}), ("files", str(tmp_path / "sent"))]


def test_an_export_replaces_exports_alone(folder: Path, tmp_path: Path) -> None:
    one, settings = made(folder, "plain", "cls"), ExportSettings(to="numpy")
    out = headstart.export(one, tmp_path / "out", settings)
    with pytest.raises(OutputExistsError, match="exists already"):
        headstart.export(one, out, settings)
    headstart.export(one, out, settings, overwrite=True)
    (out / "mine.txt").touch()
    with pytest.raises(OutputExistsError, match=r"mine\.txt was not made by headstart"):
        headstart.export(one, out, settings, overwrite=True)


def test_settings_that_have_no_meaning_are_refused() -> None:
    with pytest.raises(SettingsError, match="`to` is not given; choose one of transformers"):
        ExportSettings()
    with pytest.raises(SettingsError, match="`to` is 'pickle'"):
        ExportSettings(to="pickle")
    with pytest.raises(SettingsError, match="`int8` has no effect without `to=onnx`"):
        ExportSettings(to="torch", int8=True)
    with pytest.raises(SettingsError, match="must be ORG/NAME"):
        ExportSettings(to="torch", push="name")


@pytest.mark.apart
def test_cards_load_their_exports_without_headstart(minilm: Path, vader: list[dict[str, str]], tmp_path: Path) -> None:
    """Of the real MiniLM: one process for all formats."""
    texts = [row["text"] for row in vader[:60]]
    table = {"text": texts, "label": [row["label"] for row in vader[:60]]}
    run(table, tmp_path / "c.h5", minilm)
    trained = headstart.train_head(tmp_path / "c.h5", tmp_path / "run", TrainSettings(solver="exact"))
    folders = {
        to: headstart.export(trained, tmp_path / to, ExportSettings(to=to))
        for to in ("transformers", "sentence-transformers", "onnx", "torch", "numpy")
    }
    model = headstart.load(trained)
    expected = model.predict(texts).tolist()
    for name, found in answers(folders, texts, model, tmp_path).items():
        assert found["labels"] == expected, name
    assert 'license: "apache-2.0"' in (tmp_path / "onnx" / "README.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "onnx" / "headstart.json").read_text(encoding="utf-8"))["encoder"] == "minilm"
