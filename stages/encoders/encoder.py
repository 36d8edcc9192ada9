"""The frozen encoder: texts to token ids, token ids to features, whichever way it was loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import tokenizers
import torch

from ...cache.hashing import hash_keys, hash_sequences
from ..devices import default_batch_tokens
from ..settings import ForwardMode, Precision
from ..threads import ordered_map
from ..types import Features, Indices, Mask, TokenIds
from .batching import compose_batches
from .config import Recipe
from .memory import MemoryFullError, halving
from .packed.bert import PackedEncoder
from .pooling import Feature
from .tokenizer import Tokenizer

Run = Callable[[Sequence[TokenIds]], dict[str, torch.Tensor]]
"""Token sequences to features by their names, (sequences, width) each, on the device."""

VERSIONS = {"torch": str(torch.__version__), "transformers": version("transformers")}
"""Transformers' without importing it, which takes seconds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderSettings:
    """How an encoder is to run.

    Attributes:
        features: What to take.
        device: Where to compute.
        precision: What to compute in.
        prefix: Text put before every text; of a pair, before the first.
        max_length: Longest token sequence, special tokens included.
        pairs: Whether pairs of texts will be read, which take more special tokens.
        batch_tokens: How large batches are going to be; None for what suits the device.
    """

    features: tuple[Feature, ...]
    device: torch.device
    precision: Precision
    prefix: str
    max_length: int
    pairs: bool = False
    batch_tokens: int | None = None

    def chosen_batch_tokens(self, path: ForwardMode) -> int:
        """How many tokens a batch should have where the encoder runs that way."""
        return self.batch_tokens or default_batch_tokens(self.device, path)


class Encoder:
    """A pretrained encoder that is never trained: in ``eval()``, under ``inference_mode``.

    Attributes:
        features: The names of the features that it gives.
        width: Numbers in each feature.
        path: How it runs over a batch.
        batch_tokens: How many tokens a batch should have.
        recipe: What it takes to build it again without transformers; None where that is not possible.
        halved_batches: How many batches took more memory than there was, and were encoded in halves.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        *,
        tokenizer: tokenizers.Tokenizer,
        run: Run,
        width: int,
        segments: bool,
        recipe: Recipe | None = None,
        copies: Any = None,
    ) -> None:
        """Put the parts together; `headstart.stages.encoders.hf` and `headstart.stages.encoders.fast_load` make them.

        Args:
            settings: How it runs.
            tokenizer: Set up to cut at ``settings.max_length``, and not to pad.
            run: Computes the features of a batch.
            width: Numbers in each feature.
            segments: Whether the encoder tells the two texts of a pair apart.
            recipe: As in the attributes.
            copies: On CUDA, the stream of the copies.
        """
        self._prefix, self._device = settings.prefix, settings.device
        self.features = tuple(feature.name for feature in settings.features)
        self._tokenizing, self._run, self._segments, self._copies = Tokenizer(tokenizer), run, segments, copies
        self.path = ForwardMode.PACKED if isinstance(run, PackedEncoder) else ForwardMode.PADDED
        self.width, self.batch_tokens, self.recipe = width, settings.chosen_batch_tokens(self.path), recipe
        self.halved_batches, self._counting = 0, threading.Lock()

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> tuple[list[TokenIds], Mask]:
        """Turn texts, or pairs of texts, into token ids, special tokens included.

        Returns:
            The sequences, and (texts,) bool: which of them were cut at ``max_length``.
        """
        prefixed = [self._prefix + text for text in texts]
        if pairs is None:
            encodings = self._tokenizing.encode(prefixed)
        else:
            encodings = self._tokenizing.encode_pairs(list(zip(prefixed, pairs, strict=True)))
        if pairs is not None and self._segments:
            sequences = [np.array([encoding.ids, encoding.type_ids], np.int32).T for encoding in encodings]
        else:
            sequences = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return sequences, np.array([bool(encoding.overflowing) for encoding in encodings], bool)

    def encode_all(self, batches: Iterable[Sequence[TokenIds]]) -> Generator[dict[str, Features], None, None]:
        """Encode batches, and yield their features in the batches' order.

        On CUDA one batch is copied and computed while the last is fetched. On a CPU the packed pass takes a batch on
        each core: no core waits for another at the end of each product.

        Raises:
            MemoryFullError: as for `encode`.
        """
        if self._device.type == "cuda":
            yield from self._encode_on_cuda(batches)
            return
        waiting, done = list(batches), 0
        if self._device.type == "cpu" and self.path is ForwardMode.PACKED:
            with contextlib.closing(ordered_map(self._attempt, waiting)) as turns:
                for found in turns:
                    if found is None:
                        break
                    done += 1
                    yield found
        yield from map(self.encode, waiting[done:])

    def _attempt(self, sequences: Sequence[TokenIds]) -> dict[str, Features] | None:
        """`encode`, or None where even one sequence takes too much memory: it may be that another batch holds it."""
        try:
            return self.encode(sequences)
        except MemoryFullError:
            return None

    def _encode_on_cuda(self, batches: Iterable[Sequence[TokenIds]]) -> Iterator[dict[str, Features]]:
        started: list[_Fetched] = []
        for batch in batches:
            with halving(batch) as halves:
                started.append(self._start(batch))
            if halves:
                yield from (fetched.wait() for fetched in started)  # their memory is free for the halves
                started.clear()
                yield self._in_halves(halves)
            if len(started) > 1:
                yield started.pop(0).wait()
        for fetched in started:
            yield fetched.wait()

    def encode(self, sequences: Sequence[TokenIds]) -> dict[str, Features]:
        """Encode one batch; where the memory is full, in halves, down to one sequence.

        Args:
            sequences: Token sequences; similar lengths waste the least.

        Returns:
            By the features' names: (sequences, width) float32 each.

        Raises:
            MemoryFullError: there is no memory even for one of the sequences alone.
        """
        with halving(sequences) as halves:
            if self._device.type == "cuda":
                return self._start(sequences).wait()
            with torch.inference_mode():
                found = self._run(sequences)
            features = {name: feature.float().cpu().numpy() for name, feature in found.items()}
            packed = self.path is ForwardMode.PACKED
            if packed and len(sequences) > 1 and not all(np.isfinite(f).all() for f in features.values()):
                alone = [self.encode([sequence]) for sequence in sequences]  # a neighbour's may be spoilt with it
                return {name: np.concatenate([each[name] for each in alone]) for name in features}
            return features
        return self._in_halves(halves)

    def _in_halves(self, halves: Sequence[Sequence[TokenIds]]) -> dict[str, Features]:
        """Encode a batch that took too much memory, as these two."""
        with self._counting:
            self.halved_batches += 1
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        found: list[dict[str, Features]] = []
        for half in halves:
            try:
                found.append(self.encode(half))
            except MemoryFullError as error:
                raise MemoryFullError(error.sequence + sum(len(each) for each in halves[: len(found)])) from error
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}

    def _start(self, sequences: Sequence[TokenIds]) -> _Fetched:
        """Put a batch on a GPU's queues: copies of its ids there, its computation, copies of its features back."""
        with torch.inference_mode():
            return _Fetched(self._run(sequences), self._copies)


class _Fetched:
    """Features on their way from a GPU, on a queue for copies, so that the next batch is computed meanwhile."""

    def __init__(self, found: dict[str, torch.Tensor], copies: Any) -> None:
        self._host = {name: torch.empty(f.shape, dtype=torch.float32, pin_memory=True) for name, f in found.items()}
        copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(copies):
            for name, feature in found.items():
                self._host[name].copy_(feature, non_blocking=True)
                feature.record_stream(copies)
        self._done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done.record(copies)

    def wait(self) -> dict[str, Features]:
        """Wait until they are here: (sequences, width) float32 each."""
        self._done.synchronize()
        return {name: feature.numpy() for name, feature in self._host.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchReport:
    """One batch that `encode_sequences` has encoded.

    Attributes:
        sequences: (batch,) int64, their numbers among the sequences that were given.
        features: By name, (batch, width) float32.
        tokens: Tokens in the batch.
        seconds: Time that the caller waited for the encoder.
        number: The batch's number, from 1.
        batches: How many batches there are.
    """

    sequences: Indices
    features: dict[str, Features]
    tokens: int
    seconds: float
    number: int
    batches: int


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

    The batches depend on the sequences, ``batch_tokens`` and ``path`` alone, not on ``needed``: a run that needs only
    some of the features encodes the same batches as a run that needs all, and gets the same bits.

    Args:
        encoder: The encoder.
        sequences: The token sequences, none of them empty.
        distinct: No two sequences are equal: they are not compared.
        needed: (sequences,) bool, which features are needed. A batch in which none is needed is left out. None for all.
        batch_tokens: Most tokens in a batch; None for the encoder's own choice.
        path: How tokens are counted, with padding or without; None for the way that the encoder runs.
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
    padded = (path or encoder.path) is ForwardMode.PADDED
    batches = compose_batches(lengths, batch_tokens or encoder.batch_tokens, padded=padded)
    if needed is not None:
        kept = needed if inverse is None else np.bincount(inverse, needed) > 0
        batches = [batch for batch in batches if kept[batch].any()]
    features = {name: np.empty((len(sequences), encoder.width), np.float32) for name in encoder.features}
    encoded = encoder.encode_all([sequences[place] for place in batch] for batch in batches)
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
                on_batch(
                    BatchReport(
                        sequences=first[batch],
                        features=values,
                        tokens=int(lengths[batch].sum()),
                        seconds=seconds,
                        number=number,
                        batches=len(batches),
                    )
                )
    return features if inverse is None else {name: values[inverse] for name, values in features.items()}
