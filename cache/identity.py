"""The identity of features: the fields that must be equal before features may be used together."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from .documents import are_names, is_text
from .errors import DamagedError

SHA256 = re.compile(r"[0-9a-f]{64}")
_COVERS = {"tokenizer_sha256": ", of every file of the encoder that is not weights, documentation or config.json"}
"""What the name of a field does not say, for a user who changed another file than its name tells."""
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that decides the features of a text, and nothing else.

    FORMAT.md says which command compares which field. The name, folder and revision of the encoder are not part of the
    identity: a folder may move, and the hashes still identify the encoder.
    """

    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    prefix: str
    """Text put before every text; before the first text of a pair."""
    pairs: bool
    """Whether a row is a pair of texts, encoded as one sequence of two segments."""
    max_length: int
    """Maximum number of tokens in a sequence, special tokens included. Longer sequences were truncated."""
    precision: str
    """Number format that the encoder computed in: ``float32``, ``bfloat16`` or ``float16``."""
    features: tuple[str, ...]
    """Names of the features, sorted."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_dict(cls, fields: Any, where: str) -> Identity:
        """Make an identity from parsed JSON.

        Raises:
            DamagedError: a field is missing, unknown, or has an impossible value. An unknown field may change the
                meaning of the features.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != names:
            present = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            raise DamagedError(f"{where}: its identity has the fields {present}, expected {sorted(names)}")
        features = fields["features"]
        valid = {
            **{n: is_text(fields[n]) and SHA256.fullmatch(fields[n]) for n in names if n.endswith("_sha256")},
            "prefix": is_text(fields["prefix"]),
            "pairs": isinstance(fields["pairs"], bool),
            "max_length": type(fields["max_length"]) is int,
            "precision": fields["precision"] in PRECISIONS,
            "features": are_names(features),
        }
        if wrong := next((name for name, holds in valid.items() if not holds), None):
            raise DamagedError(f"{where}: its identity's {wrong!r} is {str(fields[wrong])[:80]!r}, which is impossible")
        return cls(**{**fields, "features": tuple(features)})

    def narrowed(self, feature: str) -> Identity:
        """Return the identity of one feature: the identity of a head that was trained on it."""
        return dataclasses.replace(self, features=(feature,))


def differences(ours: Identity, theirs: Identity, *, our_name: str, their_name: str) -> list[str]:
    """Return a clause for each field in which two identities differ, such as ``max_length (a: 128, b: 64)``."""
    clauses = []
    for field in dataclasses.fields(Identity):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if a != b:
            name = field.name + _COVERS.get(field.name, "")
            clauses.append(f"{name} ({our_name}: {_short(a)}, {their_name}: {_short(b)})")
    return clauses


def _short(value: object) -> str:
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return f"{text[:12]}…" if SHA256.fullmatch(text) else repr(value) if isinstance(value, str) else text
