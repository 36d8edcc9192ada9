"""The frozen encoder: texts to token ids, token ids to features, whichever way it was loaded."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import reprlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
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
    """One batch of some rows that was encoded."""

    sequences: Indices  # (batch,), the first row that has each of them, among those that were given
    features: dict[str, Features]  # by name, (batch, width)
    tokens: int
    seconds: float  # in which batches were under way, since the batch before was taken
    _: dataclasses.KW_ONLY
    number: int  # from 1
    batches: int  # how many there are


class EncoderWork:
    """Rows of token ids that are encoded together: equal sequences once, in batches of similar length.

    The batches are composed when it is made. `encode_in_turn` runs them.
    """

    def __init__(
        self,
        encoder: Encoder,
        sequences: Sequence[TokenIds],
        *,
        distinct: bool = False,
        needed: Mask | None = None,
        batch_tokens: int | None = None,
        path: ForwardMode | None = None,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> None:
        """Compose the batches; arguments are as for `encode_sequences`."""
        self._long_texts, self._widths = encoder.long_texts, encoder.widths
        self._needed, self._on_batch = needed, on_batch
        self._parts, self._counts = encoder.long_texts.split(sequences)
        self._rows = np.repeat(np.arange(len(sequences)), self._counts)  # of the parts
        self._first = self._places = np.arange(len(self._parts))
        if not distinct or len(self._parts) > len(sequences):
            hashes = hash_keys(hash_sequences(self._parts))
            _, self._first, self._places = np.unique(hashes, return_index=True, return_inverse=True)
        self._lengths = np.array([len(self._parts[number]) for number in self._first.tolist()], np.int64)
        padded = (path or encoder.path) is not ForwardMode.PACKED
        batches = compose_batches(self._lengths, batch_tokens or encoder.batch_tokens, padded=padded)
        if needed is not None:
            kept = np.bincount(self._places, needed[self._rows], minlength=len(self._first)) > 0
            batches = [batch for batch in batches if kept[batch].any()]
        self._batches, self._taken = batches, 0

    @property
    def is_done(self) -> bool:
        """Whether the features of all batches are there."""
        return self._taken == len(self._batches)

    def batches(self) -> Iterator[list[TokenIds]]:
        """The sequences of each batch, in the order in which `take` expects their features."""
        for batch in self._batches:
            yield [self._parts[number] for number in self._first[batch].tolist()]

    def row(self, sequence: int) -> int:
        """The first row that has a sequence of the next batch that `take` expects."""
        return int(self._rows[self._first[self._batches[self._taken][sequence]]])

    def take(self, values: dict[str, Features], seconds: float) -> None:
        """Take the features of the next batch, and report it with so many ``seconds``."""
        batch, self._taken = self._batches[self._taken], self._taken + 1
        for name, array in self._features.items():
            array[batch] = values[name]
        if self._on_batch is not None:
            rows, tokens = self._rows[self._first[batch]], int(self._lengths[batch].sum())
            report = BatchReport(rows, values, tokens, seconds, number=self._taken, batches=len(self._batches))
            self._on_batch(report)

    def result(self) -> dict[str, Features]:
        """The features of the rows, as `encode_sequences` returns them, when the work is done."""
        return self._long_texts.join(
            self._features, self._parts, self._counts, places=self._places, needed=self._needed
        )

    @functools.cached_property
    def _features(self) -> dict[str, Features]:
        """Of the distinct sequences. They take memory from the first batch on, not while the work waits."""
        return {name: np.empty((len(self._first), width), np.float32) for name, width in self._widths.items()}


def encode_in_turn(encoder: Encoder, works: Iterable[EncoderWork]) -> Generator[EncoderWork, None, None]:
    """Run works through the encoder, which goes from one to the next without a pause; yield each when it is done.

    A work is asked for while batches of the one before are under way. One without batches comes in its turn.

    Raises:
        MemoryFullError: there is no memory for one sequence alone; ``sequence`` is the number of its row in the first
            work that was not yielded.
        Exception: what making a work raised, when the works before it are yielded.
    """
    coming = _Coming(works)
    with contextlib.closing(encoder.backend.encode_all(coming.batches())) as encoded:
        while True:
            try:
                values = next(encoded, None)
            except MemoryFullError as error:
                raise MemoryFullError(coming.works[0].row(error.sequence)) from error
            if values is None:
                break
            work = coming.works[0]
            if values:
                work.take(values, coming.taken())
            if work.is_done:
                yield coming.works.popleft()
    if coming.error is not None:
        raise coming.error


class _Coming:
    """Works on their way to a backend, which asks for their batches when it has room."""

    def __init__(self, works: Iterable[EncoderWork]) -> None:
        self.works: collections.deque[EncoderWork] = collections.deque()  # begun, and not done
        self.error: Exception | None = None  # in making one; the works before it are done first
        self._source = iter(works)
        self._under_way, self._since = 0, 0.0  # batches; and since when, or when the last one was taken

    def batches(self) -> Iterator[list[TokenIds]]:
        """The batches of all works. A work without batches has an empty one, which comes back in its turn."""
        while (work := self._next()) is not None:
            self.works.append(work)
            if work.is_done:
                yield []
            for batch in work.batches():
                if not self._under_way:
                    self._since = time.perf_counter()
                self._under_way += 1
                yield batch

    def taken(self) -> float:
        """Count a batch as taken. Returns the seconds in which batches were under way, since the last one was taken."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        self._under_way -= 1
        return seconds

    def _next(self) -> EncoderWork | None:
        try:
            return next(self._source, None)
        except Exception as error:
            self.error = error
            return None


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
    work = EncoderWork(
        encoder,
        sequences,
        distinct=distinct,
        needed=needed,
        batch_tokens=batch_tokens,
        path=path,
        on_batch=on_batch,
    )
    (done,) = encode_in_turn(encoder, [work])
    return done.result()
