"""Nomic-BERT (Nussbaum et al., Nomic Embed, 2024, https://arxiv.org/abs/2402.01613): rotary, gated, without biases."""

from __future__ import annotations

from typing import ClassVar

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


ARCHITECTURES = {"nomic_bert": NomicBert}
