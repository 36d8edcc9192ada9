"""What it takes to build a packed encoder again from an encoder's files alone, as a cache's record says it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import tokenizers

from ...cache.documents import checked
from ...cache.errors import DamagedError
from ...cache.identity import SHA256

FAMILY = {"bert", "roberta", "xlm-roberta", "electra", "distilbert"}
"""Kinds of encoder that can be run without padding."""
_LARGEST = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class PackedShape:
    """What there is to know of an encoder beside its weights.

    Attributes:
        model_type: One of `FAMILY`.
        heads: Of each layer's attention.
        layers: How many it has, whether or not all are run.
        epsilon: Of every norm.
        position_padding: The token that RoBERTa gives no position, and past whose number its positions start; None
            where every token has its place's.
    """

    model_type: str
    heads: int
    layers: int
    epsilon: float
    position_padding: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What transformers made of an encoder's files, as far as the packed pass needs it.

    Attributes:
        shape: The model's.
        width: Numbers in each feature.
        segments: Whether it tells the two texts of a pair apart.
        tokenizer_sha256: Of the tokenizer's JSON as it is set up to run.
    """

    shape: PackedShape
    width: int
    segments: bool
    tokenizer_sha256: str

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Recipe | None:
        """The recipe in a cache's record, which may come from anyone; None where there is none, or an odd one."""
        try:
            recipe = checked(record["encoder"].get("packed"), cls, "packed")
        except DamagedError:
            return None
        shape = recipe.shape
        numbers = (recipe.width, shape.heads, shape.layers)
        padding = shape.position_padding
        possible = (
            shape.model_type in FAMILY
            and all(type(number) is int and 0 < number < _LARGEST for number in numbers)
            and recipe.width % shape.heads == 0
            and 0 < shape.epsilon < 1
            and (padding is None or (type(padding) is int and 0 <= padding < _LARGEST))
            and SHA256.fullmatch(recipe.tokenizer_sha256)
        )
        return recipe if possible else None


def fits(config: Mapping[str, Any]) -> bool:
    """Whether the packed pass computes what an encoder of this configuration does, as far as that tells."""
    return (
        config.get("model_type") in FAMILY
        and config.get("hidden_act", config.get("activation", "gelu")) == "gelu"
        and config.get("position_embedding_type") in ("absolute", None)
        and not config.get("is_decoder")
        and not config.get("add_cross_attention")
        and not config.get("pruned_heads")
    )


def tokenizer_sha256(tokenizer: tokenizers.Tokenizer) -> str:
    """sha256 of a tokenizer's JSON: all that it is and how it is set up, but for its ``encode_special_tokens``."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
