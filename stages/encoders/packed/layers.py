"""Transformer layers over sequences that lie end to end, built from weights by their names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn.functional import layer_norm

from .attention import Group, attend
from .linear import SHAPE_ROWS, Linear, padded_rows
from .linear_cpu import make_linear

Tensor = torch.Tensor
CHUNK_ROWS = 512
"""Rows that go through a layer's feed-forward together. Their widest intermediate result, 6 MB for BERT-base in
float32, stays in the core's cache, and the products lose no speed (``bench/batches.py``)."""
Norm = Callable[[Tensor], Tensor]
"""A layer normalisation of rows, in float32 whatever the products run in."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForward:
    """A layer after its attention: output projection and feed-forward, each with a residual and then a norm."""

    dtype: torch.dtype
    attention_output: Linear
    attention_norm: Norm
    up: Linear
    down: Linear
    output_norm: Norm

    def __call__(self, hidden_states: Tensor, attention: Tensor) -> Tensor:
        """The layer's input (n, width) float32, and attention's result for it, to the layer's output, likewise."""
        output = torch.empty_like(hidden_states)
        for start in range(0, len(hidden_states), CHUNK_ROWS):
            chunk = slice(start, start + CHUNK_ROWS)
            rows = self.attention_norm(self.attention_output.plus(attention[chunk], hidden_states[chunk]))
            output[chunk] = self.output_norm(self.down.plus(self.up.gelu(rows.to(self.dtype)), rows))
        return output


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One transformer layer, for every token."""

    heads: int
    query_key_value: Linear
    feed_forward: FeedForward

    def __call__(self, hidden_states: Tensor, groups: Sequence[Group]) -> Tensor:
        """(tokens, width) float32 to the same. Rows past the last group belong to no sequence, and stay finite."""
        query_key_value = self.query_key_value(hidden_states.to(self.feed_forward.dtype))  # (tokens, 3 x width)
        attention = query_key_value.new_empty(hidden_states.shape)
        for group in groups:
            by_head = attend(query_key_value, group, self.heads)
            attention[group.tokens] = by_head.transpose(1, 2).reshape(-1, hidden_states.shape[1])
        attention[groups[-1].tokens.stop :] = 0
        return self.feed_forward(hidden_states, attention)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstTokenLayer:
    """One transformer layer, for the first token of each sequence alone.

    With one query q a sequence, q . (K x) is (K'q) . x, and the weighted mean of V x over the tokens is V times the
    weighted mean of x. So K' is applied to the query and V to the mean: once a sequence instead of once a token, as in
    DeepSeek-V2's multi-head latent attention (2024), https://arxiv.org/abs/2405.04434.
    """

    query: Linear
    key: Tensor  # (heads, width / heads, width) float32
    value: Tensor  # (heads, width, width / heads) float32
    feed_forward: FeedForward

    def __call__(self, hidden_states: Tensor, groups: Sequence[Group]) -> Tensor:
        """(tokens, width) float32 to (sequences, width) float32, and some more rows that belong to no sequence."""
        heads, per_head, width = self.key.shape
        count = groups[-1].sequences.stop
        starts = torch.zeros(padded_rows(count), dtype=torch.int64)
        starts[:count] = torch.cat([torch.arange(g.tokens.start, g.tokens.stop, g.length) for g in groups])
        firsts = hidden_states[starts]
        query = self.query(firsts.to(self.feed_forward.dtype)).float() / per_head**0.5
        query = torch.bmm(query.view(-1, heads, per_head).transpose(0, 1), self.key)  # (heads, sequences, width)
        query = query.transpose(0, 1).contiguous()  # (sequences, heads, width)
        means = torch.zeros_like(query)
        for group in groups:
            tokens = hidden_states[group.tokens].view(group.count, group.length, width)
            scores = torch.bmm(query[group.sequences], tokens.transpose(1, 2))  # (sequences, heads, length)
            torch.bmm(torch.softmax(scores, dim=2), tokens, out=means[group.sequences])
        attention = torch.bmm(means.transpose(0, 1), self.value)  # (heads, sequences, width / heads)
        attention = attention.transpose(0, 1).reshape(firsts.shape)
        return self.feed_forward(firsts, attention.to(self.feed_forward.dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNames:
    """transformers' names for a layer and, after that name, for its parts."""

    layer: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    up: str
    down: str
    output_norm: str


@dataclasses.dataclass(frozen=True)
class LayerBuilder:
    """Builds the parts of an encoder from its weights.

    A key's bias is left out: it adds the same number to all scores of a query, which softmax ignores. A query's
    attention weights sum to one, so a value's bias passes through, and is added to the output projection's bias.
    """

    weights: Mapping[str, Tensor]  # by the names of transformers' state_dict(), float32
    names: LayerNames
    _: dataclasses.KW_ONLY
    heads: int
    epsilon: float  # of every norm
    dtype: torch.dtype  # of the products
    batch_tokens: int  # about

    def linear(self, name: str, *, rows: int = CHUNK_ROWS) -> Linear:
        """The linear layer of a name, laid out for about ``rows`` rows."""
        return self._make(*self._weight_and_bias(name), rows)

    def norm(self, name: str) -> Norm:
        weight, bias = self._weight_and_bias(name)
        return functools.partial(layer_norm, normalized_shape=weight.shape, weight=weight, bias=bias, eps=self.epsilon)

    def layer(self, number: int) -> Layer:
        """The layer of a number, from 0."""
        names, prefix = self.names, self.names.layer.format(number)
        weight = torch.cat([self.weights[f"{prefix}{n}.weight"] for n in (names.query, names.key, names.value)])
        query_key_value = self._make(weight, self.weights[f"{prefix}{names.query}.bias"], self.batch_tokens)
        return Layer(heads=self.heads, query_key_value=query_key_value, feed_forward=self._feed_forward(prefix))

    def first_token_layer(self, number: int) -> FirstTokenLayer:
        """The same layer, for the first token of each sequence alone."""
        prefix = self.names.layer.format(number)
        key, value = (self.weights[f"{prefix}{name}.weight"] for name in (self.names.key, self.names.value))
        return FirstTokenLayer(
            query=self.linear(prefix + self.names.query, rows=SHAPE_ROWS),
            key=key.view(self.heads, -1, key.shape[1]),
            value=value.view(self.heads, -1, value.shape[1]).transpose(1, 2),
            feed_forward=self._feed_forward(prefix, rows=SHAPE_ROWS),
        )

    def _feed_forward(self, prefix: str, *, rows: int = CHUNK_ROWS) -> FeedForward:
        names = self.names
        weight, bias = self._weight_and_bias(prefix + names.attention_output)
        value_bias = self.weights[f"{prefix}{names.value}.bias"]
        return FeedForward(
            dtype=self.dtype,
            attention_output=self._make(weight, (bias.double() + weight.double() @ value_bias.double()).float(), rows),
            attention_norm=self.norm(prefix + names.attention_norm),
            up=self.linear(prefix + names.up, rows=rows),
            down=self.linear(prefix + names.down, rows=rows),
            output_norm=self.norm(prefix + names.output_norm),
        )

    def _weight_and_bias(self, name: str) -> tuple[Tensor, Tensor]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def _make(self, weight: Tensor, bias: Tensor, rows: int) -> Linear:
        return make_linear(weight.to(self.dtype), bias.to(self.dtype), rows=rows)
