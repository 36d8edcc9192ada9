"""The frozen encoder: texts to token ids, token ids to features, whichever way it was loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
import torch

from ..devices import default_batch_tokens
from ..settings import ForwardMode, Precision
from ..threads import ordered_map
from .config import Recipe
from .memory import MemoryFullError, halving
from .packed.bert import PackedEncoder
from .pooling import Feature
from .tokenizer import Tokenizer

TokenIds = npt.NDArray[np.int32]
"""One token sequence, (tokens,) int32. Of a pair of texts, where the encoder tells segments apart, it is (tokens, 2):
the ids, and the segment of each."""
Features = npt.NDArray[np.float32]
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
        self._tokenizing, self._run, self._segments, self._copies = Tokenizer(tokenizer), run, segments, copies
        self.path = ForwardMode.PACKED if isinstance(run, PackedEncoder) else ForwardMode.PADDED
        self.width, self.batch_tokens, self.recipe = width, settings.chosen_batch_tokens(self.path), recipe
        self.halved_batches, self._counting = 0, threading.Lock()

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> tuple[list[TokenIds], npt.NDArray[np.bool_]]:
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

    def encode_all(self, batches: Iterable[Sequence[TokenIds]]) -> Iterator[dict[str, Features]]:
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
