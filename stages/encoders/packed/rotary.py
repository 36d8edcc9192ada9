"""What BERT's relatives with rotary positions share: the positions, and how their files store weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from .attention import Rope
from .bert import Bert
from .layers import LayerNames, LayerShape
from .rope import RopeShape, same_rope

GATED_LAYER = LayerNames(
    layer="layers.{}.",
    query_key_value=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    attention_norm="post_attention_layernorm",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
    output_norm="post_mlp_layernorm",
)
FLASH_NAMES = {
    "encoder.layers.": ("layers.",),
    "emb_ln.": ("embeddings.LayerNorm.",),
    "norm1.": ("post_attention_layernorm.",),
    "norm2.": ("post_mlp_layernorm.",),
}
"""Names of flash-attention's BERT."""


_USUAL = RopeShape(theta=10_000.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryBert(Bert):
    """BERT with rotary positions in the place of learnt ones.

    Files store the weights under the names of the encoder's own code. transformers renames them when it reads them, and
    back when it saves them (its ``conversion_mapping.py``).
    """

    THETA: ClassVar[float]  # where config.json does not say it
    STORED: ClassVar[Mapping[str, tuple[str, ...]]]
    """Parts of the names in files; what transformers calls each, or the equal parts of its weights."""
    rope: RopeShape = _USUAL

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RotaryBert | None:
        found = super().from_config({**config, "position_embedding_type": None})
        rope = RopeShape.from_config(config, theta=cls.THETA)
        if not isinstance(found, RotaryBert) or rope is None:
            return None
        return dataclasses.replace(found, rope=rope)

    @classmethod
    def names_of(cls, stored: str) -> tuple[str, ...]:
        names = super().names_of(stored)
        for part, own in cls.STORED.items():
            names = tuple(name.replace(part, each) for name in names for each in (own if part in name else (part,)))
        return names

    def shapes(self, weights: Mapping[str, torch.Tensor]) -> Sequence[LayerShape]:
        query = weights[f"{self.NAMES.layer.format(0)}{self.NAMES.query_key_value[0]}.weight"]
        rope = Rope(frequencies=self.rope.frequencies(len(query) // self.heads))
        return [LayerShape(heads=self.heads, rope=rope)] * self.layers

    def matches(self, model: Any) -> bool:
        return same_rope(model.rotary_emb, "", self.rope)

    def positions(self, weights: Mapping[str, torch.Tensor]) -> None:
        return None
