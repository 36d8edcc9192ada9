"""The encoder's pass without padding, for the BERT family: the same numbers, and no wasted product.

The sequences of a batch lie end to end as one matrix of (tokens, width), so every product with a weight runs over real
tokens alone; attention runs once for each group of equal length, and positions restart at each sequence. Queries, keys
and values come from one product. No layer past the last one asked for is run, and where that one is asked for its
first position alone, it computes nothing else: see `_FirstRowLayer`.

The idea of laying sequences end to end is that of Zeng et al., Boosting Distributed Training Performance of the
Unpadded BERT Model (2022), https://arxiv.org/abs/2208.08124.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import embedding, layer_norm

from ..config import PackedShape
from ..pooling import Feature, Pooling
from .attention import Group, attend, group_sequences
from .linear import SHAPE_ROWS, Linear, make_linear, padded_rows

Tensor = torch.Tensor
_FIRST_ROW = (Pooling.CLS, Pooling.POOLER)
CHUNK_ROWS = 512
"""Rows that go through a layer's feed-forward together, on one core: the widest of what it makes of so many, 6 MB in
BERT-base in float32, stays near the core, and the products lose nothing (``bench/batches.py``)."""


@dataclasses.dataclass(frozen=True)
class _Names:
    """What transformers calls the parts of a layer, after ``layer``, the layer's own name."""

    layer: str
    query_key_value: tuple[str, str, str]
    attended: str
    norm: str
    up: str
    down: str
    out_norm: str


_BERT = _Names(
    layer="encoder.layer.{}.",
    query_key_value=("attention.self.query", "attention.self.key", "attention.self.value"),
    attended="attention.output.dense",
    norm="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    out_norm="output.LayerNorm",
)
_DISTILBERT = _Names(
    layer="transformer.layer.{}.",
    query_key_value=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    attended="attention.out_lin",
    norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    out_norm="output_layer_norm",
)


@dataclasses.dataclass(frozen=True)
class _Norm:
    """A layer normalisation, in float32 whatever the products are in."""

    weight: Tensor
    bias: Tensor
    epsilon: float

    def __call__(self, rows: Tensor) -> Tensor:
        return layer_norm(rows, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rest:
    """A transformer layer past its attention, normalised after each half (Devlin et al., BERT, 2019)."""

    dtype: torch.dtype
    attended: Linear
    norm: _Norm
    up: Linear
    down: Linear
    out_norm: _Norm

    def __call__(self, rows: Tensor, attended: Tensor) -> Tensor:
        """The layer's input (n, width) float32 and what its attention gave, to its output (n, width) float32.

        Chunk by chunk: what one step leaves is still in the processor's cache when the next one takes it up.
        """
        found = torch.empty_like(rows)
        for start in range(0, len(rows), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            self._through(rows[chunk], attended[chunk], found[chunk])
        return found

    def _through(self, rows: Tensor, attended: Tensor, found: Tensor) -> None:
        rows = self.norm(self.attended.plus(attended, rows))
        found.copy_(self.out_norm(self.down.plus(self.up.gelu(rows.to(self.dtype)), rows)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layer:
    """One transformer layer, for every token."""

    heads: int
    query_key_value: Linear
    rest: _Rest

    def __call__(self, rows: Tensor, groups: Sequence[Group]) -> Tensor:
        """(tokens, width) float32 to the same; rows past the last group are of no sequence, and stay finite."""
        found = self.query_key_value(rows.to(self.rest.dtype))  # (tokens, 3 x width)
        attended = found.new_empty(rows.shape)
        for group in groups:
            part = attend(found, group, self.heads)
            attended[group.tokens] = part.transpose(1, 2).reshape(-1, rows.shape[1])
        attended[groups[-1].tokens.stop :] = 0
        return self.rest(rows, attended)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FirstRowLayer:
    """One transformer layer, for the first token of each sequence alone.

    Its keys and values are never made. With one query q a sequence, q . (K x) is (K'q) . x, and the mean of V x over
    the tokens is V of the mean of x: so K' is applied to the query and V to the mean, once a sequence instead of once
    a token. The re-ordering is that of multi-head latent attention in DeepSeek-V2 (2024), https://arxiv.org/abs/2405.04434.
    """

    query: Linear
    key: Tensor
    """(heads, width / heads, width) float32."""
    value: Tensor
    """(heads, width, width / heads) float32."""
    rest: _Rest

    def __call__(self, rows: Tensor, groups: Sequence[Group]) -> Tensor:
        """(tokens, width) float32 to (sequences, width) float32, with some rows more that are of no sequence."""
        heads, per_head, width = self.key.shape
        count = groups[-1].sequences.stop
        starts = torch.zeros(padded_rows(count), dtype=torch.int64)
        starts[:count] = torch.cat([torch.arange(g.tokens.start, g.tokens.stop, g.length) for g in groups])
        firsts = rows[starts]
        query = self.query(firsts.to(self.rest.dtype)).float() / per_head**0.5
        asked = torch.bmm(query.view(-1, heads, per_head).transpose(0, 1), self.key)  # (heads, sequences, width)
        asked = asked.transpose(0, 1).contiguous()  # (sequences, heads, width)
        means = torch.zeros_like(asked)
        for group in groups:
            tokens = rows[group.tokens].view(group.count, group.length, width)
            scores = torch.bmm(asked[group.sequences], tokens.transpose(1, 2))  # (sequences, heads, length)
            torch.bmm(torch.softmax(scores, dim=2), tokens, out=means[group.sequences])
        attended = torch.bmm(means.transpose(0, 1), self.value)  # (heads, sequences, width / heads)
        attended = attended.transpose(0, 1).reshape(firsts.shape)
        return self.rest(firsts, attended.to(self.rest.dtype))


class PackedEncoder:
    """A frozen encoder of the BERT family that reads sequences laid end to end."""

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        shape: PackedShape,
        features: Sequence[Feature],
        *,
        dtype: torch.dtype,
        batch_tokens: int,
    ) -> None:
        """Lay out the weights for the products.

        Args:
            weights: By the names of transformers' ``state_dict()``, float32. Only those that the features need are
                looked at.
            shape: What else there is to know.
            features: What to take.
            dtype: What the products run in; sums and norms are in float32.
            batch_tokens: How many tokens a batch has, about.

        Raises:
            KeyError: a weight is missing.
        """
        self._words = weights["embeddings.word_embeddings.weight"]
        self._positions = weights["embeddings.position_embeddings.weight"]
        self._segments = weights.get("embeddings.token_type_embeddings.weight")
        self._padding, self._dtype = shape.position_padding, dtype
        made = _Maker(weights, shape, dtype, batch_tokens)
        self._norm = made.norm("embeddings.LayerNorm")
        self._project = made.product("embeddings_project") if "embeddings_project.weight" in weights else None
        pooled = any(feature.pooling is Pooling.POOLER for feature in features)
        self._pooler = made.product("pooler.dense") if pooled else None
        self._wanted = [[f for f in features if (f.layer or shape.layers) == n] for n in range(1, shape.layers + 1)]
        self._last = max(n for n, wanted in enumerate(self._wanted) if wanted)
        self._layers = [made.layer(number) for number in range(self._last)]
        first_row = all(f.pooling in _FIRST_ROW for f in self._wanted[self._last])
        self._last_layer = made.first_row_layer(self._last) if first_row else made.layer(self._last)

    def __call__(self, sequences: Sequence[npt.NDArray[np.int32]]) -> dict[str, Tensor]:
        """Encode sequences; those of equal length should stand together.

        Args:
            sequences: Token ids, (tokens,) int32 each; or (tokens, 2) each: the ids, and the segment of each.

        Returns:
            By the features' names: (sequences, width) float32 each.
        """
        groups = group_sequences([len(sequence) for sequence in sequences], self._dtype)
        rows = self._embedded(sequences, groups)
        found: dict[str, Tensor] = {}
        for layer, wanted in zip(self._layers, self._wanted, strict=False):
            rows = layer(rows, groups)
            found |= {f.name: self._pool(rows, groups, f.pooling) for f in wanted}
        rows = self._last_layer(rows, groups)
        if isinstance(self._last_layer, _FirstRowLayer):
            return found | {f.name: self._first(rows[: len(sequences)], f.pooling) for f in self._wanted[self._last]}
        return found | {f.name: self._pool(rows, groups, f.pooling) for f in self._wanted[self._last]}

    def _embedded(self, sequences: Sequence[npt.NDArray[np.int32]], groups: Sequence[Group]) -> Tensor:
        """(tokens, width) float32, with some rows of no sequence at the end."""
        joined = torch.from_numpy(np.concatenate(sequences).astype(np.int64))  # (tokens,) or (tokens, 2)
        ids = joined if joined.ndim == 1 else joined[:, 0]
        rows = embedding(ids, self._words) + embedding(self._places(ids, groups), self._positions)
        if self._segments is not None:
            rows += self._segments[0] if joined.ndim == 1 else embedding(joined[:, 1], self._segments)
        whole = rows.new_zeros(padded_rows(len(rows)), rows.shape[1])
        whole[: len(rows)] = self._norm(rows)
        return whole if self._project is None else self._project(whole.to(self._dtype)).float()

    def _places(self, ids: Tensor, groups: Sequence[Group]) -> Tensor:
        """(tokens,) int64: each token's position.

        RoBERTa counts from past its padding index, and only what is not padding: a text can spell that token out.
        """
        if self._padding is None:
            return torch.cat([torch.arange(g.length).repeat(g.count) for g in groups])
        real = (ids != self._padding).long()
        counts = torch.cat([real[g.tokens].view(g.count, g.length).cumsum(1).view(-1) for g in groups])
        return counts.mul_(real).add_(self._padding)

    def _pool(self, rows: Tensor, groups: Sequence[Group], pooling: Pooling) -> Tensor:
        """(tokens, width) to (sequences, width)."""
        parts = [rows[g.tokens].view(g.count, g.length, -1) for g in groups]
        if pooling is Pooling.MEAN:
            return torch.cat([part.mean(1) for part in parts])
        if pooling is Pooling.MAX:
            return torch.cat([part.amax(1) for part in parts])
        return self._first(torch.cat([part[:, 0] for part in parts]), pooling)

    def _first(self, firsts: Tensor, pooling: Pooling) -> Tensor:
        """(sequences, width): the first rows, or what the pooler makes of them."""
        if pooling is Pooling.POOLER and self._pooler is not None:
            return torch.tanh(self._pooler(firsts.to(self._dtype))).float()
        return firsts


class _Maker:
    """Builds the parts of a packed encoder from weights by their names.

    Keys get no bias: it adds the same to every score of a query, which softmax takes no notice of. Nor do values: the
    scores of a query add up to one, so their bias goes through attention as it is, into the bias of what follows.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], shape: PackedShape, dtype: torch.dtype, batch_tokens: int
    ) -> None:
        self._weights, self._shape, self._dtype, self._batch_tokens = weights, shape, dtype, batch_tokens
        self._names = _DISTILBERT if shape.model_type == "distilbert" else _BERT

    def product(self, name: str, *, rows: int = CHUNK_ROWS) -> Linear:
        return self._made(self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], rows)

    def norm(self, name: str) -> _Norm:
        return _Norm(self._weights[f"{name}.weight"], self._weights[f"{name}.bias"], self._shape.epsilon)

    def layer(self, number: int) -> _Layer:
        """The layer of this number, from 0."""
        prefix = self._names.layer.format(number)
        query, key, value = (prefix + name for name in self._names.query_key_value)
        weight = torch.cat([self._weights[f"{name}.weight"] for name in (query, key, value)])
        product = self._made(weight, self._weights[f"{query}.bias"], self._batch_tokens)
        return _Layer(heads=self._shape.heads, query_key_value=product, rest=self._rest(prefix))

    def first_row_layer(self, number: int) -> _FirstRowLayer:
        prefix, heads = self._names.layer.format(number), self._shape.heads
        query, key, value = (prefix + name for name in self._names.query_key_value)
        keys, values = self._weights[f"{key}.weight"], self._weights[f"{value}.weight"]  # (width, width)
        return _FirstRowLayer(
            query=self.product(query, rows=SHAPE_ROWS),
            key=keys.view(heads, -1, keys.shape[1]),
            value=values.view(heads, -1, values.shape[1]).transpose(1, 2),
            rest=self._rest(prefix, rows=SHAPE_ROWS),
        )

    def _rest(self, prefix: str, *, rows: int = CHUNK_ROWS) -> _Rest:
        names = self._names
        weight, bias = (self._weights[f"{prefix}{names.attended}.{part}"] for part in ("weight", "bias"))
        value_bias = self._weights[f"{prefix}{names.query_key_value[2]}.bias"]
        return _Rest(
            dtype=self._dtype,
            attended=self._made(weight, (bias.double() + weight.double() @ value_bias.double()).float(), rows),
            norm=self.norm(prefix + names.norm),
            up=self.product(prefix + names.up, rows=rows),
            down=self.product(prefix + names.down, rows=rows),
            out_norm=self.norm(prefix + names.out_norm),
        )

    def _made(self, weight: Tensor, bias: Tensor, rows: int) -> Linear:
        return make_linear(weight.to(self._dtype), bias.to(self._dtype), rows=rows)
