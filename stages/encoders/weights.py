"""Which weights of a file an encoder may leave unused: those of heads. All others must be used. Light: no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The modules that classes put on an encoder, by the names that they have there.
_HEADS = (
    *("cls", "classifier", "classification_head", "pre_classifier", "qa_outputs", "qa_classifier", "score", "linear"),
    *("lm_head", "lm_predictions", "mask_predictions", "predictions", "entity_predictions"),  # BERT to DeBERTa, LUKE
    *("sop_classifier", "splinter_qass", "pred_layer", "sequence_summary", "logits_proj"),  # ALBERT, Splinter, XLM
    *("generator_predictions", "generator_lm_head", "discriminator_predictions"),  # ELECTRA, ConvBERT, Funnel
    *("vocab_transform", "vocab_layer_norm", "vocab_projector"),  # DistilBERT
    *("head.dense", "head.norm", "decoder.weight", "decoder.bias"),  # ModernBERT
    # of others' classes: taggers, SimCSE, ColBERT, BGE-M3, CLIP
    *("crf", "fc", "dense", "mlp", "out_proj", "projection", "regressor", "intent_classifier", "slot_classifier"),
    *("colbert_linear", "sparse_linear", "logit_scale", "loss_fct", "criterion"),
    "pooler",  # where a feature needs it, it is among the weights that are used
)
_BUFFERS = r"(.*\.)?(position_ids|token_type_ids)"  # numbers that count up, which old releases saved


def unused_weights(names: Iterable[str], base: str) -> list[str]:
    """Of weights that an encoder has no place for, those that belong to no head, sorted.

    ``base`` is the encoder's name within a larger model, which may stand before the names.
    """
    heads = "|".join(re.escape(head) for head in _HEADS)
    known = re.compile(rf"({re.escape(base)}\.)?(({heads})(\..*)?|{_BUFFERS})")
    return sorted(name for name in names if not known.fullmatch(name))
