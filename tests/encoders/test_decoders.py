"""Decoders as encoders of texts: each text's own vector whatever is beside it, or one line that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tokenizers
import torch
import transformers
from extracting import Notes, run
from headstart.cache.errors import EncoderError, SettingsError
from headstart.cache.reader import Cache
from headstart.stages.encoders import hf
from headstart.stages.settings import ForwardMode
from recipes import BY_HAND, states, with_recipe, write
from safetensors.torch import load_file, save_file
from tiny import tiny_rows
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

TEXTS = [text for text, _ in tiny_rows(20)] + ["a", "A Good film", "good film " * 40]
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64, "initializer_range": 0.2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 140}
SIZES |= {"pad_token_id": 0}
DECODERS: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True},
    "Mistral": {"sliding_window": 8},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "Qwen3": {},
    "Gemma3Text": {"use_bidirectional_attention": True, "sliding_window": 8, "query_pre_attn_scalar": 16},
}
Array = npt.NDArray[np.float64]


def decoder(name: str, tiny: Path, folder: Path, head: str = "Model", **changes: Any) -> Path:
    """Save a model without special tokens before its texts, and ``[SEP]`` after them."""
    folder.mkdir()
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder)
    if name.startswith("Qwen"):  # of which transformers makes a tokenizer of its own
        save_bytes(folder)
    special(folder, after=True)
    words = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(vocab_size=words, **{**SIZES, **DECODERS[name], **changes})
    with hf.quiet_transformers():
        model = getattr(transformers, name.removesuffix("Text" * (head != "Model")) + head)(config)
        for weight_name, weight in model.named_parameters():
            if "norm" in weight_name or "bias" in weight_name:  # of ones or zeros
                torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder)
    return folder


def save_bytes(folder: Path) -> None:
    """Save a tokenizer of Qwen's kind: pairs of bytes that are joined."""
    splits = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    splits += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    merges = [("o", "o"), ("g", "oo"), ("goo", "d"), ("\u0120", "good")]
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    vocabulary = {name: number for number, name in enumerate(names)}
    parts_of_words = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, merges, **parts_of_words))
    made.normalizer, made.decoder = normalizers.NFC(), decoders.ByteLevel()
    parts = pre_tokenizers.Split(tokenizers.Regex(splits), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence(list(parts))
    made.add_special_tokens(["[PAD]", "[SEP]", "<|endoftext|>"])
    made.save(str(folder / "tokenizer.json"))
    write(folder / "tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer", "pad_token": "[PAD]"})


def special(folder: Path, *, after: bool, **config: Any) -> None:
    """Set whether the tokenizer adds a token after a text, and fields of tokenizer_config.json."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    template = {"single": "$A [SEP]", "pair": "$A $B [SEP]"} if after else {"single": "$A", "pair": "$A $B"}
    ends = [("[SEP]", tokenizer.token_to_id("[SEP]"))]
    tokenizer.post_processor = processors.TemplateProcessing(**template, special_tokens=ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    write(path, json.loads(path.read_text()) | {"model_input_names": ["input_ids", "attention_mask"], **config})


def ours(folder: Path, **options: Any) -> tuple[Cache, Notes]:
    out = folder.with_name(f"{folder.name}.h5")
    return run(TEXTS, out, folder, **{"features": ("auto",), "label_column": None, **options})


def theirs(folder: Path, **options: Any) -> Array:
    """What sentence-transformers gives."""
    module = pytest.importorskip("sentence_transformers")
    model = module.SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    vectors: Array = model.encode(TEXTS, **options)
    return vectors


def assert_alike(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_s_own_vector_is_that_of_each_text_alone(name: str, tiny: Path, tmp_path: Path) -> None:
    encoder = decoder(name, tiny, tmp_path / "encoder")
    for after, side in ((True, "left"), (False, "left"), (True, "right")):
        special(encoder, after=after, padding_side=side)
        tokens = states(encoder, TEXTS)
        assert max(map(len, tokens)) == 50
        for mode in ("lasttoken", "mean"):
            folder = with_recipe(encoder, tmp_path / f"{mode}{after}{side}", pooling=mode)
            cache, notes = ours(folder)
            assert cache.identity.features == ("model",) and not [note for note in notes if "long=chunks" not in note]
            assert cache.plan["path"] == ForwardMode.PACKED
            assert_alike(cache.features(), [BY_HAND[mode](each) for each in tokens])
        assert_alike(cache.features(), theirs(folder))


def test_the_layout_of_embedding_gemma(tiny: Path, tmp_path: Path) -> None:
    encoder = decoder("Gemma3Text", tiny, tmp_path / "encoder")
    folder = with_recipe(encoder, tmp_path / "gemma", "Dense", "Dense", "Normalize", default="query")
    torch.manual_seed(1)
    weights = [torch.randn(48, 32), torch.randn(8, 48)]
    for number, weight in enumerate(weights, 2):
        fields = {"in_features": weight.shape[1], "out_features": len(weight), "bias": False}
        identity = {"activation_function": "torch.nn.modules.linear.Identity"}
        write(folder / f"{number}_Dense" / "config.json", fields | identity)
        save_file({"linear.weight": weight}, folder / f"{number}_Dense" / "model.safetensors")
    cache, _ = ours(folder)
    pooled = np.array([each.mean(0) for each in states(encoder, [f"the good {text}" for text in TEXTS])])
    vectors = pooled @ weights[0].double().numpy().T @ weights[1].double().numpy().T
    assert_alike(cache.features(), vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    assert_alike(cache.features(), theirs(folder))
    assert_alike(ours(folder, prompt="document", overwrite=True)[0].features(), theirs(folder, prompt_name="document"))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", DECODERS)
def test_the_head_of_a_language_model_is_left_out_however_it_is_loaded(
    name: str, tied: bool, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = decoder(name, tiny, tmp_path / "whole", "ForCausalLM", tie_word_embeddings=tied)
    stored = load_file(encoder / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied and "model.norm.weight" in stored
    halves = {weight_name: weight.bfloat16() for weight_name, weight in stored.items()}
    save_file(halves, encoder / "model.safetensors", {"format": "pt"})
    features = ("last", "layer1.mean")
    run(TEXTS[::2], tmp_path / "whole.h5", encoder, features=features, label_column=None)
    with monkeypatch.context() as patch:
        patch.setattr(hf, "load_encoder", None)
        cache, _ = ours(encoder, features=features, update=True)
    with hf.quiet_transformers():
        whole = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM").from_pretrained(encoder)
    base = tmp_path / "base"
    whole.float().base_model.save_pretrained(base)
    for file in encoder.glob("tokenizer*"):
        shutil.copy(file, base)
    alone = with_recipe(base, tmp_path / "alone", pooling="lasttoken")
    write(alone / "sentence_bert_config.json", {"max_seq_length": cache.identity.max_length})
    assert_alike(cache.features("last"), ours(alone)[0].features())
    assert_alike(cache.features("layer1.mean"), ours(base, features=("layer1.mean",))[0].features())


def test_the_first_position_of_a_decoder_is_refused_and_another_is_named(tiny: Path, tmp_path: Path) -> None:
    encoder = decoder("Qwen3", tiny, tmp_path / "encoder")
    said = r"does not see the tokens after it.* the feature '{}' reads that position; choose `features` such as last"
    for features in (("auto",), ("last", "cls")):
        with pytest.raises(EncoderError, match=said.format("cls")):
            ours(encoder, features=features)
    with pytest.raises(EncoderError, match=said.format("layer1.cls")):
        ours(encoder, features=("layer1.cls",))
    with pytest.raises(EncoderError, match=said.format("model")):
        ours(with_recipe(encoder, tmp_path / "first", pooling=["mean", "cls"]))
    cache, _ = ours(encoder, features=("last", "layer1.last", "max"))
    assert_alike(cache.features("last"), [each[-1] for each in states(encoder, TEXTS, 128)])


def test_attention_in_both_directions_is_computed_or_refused(tiny: Path, tmp_path: Path) -> None:
    folder = with_recipe(decoder("Qwen2", tiny, tmp_path / "a"), tmp_path / "m", pooling=["cls", "mean"])
    config = json.loads((folder / "config.json").read_text())
    for number, (field, value) in enumerate({"is_causal": False, "use_bidirectional_attention": True}.items()):
        write(folder / "config.json", config | {field: value})
        if field == "is_causal":
            tokens = states(folder, TEXTS)
            assert_alike(ours(folder)[0].features(), [np.concatenate([each[0], each.mean(0)]) for each in tokens])
            continue
        with pytest.raises(EncoderError, match=f"asks for attention in both directions .'{field}'., which the inst"):
            run(TEXTS, tmp_path / f"{number}.h5", folder, features=("mean",), label_column=None)


def test_a_length_of_the_encoder_s_own_may_pass_its_positions(tiny: Path, tmp_path: Path) -> None:
    encoder = decoder("Qwen3", tiny, tmp_path / "encoder", max_position_embeddings=20)
    folder = with_recipe(encoder, tmp_path / "folder", pooling="lasttoken")
    assert_alike(ours(folder)[0].features(), [each[-1] for each in states(encoder, TEXTS)])
    with pytest.raises(SettingsError, match=r"`max_length` is 49; .* reads at most 20 tokens"):
        ours(folder, max_length=49, overwrite=True)


def test_positions_that_a_longer_text_turns_are_of_texts_of_one_length(tiny: Path, tmp_path: Path) -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 30}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, **factors}
    encoder = decoder("Qwen3", tiny, tmp_path / "encoder", rope_parameters=rope)
    folder = with_recipe(encoder, tmp_path / "folder", pooling="lasttoken")
    cache, notes = ours(folder)
    assert cache.plan["path"] == ForwardMode.SAME_LENGTH and any("same length" in note for note in notes)
    assert_alike(cache.features(), [each[-1] for each in states(encoder, TEXTS)])
    assert ours(folder, max_length=30, overwrite=True)[0].plan["path"] != ForwardMode.SAME_LENGTH
