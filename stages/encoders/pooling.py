"""The names of features, and what each name means. Light: it loads no library."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence

from ...cache.errors import SettingsError


class Pooling(enum.StrEnum):
    """How a sequence's hidden states become one vector."""

    CLS = "cls"  # the first token's
    MEAN = "mean"  # the mean over all tokens but padding, special tokens included
    MAX = "max"  # the largest value of each column, over the same tokens
    LAST = "last"  # the last token's, special tokens included
    POOLER = "pooler"  # what the encoder's own pooler, a dense layer and a tanh, makes of the first token's
    # These are parts of some encoders' own vectors, and no features by themselves.
    MEAN_SQRT_LEN = "mean_sqrt_len"  # the sum over the same tokens, divided by the square root of their number
    WEIGHTED_MEAN = "weighted_mean"  # the mean over the same tokens, where the n-th has the weight n
    MODEL = "model"  # what the files of the encoder say: see `recipe`


@dataclasses.dataclass(frozen=True)
class Feature:
    """One feature. ``layer`` counts from 1, and is None for the last layer.

    The first ``skipped`` tokens of each sequence are not pooled; a weighted mean gives the others their own weights.
    """

    name: str
    layer: int | None
    pooling: Pooling
    skipped: int = 0


_NAME = re.compile(r"(?:layer(?P<layer>\*|[1-9][0-9]*)\.)?(?P<pooling>cls|mean|max|last|pooler|model)")


def parse_features(names: Sequence[str], layers: int | None) -> tuple[Feature, ...]:
    """Read the names of features, such as ``cls``, ``mean``, ``last``, ``model``, ``layer6.cls``, ``layer*.mean``.

    Returns them once each, sorted by name; a ``*`` stands for every layer. ``layers`` is how many layers the encoder
    has, where that is known.

    Raises:
        SettingsError: a name is not understood, or the encoder has no such layer.
    """
    features: dict[str, Feature] = {}
    for name in names:
        match = _NAME.fullmatch(name.strip())
        if match is None or (match["layer"] and match["pooling"] in (Pooling.POOLER, Pooling.MODEL)):
            choices = "model, cls, mean, max, last, pooler, layer6.cls, layer*.cls"
            raise SettingsError(f"{name!r} is not a feature; choose of {choices}, or auto alone")
        pooling = Pooling(match["pooling"])
        if match["layer"] is None:
            features[pooling.value] = Feature(pooling.value, None, pooling)
            continue
        if layers is None:
            raise SettingsError(f"{name!r} names a layer, and the encoder's config.json does not say how many it has")
        for layer in range(1, layers + 1) if match["layer"] == "*" else [int(match["layer"])]:
            if layer > layers:
                raise SettingsError(f"{name!r} names a layer that the encoder has not; it has {layers}")
            features[f"layer{layer}.{pooling}"] = Feature(f"layer{layer}.{pooling}", layer, pooling)
    if not features:
        raise SettingsError("no feature is named; choose at least one, such as cls")
    return tuple(features[name] for name in sorted(features))
