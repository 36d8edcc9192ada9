"""ModernBERT (Warner et al., 2024, https://arxiv.org/abs/2412.13663)."""

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
from .layers import FULL, SLIDING, LayerBuilder, LayerNames, LayerShape

Tensor = torch.Tensor
_THETAS = {FULL: 160_000.0, SLIDING: 10_000.0}  # where config.json does not name them


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModernBert(Architecture):
    """ModernBERT: pre-norm, rotary positions, a gated feed-forward, and attention that is local in most layers."""

    BASE = "model"
    NAMES: ClassVar[LayerNames] = LayerNames(
        layer="layers.{}.",
        before_attention="attn_norm",
        query_key_value=("attn.Wqkv",),
        attention_output="attn.Wo",
        before_feed_forward="mlp_norm",
        up=("mlp.Wi",),
        down="mlp.Wo",
    )
    activation: str
    window: int  # of local layers: how many tokens one sees on each side
    local: tuple[bool, ...]  # of each layer
    thetas: tuple[float, float]  # of rotary positions, in global layers and in local ones

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> ModernBert | None:
        heads, layers = config.get("num_attention_heads"), config.get("num_hidden_layers")
        activation, window = config.get("hidden_activation", "gelu"), config.get("local_attention", 128)
        if not (isinstance(heads, int) and isinstance(layers, int) and isinstance(window, int)):
            return None
        every = config.get("global_attn_every_n_layers", 3)
        kinds = config.get("layer_types") or [SLIDING if number % every else FULL for number in range(layers)]
        ropes = {kind: (config.get("rope_parameters") or {}).get(kind) or {} for kind in _THETAS}
        scaled = config.get("rope_scaling") or any(
            rope.get("rope_type", "default") != "default" for rope in ropes.values()
        )
        if scaled or activation not in ACTIVATIONS or len(kinds) != layers or not set(kinds) <= {*_THETAS}:
            return None
        old = {FULL: "global_rope_theta", SLIDING: "local_rope_theta"}
        thetas = [ropes[kind].get("rope_theta") or config.get(old[kind]) or _THETAS[kind] for kind in (FULL, SLIDING)]
        return cls(
            model_type=config["model_type"],
            heads=heads,
            layers=layers,
            epsilon=config.get("norm_eps", 1e-5),
            activation=activation,
            window=window // 2,
            local=tuple(kind == SLIDING for kind in kinds),
            thetas=(float(thetas[0]), float(thetas[1])),
        )

    def trial_lengths(self) -> Sequence[int]:
        return (7, 7, 2 * self.window + 8, 3) if any(self.local) else super().trial_lengths()

    def build(
        self,
        weights: Mapping[str, Tensor],
        features: Sequence[Feature],
        *,
        dtype: torch.dtype,
        batch_tokens: int,
        kernels: Kernels = CPU,
    ) -> PackedForward:
        words = weights["embeddings.tok_embeddings.weight"]
        builder = LayerBuilder(
            weights,
            self.NAMES,
            shapes=self._shapes(words.shape[1] // self.heads),
            epsilon=self.epsilon,
            dtype=dtype,
            batch_tokens=batch_tokens,
            activation=self.activation,
            gated=True,
            kernels=kernels,
        )
        return PackedForward(
            features,
            layers=self.layers,
            embed=WordEmbeddings(words=words, norm=builder.norm("embeddings.norm"), kernels=kernels),
            layer=builder.layer,
            dtype=dtype,
            norm=builder.norm("final_norm"),
            kernels=kernels,
        )

    def _shapes(self, width: int) -> list[LayerShape]:
        """Of each layer; the first has no norm before its attention, for it follows that of the embeddings."""
        powers = torch.arange(0, width, 2, dtype=torch.float32) / width
        ropes = [Rope(frequencies=1.0 / theta**powers) for theta in self.thetas]
        masks = (None, Window(self.window, self.window))
        return [
            LayerShape(heads=self.heads, mask=masks[local], rope=ropes[local], norm_before_attention=number > 0)
            for number, local in enumerate(self.local)
        ]


ARCHITECTURES = {"modernbert": ModernBert}
