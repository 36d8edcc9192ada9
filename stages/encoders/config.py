"""What it takes to load an encoder without transformers, as a cache's record holds it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import tokenizers

from .packed.architecture import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What transformers made of an encoder's files, as far as the packed pass needs it."""

    architecture: Architecture
    width: int  # numbers in each state
    segments: bool  # whether the encoder tells the two texts of a pair apart
    tokenizer_sha256: str  # as the tokenizer is set up to run

    def to_record(self) -> dict[str, Any]:
        """``packed`` of a record's ``encoder``."""
        fields = json.loads(json.dumps(dataclasses.asdict(self)))  # lists for tuples, as a record has them
        return {"shape": fields.pop("architecture"), **fields}

    @classmethod
    def from_record(
        cls, packed: Any, architecture: Architecture, tokenizer: tokenizers.Tokenizer
    ) -> EncoderConfig | None:
        """Check what `to_record` gave, but may come from anyone, against the encoder's own files.

        Returns None where the record does not agree with the files, or has other fields. ``architecture`` is what
        config.json says, ``tokenizer`` is set up to run.
        """
        if not isinstance(packed, dict) or not isinstance(segments := packed.get("segments"), bool):
            return None
        digest = tokenizer_sha256(tokenizer)
        config = cls(
            architecture=architecture, width=packed.get("width", 0), segments=segments, tokenizer_sha256=digest
        )
        return config if config.to_record() == packed else None


def tokenizer_sha256(tokenizer: tokenizers.Tokenizer) -> str:
    """sha256 of a tokenizer's JSON: all of its parts and settings, but for ``encode_special_tokens``."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
