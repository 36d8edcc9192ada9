"""Transformer layers over sequences that lie end to end, built from weights by their names.

Architectures differ in where norms stand, in the norms themselves, in the activation, and in attention. `LayerNames`
says which norms there are, `LayerShape` what the weights do not say of a layer, `LayerBuilder` what all layers share.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Mapping, Sequence

import torch

from .activations import ACTIVATIONS
from .attention import AbsorbedAttention, Attention, Group, Heads, Mask, Rope, Token
from .cpu import CPU
from .kernels import Kernels
from .linear import SHAPE_ROWS, Linear
from .states import Ending, Input, RowNorm, States

Tensor = torch.Tensor
FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names for two kinds of layers: all, or a window
CHUNK_ROWS = 512
"""Rows that go through a layer's feed-forward together, on a CPU. Their widest intermediate result, 6 MB for BERT-base
in float32, stays in the core's cache, and the products lose no speed (``bench/batches.py``)."""


class NormKind(enum.Enum):
    """What a norm computes."""

    LAYER = enum.auto()  # layer normalisation, with or without a bias
    RMS = enum.auto()  # Zhang and Sennrich, Root Mean Square Layer Normalization, 2019
    RMS_FROM_ONE = enum.auto()  # the same, where 1 is added to the stored weight, as in Gemma


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeedForward:
    """A layer after its attention: output projection and feed-forward, each added to a residual."""

    attention_output: Ending
    input: Input
    up: Linear
    activation: str
    gate: Callable[[Tensor, str], Tensor] | None  # of ``up``'s two halves, as `activations.gate`; None for one
    down: Ending
    chunk_rows: int | None  # that go through it together; None for all

    def __call__(self, stream: Tensor, attention: Tensor, following: Input) -> States:
        """The residual stream (n, width) float32, and attention's result for it, to the layer's states."""
        if self.chunk_rows is None:
            return self._output(stream, attention, following)
        states = States.empty(len(stream), stream, following)
        for start in range(0, len(stream), self.chunk_rows):
            chunk = slice(start, start + self.chunk_rows)
            states.write(chunk, self._output(stream[chunk], attention[chunk], following))
        return states

    def _output(self, stream: Tensor, attention: Tensor, following: Input) -> States:
        states = self.attention_output(attention, stream, self.input)
        return self.down(self._activated(states.input), states.stream, following)

    def _activated(self, rows: Tensor) -> Tensor:
        if self.gate is not None:
            return self.gate(self.up(rows), self.activation)
        return self.up.gelu(rows) if self.activation == "gelu" else ACTIVATIONS[self.activation](self.up(rows))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """One transformer layer, for every token or for one token of each sequence."""

    token: Token | None  # None for every token
    input: Input  # of the attention
    attention: Attention
    feed_forward: FeedForward
    kernels: Kernels

    def __call__(self, states: States, groups: Sequence[Group], following: Input) -> States:
        """The states of all tokens to the same, as the next part takes them.

        Rows past the last group belong to no sequence, and stay finite. For one token, the result has a row for each
        sequence, and some more that belong to none.
        """
        attention, stream = self.attention(states.input, groups), states.stream
        chosen = stream if self.token is None else stream[self.kernels.token_rows(groups, self.token)]
        return self.feed_forward(chosen, attention, following)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNames:
    """transformers' names for a layer and, after that name, for its parts. A norm without a name is not there.

    Where several names stand for one product, their weights' rows follow each other.
    """

    layer: str
    query_key_value: tuple[str, ...]  # three names, or one for all
    attention_output: str
    up: tuple[str, ...]  # where it is gated: what is activated, then what it multiplies; or one name for both
    down: str
    before_attention: str | None = None
    query_norm: str | None = None  # of each head
    key_norm: str | None = None
    attention_branch: str | None = None  # before the residual is added
    attention_norm: str | None = None  # after it is added
    before_feed_forward: str | None = None
    output_branch: str | None = None
    output_norm: str | None = None

    def all(self) -> set[str]:
        """The names of all parts."""
        names = dataclasses.asdict(self)
        del names["layer"]
        return {part for name in names.values() if name for part in ((name,) if isinstance(name, str) else name)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerShape:
    """What the weights do not say of one layer."""

    heads: int
    key_value_heads: int | None = None  # None for as many
    scale: float | None = None  # of attention's scores; None for 1 / sqrt(head width)
    mask: Mask | None = None
    rope: Rope | None = None
    norm_before_attention: bool = True  # where the layer's names have it


@dataclasses.dataclass(frozen=True)
class LayerBuilder:
    """Builds the parts of an encoder from its weights.

    A key's bias is left out: it adds the same number to all scores of a query, which softmax ignores. (It is kept where
    keys turn or are normalised.) A query's attention weights sum to one, so a value's bias passes through, and is added
    to the output projection's bias.
    """

    weights: Mapping[str, Tensor]  # by the names of transformers' state_dict(), float32
    names: LayerNames
    _: dataclasses.KW_ONLY
    shapes: Sequence[LayerShape]  # of each layer
    epsilon: float  # of every norm
    dtype: torch.dtype  # of the products
    batch_tokens: int  # about
    norms: NormKind = NormKind.LAYER
    activation: str = "gelu"
    gated: bool = False
    kernels: Kernels = CPU

    def linear(self, *names: str, rows: int = CHUNK_ROWS) -> Linear:
        """The linear layer of these names, laid out for about ``rows`` rows."""
        return self._make(*self._weight_and_bias(*names), rows)

    def norm(self, name: str, order: Tensor | None = None) -> RowNorm:
        """The norm of a name; its numbers stand in another order where one is given."""
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        if order is not None:
            weight, bias = weight[order], None if bias is None else bias[order]
        if self.norms is NormKind.LAYER:
            return RowNorm(weight=weight, bias=bias, epsilon=self.epsilon, rms=None)
        weight = weight + 1 if self.norms is NormKind.RMS_FROM_ONE else weight
        return RowNorm(weight=weight, bias=None, epsilon=self.epsilon, rms=self.kernels.rms_norm)

    def layer(self, number: int, token: Token | None = None, *, attention: Attention | None = None) -> Layer:
        """The layer of a number, from 0, for every token or for one token of each sequence.

        ``attention`` stands in the place of the attention that the weights give.
        """
        names, shape, prefix = self.names, self.shapes[number], self.names.layer.format(number)
        if not shape.norm_before_attention:
            names = dataclasses.replace(names, before_attention=None)
        attention = attention or self.attention(number, token)
        dtype = torch.float32 if isinstance(attention, AbsorbedAttention) else self.dtype
        return Layer(
            token=token,
            input=Input(self._norm(prefix, names.before_attention), dtype),
            attention=attention,
            feed_forward=self.feed_forward(number, CHUNK_ROWS if token is None else SHAPE_ROWS),
            kernels=self.kernels,
        )

    def attention(self, number: int, token: Token | None = None) -> Attention:
        """The attention of a layer."""
        names, shape, prefix = self.names, self.shapes[number], self.names.layer.format(number)
        weight, bias = self._weight_and_bias(*(prefix + name for name in names.query_key_value))
        of_keys = shape.key_value_heads or shape.heads
        width = len(weight) // (shape.heads + 2 * of_keys)
        queries, keys = shape.heads * width, of_keys * width
        plain = shape.rope is None and names.query_norm is None
        order = None if shape.rope is None else shape.rope.order(width)
        if order is not None:
            turned = (torch.arange(0, queries + keys, width)[:, None] + order).view(-1)
            rows = torch.cat([turned, torch.arange(queries + keys, len(weight))])
            rows, order = rows.to(weight.device), order.to(weight.device)
            weight, bias = weight[rows], bias[rows] if len(bias) else bias
        bias = bias[: queries if plain else queries + keys]
        if plain and token is not None and self.kernels.ABSORBS:
            key, value = (part.view(of_keys, width, -1) for part in (weight[queries : queries + keys], weight[-keys:]))
            shared = shape.heads // of_keys
            return AbsorbedAttention(
                token=token,
                query=self._make(weight[:queries], bias, SHAPE_ROWS),
                key=key.repeat_interleave(shared, 0) if shared > 1 else key,
                value=(value.repeat_interleave(shared, 0) if shared > 1 else value).transpose(1, 2),
                divisor=width**0.5 if shape.scale is None else 1 / shape.scale,
                mask=shape.mask,
                dtype=self.dtype,
            )
        norms = None
        if names.query_norm is not None and names.key_norm is not None:
            norms = self.norm(prefix + names.query_norm, order), self.norm(prefix + names.key_norm, order)
        heads = Heads(
            heads=shape.heads,
            key_value_heads=of_keys,
            width=width,
            scale=shape.scale,
            mask=shape.mask,
            rope=shape.rope,
            norms=norms,
        )
        if token is None:
            query_key_value = self._make(weight, bias, self.batch_tokens)
            return self.kernels.self_attention(heads, query_key_value)
        return self.kernels.one_query_attention(
            heads,
            token,
            query=self._make(weight[:queries], bias[:queries], SHAPE_ROWS),
            key_value=self._make(weight[queries:], bias[queries:], self.batch_tokens),
        )

    def feed_forward(self, number: int, rows: int) -> FeedForward:
        """A layer after its attention, laid out for about ``rows`` rows."""
        names, prefix = self.names, self.names.layer.format(number)
        weight, bias = self._weight_and_bias(prefix + names.attention_output)
        value_bias = self._value_bias(number)
        if len(value_bias):
            through = weight.double() @ value_bias.double()
            bias = (bias.double() + through if len(bias) else through).float()
        return FeedForward(
            attention_output=self.kernels.ending(
                self._make(weight, bias, rows),
                branch_norm=self._norm(prefix, names.attention_branch),
                norm=self._norm(prefix, names.attention_norm),
            ),
            input=Input(self._norm(prefix, names.before_feed_forward), self.dtype),
            up=self.linear(*(prefix + name for name in names.up), rows=rows),
            activation=self.activation,
            gate=self.kernels.gate if self.gated else None,
            down=self.kernels.ending(
                self.linear(prefix + names.down, rows=rows),
                branch_norm=self._norm(prefix, names.output_branch),
                norm=self._norm(prefix, names.output_norm),
            ),
            chunk_rows=CHUNK_ROWS if self.kernels.IN_CHUNKS else None,
        )

    def _value_bias(self, number: int) -> Tensor:
        """(heads x head width,), or nothing where values have no bias."""
        shape, prefix = self.shapes[number], self.names.layer.format(number)
        bias = self._bias(*(prefix + name for name in self.names.query_key_value))
        of_keys = shape.key_value_heads or shape.heads
        width = len(bias) // (shape.heads + 2 * of_keys)
        value = bias[len(bias) - of_keys * width :].view(of_keys, 1, width)
        return value.expand(-1, shape.heads // of_keys, -1).reshape(-1)

    def _norm(self, prefix: str, name: str | None) -> RowNorm | None:
        return None if name is None else self.norm(prefix + name)

    def _weight_and_bias(self, *names: str) -> tuple[Tensor, Tensor]:
        """Their rows, one after the other; the bias is of no rows where there is none."""
        weights, bias = [self.weights[f"{name}.weight"] for name in names], self._bias(*names)
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        if len(bias) not in (0, len(weight)):
            raise ValueError(f"of {', '.join(names)}, some have a bias and others have none")
        return weight, bias

    def _bias(self, *names: str) -> Tensor:
        biases = [bias for name in names if (bias := self.weights.get(f"{name}.bias")) is not None]
        return torch.cat(biases) if biases else torch.empty(0)

    def _make(self, weight: Tensor, bias: Tensor, rows: int) -> Linear:
        return self.kernels.linear(weight.to(self.dtype), bias.to(self.dtype), rows=rows)
