"""What a cache is of: the named facts that must agree before features may be used together."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from .documents import are_names, is_text
from .errors import DamagedError

SHA256 = re.compile(r"[0-9a-f]{64}")
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that decides what the features of a text are, and nothing else.

    FORMAT.md says of each field who compares it. Where an encoder was found (its name, folder, revision) is
    no part of this: a folder may move, and its hashes still tell that it is the same encoder.
    """

    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    prefix: str
    """Text put before every text; of a pair, before the first."""
    pairs: bool
    """Whether a row is a pair of texts, read as one sequence of two segments."""
    max_length: int
    """Longest token sequence, special tokens included; longer ones were cut."""
    precision: str
    """What the encoder computed in: ``float32``, ``bfloat16`` or ``float16``."""
    features: tuple[str, ...]
    """Names of the features that were taken, sorted."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_dict(cls, fields: Any, where: str) -> Identity:
        """Check and build an identity from parsed JSON.

        Raises:
            DamagedError: a field is missing, unknown or of the wrong type. An unknown field is refused
                because it may change what the features mean.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or set(fields) != names:
            found = sorted(fields) if isinstance(fields, dict) else type(fields).__name__
            raise DamagedError(f"{where}: its identity has the fields {found}, expected {sorted(names)}")
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
            raise DamagedError(f"{where}: its identity's {wrong!r} is {str(fields[wrong])[:80]!r}, which cannot be")
        return cls(**{**fields, "features": tuple(features)})

    def narrowed(self, feature: str) -> Identity:
        """The identity of one of the features alone: what a head that was trained on it needs."""
        return dataclasses.replace(self, features=(feature,))


def differences(ours: Identity, theirs: Identity, *, our_name: str, their_name: str) -> list[str]:
    """List the fields in which two identities differ, one readable clause each; empty where they are equal."""
    clauses = []
    for field in dataclasses.fields(Identity):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if a != b:
            clauses.append(f"{field.name} ({our_name}: {_short(a)}, {their_name}: {_short(b)})")
    return clauses


def _short(value: object) -> str:
    text = ",".join(value) if isinstance(value, tuple) else str(value)
    return f"{text[:12]}…" if SHA256.fullmatch(text) else repr(value) if isinstance(value, str) else text
