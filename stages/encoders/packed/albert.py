"""ALBERT (Lan et al., 2019, https://arxiv.org/abs/1909.11942): BERT whose layers share weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from .attention import Token
from .electra import Electra
from .forward import BuildLayer
from .layers import Layer, LayerBuilder, LayerNames


@dataclasses.dataclass(frozen=True, kw_only=True)
class Albert(Electra):
    """ALBERT, whose embeddings are narrower too. A group of layers has the same weights, laid out once."""

    BASE = "albert"
    NAMES = LayerNames(
        layer="encoder.albert_layer_groups.{}.albert_layers.0.",
        query_key_value=("attention.query", "attention.key", "attention.value"),
        attention_output="attention.dense",
        attention_norm="attention.LayerNorm",
        up=("ffn",),
        down="ffn_output",
        output_norm="full_layer_layer_norm",
    )
    ACTIVATION = "gelu_new"
    POOLER = "pooler"
    PROJECTION = "encoder.embedding_hidden_mapping_in"
    groups: int = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Albert | None:
        found, groups = super().from_config(config), config.get("num_hidden_groups", 1)
        whole = isinstance(groups, int) and groups >= 1 and config.get("inner_group_num", 1) == 1
        return dataclasses.replace(found, groups=groups) if isinstance(found, Albert) and whole else None

    def layer_weights(self) -> set[str]:
        return super(Albert, dataclasses.replace(self, layers=self.groups)).layer_weights()

    def layer(self, builder: LayerBuilder) -> BuildLayer:
        build = functools.cache(builder.layer)

        def layer(number: int, token: Token | None) -> Layer:
            return build(int(number / (self.layers / self.groups)), token)  # rounded as transformers rounds it

        return layer


ARCHITECTURES = {"albert": Albert}
