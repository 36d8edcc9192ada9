"""Layers of every shape, for every token and for one alone, beside a plain implementation of one sequence at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from headstart.stages.encoders.packed import attention
from headstart.stages.encoders.packed.activations import ACTIVATIONS
from headstart.stages.encoders.packed.attention import CAUSAL, Group, Rope, Token, Window, group_sequences
from headstart.stages.encoders.packed.kernels import UnfitError
from headstart.stages.encoders.packed.layers import Layer, LayerBuilder, LayerNames, LayerShape, NormKind
from headstart.stages.encoders.packed.linear import padded_rows
from headstart.stages.encoders.packed.mpnet import RelativeBias
from headstart.stages.encoders.packed.states import Input, RowNorm
from headstart.stages.encoders.packed.varlen import CudaKernels, FusedEnding, find_fused
from varlen_reference import ReferenceVarlen

Tensor = torch.Tensor
WIDTH, HEADS, PER_HEAD, INNER, EPSILON = 24, 4, 8, 40, 1e-5  # heads are wider than the states
LENGTHS = [150, 150, 40, 40, 40, 9, 9, 1]
SEPARATE = LayerNames(
    layer="layers.{}.",
    query_key_value=("q", "k", "v"),
    attention_output="o",
    attention_norm="after_attention",
    up=("up",),
    down="down",
    output_norm="after",
)
GATED = dataclasses.replace(SEPARATE, up=("gate", "up"))
FUSED = dataclasses.replace(SEPARATE, query_key_value=("qkv",), up=("gate_up",))
BEFORE = dataclasses.replace(
    SEPARATE, attention_norm=None, output_norm=None, before_attention="before", before_feed_forward="between"
)
SANDWICH = dataclasses.replace(BEFORE, attention_branch="branch", output_branch="end")
HEAD_NORMS = dataclasses.replace(SEPARATE, query_norm="q_norm", key_norm="k_norm")
ROPE = Rope(frequencies=torch.tensor([1.0, 0.3, 0.1, 0.01]), scale=1.1)
CASES: dict[str, tuple[LayerNames, dict[str, Any], dict[str, Any]]] = {
    "as BERT": (SEPARATE, {}, {}),
    "no biases": (SEPARATE, {}, {"biases": False}),
    "norms before": (BEFORE, {}, {}),
    "no norm before the attention": (BEFORE, {"norm_before_attention": False}, {}),
    "norms before and after, of Gemma": (SANDWICH, {}, {"norms": NormKind.RMS_FROM_ONE}),
    "root mean squares": (SEPARATE, {}, {"norms": NormKind.RMS}),
    "another activation": (SEPARATE, {}, {"activation": "gelu_new"}),
    "gated": (GATED, {}, {"gated": True, "activation": "silu"}),
    "gated, in one product": (FUSED, {}, {"gated": True}),
    "keys shared": (SEPARATE, {"key_value_heads": 2}, {}),
    "one key": (SEPARATE, {"key_value_heads": 1}, {"biases": False}),
    "another scale": (SEPARATE, {"scale": 0.7}, {}),
    "causal": (SEPARATE, {"mask": CAUSAL}, {}),
    "window": (SEPARATE, {"mask": Window(5, 5)}, {}),
    "wide window": (SEPARATE, {"mask": Window(60, 60)}, {}),
    "window of a decoder": (SEPARATE, {"mask": Window(20, 0)}, {}),
    "bias": (SEPARATE, {"mask": RelativeBias(torch.linspace(-1, 1, 32 * HEADS).view(32, HEADS))}, {}),
    "bias, keys shared": (
        SEPARATE,
        {"mask": RelativeBias(torch.linspace(-1, 1, 32 * HEADS).view(32, HEADS)), "key_value_heads": 2},
        {},
    ),
    "rotary": (SEPARATE, {"rope": ROPE}, {}),
    "rotary, in part": (FUSED, {"rope": Rope(frequencies=torch.tensor([1.0, 0.1]))}, {"gated": True}),
    "rotary, neighbours": (SEPARATE, {"rope": dataclasses.replace(ROPE, neighbours=True)}, {}),
    "norms of heads": (HEAD_NORMS, {}, {"norms": NormKind.RMS}),
    "as Qwen3": (
        dataclasses.replace(BEFORE, query_norm="q_norm", key_norm="k_norm", up=("gate", "up")),
        {"rope": ROPE, "mask": CAUSAL, "key_value_heads": 2},
        {"norms": NormKind.RMS, "gated": True, "activation": "silu", "biases": False},
    ),
    "as EmbeddingGemma": (
        dataclasses.replace(SANDWICH, query_norm="q_norm", key_norm="k_norm", up=("gate", "up")),
        {"rope": ROPE, "mask": Window(16, 16), "key_value_heads": 1, "scale": 0.3},
        {"norms": NormKind.RMS_FROM_ONE, "gated": True, "activation": "gelu_pytorch_tanh", "biases": False},
    ),
}


def weights_of(
    names: LayerNames, shape: LayerShape, *, biases: bool, gated: bool, norms: NormKind
) -> dict[str, Tensor]:
    torch.manual_seed(0)
    queries, keys = HEADS * PER_HEAD, (shape.key_value_heads or HEADS) * PER_HEAD
    sizes = {"q": (queries, WIDTH), "k": (keys, WIDTH), "v": (keys, WIDTH), "qkv": (queries + 2 * keys, WIDTH)}
    sizes |= {"o": (WIDTH, queries), "down": (WIDTH, INNER), "gate_up": (2 * INNER, WIDTH)}
    sizes |= dict.fromkeys(("gate", "up"), (INNER, WIDTH))
    weights = {}
    for part in names.all():
        size = sizes.get(part, (PER_HEAD if part in ("q_norm", "k_norm") else WIDTH,))
        weights[f"layers.0.{part}.weight"] = 0.3 * torch.randn(size) + (len(size) == 1)
        if biases and (len(size) == 2 or norms is NormKind.LAYER):
            weights[f"layers.0.{part}.bias"] = 0.3 * torch.randn(size[0])
    return weights


def plain(states: Tensor, builder: LayerBuilder) -> Tensor:
    """(length, width) through the layer, by the formulas of papers, in float64."""
    names, shape = builder.names, builder.shapes[0]
    stored = {name.removeprefix("layers.0."): weight.double() for name, weight in builder.weights.items()}

    def product(rows: Tensor, *parts: str) -> Tensor:
        return torch.cat([rows @ stored[f"{p}.weight"].T + stored.get(f"{p}.bias", torch.zeros(1)) for p in parts], -1)

    def norm(rows: Tensor, name: str | None) -> Tensor:
        if name is None:
            return rows
        weight, bias = stored[f"{name}.weight"], stored.get(f"{name}.bias", torch.zeros(1))
        if builder.norms is NormKind.LAYER:
            centred = rows - rows.mean(-1, keepdim=True)
            return centred / (centred.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight + bias
        weight = weight + 1 if builder.norms is NormKind.RMS_FROM_ONE else weight
        return rows / (rows.square().mean(-1, keepdim=True) + EPSILON).sqrt() * weight

    def turn(rows: Tensor) -> Tensor:
        """(length, heads, head width), pair by pair."""
        if shape.rope is None:
            return rows
        turned, pairs = rows.clone(), len(shape.rope.frequencies)
        for pair, frequency in enumerate(shape.rope.frequencies.tolist()):
            one, two = (2 * pair, 2 * pair + 1) if shape.rope.neighbours else (pair, pair + pairs)
            angle = torch.arange(len(rows), dtype=torch.float64)[:, None] * frequency
            turned[..., one] = (rows[..., one] * angle.cos() - rows[..., two] * angle.sin()) * shape.rope.scale
            turned[..., two] = (rows[..., two] * angle.cos() + rows[..., one] * angle.sin()) * shape.rope.scale
        return turned

    x, length, keys = states.double(), len(states), shape.key_value_heads or HEADS
    inner = norm(x, names.before_attention if shape.norm_before_attention else None)
    heads = product(inner, *names.query_key_value).view(length, HEADS + 2 * keys, PER_HEAD)
    query, key, value = heads.split([HEADS, keys, keys], 1)
    query, key = turn(norm(query, names.query_norm)), turn(norm(key, names.key_norm))
    key, value = (part.repeat_interleave(HEADS // keys, 1) for part in (key, value))
    scores = torch.einsum("qhd,khd->hqk", query, key) * (shape.scale or PER_HEAD**-0.5)
    if shape.mask is not None:
        distances = torch.arange(length)[None] - torch.arange(length)[:, None]
        scores = scores + shape.mask(distances.view(-1)).view(-1, length, length)
    mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(length, -1)
    x = norm(x + norm(product(mixed, names.attention_output), names.attention_branch), names.attention_norm)
    wide = product(norm(x, names.before_feed_forward), *names.up)
    activate = ACTIVATIONS[builder.activation]
    wide = activate(wide[:, :INNER]) * wide[:, INNER:] if builder.gated else activate(wide)
    return norm(x + norm(product(wide, names.down), names.output_branch), names.output_norm)


def builder_of(case: str) -> LayerBuilder:
    names, shape, options = CASES[case]
    biases, gated, norms = (
        options.get(n, d) for n, d in (("biases", True), ("gated", False), ("norms", NormKind.LAYER))
    )
    weights = weights_of(names, LayerShape(heads=HEADS, **shape), biases=biases, gated=gated, norms=norms)
    return LayerBuilder(
        weights,
        names,
        shapes=[LayerShape(heads=HEADS, **shape)],
        epsilon=EPSILON,
        dtype=torch.float32,
        batch_tokens=512,
        **{name: value for name, value in options.items() if name != "biases"},
    )


def through(layer: Layer, states: Tensor, groups: Sequence[Group]) -> Tensor:
    """(tokens, width) float32 through one layer, likewise."""
    return layer(layer.input.of(states.clone()), groups, Input(None, torch.float32)).input


@pytest.mark.parametrize("case", CASES)
def test_a_layer_gives_what_the_formulas_give(case: str) -> None:
    builder = builder_of(case)
    states = torch.randn(padded_rows(sum(LENGTHS)), WIDTH)
    states[sum(LENGTHS) :] = 100.0  # rows of no sequence
    expected = [plain(sequence, builder).float() for sequence in states[: sum(LENGTHS)].split(LENGTHS)]
    groups = group_sequences(LENGTHS)
    with torch.inference_mode():
        every = through(builder.layer(0), states, groups)
        ones = {token: through(builder.layer(0, token), states, groups) for token in Token}
        rough = through(dataclasses.replace(builder, dtype=torch.bfloat16).layer(0), states, groups)
    assert every.isfinite().all()
    together = torch.cat(expected)
    # A norm behind a branch of small values enlarges what a product rounds; its library picks the order of the sums.
    torch.testing.assert_close(every[: sum(LENGTHS)], together, atol=3e-4, rtol=1e-5)
    for token, found in ones.items():
        alone = torch.stack([rows[token.value] for rows in expected])
        torch.testing.assert_close(found[: len(LENGTHS)], alone, atol=3e-4, rtol=1e-5, msg=str(token))
    assert torch.nn.functional.cosine_similarity(rough[: sum(LENGTHS)], together).min() > 0.99


@pytest.mark.parametrize("case", CASES)
def test_a_layer_of_a_gpu_gives_what_the_formulas_give(case: str) -> None:
    kernels = CudaKernels(torch.device("cpu"), ReferenceVarlen(half_only=False))
    builder = dataclasses.replace(builder_of(case), kernels=kernels)
    if isinstance(builder.shapes[0].mask, RelativeBias):
        with pytest.raises(UnfitError, match="bias"):
            builder.layer(0)
        return
    states, groups = torch.randn(sum(LENGTHS), WIDTH), group_sequences(LENGTHS)
    together = torch.cat([plain(sequence, builder).float() for sequence in states.split(LENGTHS)])
    with torch.inference_mode():
        every = through(builder.layer(0), states, groups)
        ones = {token: through(builder.layer(0, token), states, groups) for token in Token}
    torch.testing.assert_close(every, together, atol=3e-4, rtol=1e-5)
    for token, found in ones.items():
        alone = torch.stack([rows[token.value] for rows in together.split(LENGTHS)])
        torch.testing.assert_close(found, alone, atol=3e-4, rtol=1e-5, msg=str(token))


@pytest.mark.skipif(find_fused() is None, reason="Triton is missing")
@pytest.mark.parametrize("case", CASES)
def test_a_layer_of_a_gpu_gives_the_same_where_steps_are_fused(case: str) -> None:
    fused = find_fused()
    kernels = CudaKernels(torch.device("cpu"), ReferenceVarlen(half_only=False), fused)
    builder = dataclasses.replace(builder_of(case), kernels=kernels)
    if isinstance(builder.shapes[0].mask, RelativeBias):
        return
    lengths = [20, 3, 3, 1]
    states, groups = torch.randn(sum(lengths), WIDTH), group_sequences(lengths)
    together = torch.cat([plain(sequence, builder).float() for sequence in states.split(lengths)])
    norm = RowNorm(weight=torch.randn(WIDTH), bias=torch.randn(WIDTH), epsilon=EPSILON, rms=None)
    with torch.inference_mode():
        layer, one = builder.layer(0), builder.layer(0, Token.LAST)
        every = layer(layer.input.of(states.clone()), groups, Input(norm, torch.bfloat16))
        last = through(one, states, groups)
        half = dataclasses.replace(builder, dtype=torch.bfloat16)
        rough = through(half.layer(0), states, groups)
        unfused = through(
            dataclasses.replace(half, kernels=CudaKernels(torch.device("cpu"), ReferenceVarlen())).layer(0),
            states,
            groups,
        )
    assert isinstance(layer.feed_forward.down, FusedEnding) and every.input.dtype == torch.bfloat16
    torch.testing.assert_close(every.stream, together, atol=3e-4, rtol=1e-5)
    torch.testing.assert_close(every.input, norm(every.stream).bfloat16(), atol=1e-2, rtol=1e-2)
    alone = torch.stack([rows[-1] for rows in together.split(lengths)])
    torch.testing.assert_close(last, alone, atol=3e-4, rtol=1e-5)
    assert (rough - together).norm() <= 2 * (unfused - together).norm() + 1e-3 * together.norm()


def test_a_window_over_a_long_sequence_takes_blocks_and_no_square() -> None:
    """Of 8,192 tokens, each with 129 keys, the square would be 256 MB."""
    (group,) = group_sequences([8192])
    blocks = group.blocks(Window(64, 64), torch.float32)
    assert [block.queries.start for block in blocks] == list(range(0, 8192, 128))
    assert all(block.mask is not None and block.mask.numel() <= 128 * 256 for block in blocks)
    assert len({id(block.mask) for block in blocks}) == 3  # the first, the last, and all others


def test_a_batch_makes_a_mask_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    original = attention._by_place
    monkeypatch.setattr(attention, "_by_place", lambda *given: made.append(1) or original(*given))
    groups = group_sequences([20, 20, 12])
    for _ in range(3):
        for group in groups:
            group.blocks(Window(3, 3), torch.float32)
    assert len(made) == 2


def test_a_product_with_a_bias_for_some_of_its_rows_is_refused() -> None:
    weights = weights_of(SEPARATE, LayerShape(heads=HEADS), biases=True, gated=False, norms=NormKind.LAYER)
    del weights["layers.0.k.bias"]
    builder = LayerBuilder(
        weights,
        SEPARATE,
        shapes=[LayerShape(heads=HEADS)],
        epsilon=EPSILON,
        dtype=torch.float32,
        batch_tokens=64,
    )
    with pytest.raises(ValueError, match="have a bias"):
        builder.layer(0)
