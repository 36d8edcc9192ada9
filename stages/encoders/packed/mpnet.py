"""MPNet (Song et al., 2020, https://arxiv.org/abs/2004.09297): RoBERTa under other names, with relative positions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.functional import embedding

from .bert import Bert
from .layers import LayerNames, LayerShape
from .roberta import Roberta

_BUCKETS, _FARTHEST = 32, 128  # transformers computes no others


@dataclasses.dataclass(frozen=True, eq=False)
class RelativeBias:
    """What a head adds to a score by how far the key stands from the query, as in T5: exact to a distance of 7, then in
    buckets that grow, up to 127 (Raffel et al., 2020, https://arxiv.org/abs/1910.10683)."""

    weight: torch.Tensor  # (buckets, heads) float32

    def __call__(self, distances: torch.Tensor) -> torch.Tensor:
        half, far = _BUCKETS // 2, distances.abs()
        exact = half // 2
        grown = torch.log(far.float() / exact) / math.log(_FARTHEST / exact) * (half - exact)
        buckets = torch.where(far < exact, far, (exact + grown.long()).clamp_max(half - 1)) + half * (distances > 0)
        return embedding(buckets, self.weight).T.contiguous()


class MPNet(Roberta):
    """MPNet, whose layers share one table of relative positions."""

    BASE = "mpnet"
    BIASED_SCORES = True
    NAMES = LayerNames(
        layer="encoder.layer.{}.",
        query_key_value=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        attention_output="attention.attn.o",
        attention_norm="attention.LayerNorm",
        up=("intermediate.dense",),
        down="output.dense",
        output_norm="output.LayerNorm",
    )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Bert | None:
        buckets = config.get("relative_attention_num_buckets", _BUCKETS)
        return super().from_config(config) if buckets == _BUCKETS else None

    @classmethod
    def padding_of(cls, config: Mapping[str, Any]) -> int | None:
        return 1  # whatever config.json says

    def shapes(self, weights: Mapping[str, torch.Tensor]) -> Sequence[LayerShape]:
        bias = RelativeBias(weights["encoder.relative_attention_bias.weight"])
        return [LayerShape(heads=self.heads, mask=bias)] * self.layers

    def trial_lengths(self) -> Sequence[int]:
        return (7, 7, _FARTHEST + 12, 3)


ARCHITECTURES = {"mpnet": MPNet}
