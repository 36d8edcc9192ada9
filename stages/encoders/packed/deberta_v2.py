"""DeBERTa-v2 and v3 (He et al., 2020, https://arxiv.org/abs/2006.03654): BERT with disentangled attention."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import linear, scaled_dot_product_attention

from .attention import Attention, Group, Token, token_rows
from .bert import Bert
from .forward import BuildLayer
from .layers import Layer, LayerBuilder, LayerNames
from .linear import SHAPE_ROWS, Linear
from .linear_cpu import make_linear

Tensor = torch.Tensor
_TERMS = ("c2p", "p2c")
_CHUNK_SCORES = 1 << 18
"""Scores that are computed together: with what they are made of, they stay in the core's cache."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class DisentangledAttention:
    """Attention whose scores are query by key, query by distance (c2p) and key by distance (p2c).

    transformers looks the last two up in a table for each pair of tokens. Here, the rows of that table stand in the
    order of the distances: then each query's scores are a row of the product from another place on, and a view does.
    """

    heads: int
    query_key_value: Linear
    c2p: Tensor | None  # (heads, 2 x span, head width), divided as the scores are
    p2c: Tensor | None
    places: Callable[[int], Tensor]
    scale: float

    def __call__(self, states: Tensor, groups: Sequence[Group]) -> Tensor:
        query_key_value = self.query_key_value(states)
        width = query_key_value.shape[1] // (3 * self.heads)
        attention = query_key_value.new_zeros(len(states), self.heads * width)
        for group in groups:
            length = group.length
            places = group.once("distances", functools.partial(self.places, length))
            c2p = None if self.c2p is None else self.c2p[:, places.flip(0)]
            p2c = None if self.p2c is None else self.p2c[:, places]
            rows = query_key_value[group.tokens].view(group.count, length, 3, self.heads, width)
            out = attention[group.tokens].view(group.count, length, self.heads, width)
            step = max(1, _CHUNK_SCORES // (self.heads * length * length))
            for start in range(0, group.count, step):
                # Each is (heads, sequences, length, width).
                query, key, value = rows[start : start + step].permute(2, 3, 0, 1, 4)
                parts = [] if c2p is None else [_by_distance(query, c2p)]
                parts += [] if p2c is None else [_by_distance(key, p2c).transpose(2, 3)]
                by_distance = parts[0] if len(parts) == 1 else parts[0] + parts[1]
                query, key, value = (part.transpose(0, 1) for part in (query, key, value))
                made = scaled_dot_product_attention(query, key, value, attn_mask=by_distance, scale=self.scale)
                out[start : start + step] = made.transpose(1, 2)
        return attention


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OneQueryDisentangledAttention:
    """The same of one token of each sequence: then a key has one distance alone."""

    heads: int
    token: Token
    query: Linear
    key_value: Linear
    c2p: Tensor | None
    p2c: Tensor | None
    places: Callable[[int], Tensor]
    scale: float

    def __call__(self, states: Tensor, groups: Sequence[Group]) -> Tensor:
        queries = self.query(states[token_rows(groups, self.token)])
        key_value = self.key_value(states).view(len(states), 2, self.heads, -1)
        attention = torch.zeros_like(queries)
        for group in groups:
            length = group.length
            places = group.once("distances", functools.partial(self.places, length))
            places = (places[:length] if self.token is Token.FIRST else places[length - 1 :]).flip(0)  # of each key
            # (sequences, heads, 1 or length, width)
            query = queries[group.sequences].view(group.count, self.heads, 1, -1)
            key, value = key_value[group.tokens].view(group.count, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
            by_distance = torch.zeros(group.count, self.heads, 1, length, dtype=states.dtype)
            if self.c2p is not None:
                by_distance += query @ self.c2p[:, places].transpose(1, 2)
            if self.p2c is not None:
                by_distance += (key * self.p2c[:, places]).sum(3)[:, :, None]
            made = scaled_dot_product_attention(query, key, value, attn_mask=by_distance, scale=self.scale)
            attention[group.sequences] = made.view(group.count, -1)
        return attention


def _by_distance(rows: Tensor, table: Tensor) -> Tensor:
    """(heads, sequences, length, width) by (heads, 2 x length - 1, width), to (sequences, heads, length, length).

    Row n is that of the product from place length - 1 - n on.
    """
    heads, sequences, length, width = rows.shape
    products = torch.bmm(rows.reshape(heads, -1, width), table.transpose(1, 2))
    distances = 2 * length - 1
    strides = (length * distances, sequences * length * distances, distances - 1, 1)
    return products.as_strided((sequences, heads, length, length), strides, length - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DebertaV2(Bert):
    """DeBERTa-v2 and v3 as they are published: relative positions alone, their keys and queries those of the words."""

    BASE = "deberta"
    BIASED_SCORES = True
    NAMES = LayerNames(
        layer="encoder.layer.{}.",
        query_key_value=("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        attention_output="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        up=("intermediate.dense",),
        down="output.dense",
        output_norm="output.LayerNorm",
    )
    terms: tuple[str, ...] = ()  # of the scores, beside query by key
    buckets: int = 0
    farthest: int = 512
    norm_distances: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DebertaV2 | None:
        found, kinds = super().from_config(config), config.get("pos_att_type") or ()
        kinds = [kind.strip() for kind in kinds.lower().split("|")] if isinstance(kinds, str) else kinds
        farthest, buckets = config.get("max_relative_positions", -1), config.get("position_buckets", -1)
        farthest = farthest if farthest >= 1 else config.get("max_position_embeddings", 512)
        norms = [norm.strip() for norm in str(config.get("norm_rel_ebd", "none")).lower().split("|")]
        wide = config.get("embedding_size", config.get("hidden_size")) == config.get("hidden_size")
        others = config.get("position_biased_input", True) or config.get("conv_kernel_size", 0) > 0
        others = others or config.get("attention_head_size") is not None or not wide
        plain = config.get("relative_attention") and config.get("share_att_key") and len(kinds) > 0
        if not isinstance(found, DebertaV2) or others or not plain or not set(kinds) <= set(_TERMS):
            return None
        return dataclasses.replace(
            found,
            terms=tuple(sorted(set(kinds))),
            buckets=max(buckets, 0),
            farthest=farthest,
            norm_distances="layer_norm" in norms,
        )

    def trial_lengths(self) -> Sequence[int]:
        return (7, 7, self.buckets // 2 + 40, 3)

    def positions(self, weights: Mapping[str, Tensor]) -> None:
        return None

    def layer(self, builder: LayerBuilder) -> BuildLayer:
        distances = builder.weights["encoder.rel_embeddings.weight"]
        if self.norm_distances:
            distances = builder.norm("encoder.LayerNorm")(distances)

        def layer(number: int, token: Token | None) -> Layer:
            return builder.layer(number, token, attention=self._attention(builder, number, token, distances))

        return layer

    def _attention(self, builder: LayerBuilder, number: int, token: Token | None, distances: Tensor) -> Attention:
        prefix = self.NAMES.layer.format(number)
        names = [f"{prefix}{name}" for name in self.NAMES.query_key_value]
        weights, biases = ([builder.weights[f"{name}.{kind}"] for name in names] for kind in ("weight", "bias"))
        width = len(weights[0]) // self.heads
        scale = 1 / math.sqrt(width * (1 + len(self.terms)))
        of_words = dict(zip(("p2c", "c2p"), zip(weights[:2], biases[:2], strict=True), strict=True))
        tables = {
            term: linear(distances, *of_words[term]).mul_(scale).view(-1, self.heads, width).transpose(0, 1)
            for term in self.terms
        }

        def made(first: int, last: int, rows: int) -> Linear:
            weight, bias = torch.cat(weights[first:last]), torch.cat(biases[first : min(last, 2)])
            return make_linear(weight.to(builder.dtype), bias.to(builder.dtype), rows=rows)  # see `LayerBuilder`

        shared: dict[str, Any] = {
            "heads": self.heads,
            "places": self.places,
            "scale": scale,
            **{term: None if term not in tables else tables[term].to(builder.dtype).contiguous() for term in _TERMS},
        }
        if token is None:
            return DisentangledAttention(query_key_value=made(0, 3, builder.batch_tokens), **shared)
        key_value = made(1, 3, builder.batch_tokens)
        return OneQueryDisentangledAttention(token=token, query=made(0, 1, SHAPE_ROWS), key_value=key_value, **shared)

    def places(self, length: int) -> Tensor:
        """The place in a table of each distance of a query after its key, from 1 - length on: (2 x length - 1,) int64.

        Distances are exact up to half of the buckets, and then go by their logarithm, up to the farthest.
        """
        distances, span = torch.arange(1 - length, length), self.buckets or self.farthest
        if self.buckets:
            middle, far = self.buckets // 2, distances.abs()
            grown = torch.log(far.clamp_min(1) / middle) / torch.log(torch.tensor((self.farthest - 1) / middle))
            grown = torch.ceil(grown * (middle - 1)) + middle
            distances = torch.where(far <= middle, distances, (grown * distances.sign()).long())
        return (distances + span).clamp(0, 2 * span - 1)


ARCHITECTURES = {"deberta-v2": DebertaV2}
