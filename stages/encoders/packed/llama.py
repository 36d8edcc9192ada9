"""Llama (Touvron et al., 2023, https://arxiv.org/abs/2302.13971) and its relatives: Mistral, Qwen2, Qwen3.

They read texts as encoders do, each token seeing those before it: the last one has seen all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from ..pooling import Feature
from .activations import ACTIVATIONS
from .architecture import Architecture
from .attention import Rope, Window
from .cpu import CPU
from .embeddings import WordEmbeddings
from .forward import PackedForward
from .kernels import Kernels
from .layers import FULL, SLIDING, LayerBuilder, LayerNames, LayerShape, NormKind
from .rope import RopeShape, same_rope

Tensor = torch.Tensor
_MOST_TRIED = 512  # a longer trial of a window would take seconds at every loading
_NAMES = LayerNames(
    layer="layers.{}.",
    before_attention="input_layernorm",
    query_key_value=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    attention_output="self_attn.o_proj",
    before_feed_forward="post_attention_layernorm",
    up=("mlp.gate_proj", "mlp.up_proj"),
    down="mlp.down_proj",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Llama(Architecture):
    """Llama, and the base of its relatives: RMS norms before each part, rotary positions, a gated feed-forward."""

    BASE = "model"
    NAMES: ClassVar[LayerNames] = _NAMES
    NORMS: ClassVar[NormKind] = NormKind.RMS
    key_value_heads: int
    activation: str
    causal: bool
    windows: tuple[int | None, ...]  # of each layer: how many tokens before it, and after it, a token sees at most
    rope: RopeShape

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Llama | None:
        fields = cls._fields(config)
        rope = RopeShape.from_config(config, theta=10_000.0)
        if fields is None or rope is None or config.get("use_bidirectional_attention"):
            return None
        causal = config.get("is_causal") is not False
        if not causal:  # then transformers does not count the token itself
            fields["windows"] = tuple(None if window is None else window + 1 for window in fields["windows"])
        return cls(**fields, rope=rope, causal=causal)

    @classmethod
    def _fields(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The fields but those of positions and directions."""
        names = ("num_attention_heads", "num_hidden_layers", "num_key_value_heads")
        heads, layers, key_value_heads = counts = [config.get(name) for name in names]
        activation = config.get("hidden_act") or config.get("hidden_activation")
        if activation not in ACTIVATIONS or not all(type(count) is int and count > 0 for count in counts):
            return None
        kinds, window = cls.windows_of(config, int(layers or 0))
        known = window is None or (type(window) is int and window > 0)
        if not known or len(kinds) != layers or not set(kinds) <= {FULL, SLIDING} or (SLIDING in kinds and not window):
            return None
        return {
            "model_type": config["model_type"],
            "heads": heads,
            "layers": layers,
            "key_value_heads": key_value_heads,
            "epsilon": config.get("rms_norm_eps", 1e-6),
            "activation": activation,
            "windows": tuple(window - 1 if window and kind == SLIDING else None for kind in kinds),
        }

    @classmethod
    def windows_of(cls, config: Mapping[str, Any], layers: int) -> tuple[Sequence[str], Any]:
        """The kind of each layer; and how many tokens, itself included, a token of one with a window sees."""
        return [FULL] * layers, None

    def trial_lengths(self) -> Sequence[int]:
        windows = {window for window in self.windows if window is not None and window <= _MOST_TRIED}
        return (7, 7, *(window + 9 for window in sorted(windows)), 3)

    def matches(self, model: Any) -> bool:
        return same_rope(model.rotary_emb, "", self.rope)

    def build(
        self,
        weights: Mapping[str, Tensor],
        features: Sequence[Feature],
        *,
        dtype: torch.dtype,
        batch_tokens: int,
        kernels: Kernels = CPU,
    ) -> PackedForward:
        query = weights[f"{self.NAMES.layer.format(0)}{self.NAMES.query_key_value[0]}.weight"]
        words = weights["embed_tokens.weight"]
        builder = LayerBuilder(
            weights,
            self.NAMES,
            shapes=self._shapes(len(query) // self.heads),
            epsilon=self.epsilon,
            dtype=dtype,
            batch_tokens=batch_tokens,
            norms=self.NORMS,
            activation=self.activation,
            gated=True,
            kernels=kernels,
        )
        return PackedForward(
            features,
            layers=self.layers,
            embed=WordEmbeddings(words=words, norm=self.embedded, kernels=kernels),
            layer=builder.layer,
            dtype=dtype,
            norm=builder.norm("norm"),
            kernels=kernels,
        )

    def embedded(self, rows: Tensor) -> Tensor:
        """What the first layer begins with, of the embeddings of tokens."""
        return rows

    def _shapes(self, width: int) -> list[LayerShape]:
        """Of each layer, whose heads have ``width`` numbers."""
        rope = Rope(frequencies=self.rope.frequencies(width))
        return [self._shape(rope, window) for window in self.windows]

    def _shape(self, rope: Rope, window: int | None, scale: float | None = None) -> LayerShape:
        mask = Window(window, 0 if self.causal else window) if self.causal or window is not None else None
        return LayerShape(heads=self.heads, key_value_heads=self.key_value_heads, scale=scale, mask=mask, rope=rope)


class Mistral(Llama):
    """Mistral (Jiang et al., 2023, https://arxiv.org/abs/2310.06825): Llama with a window in every layer."""

    @classmethod
    def windows_of(cls, config: Mapping[str, Any], layers: int) -> tuple[Sequence[str], Any]:
        window = config.get("sliding_window", 4096)
        return [FULL if window is None else SLIDING] * layers, window


class Qwen2(Llama):
    """Qwen2 (Yang et al., 2024, https://arxiv.org/abs/2407.10671): Llama with biases, and perhaps windows."""

    @classmethod
    def windows_of(cls, config: Mapping[str, Any], layers: int) -> tuple[Sequence[str], Any]:
        used = config.get("use_sliding_window", False)
        window = config.get("sliding_window", 4096) if used else None
        first = config.get("max_window_layers", 28) if window is not None else layers
        return config.get("layer_types") or [SLIDING if number >= first else FULL for number in range(layers)], window


class Qwen3(Qwen2):
    """Qwen3 (Yang et al., 2025, https://arxiv.org/abs/2505.09388): norms of each head's queries and keys."""

    NAMES = dataclasses.replace(_NAMES, query_norm="self_attn.q_norm", key_norm="self_attn.k_norm")


ARCHITECTURES = {"llama": Llama, "mistral": Mistral, "qwen2": Qwen2, "qwen3": Qwen3}
