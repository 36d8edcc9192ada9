"""The text model of Gemma 3 (2025, https://arxiv.org/abs/2503.19786); EmbeddingGemma's sees both directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .attention import Rope
from .layers import FULL, SLIDING, LayerShape, NormKind
from .llama import Llama, Qwen3
from .rope import RopeShape, same_rope

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3(Llama):
    """Gemma 3: norms around each part and of each head; layers with a window have rotary positions of their own."""

    NAMES = dataclasses.replace(
        Qwen3.NAMES,
        attention_branch="post_attention_layernorm",
        before_feed_forward="pre_feedforward_layernorm",
        output_branch="post_feedforward_layernorm",
    )
    NORMS = NormKind.RMS_FROM_ONE
    local_rope: RopeShape  # of layers with a window
    scalar: float  # whose root divides attention's scores
    width: int  # of the states

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Gemma3 | None:
        fields = cls._fields({"hidden_activation": "gelu_pytorch_tanh", **config, "hidden_act": None})
        scaling, most = config.get("rope_parameters") or {}, config.get("max_position_embeddings")
        full = scaling.get(FULL) or config.get("rope_scaling") or {}
        rope = RopeShape.of_layers(full, theta=config.get("rope_theta", 1e6), most=most)
        local_theta = config.get("rope_local_base_freq", 1e4)
        local_rope = RopeShape.of_layers(scaling.get(SLIDING) or {}, theta=local_theta, most=most)
        scalar, width = config.get("query_pre_attn_scalar", 256), config.get("hidden_size")
        if fields is None or rope is None or local_rope is None or type(scalar) not in (int, float) or scalar <= 0:
            return None
        others = config.get("attn_logit_softcapping") or config.get("is_causal") is False
        if others or not (scaling.keys() <= {FULL, SLIDING} and type(width) is int):
            return None
        causal = not config.get("use_bidirectional_attention")
        return cls(**fields, rope=rope, local_rope=local_rope, causal=causal, scalar=float(scalar), width=width)

    @classmethod
    def windows_of(cls, config: Mapping[str, Any], layers: int) -> tuple[Sequence[str], Any]:
        window, every = config.get("sliding_window", 4096), config.get("sliding_window_pattern", 6)
        if type(window) is int and config.get("use_bidirectional_attention"):
            window = window // 2 + 1  # which transformers, too, makes of it
        kinds = config.get("layer_types") or [
            FULL if number % every == 0 else SLIDING for number in range(1, layers + 1)
        ]
        return kinds, window

    def matches(self, model: Any) -> bool:
        windows = {window for window in self.windows if window is not None}
        ropes = {f"{FULL}_": self.rope} if None in self.windows else {}
        ropes |= {f"{SLIDING}_": self.local_rope} if windows else {}
        same = all(same_rope(model.rotary_emb, prefix, rope) for prefix, rope in ropes.items())
        return same and windows <= {model.config.sliding_window - 1}

    def embedded(self, rows: Tensor) -> Tensor:
        return rows * torch.tensor(self.width**0.5)

    def _shapes(self, width: int) -> list[LayerShape]:
        ropes = [Rope(frequencies=rope.frequencies(width)) for rope in (self.rope, self.local_rope)]
        return [self._shape(ropes[window is not None], window, self.scalar**-0.5) for window in self.windows]


ARCHITECTURES = {"gemma3_text": Gemma3}
