"""What it takes to load an encoder without transformers, as a cache's record holds it."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import tokenizers

from .packed.architecture import Architecture


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What transformers made of an encoder's files, as far as the packed pass needs it.

    Attributes:
        architecture: The model's.
        width: Numbers in each feature.
        segments: Whether the encoder tells the two texts of a pair apart.
        tokenizer_sha256: Of the tokenizer's JSON as it is set up to run.
    """

    architecture: Architecture
    width: int
    segments: bool
    tokenizer_sha256: str

    def to_record(self) -> dict[str, Any]:
        """``packed`` of a record's ``encoder``."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"shape": dataclasses.asdict(fields.pop("architecture")), **fields}

    @classmethod
    def from_record(
        cls, packed: Any, architecture: Architecture, tokenizer: tokenizers.Tokenizer
    ) -> EncoderConfig | None:
        """Check ``packed``, which may come from anyone, against the encoder's own files.

        Args:
            packed: As `to_record` gives it.
            architecture: What config.json says.
            tokenizer: As the encoder's files have it, set up to run.

        Returns:
            The configuration; None where the record does not agree with the files, or has other fields.
        """
        if not isinstance(packed, dict) or not isinstance(packed.get("segments"), bool):
            return None
        config = cls(
            architecture=architecture,
            width=packed.get("width", 0),
            segments=packed["segments"],
            tokenizer_sha256=tokenizer_sha256(tokenizer),
        )
        return config if config.to_record() == packed else None


def tokenizer_sha256(tokenizer: tokenizers.Tokenizer) -> str:
    """sha256 of a tokenizer's JSON: all of its parts and settings, but for ``encode_special_tokens``."""
    return hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
