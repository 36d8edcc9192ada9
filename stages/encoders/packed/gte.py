"""GTE v1.5 and multilingual (Zhang et al., mGTE, 2024, https://arxiv.org/abs/2407.19669): rotary and gated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .rotary import GATED_LAYER, RotaryBert


class Gte(RotaryBert):
    """GTE, also in snowflake-arctic-embed-m-v2.0. Some have no segments."""

    BASE = "gte"
    NAMES = GATED_LAYER
    GATED = True
    THETA = 160_000.0
    STORED: ClassVar = {
        "encoder.layer.": ("layers.",),
        "attention.qkv_proj.": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
        "attention.o_proj.": ("self_attn.o_proj.",),
        "mlp.up_gate_proj.": ("mlp.up_proj.", "mlp.gate_proj."),
        "attn_ln.": ("post_attention_layernorm.",),
        "mlp_ln.": ("post_mlp_layernorm.",),
    }

    @classmethod
    def names_of(cls, stored: str) -> tuple[str, ...]:
        return super().names_of(stored.removeprefix("new."))  # its name before transformers had it

    @classmethod
    def unread_field(cls, config: Mapping[str, Any]) -> str | None:
        computed = {"layer_norm_type": "layer_norm", "logn_attention_clip1": False, "logn_attention_scale": False}
        return next((field for field, value in computed.items() if config.get(field) not in (value, None)), None)


ARCHITECTURES = {"gte": Gte}
