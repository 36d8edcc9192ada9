"""The feature `model` is what sentence-transformers' `encode` gives for the same folder, to 1e-5 in float32."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extracting import run
from recipes import BY_HAND, add_dense, add_layer_norm, edit, in_subfolder, with_recipe, write
from tiny import save_tiny_encoder, tiny_rows

TEXTS = [text for text, _ in tiny_rows(20)] + ["a", "A Good film", " the  plot "]
FUNCTIONS = ("linear.Identity", *(f"activation.{name}" for name in ("Tanh", "ReLU", "GELU", "Sigmoid", "SiLU")))


@dataclasses.dataclass
class Case:
    """A folder, the settings to extract with, and what `encode` is given for the same vectors."""

    folder: Path
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    encode: dict[str, Any] = dataclasses.field(default_factory=dict)


def pooled(mode: Any) -> Callable[[Path, Path], Case]:
    return lambda encoder, folder: Case(with_recipe(encoder, folder, pooling=mode))


def prompt_left_out(mode: str, kind: str) -> Callable[[Path, Path], Case]:
    def made(_: Path, folder: Path) -> Case:
        encoder = save_tiny_encoder(folder.parent / kind, kind=kind)
        document = {"pooling_mode": mode, "include_prompt": False}
        return Case(with_recipe(encoder, folder, pooling=document), {"prompt": "query"}, {"prompt_name": "query"})

    return made


def dense(function: str, *, bias: bool = True) -> Callable[[Path, Path], Case]:
    def made(encoder: Path, folder: Path) -> Case:
        with_recipe(encoder, folder, "Dense")
        add_dense(folder / "2_Dense", function=function, bias=bias)
        return Case(folder)

    return made


def several(encoder: Path, folder: Path) -> Case:
    """As EmbeddingGemma and others have them, with all that is computed between."""
    with_recipe(encoder, folder, "Dense", "Dropout", "Dense", "LayerNorm", "Normalize")
    add_dense(folder / "2_Dense", width=48, function="linear.Identity", bias=False)
    write(folder / "3_Dropout" / "config.json", {"dropout": 0.5})
    add_dense(folder / "4_Dense", inputs=48)
    add_layer_norm(folder / "5_LayerNorm")
    return Case(folder)


def of_texts(encoder: Path, folder: Path, *, encode: dict[str, Any] | None = None, **settings: Any) -> Case:
    return Case(with_recipe(encoder, folder, "Normalize"), settings, encode or {})


def cut(encoder: Path, folder: Path) -> Case:
    edit(with_recipe(encoder, folder, "Normalize") / "config_sentence_transformers.json", truncate_dim=5)
    return Case(folder)


def short(encoder: Path, folder: Path) -> Case:
    edit(with_recipe(encoder, folder) / "sentence_bert_config.json", max_seq_length=5)
    return Case(folder)


def of_the_tokenizer_s_length(encoder: Path, folder: Path) -> Case:
    edit(with_recipe(encoder, folder) / "sentence_bert_config.json", max_seq_length=None)
    edit(folder / "tokenizer_config.json", model_max_length=6)
    return Case(folder)


def lower(encoder: Path, folder: Path) -> Case:
    content = json.loads((with_recipe(encoder, folder, lower=True) / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    write(folder / "tokenizer.json", content)
    edit(folder / "tokenizer_config.json", do_lower_case=False)
    return Case(folder)


def spelled(encoder: Path, folder: Path) -> Case:
    """Settings that change nothing."""
    with_recipe(encoder, folder)
    arguments = {"model_args": {"trust_remote_code": True}, "tokenizer_args": {}, "unpad_inputs": True}
    edit(folder / "sentence_bert_config.json", **arguments, transformer_task="feature-extraction")
    edit(folder / "config_sentence_transformers.json", prompts={"query": None}, default_prompt_name="document")
    entries = json.loads((folder / "modules.json").read_text())
    entries[0]["kwargs"] = ["task"]
    write(folder / "modules.json", entries)
    return Case(folder)


def saved_again(encoder: Path, folder: Path) -> Case:
    """As today's release writes it."""
    from sentence_transformers import SentenceTransformer

    old = several(encoder, folder.parent / "old").folder
    model = SentenceTransformer(str(old), device="cpu", truncate_dim=6)
    model.save(str(folder), create_model_card=False)
    return Case(folder)


CASES: dict[str, Callable[[Path, Path], Case]] = {
    **{mode: pooled(mode) for mode in BY_HAND},
    "two joined": pooled(["max", "cls"]),
    "two joined, older": pooled({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}),
    **{f"{mode}, prompt left out": prompt_left_out(mode, "bert") for mode in BY_HAND},
    "mean, prompt left out, padded": prompt_left_out("mean", "rembert"),
    **{function: dense(function) for function in FUNCTIONS},
    "dense without bias": dense("activation.Tanh", bias=False),
    "several modules": several,
    "a prompt": lambda *paths: of_texts(*paths, prompt="query", encode={"prompt_name": "query"}),
    "a prefix": lambda *paths: of_texts(*paths, prefix="very ", encode={"prompt": "very "}),
    "a default prompt": lambda encoder, folder: Case(with_recipe(encoder, folder, default="query")),
    "truncate_dim": cut,
    "max_seq_length": short,
    "the tokenizer's length": of_the_tokenizer_s_length,
    "do_lower_case": lower,
    "settings that change nothing": spelled,
    "a Transformer in a folder inside": lambda *paths: Case(in_subfolder(of_texts(*paths).folder)),
    "saved by today's release": saved_again,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("name", CASES)
def test_the_vector_is_that_of_encode(encoder: Path, tmp_path: Path, name: str) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    case = CASES[name](encoder, tmp_path / "encoder")
    cache, _ = run(TEXTS, tmp_path / "c.h5", case.folder, features=("auto",), label_column=None, **case.settings)
    model = sentence_transformers.SentenceTransformer(str(case.folder), device="cpu")
    theirs = model.encode(TEXTS, show_progress_bar=False, **case.encode)
    assert cache.identity.features == ("model",)
    np.testing.assert_allclose(cache.features(), theirs, atol=1e-5, rtol=1e-5)
