"""What BERT's relatives with rotary positions share: the positions, and how their files store weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from .attention import Rope
from .bert import Bert
from .layers import LayerNames, LayerShape

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class RotaryBert(Bert):
    """BERT with rotary positions in the place of learnt ones.

    Files store the weights under the names of the encoder's own code. transformers renames them when it reads them, and
    back when it saves them (its ``conversion_mapping.py``).
    """

    THETA: ClassVar[float]  # where config.json does not say it
    STORED: ClassVar[Mapping[str, tuple[str, ...]]]
    """Parts of the names in files; what transformers calls each, or the equal parts of its weights."""
    theta: float = 10_000.0
    factor: float = 1.0  # that every frequency is divided by

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> RotaryBert | None:
        found, rope = super().from_config({**config, "position_embedding_type": None}), rope_of(config, cls.THETA)
        if not isinstance(found, RotaryBert) or rope is None:
            return None
        return dataclasses.replace(found, theta=rope[0], factor=rope[1])

    @classmethod
    def names_of(cls, stored: str) -> tuple[str, ...]:
        names = super().names_of(stored)
        for part, own in cls.STORED.items():
            names = tuple(name.replace(part, each) for name in names for each in (own if part in name else (part,)))
        return names

    def shapes(self, weights: Mapping[str, torch.Tensor]) -> Sequence[LayerShape]:
        query = weights[f"{self.NAMES.layer.format(0)}{self.NAMES.query_key_value[0]}.weight"]
        width = len(query) // self.heads
        frequencies = 1.0 / self.theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width) / self.factor
        return [LayerShape(heads=self.heads, rope=Rope(frequencies=frequencies))] * self.layers

    def positions(self, weights: Mapping[str, torch.Tensor]) -> None:
        return None


def rope_of(config: Mapping[str, Any], theta: float) -> tuple[float, float] | None:
    """Theta, and the factor that every frequency is divided by; None where a configuration asks for something else.

    Files say it in the ways of several releases of transformers. ``theta`` is for those that do not.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        return None
    found = {"rope_theta": theta, "partial_rotary_factor": 1.0, **config, **given}
    kind, base = given.get("rope_type", given.get("type", "default")), found["rope_theta"]
    factor = given.get("factor") if kind == "linear" else 1.0
    if kind not in ("default", "linear") or found["partial_rotary_factor"] not in (1.0, None):
        return None
    numbers = [number for number in (base, factor) if isinstance(number, int | float) and number > 0]
    return (float(numbers[0]), float(numbers[1])) if len(numbers) == 2 else None
