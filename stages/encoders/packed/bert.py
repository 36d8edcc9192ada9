"""BERT (Devlin et al., 2019, https://arxiv.org/abs/1810.04805), and what its relatives share with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from ...types import TokenIds
from ..pooling import Feature
from .activations import ACTIVATIONS
from .architecture import Architecture
from .attention import Group, Norm
from .cpu import CPU
from .forward import BuildLayer, Embed, PackedForward
from .kernels import Kernels, Lookup
from .layers import LayerBuilder, LayerNames, LayerShape
from .states import Input, States

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Embeddings:
    """The sum of a token's word, position and segment embeddings, normalised. All are float32."""

    words: Tensor  # (vocabulary, width)
    positions: Tensor | None  # (positions, width)
    segments: Tensor | None  # (segments, width)
    norm: Norm
    position_ids: Callable[[Tensor, Sequence[Group]], Tensor]
    kernels: Kernels

    def __call__(self, sequences: Sequence[TokenIds], groups: Sequence[Group], following: Input) -> States:
        """With rows of zeros up to a number that suits the products."""
        joined = torch.from_numpy(np.concatenate(sequences).astype(np.int64))  # (tokens,) or (tokens, 2)
        ids, place = joined if joined.ndim == 1 else joined[:, 0].contiguous(), self.kernels.place
        tables: list[Lookup] = [(self.words, place(ids))]
        if self.positions is not None:
            tables.append((self.positions, place(self.position_ids(ids, groups))))
        if self.segments is not None:
            tables.append((self.segments, None if joined.ndim == 1 else place(joined[:, 1].contiguous())))
        return self.kernels.embed(tables, self.norm, following)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bert(Architecture):
    """BERT, and the base of its relatives, which differ in names, positions or the embeddings' width."""

    BASE = "bert"
    NAMES: ClassVar[LayerNames] = LayerNames(
        layer="encoder.layer.{}.",
        query_key_value=("attention.self.query", "attention.self.key", "attention.self.value"),
        attention_output="attention.output.dense",
        attention_norm="attention.output.LayerNorm",
        up=("intermediate.dense",),
        down="output.dense",
        output_norm="output.LayerNorm",
    )
    # config.json's names for the heads, the layers and the activation
    CONFIG_NAMES: ClassVar = ("num_attention_heads", "num_hidden_layers", "hidden_act")
    ACTIVATION: ClassVar = "gelu"  # where config.json does not name one
    GATED: ClassVar = False
    POOLER: ClassVar = "pooler.dense"
    activation: str = "gelu"
    position_padding: int | None = None  # the token that RoBERTa gives no position

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Bert | None:
        heads, layers, activation = (config.get(name) for name in cls.CONFIG_NAMES)
        if not (isinstance(heads, int) and isinstance(layers, int)):
            return None
        others = config.get("is_decoder") or config.get("add_cross_attention") or config.get("pruned_heads")
        relative = config.get("position_embedding_type") not in ("absolute", None)
        if others or relative or activation not in (*ACTIVATIONS, None):
            return None
        return cls(
            model_type=config["model_type"],
            heads=heads,
            layers=layers,
            epsilon=config.get("layer_norm_eps", 1e-12),
            activation=activation or cls.ACTIVATION,
            position_padding=cls.padding_of(config),
        )

    @classmethod
    def padding_of(cls, config: Mapping[str, Any]) -> int | None:
        """The architecture's ``position_padding``."""
        return None

    def build(
        self,
        weights: Mapping[str, Tensor],
        features: Sequence[Feature],
        *,
        dtype: torch.dtype,
        batch_tokens: int,
        kernels: Kernels = CPU,
    ) -> PackedForward:
        builder = LayerBuilder(
            weights,
            self.NAMES,
            shapes=self.shapes(weights),
            epsilon=self.epsilon,
            dtype=dtype,
            batch_tokens=batch_tokens,
            activation=self.activation,
            gated=self.GATED,
            kernels=kernels,
        )
        return PackedForward(
            features,
            layers=self.layers,
            embed=self.embeddings(builder),
            layer=self.layer(builder),
            dtype=dtype,
            pooler=lambda: builder.linear(self.POOLER),
            kernels=kernels,
        )

    def shapes(self, weights: Mapping[str, Tensor]) -> Sequence[LayerShape]:
        """What the weights do not say of each layer."""
        return [LayerShape(heads=self.heads)] * self.layers

    def layer(self, builder: LayerBuilder) -> BuildLayer:
        """What builds the layer of a number, from 0."""
        return builder.layer

    def embeddings(self, builder: LayerBuilder) -> Embed:
        """The embeddings, with weights of the encoder."""
        return Embeddings(
            words=builder.weights["embeddings.word_embeddings.weight"],
            positions=self.positions(builder.weights),
            segments=builder.weights.get("embeddings.token_type_embeddings.weight"),
            norm=builder.norm("embeddings.LayerNorm"),
            position_ids=self.position_ids,
            kernels=builder.kernels,
        )

    def positions(self, weights: Mapping[str, Tensor]) -> Tensor | None:
        """The positions' embeddings, (positions, width) float32; None where the embeddings hold no positions."""
        return weights["embeddings.position_embeddings.weight"]

    def position_ids(self, ids: Tensor, groups: Sequence[Group]) -> Tensor:
        """(tokens,) token ids to (tokens,) int64 positions, which start again at each sequence."""
        return torch.cat([torch.arange(group.length).repeat(group.count) for group in groups])


ARCHITECTURES = {"bert": Bert}
