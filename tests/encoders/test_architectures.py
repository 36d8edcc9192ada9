"""Tiny random encoders of many architectures: the same features whatever the batch, or one line that says why not."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from extracting import run, settings
from headstart.cache.errors import EncoderError
from headstart.cache.siblings import partial_path
from headstart.stages.encoders import hf
from headstart.stages.encoders.files import find_encoder
from headstart.stages.encoders.padded import PaddedForward
from headstart.stages.encoders.pooling import parse_features
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.model import load
from headstart.stages.settings import ForwardMode, TrainSettings
from headstart.stages.train_head import train_head
from tiny import WORDS

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 140, "pad_token_id": 0, "initializer_range": 0.2}
XLM: dict[str, Any] = {"emb_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 140, "pad_token_id": 0}
ENDS = {"bos_token_id": 2, "cls_token_id": 2, "eos_token_id": 3, "sep_token_id": 3}
RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
FUNNEL = {"d_model": 32, "n_head": 2, "d_head": 16, "d_inner": 64, "block_sizes": [1, 1], "num_decoder_layers": 1}
REFORMER = {"attention_head_size": 16, "feed_forward_size": 64, "is_decoder": False, "axial_pos_embds": False}
REFORMER |= {"attn_layers": ["local", "lsh"], "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16}
GROUPED = {f"{part}_groups": 2 for part in ("q", "k", "v", "intermediate", "output")}

PACKED: dict[str, dict[str, Any]] = {
    "Albert": {**SIZES, "embedding_size": 16},
    "Bert": SIZES,
    "DebertaV2": {**SIZES, **RELATIVE, "position_buckets": 8, "share_att_key": True, "position_biased_input": False},
    "Gte": SIZES,
    "JinaEmbeddingsV3": {**SIZES, "pad_token_id": 1},
    "ModernBert": {**SIZES, **ENDS, "local_attention": 8, "global_attn_every_n_layers": 2},
    "MPNet": SIZES,
    "NomicBert": SIZES,
    "Roberta": {**SIZES, "pad_token_id": 1},
    "XLMRoberta": {**SIZES, "pad_token_id": 1},
    "Electra": {**SIZES, "embedding_size": 16},
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "initializer_range": 0.2},
}
PADDED: dict[str, dict[str, Any]] = {
    "BigBird": {**SIZES, "block_size": 4, "num_random_blocks": 1, "attention_type": "original_full"},
    "Camembert": SIZES,
    "Data2VecText": SIZES,
    "Deberta": {**SIZES, **RELATIVE},
    "Ernie": SIZES,
    "Flaubert": XLM,
    "LayoutLM": SIZES,
    "Longformer": {**SIZES, "attention_window": 8},
    "Luke": {**SIZES, "entity_vocab_size": 10, "entity_emb_size": 16},
    "MegatronBert": SIZES,
    "MobileBert": {**SIZES, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    "RemBert": {**SIZES, **ENDS, "input_embedding_size": 16, "output_embedding_size": 16},
    "RoFormer": {**SIZES, "embedding_size": 32},
    "RobertaPreLayerNorm": SIZES,
    "Splinter": {**SIZES, "question_token_id": 4},
    "SqueezeBert": {**SIZES, **GROUPED, "embedding_size": 32, "post_attention_groups": 1},
    "XLM": XLM,
}
if not hasattr(transformers, "GteConfig"):  # transformers 5.17
    del PACKED["Gte"]
SAME_LENGTH: dict[str, dict[str, Any]] = {
    "ConvBert": {**SIZES, "embedding_size": 16, "head_ratio": 2, "conv_kernel_size": 3},
    "FNet": SIZES,
    "Nystromformer": SIZES,
    "Yoso": SIZES,
}
TO_THE_END = ("Bert", "BigBird", "ConvBert")
"""One of each way to run: a head and what it predicts differ by nothing else."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Bros": (SIZES, "fails on 1 sequences .* it says: You have to specify bbox"),
    "Canine": ({**SIZES, **ENDS, "num_hash_buckets": 128}, "of a kind that headstart does not know"),
    "Funnel": (FUNNEL, "fails on 1 sequences"),
    "IBert": (SIZES, "of a kind that headstart does not know"),
    "Nystromformer": ({**SIZES, "num_landmarks": 16}, "fails on 1 sequences"),
    "Reformer": ({**SIZES, **REFORMER}, "has 64 numbers, and not 32"),
}
TEXTS = [" ".join(np.random.default_rng(n).choice(WORDS, 1 + 7 * n % 60)) for n in range(24)]
HEADS = ["PreTraining", "MaskedLM", "SequenceClassification", "QuestionAnswering"]


def saved(name: str, config: dict[str, Any], tiny: Path, folder: Path, head: str = "Model") -> Path:
    """Save a model of an architecture, beside the tiny tokenizer."""
    words = safetensors.torch.load_file(tiny / "model.safetensors")["embeddings.word_embeddings.weight"]
    torch.manual_seed(0)
    made = getattr(transformers, f"{name}Config")(vocab_size=len(words), **config)
    with hf.quiet_transformers():
        getattr(transformers, f"{name}{head}")(made).save_pretrained(folder)
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder)
    return folder


def alone(folder: Path) -> np.ndarray[Any, Any]:
    """transformers' own first state of each text alone: no padding."""
    with hf.quiet_transformers(), torch.inference_mode():
        tokenizer, model = (
            auto.from_pretrained(folder) for auto in (transformers.AutoTokenizer, transformers.AutoModel)
        )
        inputs = [tokenizer(text, return_tensors="pt", return_token_type_ids=False) for text in TEXTS]
        return torch.cat([model.eval()(**each).last_hidden_state[:, 0] for each in inputs]).numpy()


@pytest.mark.parametrize("name", [*PACKED, *PADDED, *SAME_LENGTH])
def test_a_text_has_the_same_features_alone_and_in_any_batch(name: str, tiny: Path, tmp_path: Path) -> None:
    path = next(mode for mode, names in zip(ForwardMode, (PACKED, PADDED, SAME_LENGTH), strict=True) if name in names)
    folder = saved(name, {**PACKED, **PADDED, **SAME_LENGTH}[name], tiny, tmp_path / "encoder")
    table = {"text": TEXTS, "label": ["a", "b"] * (len(TEXTS) // 2)}
    expected, features = alone(folder), ("cls", "mean", "max")
    caches, notes = zip(
        *(
            run(table, tmp_path / f"{tokens}.h5", folder, features=features, batch_tokens=tokens)
            for tokens in (1, 8192)
        ),
        strict=True,
    )
    for cache, said in zip(caches, notes, strict=True):
        assert cache.plan["path"] == path
        assert [("only texts of the same length" in note) for note in said] == [True] * (
            path is ForwardMode.SAME_LENGTH
        )
        assert_alike(cache.features("cls")[:], expected)
        for feature in features:
            assert_alike(cache.features(feature)[:], caches[0].features(feature)[:])
    if name in TO_THE_END:
        trained = train_head(caches[0].path, tmp_path / "run", TrainSettings(solver="sgd", epochs=1, feature="mean"))
        classifier = load(trained)
        probabilities = classifier.head.probabilities(np.asarray(caches[0].features("mean")[:]))
        np.testing.assert_allclose(classifier.predict_proba(TEXTS), probabilities, atol=1e-5)


def assert_alike(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> None:
    """To 1e-5, relative to the largest number of each row."""
    assert (abs(ours - theirs).max(axis=1) <= 1e-5 * abs(theirs).max(axis=1)).all()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_encoded_is_refused_in_one_line(name: str, tiny: Path, tmp_path: Path) -> None:
    folder = saved(name, REFUSED[name][0], tiny, tmp_path / "encoder")
    with pytest.raises(EncoderError, match=REFUSED[name][1]) as raised:
        run(TEXTS, tmp_path / "c.h5", folder)
    assert "\n" not in str(raised.value) and not partial_path(tmp_path / "c.h5").exists()


def test_features_that_depend_on_chance_are_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = PaddedForward.__call__

    def noisy(self: PaddedForward, *arguments: Any) -> dict[str, torch.Tensor]:
        return {name: values + 0.01 * torch.rand(1) for name, values in original(self, *arguments).items()}

    monkeypatch.setattr(PaddedForward, "__call__", noisy)
    folder = saved("Camembert", PADDED["Camembert"], tiny, tmp_path / "encoder")
    with pytest.raises(EncoderError, match="depend on the texts beside it, or on chance"):
        run(TEXTS, tmp_path / "c.h5", folder)


@pytest.mark.parametrize("name", [*PACKED, *PADDED, *SAME_LENGTH])
def test_heads_are_left_out_and_the_encoder_within_is_the_same(name: str, tiny: Path, tmp_path: Path) -> None:
    config = {**PACKED, **PADDED, **SAME_LENGTH}[name]
    heads = [head for head in HEADS if hasattr(transformers, f"{name}For{head}")]
    assert len(heads) > 1
    for head in heads if name in PACKED else heads[:2]:
        folder = saved(name, config, tiny, tmp_path / head, f"For{head}")
        with hf.quiet_transformers():
            whole = getattr(transformers, f"{name}For{head}").from_pretrained(folder).base_model.state_dict()
            model = hf.load_model(find_encoder(str(folder)), parse_features(["cls"], None))
        for weight, values in model.state_dict().items():
            assert weight.startswith("pooler.") or torch.equal(values, whole[weight]), (head, weight)


MORE = {  # of BERT
    "relative positions": "encoder.layer.0.attention.self.distance_embedding.weight",
    "a third layer": "encoder.layer.2.output.dense.bias",
    "a norm": "embeddings.norm.weight",
    "another model's part": "adapter.weight",
    "a head's name within": "encoder.cls.weight",
}
HARMLESS = ["cls.predictions.bias", "classifier.weight", "embeddings.position_ids", "lm_head.dense.weight"]
HARMLESS += ["crf.transitions", "mlp.dense.weight", "linear.weight"]


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("more", [*MORE, None])
def test_weights_that_nothing_uses_are_refused_however_they_are_loaded(
    more: str | None, prefix: str, tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(tiny, folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    packed = EncoderSession(settings(tiny, max_length=100)).record()["encoder"]["packed"]
    names = [f"{prefix}{weight}" for weight in weights]
    added = [*HARMLESS, *([prefix + MORE[more]] if more else [])]
    changed = dict(zip(names, weights.values(), strict=True)) | {name: torch.ones(3) for name in added}
    safetensors.torch.save_file(changed, folder / "model.safetensors", {"format": "pt"})
    session = EncoderSession(settings(folder, max_length=100))
    assert (session.load_packed(packed) is None) == (more is not None)
    if more is None:
        assert set(session.encoder.widths.values()) == {32}
    else:
        with pytest.raises(EncoderError, match=f"no place for its weights '{prefix}{re.escape(MORE[more])}' "):
            _ = session.encoder


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.int32])
def test_weights_of_integers_are_refused_however_they_are_loaded(
    kind: torch.dtype, pickled: bool, tiny: Path, tmp_path: Path
) -> None:
    packed = EncoderSession(settings(tiny, max_length=100)).record()["encoder"]["packed"]
    folder = Path(shutil.copytree(tiny, tmp_path / "encoder"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    query = "encoder.layer.1.attention.self.query.weight"
    weights |= {query: (100 * weights[query]).to(kind), "embeddings.position_ids": torch.arange(128)}
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="quantised"):
        EncoderSession(settings(folder, max_length=100)).load_packed(packed)
    if pickled:
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    with pytest.raises(EncoderError, match=f"its weights '{query}' .1 such. are integers"):
        _ = EncoderSession(settings(folder, max_length=100, allow_pickled_weights=True)).encoder


@pytest.mark.parametrize("changed", [{"return_dict": False}, {"output_attentions": True, "output_hidden_states": True}])
@pytest.mark.parametrize("name", ["Bert", "Camembert"])
def test_what_else_a_model_would_return_changes_nothing(
    name: str, changed: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    folder = saved(name, {**PACKED, **PADDED}[name], tiny, tmp_path / "encoder")
    expected = alone(folder)
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | changed))
    assert_alike(run(TEXTS, tmp_path / "c.h5", folder)[0].features("cls")[:], expected)


NATIVE = {"NomicBert": "NomicBertConfig", "Gte": "GteConfig"}
NAMED = {
    "NomicBert": {"n_head": 2, "prenorm": False, "rotary_emb_base": 1000, "activation_function": "swiglu"},
    "Gte": {"logn_attention_scale": False, "layer_norm_type": "layer_norm", "position_embedding_type": "rope"},
}
UNREAD = [("NomicBert", "n_head", 4), ("NomicBert", "prenorm", True), ("NomicBert", "rotary_emb_base", 10_000)]
UNREAD += [("NomicBert", "activation_function", "gelu"), ("NomicBert", "rotary_scaling_factor", 2)]
UNREAD += [("Gte", "logn_attention_scale", True), ("Gte", "layer_norm_type", "rms_norm")]


@pytest.mark.parametrize(("name", "field", "value"), [*((name, None, None) for name in NATIVE), *UNREAD])
def test_fields_that_only_the_encoder_s_own_code_reads_are_noticed(
    name: str, field: str | None, value: Any, tiny: Path, tmp_path: Path
) -> None:
    """Code that transformers has as a class of its own is not needed, unless such a field says otherwise."""
    if name not in PACKED:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    folder = saved(name, PACKED[name], tiny, tmp_path / "encoder")
    config = json.loads((folder / "config.json").read_bytes()) | NAMED[name]
    config |= {"auto_map": {"AutoConfig": f"code.{NATIVE[name]}", "AutoModel": "code.Model"}}
    (folder / "code.py").write_text("raise SystemExit('the code of the folder was run')")
    expected = alone(folder)
    (folder / "config.json").write_text(json.dumps(config | ({} if field is None else {field: value})))
    if field is None:
        assert_alike(run(TEXTS, tmp_path / "c.h5", folder)[0].features("cls")[:], expected)
    else:
        with pytest.raises(
            EncoderError, match=f"its config.json has '{field}': {value!r}, which transformers does not"
        ):
            run(TEXTS, tmp_path / "c.h5", folder)


FUSED = {"NomicBert": "encoder.layers.0.attn.Wqkv.weight", "Gte": "encoder.layer.0.attention.qkv_proj.weight"}
FUSED |= {"JinaEmbeddingsV3": "encoder.layers.0.mixer.Wqkv.weight"}
NORM = "layers.0.post_attention_layernorm.weight"


@pytest.mark.parametrize("name", [name for name in FUSED if name in PACKED])
@pytest.mark.parametrize("change", ["a prefix", "transformers' names", "an adapter", "only adapted", "a name twice"])
def test_weights_that_transformers_renames_are_read_right_or_not_at_all(
    name: str, change: str, tiny: Path, tmp_path: Path
) -> None:
    folder, fused = saved(name, PACKED[name], tiny, tmp_path / "encoder"), FUSED[name]
    session = EncoderSession(settings(folder, max_length=100))
    packed = session.record()["encoder"]["packed"]
    expected = session.encoder.backend.encode([np.arange(3, 20, dtype=np.int32)])["cls"]
    model = transformers.AutoModel.from_pretrained(folder)
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    if change == "a prefix":
        prefix = "new" if name == "Gte" else model.base_model_prefix
        weights = {f"{prefix}.{stored}": weight for stored, weight in weights.items()}
    elif change == "transformers' names":
        weights = model.state_dict()
    elif change == "a name twice":
        weights[NORM] = 2 * model.state_dict()[NORM]
    else:  # as Jina's own files have them
        weights[fused.replace("weight", "parametrizations.weight.0.lora_A")] = torch.ones(5, 4, 32)
        if change == "only adapted":
            weights[fused.replace("weight", "parametrizations.weight.original")] = weights.pop(fused)
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    session = EncoderSession(settings(folder, max_length=100))
    if change in ("a prefix", "transformers' names"):
        quick = session.load_packed(packed)
        assert quick is not None
        for loaded in (quick, session.encoder):
            found = loaded.backend.encode([np.arange(3, 20, dtype=np.int32)])["cls"]
            np.testing.assert_allclose(found, expected, atol=1e-6)
        return
    with contextlib.suppress(ValueError, KeyError):
        assert session.load_packed(packed) is None
    reasons = {"an adapter": "no place for its weights .*lora_A", "a name twice": f"two weights '{NORM}'"}
    with pytest.raises(EncoderError, match=reasons.get(change, "its weights do not fit")):
        _ = session.encoder
