"""The encoder's pass without padding, for the BERT family: the same numbers, and no wasted product.

The sequences of a batch lie end to end as one matrix of (tokens, width), so every product with a weight runs over real
tokens alone; attention runs once for each group of equal length, and positions restart at each sequence. Where
the features allow, the last layer computes only the first position's row past its keys and values. Queries, keys and
values come from one product.

The idea of laying sequences end to end is that of Zeng et al., Boosting Distributed Training Performance of the
Unpadded BERT Model (2022), https://arxiv.org/abs/2208.08124.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from .features import Feature, Pooling

Tensor = torch.Tensor
FAMILY = {"bert", "roberta", "xlm-roberta", "electra", "distilbert"}


@dataclasses.dataclass(frozen=True)
class _Affine:
    """A weight (out, in) in the dtype of the products, and a bias (out,)."""

    weight: Tensor
    bias: Tensor

    def __call__(self, rows: Tensor) -> Tensor:
        return linear(rows.to(self.weight.dtype), self.weight, self.bias)


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A layer normalisation, in float32 whatever the products are in."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, rows: Tensor) -> Tensor:
        return layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layer:
    """One transformer layer, normalised after each half (Devlin et al., BERT, 2019)."""

    heads: int
    query: _Affine
    """The queries alone, (width, width): what the last layer needs for its few rows."""
    key_value: _Affine
    query_key_value: _Affine
    attended: _Affine
    norm: _Norm
    up: _Affine
    down: _Affine
    out_norm: _Norm

    def __call__(self, rows: Tensor, groups: Sequence[_Group]) -> Tensor:
        """(tokens, width) float32 to the same."""
        query, key, value = self.query_key_value(rows).chunk(3, dim=1)  # (tokens, width) each
        attended = torch.empty_like(query)
        for group in groups:
            attended[group.tokens] = self._attend(query[group.tokens], key[group.tokens], value[group.tokens], group)
        return self._rest(rows, attended)

    def first_rows(self, rows: Tensor, groups: Sequence[_Group]) -> Tensor:
        """(tokens, width) float32 to (sequences, width): each sequence's first row alone."""
        starts = torch.cat([torch.arange(g.tokens.start, g.tokens.stop, g.length) for g in groups])
        firsts = rows[starts]
        query = self.query(firsts)  # (sequences, width)
        key, value = self.key_value(rows).chunk(2, dim=1)
        attended, done = torch.empty_like(query), 0
        for group in groups:
            part = slice(done, done + group.count)
            attended[part] = self._attend(query[part], key[group.tokens], value[group.tokens], group)
            done = part.stop
        return self._rest(firsts, attended)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, group: _Group) -> Tensor:
        """(count x queries, width) of one group of sequences of equal length."""
        shape = group.count, -1, self.heads, query.shape[1] // self.heads
        query_heads, key_heads, value_heads = (x.view(shape).transpose(1, 2) for x in (query, key, value))
        # (count, heads, queries, width / heads)
        found = scaled_dot_product_attention(query_heads, key_heads, value_heads)
        return found.transpose(1, 2).reshape(query.shape)

    def _rest(self, rows: Tensor, attended: Tensor) -> Tensor:
        rows = self.norm(self.attended(attended).add(rows))
        return self.out_norm(self.down(gelu(self.up(rows))).add(rows))


@dataclasses.dataclass(frozen=True)
class _Group:
    """Some sequences of equal length that lie end to end."""

    tokens: slice
    count: int
    length: int


class PackedEncoder:
    """A frozen encoder of the BERT family that reads sequences laid end to end."""

    def __init__(self, model: Any, dtype: torch.dtype) -> None:
        """Take over a transformers model's weights; products run in ``dtype``, sums and norms in float32."""
        self._words, self._positions, self._norm = _embeddings(model)
        self._first_position = _first_position(model)
        self._project = _affine([model.embeddings_project], dtype) if hasattr(model, "embeddings_project") else None
        pooler = getattr(model, "pooler", None)
        self._pooler = None if pooler is None else _affine([pooler.dense], dtype)
        self._layers = [_layer(layer, model.config, dtype) for layer in _layers(model)]

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether this is an architecture that this class computes exactly, going by its configuration."""
        config = model.config
        return (
            config.model_type in FAMILY
            and getattr(config, "hidden_act", getattr(config, "activation", None)) == "gelu"
            and getattr(config, "position_embedding_type", "absolute") in ("absolute", None)
            and not getattr(config, "is_decoder", False)
            and not getattr(config, "add_cross_attention", False)
            and not getattr(config, "pruned_heads", None)
        )

    def __call__(self, sequences: Sequence[npt.NDArray[np.int32]], features: Sequence[Feature]) -> dict[str, Tensor]:
        """Encode sequences; those of equal length should stand together.

        Returns:
            By the features' names: (sequences, width) float32 each.
        """
        groups = _groups([len(sequence) for sequence in sequences])
        ids = torch.from_numpy(np.concatenate(sequences).astype(np.int64))  # (tokens,)
        places = torch.cat([torch.arange(g.length).repeat(g.count) for g in groups]) + self._first_position
        rows = self._norm(self._words[ids] + self._positions[places])  # (tokens, width) float32
        if self._project is not None:
            rows = self._project(rows).float()
        last = len(self._layers)
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(self._layers, 1):
            wanted = [f for f in features if (f.layer or last) == number]
            if number == last and all(f.pooling in (Pooling.CLS, Pooling.POOLER) for f in wanted):
                firsts = layer.first_rows(rows, groups)
                found |= {f.name: self._pooled(firsts, f.pooling) for f in wanted}
                break
            rows = layer(rows, groups)
            found |= {f.name: self._pool(rows, groups, f.pooling) for f in wanted}
        return found

    def _pool(self, rows: Tensor, groups: Sequence[_Group], pooling: Pooling) -> Tensor:
        """(tokens, width) to (sequences, width)."""
        parts = [rows[g.tokens].view(g.count, g.length, -1) for g in groups]
        if pooling is Pooling.MEAN:
            return torch.cat([part.mean(1) for part in parts])
        if pooling is Pooling.MAX:
            return torch.cat([part.amax(1) for part in parts])
        return self._pooled(torch.cat([part[:, 0] for part in parts]), pooling)

    def _pooled(self, firsts: Tensor, pooling: Pooling) -> Tensor:
        """(sequences, width): the first rows, or what the pooler makes of them."""
        if pooling is Pooling.POOLER and self._pooler is not None:
            return torch.tanh(self._pooler(firsts)).float()
        return firsts


def _groups(lengths: Sequence[int]) -> list[_Group]:
    groups, start, at = [], 0, 0
    for end in range(1, len(lengths) + 1):
        if end == len(lengths) or lengths[end] != lengths[start]:
            tokens = (end - start) * lengths[start]
            groups.append(_Group(slice(at, at + tokens), end - start, lengths[start]))
            start, at = end, at + tokens
    return groups


def _embeddings(model: Any) -> tuple[Tensor, Tensor, _Norm]:
    """Word and position tables, and their norm; the segment of a single text is added to every position here."""
    table = model.embeddings
    positions = table.position_embeddings.weight
    if hasattr(table, "token_type_embeddings"):
        positions = positions + table.token_type_embeddings.weight[0]
    return table.word_embeddings.weight, positions, _norm(table.LayerNorm)


def _first_position(model: Any) -> int:
    """RoBERTa counts positions from past its padding index."""
    padding = model.embeddings.position_embeddings.padding_idx
    return 0 if padding is None else int(padding) + 1


def _layers(model: Any) -> Any:
    return model.transformer.layer if model.config.model_type == "distilbert" else model.encoder.layer


def _layer(layer: Any, config: Any, dtype: torch.dtype) -> _Layer:
    if config.model_type == "distilbert":
        attention = layer.attention
        parts = [attention.q_lin, attention.k_lin, attention.v_lin]
        attended, norm, up, down = attention.out_lin, layer.sa_layer_norm, layer.ffn.lin1, layer.ffn.lin2
        out_norm = layer.output_layer_norm
    else:
        attention = layer.attention.self
        parts = [attention.query, attention.key, attention.value]
        attended, norm = layer.attention.output.dense, layer.attention.output.LayerNorm
        up, down, out_norm = layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm
    whole = _affine(parts, dtype)
    width = whole.weight.shape[1]
    return _Layer(
        heads=config.num_attention_heads,
        query=_Affine(whole.weight[:width], whole.bias[:width]),
        key_value=_Affine(whole.weight[width:], whole.bias[width:]),
        query_key_value=whole,
        attended=_affine([attended], dtype),
        norm=_norm(norm),
        up=_affine([up], dtype),
        down=_affine([down], dtype),
        out_norm=_norm(out_norm),
    )


def _affine(parts: Sequence[torch.nn.Linear], dtype: torch.dtype) -> _Affine:
    """One product that does the work of several over the same rows."""
    weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
    return _Affine(weight.to(dtype), bias.to(dtype))


def _norm(norm: torch.nn.LayerNorm) -> _Norm:
    return _Norm(norm.weight, norm.bias, norm.eps)
