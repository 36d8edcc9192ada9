"""The pass without padding: transformers' own numbers, for each architecture that it takes on, and for no other."""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from headstart.cache.errors import SettingsError
from headstart.cache.reader import open_cache
from headstart.stages.encoders import hf
from headstart.stages.encoders import packed as packed_rooms
from headstart.stages.encoders.encoder import EncoderSettings
from headstart.stages.encoders.files import find_encoder
from headstart.stages.encoders.hf import load_encoder, model_architecture
from headstart.stages.encoders.packed import architecture, layers, linear_cpu
from headstart.stages.encoders.packed.architecture import find_architecture
from headstart.stages.encoders.packed.attention import Token, Window
from headstart.stages.encoders.packed.backend import PackedCpuBackend
from headstart.stages.encoders.packed.bert import Embeddings
from headstart.stages.encoders.packed.deberta_v2 import DebertaV2
from headstart.stages.encoders.packed.forward import PackedForward
from headstart.stages.encoders.packed.linear import Linear
from headstart.stages.encoders.packed.linear_int8 import Int8SplitLinear
from headstart.stages.encoders.packed.modernbert import ModernBert
from headstart.stages.encoders.packed.mpnet import RelativeBias
from headstart.stages.encoders.packed.quantized import Int8Linear, quantize
from headstart.stages.encoders.packed.rope import RopeScaling, RopeShape
from headstart.stages.encoders.packed.states import States
from headstart.stages.encoders.packed.varlen import CudaKernels, find_fused, find_varlen_attn
from headstart.stages.encoders.pooling import Feature, Pooling, parse_features
from headstart.stages.extract import extract
from headstart.stages.settings import ExtractSettings, Precision
from processor import needs_digits, needs_int8
from tiny import save_tiny_encoder, tiny_rows
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from varlen_reference import ReferenceVarlen

CLS = parse_features(["cls"], None)
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 70,
}
DISTIL: dict[str, Any] = {"vocab_size": 100, "dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96}
ROPES = {kind: {"rope_type": "default", "rope_theta": 100.0} for kind in ("full_attention", "sliding_attention")}
SCALED = {"rope_type": "linear", "factor": 2.0, "rope_theta": 100.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 100.0}
LLAMA3 |= {"original_max_position_embeddings": 128}
STEEP = {**ROPES, "full_attention": {**SCALED, "rope_theta": 1000.0}}


def modernbert(**changes: Any) -> Any:
    """ModernBERT, whose windows are so small that sequences of a few tokens exceed them."""
    sizes = {**SIZES, "local_attention": 8, "pad_token_id": 0, "num_hidden_layers": 4, **changes}
    return transformers.ModernBertModel(transformers.ModernBertConfig(**sizes))


def decoder(name: str, **changes: Any) -> Any:
    """A decoder, whose windows are so small that sequences of a few tokens exceed them."""
    sizes = {**SIZES, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0, "initializer_range": 0.2, **changes}
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes))


def gemma(**changes: Any) -> Any:
    return decoder("Gemma3Text", **{"sliding_window": 8, "sliding_window_pattern": 2, **changes})


def rotary(kind: str, **changes: Any) -> Any:
    """A model of a class that older releases of transformers do not have."""
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, "pad_token_id": 0, **changes})
    return getattr(transformers, f"{kind}Model")(config)


def deberta(**changes: Any) -> Any:
    """DeBERTa-v3, whose buckets are so few that sequences of a few tokens reach them all."""
    sizes = {**SIZES, "relative_attention": True, "position_buckets": 8, "position_biased_input": False}
    sizes |= {"share_att_key": True, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", **changes}
    return transformers.DebertaV2Model(transformers.DebertaV2Config(**sizes))


ALBERT: dict[str, Any] = {**SIZES, "embedding_size": 24}
FAMILY = {
    "BERT": lambda: transformers.BertModel(transformers.BertConfig(**SIZES)),
    "BERT of one layer": lambda: transformers.BertModel(transformers.BertConfig(**{**SIZES, "num_hidden_layers": 1})),
    "BERT without pooler": lambda: transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False),
    "BERT with ReLU": lambda: transformers.BertModel(transformers.BertConfig(**SIZES, hidden_act="relu")),
    "BERT with a GELU by tanh": lambda: transformers.BertModel(transformers.BertConfig(**SIZES, hidden_act="gelu_new")),
    "RoBERTa": lambda: transformers.RobertaModel(transformers.RobertaConfig(**SIZES)),
    "XLM-R": lambda: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**SIZES)),
    "ELECTRA": lambda: transformers.ElectraModel(transformers.ElectraConfig(**SIZES, embedding_size=48)),
    "ELECTRA, projected": lambda: transformers.ElectraModel(transformers.ElectraConfig(**SIZES, embedding_size=24)),
    "MPNet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**SIZES)),
    "ModernBERT": modernbert,
    "ModernBERT, with biases": lambda: modernbert(norm_bias=True, attention_bias=True, mlp_bias=True),
    "ModernBERT, another order": lambda: modernbert(
        layer_types=["sliding_attention", "full_attention"] * 2, rope_parameters=ROPES, hidden_activation="silu"
    ),
    "ALBERT": lambda: transformers.AlbertModel(transformers.AlbertConfig(**ALBERT)),
    "ALBERT in two groups": lambda: transformers.AlbertModel(transformers.AlbertConfig(**ALBERT, num_hidden_groups=2)),
    "DeBERTa": deberta,
    "DeBERTa, c2p alone": lambda: deberta(pos_att_type="c2p", type_vocab_size=2),
    "DeBERTa, p2c alone": lambda: deberta(pos_att_type=["p2c"], norm_rel_ebd="none"),
    "DeBERTa without buckets": lambda: deberta(position_buckets=-1, max_relative_positions=20),
    "DistilBERT": lambda: transformers.DistilBertModel(transformers.DistilBertConfig(**DISTIL)),
    "DistilBERT with SiLU": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(**DISTIL, activation="silu")
    ),
    "DistilBERT, sinusoidal": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(**DISTIL, sinusoidal_pos_embds=True)
    ),
    "Llama": lambda: decoder("Llama", num_key_value_heads=4),
    "Llama, with biases": lambda: decoder("Llama", attention_bias=True, mlp_bias=True, rope_parameters=SCALED),
    "Llama 3": lambda: decoder("Llama", rope_parameters=LLAMA3, rms_norm_eps=1e-5),
    "Mistral": lambda: decoder("Mistral", sliding_window=6),
    "Mistral without windows": lambda: decoder("Mistral", sliding_window=None, hidden_act="gelu"),
    "Mistral in both directions": lambda: decoder("Mistral", is_causal=False, sliding_window=6),
    "Qwen2": lambda: decoder("Qwen2", use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "Qwen2 in both directions": lambda: decoder("Qwen2", is_causal=False),
    "Qwen3": lambda: decoder("Qwen3", num_key_value_heads=1),
    "Gemma 3": gemma,
    "EmbeddingGemma": lambda: gemma(use_bidirectional_attention=True, query_pre_attn_scalar=10, rope_parameters=STEEP),
}
ROTARY: dict[str, dict[str, dict[str, Any]]] = {  # by the class's name, configurations by their names here
    "NomicBert": {"Nomic-BERT": {}, "Nomic-BERT, scaled": {"rope_parameters": LLAMA3}},
    "Gte": {
        "GTE": {},
        "GTE without segments": {"type_vocab_size": 0},
        "GTE, scaled": {"rope_parameters": {"rope_type": "linear", "factor": 1.067, "rope_theta": 160_000.0}},
    },
    "JinaEmbeddingsV3": {"Jina v3": {}},
}
NEWER = {
    name: functools.partial(rotary, kind, **changes)
    for kind, configurations in ROTARY.items()
    if hasattr(transformers, f"{kind}Model")  # 5.17 has no GTE
    for name, changes in configurations.items()
}
FAMILY |= NEWER
SEGMENTED = ["BERT", "BERT of one layer", "ELECTRA", "ELECTRA, projected", "ALBERT", "DeBERTa, c2p alone"]
OTHERS = {
    "a decoder with positions of another kind": lambda: decoder(
        "Llama", rope_parameters={**SCALED, "rope_type": "yarn"}
    ),
    "Gemma 3 that caps its scores": lambda: gemma(attn_logit_softcapping=50.0),
    "another activation": lambda: transformers.BertModel(transformers.BertConfig(**SIZES, hidden_act="tanh")),
    "another activation in DistilBERT": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(**DISTIL, activation="quick_gelu")
    ),
    "a decoder": lambda: transformers.BertModel(transformers.BertConfig(**SIZES, is_decoder=True)),
    "cross-attention": lambda: transformers.BertModel(
        transformers.BertConfig(**SIZES, is_decoder=True, add_cross_attention=True)
    ),
    "relative positions in BERT": lambda: transformers.BertModel(
        transformers.BertConfig(**SIZES, position_embedding_type="relative_key")
    ),
    "MPNet with other buckets": lambda: transformers.MPNetModel(
        transformers.MPNetConfig(**SIZES, relative_attention_num_buckets=16)
    ),
    "ModernBERT with rotary positions that are scaled": lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(**SIZES, pad_token_id=0, rope_parameters={**ROPES, "full_attention": SCALED})
    ),
    "ModernBERT with another activation": lambda: modernbert(hidden_activation="quick_gelu"),
    "DeBERTa with a convolution": lambda: deberta(conv_kernel_size=3),
    "DeBERTa with keys for distances": lambda: deberta(share_att_key=False),
    "DeBERTa with learnt positions": lambda: deberta(position_biased_input=True),
    "DeBERTa without relative positions": lambda: deberta(relative_attention=False),
    "layers within a layer": lambda: transformers.AlbertModel(transformers.AlbertConfig(**ALBERT, inner_group_num=2)),
}


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 2.0},
    {"rope_type": "linear"},
    {"rope_type": "linear", "factor": "2"},
    {"type": "ntk", "factor": 2.0},
    {"partial_rotary_factor": 0.5},
    {"rope_theta": 0},
]


@pytest.mark.parametrize("kind", ["nomic_bert", "gte", "jina_embeddings_v3"])
def test_rotary_positions_are_read_as_each_release_writes_them_and_others_are_not_taken_on(kind: str) -> None:
    config = {"model_type": kind, "num_attention_heads": 2, "num_hidden_layers": 3}
    plain = find_architecture(config)
    assert plain is not None and plain.rope.theta in (1000.0, 160_000.0, 20_000.0) and plain.rope.scaling is None
    for given in ({"rope_theta": 50}, {"rope_parameters": {"rope_theta": 50}}, {"rope_scaling": {"rope_theta": 50}}):
        assert find_architecture(config | given) == dataclasses.replace(plain, rope=RopeShape(theta=50.0))
    linear = {"rope_theta": 50, "rope_scaling": {"type": "linear", "factor": 8}}
    assert find_architecture(config | linear) == dataclasses.replace(
        plain, rope=RopeShape(theta=50.0, scaling=RopeScaling(8.0))
    )
    for scaling in SCALINGS:
        for field in ("rope_parameters", "rope_scaling"):
            assert find_architecture(config | {field: scaling}) is None, scaling


def made(build: Any) -> Any:
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms that are not at their start of zero and one
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def sequences(lengths: list[int]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(3, 100, length).astype(np.int32) for length in lengths]


def stock(model: Any, batch: list[Any], token: int = 0) -> Any:
    """transformers' own pass over each sequence alone: no padding, no mask."""
    with torch.inference_mode():
        return torch.cat([model(input_ids=torch.from_numpy(s).long()[None]).last_hidden_state[:, token] for s in batch])


def packed(model: Any, features: Any, dtype: torch.dtype = torch.float32) -> PackedForward:
    architecture = model_architecture(model)
    assert architecture is not None
    return architecture.build(model.state_dict(), features, dtype=dtype, batch_tokens=256)


@pytest.mark.parametrize("name", FAMILY)
def test_each_architecture_gives_its_own_numbers(name: str) -> None:
    model = made(FAMILY[name])
    for lengths in ([60, 60, 31, 31, 31, 5, 1], [3, 9, 3, 60, 9], [7], [32, 32], [61, 61, 6]):
        with torch.inference_mode():
            ours = packed(model, CLS)(sequences(lengths))["cls"]
        torch.testing.assert_close(ours, stock(model, sequences(lengths)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILY)
def test_the_last_token_alone_gives_what_it_gives_among_all(name: str) -> None:
    model, batch = made(FAMILY[name]), sequences([60, 60, 31, 31, 31, 5, 1])
    feature = Feature("last", None, Pooling.LAST)
    with torch.inference_mode():
        forward = packed(model, [feature])
        ours = forward(batch)["last"]
    assert forward.layers[-1].token is Token.LAST
    torch.testing.assert_close(ours, stock(model, batch, -1), atol=1e-5, rtol=0)


@needs_digits
@pytest.mark.parametrize("name", FAMILY)
def test_each_gives_them_where_every_product_is_one_of_digits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_cpu, "_split_pays", lambda *_: True)
    model, batch = made(FAMILY[name]), sequences([60, 60, 31, 31, 31, 5, 1])
    with torch.inference_mode():
        ours = packed(model, parse_features(["cls", "mean"], None))  # the mean has the last layer run whole
        torch.testing.assert_close(ours(batch)["cls"], stock(model, batch), atol=1e-5, rtol=0)
    assert isinstance(ours.layers[0].feed_forward.up, Int8SplitLinear)


@pytest.mark.parametrize("name", ["BERT", "DistilBERT"])
@pytest.mark.parametrize("rows", [1, 64, 100])
def test_a_layer_in_chunks_gives_the_same(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "CHUNK_ROWS", rows)
    model, batch = made(FAMILY[name]), sequences([60, 60, 31, 31, 31, 5, 1])
    with torch.inference_mode():
        ours = packed(model, CLS)(batch)["cls"]
    torch.testing.assert_close(ours, stock(model, batch), atol=1e-5, rtol=0)


@needs_int8
@pytest.mark.parametrize("name", FAMILY)
def test_products_of_8_bit_integers_are_close(name: str) -> None:
    """Of every architecture: all products of all tokens are replaced, and what layers share stays shared."""
    model, batch = made(FAMILY[name]), sequences([60, 60, 31, 31, 31, 5, 1])
    features = parse_features(["mean", "last"], None)
    with torch.inference_mode():
        plain, ours = packed(model, features), packed(model, features)
        linears = {id(linear) for layer in ours.layers for linear in linears_of(layer)}
        quantize(ours, batch)
        expected, found = plain(batch), ours(batch)
    made_anew = [linear for layer in ours.layers for linear in linears_of(layer)]
    assert all(isinstance(linear, Int8Linear) for linear in made_anew)
    assert len({id(linear) for linear in made_anew}) == len(linears)
    for feature in expected:
        assert torch.nn.functional.cosine_similarity(found[feature], expected[feature]).min() > 0.98
        assert not torch.equal(found[feature], expected[feature])


def linears_of(part: Any) -> list[Linear]:
    """All linear layers within a part of a pass, by the fields of its objects."""
    if isinstance(part, Linear):
        return [part]
    fields = vars(part).values() if dataclasses.is_dataclass(part) else ()
    return [linear for value in fields for linear in linears_of(value)]


def test_batches_side_by_side_give_what_each_gives_alone(tiny: Path) -> None:
    files = find_encoder(str(tiny))
    settings = EncoderSettings(
        features=CLS, device=torch.device("cpu"), precision=Precision.FLOAT32, prefix="", max_length=100
    )
    encoder = load_encoder(files, settings)
    rng = np.random.default_rng(0)
    batches = [[rng.integers(2, 60, length).astype(np.int32) for length in [n, n, 3]] for n in range(4, 40)]
    together = list(encoder.backend.encode_all(batches))
    assert len(together) == len(batches)
    for batch, found, again in zip(batches, together, encoder.backend.encode_all(batches), strict=True):
        np.testing.assert_allclose(found["cls"], encoder.backend.encode(batch)["cls"], atol=1e-6)
        np.testing.assert_array_equal(found["cls"], again["cls"])


DECODED = [name for name in FAMILY if name.startswith(("Llama", "Mistral", "Qwen", "Gemma", "EmbeddingGemma"))]


@pytest.mark.parametrize("name", ["BERT", "MPNet", "ModernBERT", "ALBERT in two groups", "DeBERTa", *NEWER, *DECODED])
def test_every_feature_is_what_its_name_says(name: str) -> None:
    """Of each layer and of the last, beside transformers' own hidden states, one sequence at a time."""
    model, batch = made(FAMILY[name]), sequences([30, 30, 12, 3])
    names = ["cls", "mean", "max", "last", "layer*.cls", "layer1.last", "layer2.mean", "layer1.max"]
    layers = model.config.num_hidden_layers
    features = parse_features([*names, *(["pooler"] if getattr(model, "pooler", None) else [])], layers)
    with torch.inference_mode():
        ours = packed(model, features)(batch)
        outputs = [model(input_ids=torch.from_numpy(s).long()[None], output_hidden_states=True) for s in batch]
    assert len(ours) == len(features)
    pools = {
        "cls": lambda h: h[:, 0],
        "mean": lambda h: h.mean(1),
        "max": lambda h: h.amax(1),
        "last": lambda h: h[:, -1],
    }
    for feature in features:
        if feature.pooling == "pooler":
            theirs = torch.cat([output.pooler_output for output in outputs])
        else:
            pool, layer = pools[feature.pooling], feature.layer or layers
            theirs = torch.cat([pool(output.hidden_states[layer]) for output in outputs])
        rounding = max(1e-5, 2e-6 * float(theirs.abs().max()))  # states between layers may be large
        torch.testing.assert_close(ours[feature.name], theirs, atol=rounding, rtol=0, msg=feature.name)


@pytest.mark.parametrize("name", [*SEGMENTED, *(name for name in NEWER if "Nomic" in name)])
def test_segments_are_read(name: str) -> None:
    """Token ids with the segment of each, as of a pair of texts."""
    model, names = made(FAMILY[name]), ["cls", "mean"]
    pairs = [np.stack([ids, np.arange(len(ids)) > len(ids) // 3], 1) for ids in sequences([40, 40, 17, 3, 1])]
    with torch.inference_mode():
        ours = packed(model, parse_features(names, None))([pair.astype(np.int32) for pair in pairs])
        states = []
        for pair in pairs:
            ids, segments = torch.from_numpy(pair).long().T[:, None]
            states.append(model(input_ids=ids, token_type_ids=segments).last_hidden_state)
        one_segment = packed(model, CLS)([pair[:, 0] for pair in pairs])["cls"]
    torch.testing.assert_close(ours["cls"], torch.cat([s[:, 0] for s in states]), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours["mean"], torch.cat([s.mean(1) for s in states]), atol=1e-5, rtol=0)
    assert abs(ours["cls"] - one_segment).max() > 1e-3


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize(
    "names", [["layer1.cls"], ["layer1.mean"], ["layer1.cls", "layer1.max"], ["layer1.cls", "layer2.mean"]]
)
def test_no_layer_above_the_last_one_asked_for_is_run(name: str, names: list[str]) -> None:
    """Those above are not even there."""
    model, layers = made(FAMILY[name]), 1 if "one layer" in name else 3
    names = [n for n in names if int(n[5]) <= layers]
    features, batch = parse_features(names, layers), sequences([30, 30, 12, 3])
    with torch.inference_mode():
        outputs = [model(input_ids=torch.from_numpy(s).long()[None], output_hidden_states=True) for s in batch]
    stack = next(found for found in model.modules() if isinstance(found, torch.nn.ModuleList))
    for number in range(max(f.layer or 0 for f in features), len(stack)):  # ALBERT has fewer than layers
        stack[number] = torch.nn.Identity()
    with torch.inference_mode():
        ours = packed(model, features)(batch)
    pools = {"cls": lambda h: h[:, 0], "mean": lambda h: h.mean(1), "max": lambda h: h.amax(1)}
    assert sorted(ours) == sorted(names)
    for feature in features:
        theirs = torch.cat([pools[feature.pooling](o.hidden_states[feature.layer or 0]) for o in outputs])
        rounding = max(1e-5, 2e-6 * float(theirs.abs().max()))  # states between layers may be large
        torch.testing.assert_close(ours[feature.name], theirs, atol=rounding, rtol=0, msg=feature.name)


@pytest.mark.parametrize("names", [["cls"], ["pooler"], ["mean"], ["cls", "max", "pooler"], ["layer2.mean", "cls"]])
def test_rows_of_no_sequence_reach_no_feature(names: list[str]) -> None:
    """Rows are rounded up for the products; what stands in the rows that were added is nobody's."""
    model, features = made(FAMILY["BERT"]), parse_features(names, 3)
    batch = sequences([41, 41, 41, 22, 3])  # 148 tokens, of 192 rows
    forward = packed(model, features)
    embed = forward.embed

    def poisoned(*arguments: Any) -> States:
        states = embed(*arguments)
        assert len(states.stream) == len(states.input) == 192
        states.stream[148:] = states.input[148:] = 1000.0
        return states

    with torch.inference_mode():
        clean = forward(batch)
        forward.embed = poisoned
        found = forward(batch)
    for name in names:
        assert clean[name].shape == (5, 48)
        torch.testing.assert_close(found[name], clean[name], atol=0, rtol=0, msg=name)


def test_a_sequence_whose_features_are_not_finite_spoils_no_other(tiny: Path) -> None:
    """Keys run on over the next sequence, times zero, which infinity does not forgive."""
    files = find_encoder(str(tiny))
    settings = EncoderSettings(
        features=CLS, device=torch.device("cpu"), precision=Precision.FLOAT32, prefix="", max_length=100
    )
    encoder = load_encoder(files, settings)
    batch = [np.arange(2, 2 + 28, dtype=np.int32) for _ in range(4)]
    batch[2][5] = 60
    assert isinstance(encoder.backend, PackedCpuBackend) and isinstance(encoder.backend.forward, PackedForward)
    assert isinstance(encoder.backend.forward.embed, Embeddings)
    encoder.backend.forward.embed.words[60] = torch.inf
    finite = np.isfinite(encoder.backend.encode(batch)["cls"]).all(axis=1)
    assert finite.tolist() == [True, True, False, True]


def test_names_of_features_are_read() -> None:
    assert [f.name for f in parse_features(["mean", "layer*.cls", "cls", "mean"], 2)] == [
        "cls",
        "layer1.cls",
        "layer2.cls",
        "mean",
    ]
    for names, count, message in [
        (["sum"], 2, "'sum' is not a feature"),
        (["layer3.cls"], 2, "it has 2"),
        (["layer1.pooler"], 2, "is not a feature"),
        (["layer1.cls"], None, "does not say how many"),
        ([], 2, "no feature is named"),
    ]:
        with pytest.raises(SettingsError, match=message):
            parse_features(names, count)


@pytest.mark.parametrize("name", FAMILY)
def test_half_precision_points_the_same_way(name: str) -> None:
    model, batch = made(FAMILY[name]), sequences([40, 22, 22, 3])
    with torch.inference_mode():
        rough = packed(model, CLS, torch.bfloat16)(batch)["cls"]
    assert torch.nn.functional.cosine_similarity(rough, stock(model, batch)).min() > 0.999


@pytest.mark.parametrize("name", ["RoBERTa", "XLM-R"])
def test_padding_spelt_out_in_a_text_is_counted_as_roberta_counts_it(name: str) -> None:
    model, batch = made(FAMILY[name]), sequences([9, 9, 4])
    padding = model.config.pad_token_id
    assert padding is not None
    batch[0][3] = batch[2][1] = padding
    with torch.inference_mode():
        ours = packed(model, CLS)(batch)["cls"]
    torch.testing.assert_close(ours, stock(model, batch), atol=1e-5, rtol=0)


def test_a_roberta_whose_padding_is_1_takes_the_fast_path(tmp_path: Path) -> None:
    """As all that are published do; the trial at loading must not stumble over it."""
    folder = save_tiny_encoder(tmp_path / "roberta", kind="roberta", pad_token_id=1)
    settings = ExtractSettings(encoder=str(folder), precision="float32", max_length=100)
    cache = open_cache(extract(["good film", "bad"], tmp_path / "c.h5", settings))
    assert cache.plan["path"] == "packed"


@pytest.mark.parametrize("name", OTHERS)
def test_what_it_would_get_wrong_is_not_taken_on(name: str) -> None:
    assert model_architecture(made(OTHERS[name])) is None


@pytest.mark.parametrize(("buckets", "farthest"), [(256, 512), (8, 70), (0, 20), (320, 512)])
def test_deberta_counts_distances_as_transformers_does(buckets: int, farthest: int) -> None:
    from transformers.models.deberta_v2.modeling_deberta_v2 import build_relative_position

    deberta = DebertaV2(model_type="deberta-v2", heads=4, layers=3, epsilon=1e-7, buckets=buckets, farthest=farthest)
    length, span = 600, buckets or farthest
    theirs = build_relative_position(torch.empty(length, 1), torch.empty(length, 1), buckets or -1, farthest)[0] + span
    places = deberta.places(length)  # of distances from 1 - length on
    torch.testing.assert_close(places[length - 1 :], theirs.clamp(0, 2 * span - 1)[:, 0])
    torch.testing.assert_close(places[:length].flip(0), theirs.clamp(0, 2 * span - 1)[0])


def test_a_new_architecture_is_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        "from headstart.stages.encoders.packed.bert import Bert",
        "class Newcomer(Bert):",
        "    pass",
        'ARCHITECTURES = {"newcomer": Newcomer}',
    )
    (tmp_path / "newcomer.py").write_text("\n".join(lines))
    monkeypatch.setattr(packed_rooms, "__path__", [*packed_rooms.__path__, str(tmp_path)])
    architecture._architectures.cache_clear()
    config = {"model_type": "newcomer", "num_attention_heads": 2, "num_hidden_layers": 3}
    assert type(find_architecture(config)).__name__ == "Newcomer"
    monkeypatch.undo()
    architecture._architectures.cache_clear()
    assert find_architecture(config) is None


@pytest.mark.parametrize("name", ["os.system", "antigravity", "linear", "../bert", None, ["bert"], {}])
def test_a_strangers_model_type_imports_nothing(name: Any) -> None:
    find_architecture({})
    before = set(sys.modules)
    assert find_architecture({"model_type": name, "num_attention_heads": 2, "num_hidden_layers": 3}) is None
    assert set(sys.modules) == before


def test_a_fast_path_that_disagrees_is_not_taken(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it came to disagree: the model's own pass is tried beside it before it is trusted."""
    original = PackedForward.__call__

    def wrong(self: PackedForward, *arguments: Any) -> dict[str, torch.Tensor]:
        return {name: feature + 0.01 for name, feature in original(self, *arguments).items()}

    monkeypatch.setattr(PackedForward, "__call__", wrong)
    out = extract(["good film", "bad"], tmp_path / "c.h5", ExtractSettings(encoder=str(tiny), precision="float32"))
    assert open_cache(out).plan["path"] == "padded"


@pytest.mark.parametrize(
    ("kind", "mask", "changes"), [("modernbert", Window, {"local_attention": 64}), ("mpnet", RelativeBias, {})]
)
def test_what_only_long_texts_show_is_tried_too(
    kind: str, mask: Any, changes: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a key at a distance of 40 is seen, or how much it counts."""
    folder, original = save_tiny_encoder(tmp_path / "encoder", kind=kind, **changes), mask.__call__
    settings = ExtractSettings(encoder=str(folder), precision="float32", max_length=100)

    def wrong(self: Any, distances: torch.Tensor) -> torch.Tensor:
        added: torch.Tensor = original(self, distances)
        return torch.where(distances.abs() < 40, added, 1.0)

    for expected in ("packed", "padded"):
        cache = open_cache(extract(["good film", "bad"], tmp_path / f"{expected}.h5", settings))
        assert cache.plan["path"] == expected
        monkeypatch.setattr(mask, "__call__", wrong)


def test_modernbert_is_read_alike_from_its_file_and_from_transformers() -> None:
    """Its config.json as published, which has names that transformers replaces."""
    published = {
        "model_type": "modernbert",
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 80000.0,
        "local_rope_theta": 5000.0,
        "local_attention": 64,
        "norm_eps": 1e-06,
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
        "hidden_size": 48,
        "position_embedding_type": "absolute",
    }
    found = find_architecture(published)
    assert found == find_architecture(transformers.ModernBertConfig(**published).to_dict())
    assert isinstance(found, ModernBert)
    assert (found.local, found.window) == ((False, True, False, True, False), 32)
    assert (found.thetas, found.epsilon, found.activation) == ((80000.0, 5000.0), 1e-6, "gelu")
    for odd in (
        {"rope_scaling": {"rope_type": "yarn"}},
        {"layer_types": ["full_attention"]},
        {"local_attention": None},
    ):
        assert find_architecture({**published, **odd}) is None


def test_each_path_has_batches_that_suit_it(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ExtractSettings(encoder=str(tiny), precision="float32", device="cpu")
    unpadded = open_cache(extract(["good film", "bad"], tmp_path / "a.h5", settings))
    monkeypatch.setattr(hf, "find_architecture", lambda config: None)
    padded = open_cache(extract(["good film", "bad"], tmp_path / "b.h5", settings))
    assert (unpadded.plan["batch_tokens"], padded.plan["batch_tokens"]) == (2048, 8192)


def test_both_paths_fill_the_same_cache(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [text for text, _ in tiny_rows(200)]
    names = ("cls", "mean", "max", "pooler", "layer*.mean")
    settings = ExtractSettings(encoder=str(tiny), precision="float32", batch_tokens=256, features=names)
    unpadded = open_cache(extract(texts, tmp_path / "a.h5", settings))
    monkeypatch.setattr(hf, "find_architecture", lambda config: None)
    padded = open_cache(extract(texts, tmp_path / "b.h5", settings))
    assert (unpadded.plan["path"], padded.plan["path"]) == ("packed", "padded")
    assert unpadded.identity.features == ("cls", "layer1.mean", "layer2.mean", "max", "mean", "pooler")
    for name in unpadded.identity.features:
        np.testing.assert_allclose(unpadded.features(name), padded.features(name), atol=1e-5)


BIASED = [name for name in FAMILY if name.startswith(("MPNet", "DeBERTa"))]
ON_GPUS = [name for name in FAMILY if name not in BIASED]


@pytest.fixture
def heads_of_16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads as GPUs take them: of a multiple of 8 numbers."""
    for sizes, name in ((SIZES, "hidden_size"), (ALBERT, "hidden_size"), (DISTIL, "dim")):
        monkeypatch.setitem(sizes, name, 64)


def packed_for_a_gpu(model: Any, features: Any, kernels: CudaKernels, dtype: torch.dtype) -> PackedForward:
    architecture, weights = model_architecture(model), model.state_dict()
    assert architecture is not None and not architecture.BIASED_SCORES
    placed = {name: kernels.place(weight) for name, weight in weights.items()}
    return architecture.build(placed, features, dtype=dtype, batch_tokens=256, kernels=kernels)


EVERY_POOLING = ["cls", "mean", "max", "last", "layer1.mean", "layer1.cls", "layer1.last"]


@pytest.mark.usefixtures("heads_of_16")
@pytest.mark.parametrize("name", ON_GPUS)
def test_a_gpu_is_asked_for_the_same_numbers(name: str) -> None:
    """By torch's function for attention on GPUs, whose part a function on the CPU plays."""
    model, reference = made(FAMILY[name]), ReferenceVarlen(half_only=False)
    kernels = CudaKernels(torch.device("cpu"), reference)
    layers = model.config.num_hidden_layers
    several = parse_features([*EVERY_POOLING, *(["pooler"] if getattr(model, "pooler", None) else [])], layers)
    several = (*several, Feature("sqrt", None, Pooling.MEAN_SQRT_LEN), Feature("w", None, Pooling.WEIGHTED_MEAN))
    prompted = (Pooling.CLS, Pooling.MEAN, Pooling.WEIGHTED_MEAN, Pooling.MEAN_SQRT_LEN, Pooling.MAX)
    several = (*several, *(Feature(f"{pooling}, after a prompt", None, pooling, 1) for pooling in prompted))
    for features in (several, CLS, [Feature("last", None, Pooling.LAST)]):
        ours = packed_for_a_gpu(model, features, kernels, torch.float32)
        on_cpu = packed(model, features)
        for lengths in ([60, 60, 31, 31, 31, 5, 2], [3, 9, 3, 60, 9], [7], [32, 32], [61, 2, 6]):
            batch = sequences(lengths)
            with torch.inference_mode():
                found, expected = ours(batch), on_cpu(batch)
            assert found.keys() == expected.keys()
            for feature, values in expected.items():
                torch.testing.assert_close(found[feature], values, atol=1e-5, rtol=1e-5, msg=f"{feature}, {lengths}")
        one = ours.layers[-1].token is not None
        assert one == (features is not several)
        assert reference.queries[-1] == (len(lengths) if one else sum(lengths)), "more than the tokens that are needed"


@pytest.mark.usefixtures("heads_of_16")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ON_GPUS)
def test_a_gpu_in_half_precision_is_as_near_as_the_cpu(name: str, dtype: torch.dtype) -> None:
    model, batch = made(FAMILY[name]), sequences([60, 60, 31, 31, 31, 5, 2])
    kernels, features = CudaKernels(torch.device("cpu"), ReferenceVarlen()), parse_features(["cls", "mean"], None)
    with torch.inference_mode():
        exact, on_cpu = packed(model, features)(batch), packed(model, features, dtype)(batch)
        found = packed_for_a_gpu(model, features, kernels, dtype)(batch)
    for feature, values in exact.items():
        assert found[feature].dtype == torch.float32
        ours, theirs = ((each[feature] - values).norm() for each in (found, on_cpu))
        assert ours <= 1.5 * theirs + 1e-3 * values.norm(), feature


@pytest.mark.skipif(find_fused() is None, reason="Triton is missing")
@pytest.mark.usefixtures("heads_of_16")
@pytest.mark.parametrize("name", ON_GPUS)
def test_a_gpu_gives_the_same_numbers_where_steps_are_fused(name: str) -> None:
    model = made(FAMILY[name])
    features = parse_features(["layer1.mean", "last"], model.config.num_hidden_layers)
    batch, attend = sequences([9, 9, 4]), ReferenceVarlen(half_only=False)
    with torch.inference_mode():
        for dtype, apart in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
            kernels = CudaKernels(torch.device("cpu"), attend, find_fused())
            found = packed_for_a_gpu(model, features, kernels, dtype)(batch)
            plain = packed_for_a_gpu(model, features, CudaKernels(torch.device("cpu"), attend), dtype)(batch)
            for feature, values in plain.items():
                assert (found[feature] - values).norm() <= apart * values.norm(), (feature, dtype)


class OneDevice(TorchDispatchMode):
    """Refuses an operation on tensors of two devices, of which a GPU would compute some, and copy others and wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = (each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor) and each.ndim)
        assert len({tensor.device.type for tensor in tensors}) <= 1, func
        return func(*args, **(kwargs or {}))


class Placed(CudaKernels):
    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self._device)


@pytest.mark.skipif(find_varlen_attn() is None, reason="torch has no such function")
@pytest.mark.usefixtures("heads_of_16")
@pytest.mark.parametrize("names", [["cls"], ["layer1.last"], EVERY_POOLING])
@pytest.mark.parametrize("name", ON_GPUS)
def test_on_a_gpu_nothing_is_left_on_the_cpu_and_nothing_waits(name: str, names: list[str]) -> None:
    """torch's own function for attention is called, with tensors without numbers: to read one would be an error."""
    model, varlen_attn = made(FAMILY[name]), find_varlen_attn()
    assert varlen_attn is not None
    kernels = Placed(torch.device("meta"), varlen_attn)
    features = parse_features(names, model.config.num_hidden_layers)
    with OneDevice(), torch.inference_mode():
        found = packed_for_a_gpu(model, features, kernels, torch.bfloat16)(sequences([9, 9, 4]))
    assert {values.shape for values in found.values()} == {(3, 64)}
    assert {(values.device.type, values.dtype) for values in found.values()} == {("meta", torch.float32)}


@pytest.mark.parametrize("name", BIASED)
def test_an_architecture_whose_attention_adds_biases_is_not_for_gpus(name: str) -> None:
    architecture = model_architecture(made(FAMILY[name]))
    assert architecture is not None and architecture.BIASED_SCORES
