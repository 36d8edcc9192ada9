"""The frozen encoder: texts to token ids, token ids to features, whichever way it was loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import reprlib
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import tokenizers
import torch

from ...cache.errors import EncoderError
from ...cache.hashing import hash_keys, hash_sequences
from ..devices import default_batch_tokens
from ..settings import ForwardMode, Long, Precision
from ..types import Features, Indices, Mask, TokenIds
from .backend import Backend
from .batching import compose_batches
from .config import EncoderConfig
from .long_texts import LongTexts, LongTextSettings
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
    precision: Precision  # of all but the products, where these are of 8-bit integers
    prefix: str  # put before every text; of a pair, before the first
    max_length: int  # of a token sequence, special tokens included
    pairs: bool = False  # which take more special tokens
    batch_tokens: int | None = None  # None for a number that suits the device
    lower_case: bool = False  # before anything else that the tokenizer does
    truncation_side: str = "right"  # where a sequence that is too long is cut: right or left
    long_texts: LongTextSettings = dataclasses.field(default_factory=LongTextSettings)
    recipe: Recipe | None = None  # of the feature `model`, where that is among the features
    int8: bool = False  # whether products are of 8-bit integers
    left_out: tuple[int, ...] = ()  # tokens that begin each sequence, and that `model` leaves out: `leave_out_prompt`

    @property
    def cut_at(self) -> int | None:
        """Tokens at which the tokenizer cuts a text; None where all are needed."""
        return self.max_length if self.long_texts.long is Long.CUT else None

    @property
    def model_parts(self) -> tuple[Feature, ...]:
        """What the feature ``model`` is made of."""
        poolings = () if self.recipe is None else self.recipe.poolings
        return tuple(Feature(f"{Pooling.MODEL}.{pooling}", None, pooling, len(self.left_out)) for pooling in poolings)

    @property
    def pooled(self) -> tuple[Feature, ...]:
        """What the pass of the encoder pools: the features but ``model``, and the parts of that one."""
        return tuple(feature for feature in self.features if feature.pooling is not Pooling.MODEL) + self.model_parts

    def chosen_batch_tokens(self, path: ForwardMode, width: int) -> int:
        """Tokens in a batch, for an encoder that runs in this way, with ``width`` numbers in each state."""
        return self.batch_tokens or default_batch_tokens(self.device, path, width)


def leave_out_prompt(settings: EncoderSettings, tokenizer: tokenizers.Tokenizer, *, name: str) -> EncoderSettings:
    """Settings that say which tokens the prompt takes, where the recipe leaves it out; ``tokenizer`` is set up.

    The prompt's tokens are those that it has alone, with the special tokens before it, as in sentence-transformers.

    Raises:
        EncoderError: in a long text, these would not be the prompt's tokens, or no others would be left.
    """
    if settings.recipe is None or settings.recipe.includes_prompt or not settings.prefix:
        return settings
    ids = Tokenizer(tokenizer).encode([settings.prefix])[0].ids
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    problem = None
    if settings.truncation_side == "left":
        problem = "its tokenizer cuts long texts at their beginning, where the prompt stands"
    elif len(ids) >= settings.max_length:
        problem = f"the prompt leaves no room for a text in {settings.max_length} tokens"
    if problem is not None:
        raise EncoderError(
            f"encoder {name}: its Pooling leaves out the tokens of a prompt ('include_prompt'), and {problem}; choose "
            "`features` yourself, such as mean, or another `prefix`"
        )
    return dataclasses.replace(settings, left_out=tuple(ids[:-1] if ids[-1] in special else ids))


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
        tokenizer: tokenizers.Tokenizer,  # set up to cut at settings.cut_at, and not to pad
        backend: Backend,
        width: int,  # numbers in each state of the encoder
        segments: bool,  # whether the encoder tells the two texts of a pair apart
        config: EncoderConfig | None = None,  # what it takes to load the encoder without transformers, if that is known
        notes: Sequence[str] = (),  # what a user should know of how the encoder runs
    ) -> None:
        """Put together the parts that `headstart.stages.encoders.hf` or `headstart.stages.encoders.fast_load` made."""
        self._prefix, self.takes_pairs, self._segments = settings.prefix, settings.pairs, segments
        self._tokenizer, self._left_out = Tokenizer(tokenizer), np.array(settings.left_out, np.int32)
        self.features = tuple(feature.name for feature in settings.features)
        self.widths = dict.fromkeys(self.features, width)
        if settings.recipe is not None:
            self.widths[Pooling.MODEL] = settings.recipe.width
        normalized = {Pooling.MODEL.value} if settings.recipe is not None and settings.recipe.normalized else set()
        self.long_texts = LongTexts(
            settings.long_texts,
            self._tokenizer,
            max_length=settings.max_length,
            prefix=settings.prefix,
            normalized=normalized,
        )
        self.backend, self.config, self.notes = backend, config, notes
        self.path = backend.forward.mode
        self.batch_tokens = settings.chosen_batch_tokens(self.path, width)

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> tuple[list[TokenIds], Mask]:
        """Turn texts, or pairs of texts, into rows of token ids, special tokens included.

        Returns:
            The rows: a text's sequence, or its chunks one after the other. And (texts,) bool: which of the texts have
            tokens that the row lacks.

        Raises:
            EncoderError: the tokenizer fails on a text, or does not tell it from the prompt, which is left out.
        """
        prefixed = [self._prefix + text for text in texts]
        if self.long_texts.reads_all:
            rows = [self.long_texts.row(encoding) for encoding in self._tokenizer.encode_whole(prefixed)]
            self._check_prompts(texts, [ids for ids, _ in rows])
            return [ids for ids, _ in rows], np.array([cut for _, cut in rows], bool)
        if pairs is None:
            encodings = self._tokenizer.encode(prefixed)
        else:
            encodings = self._tokenizer.encode_pairs(list(zip(prefixed, pairs, strict=True)))
        if pairs is not None and self._segments:
            sequences = [np.array([encoding.ids, encoding.type_ids], np.int32).T for encoding in encodings]
        else:
            sequences = [np.array(encoding.ids, np.int32) for encoding in encodings]
        self._check_prompts(texts, sequences)
        return sequences, np.array([bool(encoding.overflowing) for encoding in encodings], bool)

    def _check_prompts(self, texts: Sequence[str], sequences: Sequence[TokenIds]) -> None:
        """Refuse a text without tokens of its own after the prompt's, where these are left out."""
        count = len(self._left_out)
        for text, sequence in zip(texts, sequences, strict=True) if count else ():
            ids = sequence if sequence.ndim == 1 else sequence[:, 0]
            if len(ids) <= count or not np.array_equal(ids[:count], self._left_out):
                raise EncoderError(
                    "the encoder's Pooling leaves out the tokens of a prompt ('include_prompt'), and its tokenizer "
                    f"joins the end of the prompt to the text {reprlib.repr(text)}; choose `features` yourself, such "
                    "as mean, or another `prefix`"
                )

    def count_unknown(self, sequences: Sequence[TokenIds]) -> UnknownTokens:
        """Count the tokens of some rows, and those that stand for what the vocabulary lacks."""
        if not sequences:
            return UnknownTokens(0, 0)
        ids = np.concatenate([sequence if sequence.ndim == 1 else sequence[:, 0] for sequence in sequences])
        unknown = self._tokenizer.unknown
        special = int(self.long_texts.split(sequences)[1].sum()) * self._tokenizer.special(pairs=self.takes_pairs)
        return UnknownTokens(0 if unknown is None else int((ids == unknown).sum()), max(0, len(ids) - special))


@dataclasses.dataclass(frozen=True)
class BatchReport:
    """One batch that `encode_sequences` has encoded."""

    sequences: Indices  # (batch,), the first row that has each of them, among those that were given
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
    """Encode rows of token ids, as `Encoder.tokenize` gives them: equal sequences once, in batches of similar length.

    The batches do not depend on ``needed``: a run that needs only some of the rows gets the same bits.

    Args:
        encoder: The encoder.
        sequences: The rows' token ids, none of them empty.
        distinct: No two rows are equal: they are not compared, unless one has several chunks.
        needed: (rows,) bool. A batch in which none is needed is left out. None for all.
        batch_tokens: Most tokens in a batch; None for the encoder's own choice.
        path: Whether padding counts as tokens; None for the way that the encoder runs.
        on_batch: Called with each batch, in order. What it raises ends the work.

    Returns:
        By the features' names: (rows, width) float32 each, in the order of the rows. Rows that were left out hold
        arbitrary values.

    Raises:
        MemoryFullError: there is no memory for one sequence alone; ``sequence`` is the number of its row.
    """
    parts, counts = encoder.long_texts.split(sequences)
    rows = np.repeat(np.arange(len(sequences)), counts)  # of the parts
    first = places = np.arange(len(parts))
    if not distinct or len(parts) > len(sequences):
        _, first, places = np.unique(hash_keys(hash_sequences(parts)), return_index=True, return_inverse=True)
    own = [parts[number] for number in first.tolist()]
    lengths = np.array([len(part) for part in own], np.int64)
    padded = (path or encoder.path) is not ForwardMode.PACKED
    batches = compose_batches(lengths, batch_tokens or encoder.batch_tokens, padded=padded)
    if needed is not None:
        kept = np.bincount(places, needed[rows], minlength=len(own)) > 0
        batches = [batch for batch in batches if kept[batch].any()]
    features = {name: np.empty((len(own), width), np.float32) for name, width in encoder.widths.items()}
    encoded = encoder.backend.encode_all([own[place] for place in batch] for batch in batches)
    with contextlib.closing(encoded):
        for number, batch in enumerate(batches, 1):
            started = time.perf_counter()
            try:
                values = next(encoded)
            except MemoryFullError as error:
                raise MemoryFullError(int(rows[first[batch[error.sequence]]])) from error
            seconds = time.perf_counter() - started
            for name, array in features.items():
                array[batch] = values[name]
            if on_batch is not None:
                tokens = int(lengths[batch].sum())
                on_batch(BatchReport(rows[first[batch]], values, tokens, seconds, number=number, batches=len(batches)))
    return encoder.long_texts.join(features, parts, counts, places=places, needed=needed)
