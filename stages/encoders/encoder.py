"""The frozen encoder: texts to token ids, token ids to features, whichever way it was loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import tokenizers
import torch

from ...cache.hashing import hash_keys, hash_sequences
from ..devices import default_batch_tokens
from ..settings import ForwardMode, Precision
from ..types import Features, Indices, Mask, TokenIds
from .backend import Backend
from .batching import compose_batches
from .config import EncoderConfig
from .memory import MemoryFullError
from .pooling import Feature, Pooling
from .recipe import Recipe
from .tokenizer import Tokenizer

_MANY_UNKNOWN = 0.1
"""The share of unknown tokens from which a user is told."""
VERSIONS = {"torch": str(torch.__version__), "transformers": version("transformers")}  # which takes seconds to import


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How an encoder runs."""

    features: tuple[Feature, ...]
    device: torch.device
    precision: Precision
    prefix: str  # put before every text; of a pair, before the first
    max_length: int  # of a token sequence, special tokens included
    pairs: bool = False  # which take more special tokens
    batch_tokens: int | None = None  # None for a number that suits the device
    lower_case: bool = False  # before anything else that the tokenizer does
    truncation_side: str = "right"  # where a sequence that is too long is cut: right or left
    recipe: Recipe | None = None  # of the feature `model`, where that is among the features

    @property
    def model_parts(self) -> tuple[Feature, ...]:
        """What the feature ``model`` is made of."""
        poolings = () if self.recipe is None else self.recipe.poolings
        return tuple(Feature(f"{Pooling.MODEL}.{pooling}", None, pooling) for pooling in poolings)

    @property
    def pooled(self) -> tuple[Feature, ...]:
        """What the pass of the encoder pools: the features but ``model``, and the parts of that one."""
        return tuple(feature for feature in self.features if feature.pooling is not Pooling.MODEL) + self.model_parts

    def chosen_batch_tokens(self, path: ForwardMode) -> int:
        """Tokens in a batch, for an encoder that runs in this way."""
        return self.batch_tokens or default_batch_tokens(self.device, path)


@dataclasses.dataclass(frozen=True)
class UnknownTokens:
    """How many tokens of some texts the encoder's vocabulary lacks."""

    unknown: int
    tokens: int  # without special tokens

    def __add__(self, other: UnknownTokens) -> UnknownTokens:
        return UnknownTokens(self.unknown + other.unknown, self.tokens + other.tokens)

    @property
    def share(self) -> float:
        return self.unknown / self.tokens if self.tokens else 0.0

    def note(self) -> str | None:
        """What a user should know of them; None where there are few."""
        if self.share < _MANY_UNKNOWN:
            return None
        return (
            f"{self.share:.0%} of the texts' tokens are not in the encoder's vocabulary, and tell it nothing: is it an "
            "encoder of this language?"
        )


class Encoder:
    """A pretrained encoder that is never trained: a tokenizer, and a backend that runs the model.

    ``features`` are its features' names, ``widths`` the numbers in each, ``path`` is how it runs, ``batch_tokens`` is
    how large a batch should be.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        tokenizer: tokenizers.Tokenizer,  # set up to cut at settings.max_length, and not to pad
        backend: Backend,
        width: int,  # numbers in each state of the encoder
        segments: bool,  # whether the encoder tells the two texts of a pair apart
        config: EncoderConfig | None = None,  # what it takes to load the encoder without transformers, if that is known
        notes: Sequence[str] = (),  # what a user should know of how the encoder runs
    ) -> None:
        """Put together the parts that `headstart.stages.encoders.hf` or `headstart.stages.encoders.fast_load` made."""
        self._prefix, self._pairs, self._segments = settings.prefix, settings.pairs, segments
        self._tokenizer = Tokenizer(tokenizer)
        self.features = tuple(feature.name for feature in settings.features)
        self.widths = dict.fromkeys(self.features, width)
        if settings.recipe is not None:
            self.widths[Pooling.MODEL] = settings.recipe.width
        self.backend, self.config, self.notes = backend, config, notes
        self.path = backend.forward.mode
        self.batch_tokens = settings.chosen_batch_tokens(self.path)

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> tuple[list[TokenIds], Mask]:
        """Turn texts, or pairs of texts, into token ids, special tokens included.

        Returns:
            The sequences, and (texts,) bool: which of them were cut at ``max_length``.
        """
        prefixed = [self._prefix + text for text in texts]
        if pairs is None:
            encodings = self._tokenizer.encode(prefixed)
        else:
            encodings = self._tokenizer.encode_pairs(list(zip(prefixed, pairs, strict=True)))
        if pairs is not None and self._segments:
            sequences = [np.array([encoding.ids, encoding.type_ids], np.int32).T for encoding in encodings]
        else:
            sequences = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return sequences, np.array([bool(encoding.overflowing) for encoding in encodings], bool)

    def count_unknown(self, sequences: Sequence[TokenIds]) -> UnknownTokens:
        """Count the tokens of some sequences, and those that stand for what the vocabulary lacks."""
        if not sequences:
            return UnknownTokens(0, 0)
        ids = np.concatenate([sequence if sequence.ndim == 1 else sequence[:, 0] for sequence in sequences])
        unknown = self._tokenizer.unknown
        special = len(sequences) * self._tokenizer.special(pairs=self._pairs)
        return UnknownTokens(0 if unknown is None else int((ids == unknown).sum()), max(0, len(ids) - special))


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """One batch that `encode_sequences` has encoded."""

    sequences: Indices  # (batch,), their numbers among the sequences that were given
    features: dict[str, Features]  # by name, (batch, width)
    tokens: int
    seconds: float  # that the caller waited for the encoder
    _: dataclasses.KW_ONLY
    number: int  # from 1
    batches: int  # how many there are


def encode_sequences(
    encoder: Encoder,
    sequences: Sequence[TokenIds],
    *,
    distinct: bool = False,
    needed: Mask | None = None,
    batch_tokens: int | None = None,
    path: ForwardMode | None = None,
    on_batch: Callable[[BatchReport], None] | None = None,
) -> dict[str, Features]:
    """Encode token sequences: equal ones once, in batches of similar length.

    The batches do not depend on ``needed``: a run that needs only some of the sequences gets the same bits.

    Args:
        encoder: The encoder.
        sequences: The token sequences, none of them empty.
        distinct: No two sequences are equal: they are not compared.
        needed: (sequences,) bool. A batch in which none is needed is left out. None for all.
        batch_tokens: Most tokens in a batch; None for the encoder's own choice.
        path: Whether padding counts as tokens; None for the way that the encoder runs.
        on_batch: Called with each batch, in order. What it raises ends the work.

    Returns:
        By the features' names: (sequences, width) float32 each, in the order of the sequences. Rows of batches that
        were left out hold arbitrary values.

    Raises:
        MemoryFullError: there is no memory for one sequence alone; ``sequence`` is its number.
    """
    first, inverse = np.arange(len(sequences)), None
    if not distinct:
        _, first, inverse = np.unique(hash_keys(hash_sequences(sequences)), return_index=True, return_inverse=True)
        sequences = [sequences[int(number)] for number in first]
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    padded = (path or encoder.path) is not ForwardMode.PACKED
    batches = compose_batches(lengths, batch_tokens or encoder.batch_tokens, padded=padded)
    if needed is not None:
        kept = needed if inverse is None else np.bincount(inverse, needed) > 0
        batches = [batch for batch in batches if kept[batch].any()]
    features = {name: np.empty((len(sequences), width), np.float32) for name, width in encoder.widths.items()}
    encoded = encoder.backend.encode_all([sequences[place] for place in batch] for batch in batches)
    with contextlib.closing(encoded):
        for number, batch in enumerate(batches, 1):
            started = time.perf_counter()
            try:
                values = next(encoded)
            except MemoryFullError as error:
                raise MemoryFullError(int(first[batch[error.sequence]])) from error
            seconds = time.perf_counter() - started
            for name, array in features.items():
                array[batch] = values[name]
            if on_batch is not None:
                tokens = int(lengths[batch].sum())
                on_batch(BatchReport(first[batch], values, tokens, seconds, number=number, batches=len(batches)))
    return features if inverse is None else {name: values[inverse] for name, values in features.items()}
