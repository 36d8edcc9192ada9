"""The feature `model`: what an encoder's folder says of its vectors is computed to 1e-5, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import extracting
import numpy as np
import pytest
import torch
from extracting import Notes, noting
from headstart.cache.errors import EncoderError, IdentityError, SettingsError, UserError
from headstart.cache.reader import Cache, open_cache
from headstart.stages.encoders import hf
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.extract import extract
from headstart.stages.settings import ExtractSettings
from headstart.stages.train_head import train_head
from recipes import (
    BY_HAND,
    PACKAGE,
    add_dense,
    add_layer_norm,
    edit,
    in_subfolder,
    states,
    weighted,
    with_recipe,
    write,
)
from safetensors.torch import save_file
from tiny import save_tiny_encoder, tiny_rows

TEXTS = [text for text, _ in tiny_rows(20)] + ["a", "A Good film"]


def settings(encoder: Path, **options: Any) -> ExtractSettings:
    """The features are chosen by default here."""
    return extracting.settings(encoder, **{"features": ("auto",), **options})


def run(table: Any, out: Path, encoder: Path, **options: Any) -> tuple[Cache, Notes]:
    return extracting.run(table, out, encoder, **{"features": ("auto",), **options})


@pytest.fixture(scope="module", params=["bert", "rembert"])  # packed and padded
def encoder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"), kind=request.param)


def test_every_pooling_is_the_model_s_own(encoder: Path, tmp_path: Path) -> None:
    tokens = states(encoder, TEXTS)
    for mode, pool in BY_HAND.items():
        folder = with_recipe(encoder, tmp_path / mode, pooling=mode)
        cache, notes = run(TEXTS, tmp_path / f"{mode}.h5", folder, label_column=None)
        assert cache.identity.features == ("model",) and cache.identity.max_length == 50 and not notes
        np.testing.assert_allclose(cache.features(), [pool(each) for each in tokens], atol=1e-5, rtol=1e-5)


def test_a_prompt_that_the_pooling_leaves_out_is_read_and_not_pooled(encoder: Path, tmp_path: Path) -> None:
    tokens, skipped = states(encoder, [f"the good {text}" for text in TEXTS]), 3  # [CLS], the, good
    by_hand = {**BY_HAND, "weightedmean": lambda after: weighted(after, 1 + skipped)}
    for number, (mode, pool) in enumerate(by_hand.items()):
        document = {"pooling_mode": mode, "include_prompt": False}
        folder = with_recipe(encoder, tmp_path / mode, pooling=document, default="query")
        cache, _ = run(TEXTS, tmp_path / f"{mode}.h5", folder, label_column=None, features=("mean", "model"))
        assert cache.identity.prefix == "the good " and not cache.identity.prefix_pooled
        expected = [pool(each[skipped:]) for each in tokens]
        np.testing.assert_allclose(cache.features("model"), expected, atol=1e-5, rtol=1e-5)
        np.testing.assert_allclose(cache.features("mean"), [each.mean(0) for each in tokens], atol=1e-5, rtol=1e-5)
        if not number:
            pooled, _ = run(TEXTS, tmp_path / "p.h5", folder, label_column=None, prefix="", prompt=None)
            assert pooled.identity.prefix_pooled and not np.allclose(pooled.features(), expected, atol=0.1)


def test_chunks_and_updates_leave_the_prompt_out_too(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_recipe(tiny, tmp_path / "m", pooling={"include_prompt": False}, default="query")
    options = {"label_column": None, "long": "chunks", "max_length": 8, "overlap": 0}
    cache, _ = run(["a film is bad it works", *TEXTS], tmp_path / "c.h5", folder, **options)
    first, second = states(tiny, ["the good a film is bad", "the good it works"])
    expected = first[3:].mean(0) * 4 / 6 + second[3:].mean(0) * 2 / 6
    np.testing.assert_allclose(cache.features()[0], expected, atol=1e-5)
    monkeypatch.setattr(hf, "load_encoder", None)
    grown, _ = run(["a film is bad it works", *TEXTS, "it works"], cache.path, folder, update=True, **options)
    np.testing.assert_allclose(grown.features()[-1], states(tiny, ["the good it works"])[0][3:].mean(0), atol=1e-5)


def test_a_prompt_that_cannot_be_told_from_the_text_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = with_recipe(tiny, tmp_path / "m", pooling={"include_prompt": False}, default="query")

    def refused(message: str, **options: Any) -> None:
        with pytest.raises(EncoderError, match=f"leaves out the tokens of a prompt .*{message}"):
            run(TEXTS, tmp_path / "c.h5", folder, label_column=None, **options)

    refused("leaves no room for a text in 4 tokens", max_length=4)
    refused("leaves no room for a text in 3 tokens", max_length=3, long="chunks", overlap=0)
    refused("joins the end of the prompt to the text 'd", prefix="very goo")  # of which "good" is made
    edit(folder / "tokenizer_config.json", truncation_side="left")
    refused("cuts long texts at their beginning")


@pytest.mark.parametrize("function", ["activation.Tanh", "linear.Identity"])
def test_modules_follow_joined_poolings_beside_other_features(encoder: Path, tmp_path: Path, function: str) -> None:
    older = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True, "pooling_mode_max_tokens": False}
    folder = with_recipe(encoder, tmp_path / "m", "Dense", "LayerNorm", "Normalize", pooling=older)
    dense = add_dense(folder / "2_Dense", inputs=64, function=function)
    norm = add_layer_norm(folder / "3_LayerNorm")
    cache, _ = run(TEXTS, tmp_path / "c.h5", folder, features=("model", "mean"), label_column=None)
    pooled = np.array([np.concatenate([tokens[0], tokens.mean(0)]) for tokens in states(encoder, TEXTS)])
    vectors = pooled @ dense["weight"].T + dense["bias"]
    vectors = np.tanh(vectors) if "Tanh" in function else vectors
    vectors -= vectors.mean(1, keepdims=True)
    vectors /= np.sqrt(vectors.var(1, keepdims=True) + 1e-5)
    vectors = vectors * norm["weight"] + norm["bias"]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert cache.layout.widths == {"mean": 32, "model": 8}
    np.testing.assert_allclose(cache.features("model"), vectors, atol=1e-5)
    np.testing.assert_allclose(cache.features("mean"), pooled[:, 32:], atol=1e-5)
    done = "" if "Identity" in function else " with tanh"
    said = f"the first token and mean over tokens, dense to 8{done}, layer norm, normalised"
    assert cache.record["encoder"]["model"] == said


def test_an_update_gives_the_same_vectors_without_transformers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_recipe(tiny, tmp_path / "m", "Dense", lower=True)
    add_dense(folder / "2_Dense")
    half, _ = run(TEXTS[::2], tmp_path / "half.h5", folder, label_column=None)
    whole, _ = run(TEXTS, tmp_path / "whole.h5", folder, label_column=None)
    monkeypatch.setattr(hf, "load_encoder", None)
    grown, _ = run(TEXTS, half.path, folder, label_column=None, update=True)
    np.testing.assert_allclose(grown.features(), whole.features(), atol=1e-6)


def test_prompts_prefixes_and_lengths(tiny: Path, tmp_path: Path) -> None:
    folder = with_recipe(tiny, tmp_path / "m", default="query")

    def prefix(**given: Any) -> tuple[str, int]:
        session = EncoderSession(settings(folder, **given))
        assert session.encoder_settings.prefix == session.identity.prefix
        return session.identity.prefix, session.identity.max_length

    assert prefix() == ("the good ", 50)
    assert prefix(prompt="document") == ("a ", 50)
    assert prefix(prefix="") == ("", 50)
    assert prefix(prefix="very ", max_length=9) == ("very ", 9)
    assert prefix(features=("cls",)) == ("", 50)  # the default prompt is the own vector's
    with pytest.raises(SettingsError, match=r"`prompt` is 'other'; encoder .* has the prompts query, document"):
        prefix(prompt="other")
    with pytest.raises(SettingsError, match="has no prompts"):
        _ = EncoderSession(settings(tiny, prompt="query")).identity
    with pytest.raises(SettingsError, match="`prompt` and `prefix`"):
        settings(folder, prompt="query", prefix="a ")
    session = EncoderSession(settings(folder, prompt="document"))
    again = EncoderSession.from_identity(session.identity, session.record()["encoder"], where=tmp_path)
    assert again.encoder_settings.prefix == "a "


def test_a_length_that_no_file_of_the_modules_says_is_the_tokenizer_s(tiny: Path, tmp_path: Path) -> None:
    folder = with_recipe(tiny, tmp_path / "m")
    (folder / "sentence_bert_config.json").unlink()
    change = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": 40}
    write(folder / "tokenizer_config.json", change)
    assert EncoderSession(settings(folder)).identity.max_length == 40
    assert EncoderSession(settings(tiny)).identity.max_length == 128


def test_that_an_encoder_also_takes_chats_changes_nothing_for_texts(tiny: Path, tmp_path: Path) -> None:
    folder = with_recipe(tiny, tmp_path / "m")
    text = {"method": "forward", "method_output_name": "last_hidden_state"}
    edit(folder / "sentence_bert_config.json", modality_config={"text": text, "message": {**text, "format": "flat"}})
    assert EncoderSession(settings(folder)).identity.model == "mean"
    edit(folder / "sentence_bert_config.json", modality_config={"message": text})
    with pytest.raises(EncoderError, match="modality_config"):
        _ = EncoderSession(settings(folder)).identity


@pytest.mark.parametrize("said", [None, 10**5])
def test_roberta_s_positions_begin_after_the_padding_token(tmp_path: Path, said: int | None) -> None:
    folder = with_recipe(save_tiny_encoder(tmp_path / "plain", kind="roberta"), tmp_path / "m")
    edit(folder / "sentence_bert_config.json", max_seq_length=said)
    change = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": 10**30}
    write(folder / "tokenizer_config.json", change)
    session = EncoderSession(settings(folder))
    positions = json.loads((folder / "config.json").read_text())["max_position_embeddings"]
    assert (
        session.identity.max_length == positions - 1 - json.loads((folder / "config.json").read_text())["pad_token_id"]
    )
    assert session.encoder.features == ("model",)


def test_what_transformers_reads_may_lie_in_a_folder_inside(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As old releases of sentence-transformers wrote it. The hashes of the same files are the same."""
    plain = with_recipe(tiny, tmp_path / "plain")
    folder = in_subfolder(with_recipe(tiny, tmp_path / "m"))
    (folder / "config.json").write_text("{}")  # which is not read
    for name in ("model.safetensors", "vocab.txt"):
        (folder / name).write_bytes(b"not read, either")
    expected, _ = run(TEXTS, tmp_path / "expected.h5", plain, features=("model", "cls"), label_column=None)
    half, _ = run(TEXTS[::2], tmp_path / "c.h5", folder, features=("model", "cls"), label_column=None)
    assert half.identity == dataclasses.replace(expected.identity, modules_sha256=half.identity.modules_sha256)
    monkeypatch.setattr(hf, "load_encoder", None)
    grown, _ = run(TEXTS, half.path, folder, features=("model", "cls"), label_column=None, update=True)
    for name in ("model", "cls"):
        np.testing.assert_allclose(grown.features(name), expected.features(name), atol=1e-6)
    for file in (folder / "0_Transformer").iterdir():
        if file.suffix in (".json", ".safetensors") and not file.name.startswith("sentence_"):
            kept = file.read_bytes()
            file.write_bytes(kept + b" ")
            assert EncoderSession(settings(folder, features=("model", "cls"))).identity != grown.identity, file
            file.write_bytes(kept)
    (folder / "0_Transformer" / "config.json").unlink()
    with pytest.raises(EncoderError, match="0_Transformer holds no config"):
        _ = EncoderSession(settings(folder)).identity


def test_vectors_are_cut_where_the_model_asks_for_it(tiny: Path, tmp_path: Path) -> None:
    folder = with_recipe(tiny, tmp_path / "m", "Dropout", "Normalize")
    whole, _ = run(TEXTS, tmp_path / "a.h5", folder, label_column=None)
    edit(folder / "config_sentence_transformers.json", truncate_dim=5)
    cut, _ = run(TEXTS, tmp_path / "b.h5", folder, label_column=None)
    assert whole.identity.model == "mean | normalize" and cut.identity.model == "mean | normalize | truncate 5"
    assert cut.record["encoder"]["model"] == "mean over tokens, normalised, its first 5 numbers"
    assert np.array_equal(cut.features(), whole.features()[:, :5])


def test_settings_that_change_nothing_are_not_refused(tiny: Path, tmp_path: Path) -> None:
    folder = with_recipe(tiny, tmp_path / "m")
    before = EncoderSession(settings(folder)).identity
    edit(folder / "sentence_bert_config.json", model_args={"trust_remote_code": True}, config_args={})
    edit(folder / "config_sentence_transformers.json", prompts={"query": None}, default_prompt_name="document")
    assert EncoderSession(settings(folder)).identity == before


def test_texts_are_lower_cased_where_the_model_asks_for_it(tmp_path: Path) -> None:
    encoder = save_tiny_encoder(tmp_path / "cased")
    content = json.loads((encoder / "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    write(encoder / "tokenizer.json", content)
    for lower in (False, True):
        folder = with_recipe(encoder, tmp_path / f"lower-{lower}", lower=lower)
        cache, _ = run(["GOOD film", "good film"], tmp_path / f"{lower}.h5", folder, label_column=None)
        assert np.array_equal(*cache.features()) is lower


def test_a_folder_that_says_nothing_gives_cls_and_a_note(tiny: Path, tmp_path: Path) -> None:
    cache, notes = run(TEXTS, tmp_path / "c.h5", tiny, label_column=None)
    assert cache.identity.features == ("cls",)
    assert any("does not say how its vectors are made" in note for note in notes)
    with pytest.raises(SettingsError, match=r"has no feature 'model': its folder has no modules.json"):
        _ = EncoderSession(settings(tiny, features=("model",))).identity
    with pytest.raises(EncoderError, match=r"`encoder` is not given; .*all-MiniLM-L6-v2 or bert-base-chinese"):
        extract(TEXTS, tmp_path / "d.h5", ExtractSettings(label_column=None))


def test_another_recipe_is_another_identity(tiny: Path, tmp_path: Path) -> None:
    folder = with_recipe(tiny, tmp_path / "m", "Dense", "Normalize")
    add_dense(folder / "2_Dense")
    first, _ = run(TEXTS, tmp_path / "c.h5", folder, label_column=None)
    assert first.identity.model == "mean | dense 32 8 tanh | normalize"
    weights = folder / "2_Dense" / "model.safetensors"
    save_file({"linear.weight": torch.randn(8, 32), "linear.bias": torch.zeros(8)}, weights)
    dense = EncoderSession(settings(folder)).identity
    assert dense == dataclasses.replace(first.identity, modules_sha256=dense.modules_sha256) != first.identity
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode": ["max"]})
    pooling = EncoderSession(settings(folder)).identity
    assert pooling.modules_sha256 != dense.modules_sha256 and pooling.model == "max | dense 32 8 tanh | normalize"
    with pytest.raises(IdentityError, match=r"modules_sha256, of modules.json .*; model, how .*'mean \| dense"):
        run(TEXTS, tmp_path / "d.h5", folder, label_column=None, reuse=[first.path])


def test_modules_decide_only_the_model_s_own_vector(tiny: Path, tmp_path: Path) -> None:
    """A cache of other features stays valid when a module changes, or where the folder has none."""
    folder = with_recipe(tiny, tmp_path / "m")
    both, _ = run(TEXTS, tmp_path / "c.h5", folder, features=("cls", "model"), label_column=None)
    bare = EncoderSession(settings(tiny, features=("cls",), max_length=50)).identity
    assert both.identity.narrowed("cls") == EncoderSession(settings(folder, features=("cls",))).identity == bare
    assert both.identity.narrowed("model").modules_sha256 and bare.modules_sha256 is bare.model is None
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, "pooling_mode": "max"})
    again, _ = run(TEXTS, tmp_path / "d.h5", folder, features=("cls",), label_column=None, reuse=[both.path])
    assert again.record["reused_rows"] == len(TEXTS)


def test_what_decides_tokens_is_in_the_identity(tiny: Path, tmp_path: Path) -> None:
    lower = EncoderSession(settings(with_recipe(tiny, tmp_path / "m", lower=True), features=("cls",)))
    assert lower.identity.lower_case
    for name, change in (("c", {"truncation_side": "left"}), ("t", {})):
        folder = Path(shutil.copytree(tiny, tmp_path / name))
        path = folder / ("tokenizer.json" if name == "t" else "tokenizer_config.json")
        document = json.loads(path.read_text()) | change
        if name == "t":
            document["truncation"] = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
            (folder / "tokenizer_config.json").unlink()
        path.write_text(json.dumps(document))
        session = EncoderSession(settings(folder, max_length=5))
        assert (
            session.identity.truncation_side == "left" and EncoderSession(settings(tiny)).identity != session.identity
        )
        ours, theirs = (
            one.encoder.tokenize(["bad " * 9 + "good film"])[0][0] for one in (session, EncoderSession(settings(tiny)))
        )
        assert ours.tolist() == [*theirs[:1], *theirs[-4:]]


def test_a_side_that_the_files_do_not_tell_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of transformers may cut elsewhere than the files say, and then the identity would not say where."""
    load = hf.load_tokenizer

    def load_tokenizer(files: Any) -> Any:
        tokenizer = load(files)
        tokenizer.truncation_side = "left"
        return tokenizer

    monkeypatch.setattr(hf, "load_tokenizer", load_tokenizer)
    with pytest.raises(EncoderError, match=r"cuts its texts on the left.*add \"truncation_side\": \"left\" to the tok"):
        _ = EncoderSession(settings(tiny)).encoder


def test_training_takes_the_model_s_own_vector(tiny: Path, tmp_path: Path) -> None:
    folder, notes = with_recipe(tiny, tmp_path / "m"), Notes()
    texts, labels = zip(*tiny_rows(60), strict=True)
    chosen = settings(folder, features=("mean", "cls", "model"))
    cache = open_cache(extract(list(texts), tmp_path / "c.h5", chosen, labels=list(labels), report=noting(notes)))
    assert cache.feature_name("auto") == "model" and cache.feature_name("mean") == "mean"
    out = train_head(cache.path, tmp_path / "run")
    assert json.loads((out / "run.json").read_text())["identity"]["features"] == ["model"]
    other, _ = run(list(texts), tmp_path / "e.h5", tiny, features=("mean", "max"), label_column=None)
    with pytest.raises(UserError, match=r"several features, none of them the encoder's own; .* max, mean; choose"):
        other.feature_name("auto")


REFUSED: dict[str, tuple[str, Any, str]] = {
    "module": ("modules.json", [["", "Transformer"], ["1_Pooling", "Pooling"], ["2", "CNN"]], "the module .*CNN"),
    "order": ("modules.json", [["", "Transformer"], ["2_Dense", "Dense"]], "does not begin with a Transformer"),
    "alone": ("modules.json", [["", "Transformer"]], "does not begin with a Transformer and a Pooling"),
    "static": ("modules.json", [["", "StaticEmbedding"]], "the module .*StaticEmbedding"),
    "words": ("modules.json", [["", "Transformer"], ["1", "WordWeights"]], "the module .*WordWeights"),
    "layers": ("modules.json", [["", "Transformer"], ["1", "WeightedLayerPooling"]], "the module .*WeightedLay"),
    "router": ("modules.json", [["", "Router"]], "the module .*Router"),
    "leaves": ("modules.json", [["", "Transformer"], ["../1_Pooling", "Pooling"]], "a folder outside the encoder's"),
    "list": ("modules.json", {}, "is no list of at most 16 modules"),
    "pooling": ("1_Pooling/config.json", {"pooling_mode": "median"}, "asks for the pooling 'median'"),
    "field": ("1_Pooling/config.json", {"pooling_mode_median": True}, "the setting 'pooling_mode_median'"),
    "kind": ("1_Pooling/config.json", {"include_prompt": "yes"}, "lacks 'include_prompt', or it is of the wrong kind"),
    "width": ("1_Pooling/config.json", {"word_embedding_dimension": 7}, "for states of 7 numbers; its model has 32"),
    "length": ("sentence_bert_config.json", {"max_seq_length": -1}, "its max_seq_length is -1"),
    "half": ("sentence_bert_config.json", {"model_args": {"dtype": "float16"}}, "has the setting 'model_args'"),
    "cut": ("config_sentence_transformers.json", {"truncate_dim": "8"}, "cuts vectors at '8' numbers"),
    "task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "Transformer has the setting 'transf"),
    "sparse": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}, "is a 'SparseEncoder'"),
    "default": ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "names a default prompt that it la"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_computed_is_refused_by_name(tiny: Path, tmp_path: Path, fault: str) -> None:
    name, content, message = REFUSED[fault]
    folder = with_recipe(tiny, tmp_path / "m")
    if isinstance(content, list):
        content = [{"path": path, "type": PACKAGE + kind} for path, kind in content]
    elif name != "modules.json":
        content = json.loads((folder / name).read_text()) | content
    write(folder / name, content)
    with pytest.raises(EncoderError, match=message):
        run(TEXTS, tmp_path / "c.h5", folder, label_column=None)
    if fault not in ("length", "default"):  # which are of the texts, whatever the feature is
        assert EncoderSession(settings(folder, features=("mean",))).identity.features == ("mean",)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"activation_function": "os.system"}, "asks for the activation 'os.system'"),
        ({"in_features": 31}, "does not fit the vectors of 32 numbers"),
        ({"out_features": 9}, "do not fit its config.json"),
        ({"use_residual": True}, "the setting 'use_residual'"),
    ],
)
def test_a_dense_layer_that_does_not_fit_is_refused(
    tiny: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    folder = with_recipe(tiny, tmp_path / "m", "Dense")
    add_dense(folder / "2_Dense")
    path = folder / "2_Dense" / "config.json"
    write(path, json.loads(path.read_text()) | fields)
    with pytest.raises(EncoderError, match=message):
        run(TEXTS, tmp_path / "c.h5", folder, label_column=None)


def test_pickled_weights_of_a_module_are_read_where_that_is_allowed(tiny: Path, tmp_path: Path) -> None:
    folder = with_recipe(tiny, tmp_path / "m", "Dense")
    add_dense(folder / "2_Dense")
    first, _ = run(TEXTS, tmp_path / "c.h5", folder, label_column=None)
    from safetensors.torch import load_file

    torch.save(load_file(folder / "2_Dense" / "model.safetensors"), folder / "2_Dense" / "pytorch_model.bin")
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match="2_Dense holds no weights"):
        run(TEXTS, tmp_path / "d.h5", folder, label_column=None)
    second, _ = run(TEXTS, tmp_path / "d.h5", folder, label_column=None, allow_pickled_weights=True)
    assert np.array_equal(first.features(), second.features())
