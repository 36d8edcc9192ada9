"""DistilBERT (Sanh et al., 2019, https://arxiv.org/abs/1910.01108): BERT without segments, under other names."""

from __future__ import annotations

from .bert import Bert
from .layers import LayerNames


class DistilBert(Bert):
    """DistilBERT, with learnt or sinusoidal positions: both are stored as weights."""

    BASE = "distilbert"
    NAMES = LayerNames(
        layer="transformer.layer.{}.",
        query_key_value=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        attention_output="attention.out_lin",
        attention_norm="sa_layer_norm",
        up=("ffn.lin1",),
        down="ffn.lin2",
        output_norm="output_layer_norm",
    )
    CONFIG_NAMES = ("n_heads", "n_layers", "activation")


ARCHITECTURES = {"distilbert": DistilBert}
