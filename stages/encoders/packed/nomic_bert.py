"""Nomic-BERT (Nussbaum et al., Nomic Embed, 2024, https://arxiv.org/abs/2402.01613): rotary, gated, without biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from .rope import RopeShape
from .rotary import FLASH_NAMES, GATED_LAYER, RotaryBert


class NomicBert(RotaryBert):
    """Nomic-BERT, as in nomic-embed-text. Its mixture of experts is another model."""

    BASE = "nomic_bert"
    NAMES = GATED_LAYER
    ACTIVATION = "silu"
    GATED = True
    THETA = 1000.0
    STORED: ClassVar = {
        **FLASH_NAMES,
        "attn.Wqkv.": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
        "attn.out_proj.": ("self_attn.o_proj.",),
        "fc11.": ("up_proj.",),
        "fc12.": ("gate_proj.",),
        "fc2.": ("down_proj.",),
    }

    @classmethod
    def unread_field(cls, config: Mapping[str, Any]) -> str | None:
        """Older files have GPT-2's names, for which transformers takes its defaults."""
        rope = RopeShape.from_config(config, theta=cls.THETA)
        computed = {
            "activation_function": {"silu": "swiglu", "gelu": "geglu"}.get(config.get("hidden_act", cls.ACTIVATION)),
            "causal": False,
            "layer_norm_epsilon": config.get("layer_norm_eps"),
            "n_head": config.get("num_attention_heads"),
            "parallel_block": False,
            "prenorm": False,
            "rotary_emb_base": None if rope is None else rope.theta,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_scaling_factor": None,
        }
        return next((field for field, value in computed.items() if config.get(field) not in (value, None)), None)


ARCHITECTURES = {"nomic_bert": NomicBert}
