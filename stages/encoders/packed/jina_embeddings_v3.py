"""Jina embeddings v3 (Sturua et al., 2024, https://arxiv.org/abs/2409.10173): XLM-R with rotary positions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from .rotary import FLASH_NAMES, GATED_LAYER, RotaryBert


class JinaEmbeddingsV3(RotaryBert):
    """Jina embeddings v3 without the adapters of its tasks, which are files of their own."""

    BASE = "roberta"
    NAMES = dataclasses.replace(GATED_LAYER, up=("mlp.fc1",), down="mlp.fc2")
    THETA = 20_000.0
    STORED: ClassVar = {
        **FLASH_NAMES,
        "mixer.Wqkv.": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
        "mixer.out_proj.": ("self_attn.o_proj.",),
    }


ARCHITECTURES = {"jina_embeddings_v3": JinaEmbeddingsV3}
