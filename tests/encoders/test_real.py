"""Real weights and real text: the features are transformers' own, and a head cannot tell the cache from the encoder."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from headstart.cache.reader import open_cache
from headstart.stages.encoders import hf
from headstart.stages.encoders.packed import linear_cpu
from headstart.stages.extract import extract
from headstart.stages.extraction import reopen
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.fit import fit_head
from headstart.stages.heads.sampling import training_batches
from headstart.stages.heads.stacked import ADAM_EPSILON
from headstart.stages.heads.targets import ClassTarget
from headstart.stages.settings import ExtractSettings, Precision, TrainSettings
from headstart.stages.train_head import train_head
from processor import needs_digits

Texts = list[str]
DATA = Path(__file__).resolve().parents[2] / ".data"
BY_DEFAULT: dict[str, Any] = {"features": ("auto",)}


class PlainEncoder:
    """transformers as its own documentation uses it: one call of the tokenizer, one of the model."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = transformers.AutoModel.from_pretrained(folder).eval()

    def __call__(self, texts: Texts) -> torch.Tensor:
        """(texts, width) float32: the last hidden state at [CLS]."""
        batch = self.tokenizer(texts, truncation=True, max_length=128, padding=True, return_tensors="pt")
        with torch.no_grad():
            state: torch.Tensor = self.model(**batch).last_hidden_state
        return state[:, 0]

    def own(self, texts: Texts) -> torch.Tensor:
        """(texts, width) float32: the mean over tokens, divided by its length, of texts cut at 256 tokens."""
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        vectors: list[torch.Tensor] = []
        for start in range(0, len(order), 32):
            part = [texts[row] for row in order[start : start + 32]]
            batch = self.tokenizer(part, truncation=True, max_length=256, padding=True, return_tensors="pt")
            real = batch["attention_mask"][..., None]
            with torch.no_grad():
                means = (self.model(**batch).last_hidden_state * real).sum(1) / real.sum(1)
            vectors.extend(means / means.norm(dim=1, keepdim=True))
        return torch.stack([vectors[place] for place in np.argsort(order)])


@pytest.fixture(scope="module")
def plain(minilm: Path) -> PlainEncoder:
    return PlainEncoder(minilm)


@pytest.fixture(scope="module")
def mixed(vader: list[dict[str, str]]) -> list[dict[str, str]]:
    """200 real texts of all lengths, one of them cut at 128 tokens (`bench/recipes.py` compares more)."""
    by_length = sorted(vader, key=lambda row: len(row["text"]))
    chosen = [by_length[i] for i in np.linspace(0, len(by_length) - 1, 199).astype(int)]
    chosen.append({"text": " ".join(row["text"] for row in by_length[-3:]), "label": "neutral"})
    return [chosen[i] for i in np.random.default_rng(0).permutation(200)]


@pytest.fixture(scope="module")
def expected(plain: PlainEncoder, mixed: list[dict[str, str]]) -> torch.Tensor:
    """What transformers gives for each of the texts alone."""
    return torch.cat([plain([row["text"]]) for row in mixed])


FIRST_TOKEN: dict[str, Any] = {"features": ("cls",), "max_length": 128}


def extracted(rows: list[dict[str, str]], out: Path, encoder: Path, precision: str, **chosen: Any) -> Any:
    """Of the first token, cut at 128 tokens, unless other settings are chosen."""
    table = {name: [row[name] for row in rows] for name in ("text", "label")}
    settings = ExtractSettings(encoder=str(encoder), precision=Precision(precision), **(chosen or FIRST_TOKEN))
    return open_cache(extract(table, out, settings))


@pytest.mark.parametrize("path", ["packed", pytest.param("packed, by digits", marks=needs_digits), "padded"])
def test_features_are_those_of_plain_transformers(
    minilm: Path,
    expected: torch.Tensor,
    mixed: list[dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
) -> None:
    if path == "padded":
        monkeypatch.setattr(hf, "find_architecture", lambda config: None)
    if path == "packed, by digits":
        monkeypatch.setattr(linear_cpu, "_split_pays", lambda *_: True)
    cache = extracted(mixed, tmp_path / "c.h5", minilm, "float32")
    assert cache.plan["path"] == path.partition(",")[0]
    assert cache.record["truncated_rows"] >= 1
    np.testing.assert_allclose(cache.features(), expected, atol=1e-5, rtol=0)


def test_the_vector_by_default_is_the_model_s_own(
    minilm: Path, plain: PlainEncoder, mixed: list[dict[str, str]], tmp_path: Path
) -> None:
    """With no option but the precision, beside transformers alone: MiniLM's mean, normalised, of 256 tokens."""
    assert (minilm / "modules.json").is_file(), "run `make data` first"
    cache = extracted(mixed, tmp_path / "c.h5", minilm, "float32", **BY_DEFAULT)
    assert cache.identity.features == ("model",) and cache.identity.max_length == 256
    assert cache.record["encoder"]["model"] == "mean over tokens, normalised"
    np.testing.assert_allclose(cache.features(), plain.own([row["text"] for row in mixed]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["minilm", "all-mpnet-base-v2"])
def test_the_vector_by_default_is_that_of_sentence_transformers(
    mixed: list[dict[str, str]], tmp_path: Path, name: str
) -> None:
    """Which need not be installed. The second encoder takes minutes: it is tried where HEADSTART_LARGE is set."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = DATA / name
    if name != "minilm" and not ("HEADSTART_LARGE" in os.environ and (folder / "modules.json").is_file()):
        pytest.skip(f"HEADSTART_LARGE is not set, or {folder} is not here")
    cache = extracted(mixed, tmp_path / "c.h5", folder, "float32", **BY_DEFAULT)
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    theirs = model.encode([row["text"] for row in mixed], show_progress_bar=False)
    np.testing.assert_allclose(cache.features(), theirs, atol=1e-5, rtol=0)


def test_bfloat16_features_point_the_same_way(minilm: Path, mixed: list[dict[str, str]], tmp_path: Path) -> None:
    exact = extracted(mixed[:100], tmp_path / "a.h5", minilm, "float32").features().astype(np.float64)
    rough = extracted(mixed[:100], tmp_path / "b.h5", minilm, "bfloat16").features().astype(np.float64)
    cosines = (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
    assert cosines.min() > 0.999
    assert np.abs(exact - rough).max() > 1e-4  # it did compute in bfloat16


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_update_opens_the_real_encoder_without_transformers(
    minilm: Path, mixed: list[dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """And encodes what is new, to the bits that transformers' loading gives."""
    first = extracted(mixed[20:], tmp_path / "first.h5", minilm, precision)
    settings = ExtractSettings(encoder=str(minilm), precision=Precision(precision), **FIRST_TOKEN)
    table = {name: [row[name] for row in mixed] for name in ("text", "label")}
    whole = []
    for name, disabled in (("loaded", "reopen"), ("opened", "load_encoder")):
        with monkeypatch.context() as patch:
            patch.setattr(reopen if disabled == "reopen" else hf, disabled, lambda *_, **__: None)
            made = extract(table, tmp_path / f"{name}.h5", settings, reuse=[first.path])
        whole.append(open_cache(made))
        known = {digest.tobytes() for digest in first.token_hashes}
        new = {digest.tobytes() for digest in whole[-1].token_hashes} - known
        assert whole[-1].record["sequences_encoded"] == len(new) > 0
    np.testing.assert_array_equal(whole[0].features(), whole[1].features())


def test_a_head_from_the_cache_is_the_head_from_the_encoder_in_the_loop(
    minilm: Path, plain: PlainEncoder, mixed: list[dict[str, str]], tmp_path: Path
) -> None:
    """The same optimiser, seed, batches and masks; the frozen encoder, in eval(), run for every batch. Texts are
    the shorter ones, which are padded less."""
    mixed = sorted(mixed, key=lambda row: len(row["text"]))[:150]
    mixed = [mixed[i] for i in np.random.default_rng(1).permutation(150)]
    cache = extracted(mixed, tmp_path / "c.h5", minilm, "float32")
    settings = TrainSettings(solver="sgd", epochs=4, batch_size=64, seed=1)
    texts, labels = [row["text"] for row in mixed], cache.labels
    train, validation = np.arange(120), np.arange(120, 150)
    fit = fit_head(
        Dataset(features=cache.features(), labels=labels, index=train),
        Dataset(features=cache.features(), labels=labels, index=validation),
        target=ClassTarget(("0", "1", "2")),
        settings=settings,
        device=torch.device("cpu"),
    )
    linear = torch.nn.Linear(384, 3)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    groups = [{"params": [linear.weight], "weight_decay": settings.weight_decay}, {"params": [linear.bias]}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0, eps=ADAM_EPSILON)
    means = torch.cat([plain(texts[start : start + 40]) for start in range(0, 120, 40)]).mean(0)
    heads = []
    for batches in training_batches(len(train), 384, epochs=4, batch_size=64, dropout=settings.dropout, seed=1):
        for positions, keep in batches:
            features = (plain([texts[row] for row in positions]) - means) * torch.from_numpy(keep)
            loss = torch.nn.functional.cross_entropy(linear(features), torch.from_numpy(labels[positions]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        heads.append((linear.weight.detach().clone(), linear.bias.detach().clone()))
    weight, bias = heads[fit.best_epoch - 1]
    np.testing.assert_allclose(fit.parameters["weight"], weight, atol=1e-4)
    np.testing.assert_allclose(fit.parameters["bias"], bias - weight @ means, atol=1e-4)
    assert np.abs(fit.parameters["weight"]).max() > 1e-2


def test_a_head_learns_real_sentiment(minilm: Path, vader: list[dict[str, str]], tmp_path: Path) -> None:
    """Far above the share of the commonest class, on texts that it never saw."""
    short = [row for row in vader if len(row["text"]) < 80]
    rows = [short[i] for i in np.random.default_rng(0).permutation(len(short))[:2000]]
    cache = extracted(rows, tmp_path / "c.h5", minilm, "auto", **BY_DEFAULT)
    head = train_head(cache.path, tmp_path / "run", TrainSettings(solver="sgd"))
    test = json.loads((head / "run.json").read_text())["metrics"]["test"]
    commonest = max(scores["rows"] for scores in test["per_class"].values()) / test["rows"]
    assert test["accuracy_interval"][0] > commonest + 0.05
