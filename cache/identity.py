"""The identity of features: the fields that must be equal before features may be used together."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

from .documents import are_names, is_text
from .errors import DamagedError, FormatError

SHA256 = re.compile(r"[0-9a-f]{64}")
MODEL = "model"
"""The feature that the encoder's own modules make."""
PRECISIONS = ("float32", "bfloat16", "float16")
_RECIPE = re.compile(r"[a-z_]+(\+[a-z_]+)*( \| [a-z_]+( [a-z0-9_]+)*)*")  # FORMAT.md has the words
_CHOICES: dict[str, tuple[str | None, ...]] = {
    "truncation_side": ("right", "left"),
    "long": ("cut", "head-tail", "chunks"),
    "chunk_pooling": ("mean", "max", None),
    "precision": PRECISIONS,
    "quantization": ("none", "int8"),
}
_FIRST = {
    *("weights_sha256", "config_sha256", "tokenizer_sha256"),
    *("prefix", "pairs", "max_length", "precision", "features"),
}
"""The fields before version 1 was released."""
_MEANINGS = {
    "tokenizer_sha256": ", of every file of the encoder that is not weights, documentation or config.json",
    "modules_sha256": ", of modules.json and the files of its modules",
    "model": ", how the encoder's own vector is made",
    "prefix_pooled": ", whether a prefix counts in the encoder's own vector",
    "lower_case": ", the encoder's do_lower_case",
    "truncation_side": ", where a text that is too long is cut",
    "long": ", what is done with a text that is too long",
    "overlap": ", of two chunks of a text, in tokens",
    "chunk_pooling": ", how the chunks of a text become one vector",
    "quantization": ", of the encoder's products",
}
"""What the name of a field does not say, for a user who knows only what was changed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything that decides the features of a text, and nothing else.

    FORMAT.md says which command compares which field. The name, folder and revision of the encoder are not part of the
    identity: a folder may move, and the hashes still identify the encoder.
    """

    weights_sha256: str
    config_sha256: str
    tokenizer_sha256: str
    modules_sha256: str | None
    """Of the modules that make the feature ``model``; None where that is not among the features."""
    model: str | None
    """How the feature ``model`` is made, such as ``mean | normalize``; None where that is not among the features."""
    prefix: str
    """Text put before every text; before the first text of a pair."""
    prefix_pooled: bool
    """False where the feature ``model`` leaves out the tokens of a prefix, and there is one."""
    lower_case: bool
    """Whether a text is lower-cased before anything else that the tokenizer does."""
    pairs: bool
    """Whether a row is a pair of texts, encoded as one sequence of two segments."""
    max_length: int
    """Maximum number of tokens in a sequence, special tokens included."""
    truncation_side: str
    """The end at which a longer sequence is cut: ``right`` or ``left``."""
    long: str
    """What is done with a text of more tokens: ``cut``, ``head-tail`` or ``chunks``."""
    overlap: int
    """Tokens that one chunk of a text shares with the next; 0 without chunks."""
    chunk_pooling: str | None
    """How the vectors of a text's chunks become one: ``mean`` or ``max``; None without chunks."""
    precision: str
    """Number format that the encoder computed in: ``float32``, ``bfloat16`` or ``float16``."""
    quantization: str
    """Of the encoder's products: ``none``, or ``int8``, where all else was computed in ``precision``."""
    features: tuple[str, ...]
    """Names of the features, sorted."""

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)

    @classmethod
    def from_dict(cls, fields: Any, where: str) -> Identity:
        """Make an identity from parsed JSON.

        Raises:
            FormatError: a field is unknown, or has a value that a newer version may give it: it may change the meaning
                of the features. Or the fields are those of a version before the first release.
            DamagedError: a field is missing, or has an impossible value.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict):
            raise DamagedError(f"{where}: its identity is of the kind {type(fields).__name__}")
        if unknown := sorted(fields.keys() - names):
            raise FormatError(
                f"{where}: its identity has a field that this headstart does not know, {unknown[0][:80]!r}: upgrade "
                "headstart"
            )
        if missing := sorted(names - fields.keys()):
            if _FIRST & set(missing):
                raise DamagedError(f"{where}: its identity lacks {', '.join(missing)}")
            raise FormatError(
                f"{where} was made before version 1 of the format was released; make it again with `overwrite=True`"
            )
        features, model, hashes = fields["features"], fields["model"], {n for n in names if n.endswith("_sha256")}
        valid = {
            **{name: is_text(fields[name]) and SHA256.fullmatch(fields[name]) for name in hashes},
            "features": are_names(features),
            "model": is_text(model) and _RECIPE.fullmatch(model),
            "prefix": is_text(fields["prefix"]),
            **{name: type(fields[name]) is int and fields[name] >= 0 for name in ("max_length", "overlap")},
            **{name: isinstance(fields[name], bool) for name in ("pairs", "lower_case", "prefix_pooled")},
            **{name: is_text(fields[name]) or fields[name] in choices for name, choices in _CHOICES.items()},
        }
        if valid["features"] and MODEL not in features:
            valid |= {name: fields[name] is None for name in ("model", "modules_sha256")}
        if wrong := next((name for name, holds in valid.items() if not holds), None):
            raise DamagedError(f"{where}: its identity's {wrong!r} is {str(fields[wrong])[:80]!r}, which is impossible")
        if newer := next((name for name, choices in _CHOICES.items() if fields[name] not in choices), None):
            raise FormatError(
                f"{where}: its identity's {newer!r} is {fields[newer][:80]!r}, which this headstart does not know: "
                "upgrade headstart"
            )
        chunks = fields["long"] == "chunks"
        if (
            chunks != (fields["chunk_pooling"] is not None)
            or not (chunks or fields["overlap"] == 0)
            or not fields["overlap"] < fields["max_length"]
            or not (fields["prefix_pooled"] or (fields["prefix"] and model))
        ):
            raise DamagedError(f"{where}: its identity contradicts itself")
        return cls(**{**fields, "features": tuple(features)})

    @property
    def computed_in(self) -> str:
        """The number format of the encoder's products: ``precision``, or ``int8``."""
        return computed_in(self.precision, self.quantization)

    @property
    def normalized(self) -> bool:
        """Whether the feature ``model`` is among the features, and its vectors have the length 1."""
        return self.model is not None and self.model.split(" | ")[-1] == "normalize"

    def narrowed(self, *features: str) -> Identity:
        """Return the identity of some of the features, or of one: of a head that was trained on it."""
        narrowed = dataclasses.replace(self, features=features)
        if MODEL in features:
            return narrowed
        return dataclasses.replace(narrowed, modules_sha256=None, model=None, prefix_pooled=True)


def computed_in(precision: str, quantization: str) -> str:
    """`Identity.computed_in`, of an identity's fields."""
    return precision if quantization == "none" else quantization


def differences(ours: Identity, theirs: Identity, *, our_name: str, their_name: str) -> list[str]:
    """Return a clause for each field in which two identities differ, such as ``max_length (a: 128, b: 64)``."""
    clauses = []
    for field in dataclasses.fields(Identity):
        a, b = getattr(ours, field.name), getattr(theirs, field.name)
        if a != b:
            name = field.name + _MEANINGS.get(field.name, "")
            clauses.append(f"{name} ({our_name}: {_short(a)}, {their_name}: {_short(b)})")
    return clauses


def _short(value: object) -> str:
    text = ",".join(value) if isinstance(value, tuple) else "none" if value is None else str(value)
    return f"{text[:12]}…" if SHA256.fullmatch(text) else repr(value) if isinstance(value, str) else text
