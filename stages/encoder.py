"""The frozen encoder: texts to token ids, token ids to features. The one module that knows transformers."""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from ..cache.errors import EncoderError, SettingsError
from .devices import DTYPES, default_batch_tokens
from .encoder_files import EncoderFiles
from .features import Feature, Pooling
from .memory import MemoryFullError, halving
from .packed import PackedEncoder
from .settings import EncoderPath, Precision

TokenIds = npt.NDArray[np.int32]
"""One token sequence, (tokens,) int32. Of a pair of texts, where the encoder tells segments apart, it is (tokens, 2):
the ids, and the segment of each."""
Features = npt.NDArray[np.float32]

VERSIONS = {"torch": torch.__version__, "transformers": transformers.__version__}


class Encoder:
    """A pretrained encoder that is never trained: in ``eval()``, under ``inference_mode``.

    Attributes:
        width: Numbers in each feature.
        max_length: Longest token sequence, special tokens included.
        path: How it runs over a batch.
        batch_tokens: How many tokens a batch should have.
        halved_batches: How many batches took more memory than there was, and were encoded in halves.
    """

    def __init__(
        self,
        files: EncoderFiles,
        *,
        features: tuple[Feature, ...],
        device: torch.device,
        precision: Precision,
        prefix: str,
        max_length: int,
        pairs: bool = False,
        batch_tokens: int | None = None,
    ) -> None:
        """Load the tokenizer and the weights.

        Args:
            files: The encoder's.
            features: What to take.
            device: Where to compute.
            precision: What to compute in.
            prefix: Text put before every text; of a pair, before the first.
            max_length: Longest token sequence, special tokens included.
            pairs: Whether pairs of texts will be read, which take more special tokens.
            batch_tokens: How large batches are going to be; None for what suits the device.

        Raises:
            EncoderError: the files are damaged, do not fit each other, or are not an encoder's.
            SettingsError: ``max_length`` is more than the encoder has positions for, or leaves no room for text.
        """
        self._name, self._prefix, self.max_length = files.name, prefix, max_length
        self._features, self._device, self._precision = features, device, precision
        self._copies: Any = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with quiet_transformers(), _loading(files):
            self._tokenizer = load_tokenizer(files)
            self._model = _load_model(files, features)
        self._model.to(device)
        self._check_fit(pairs)
        self.width = int(self._model.config.hidden_size)
        names = self._tokenizer.model_input_names
        self._segments = "token_type_ids" in names and getattr(self._model.config, "type_vocab_size", 0) > 1
        self.batch_tokens = batch_tokens or default_batch_tokens(device)
        self.halved_batches = 0
        self._packed = self._try_packed()
        self.path = EncoderPath.PACKED if self._packed else EncoderPath.PADDED
        if self._packed:
            self._model = None  # its weights live on in the packed encoder

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> tuple[list[TokenIds], npt.NDArray[np.bool_]]:
        """Turn texts, or pairs of texts, into token ids, special tokens included.

        Returns:
            The sequences, and (texts,) bool: which of them were cut at ``max_length``.
        """
        # The tokenizer's own pass over a batch, without the lists of Python integers that its wrapper builds.
        prefixed = [self._prefix + text for text in texts]
        inputs = prefixed if pairs is None else list(zip(prefixed, pairs, strict=True))
        encodings = self._tokenizer.backend_tokenizer.encode_batch(inputs)
        if pairs is not None and self._segments:
            sequences = [np.array([encoding.ids, encoding.type_ids], np.int32).T for encoding in encodings]
        else:
            sequences = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return sequences, np.array([bool(encoding.overflowing) for encoding in encodings], bool)

    def encode_all(self, batches: Iterable[Sequence[TokenIds]]) -> Iterator[dict[str, Features]]:
        """Encode batches, one after the other. On CUDA one batch is copied and computed while the last is fetched.

        Raises:
            MemoryFullError: as for `encode`.
        """
        if self._device.type != "cuda":
            yield from map(self.encode, batches)
            return
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
                found = self._packed(sequences) if self._packed else self._padded(sequences)
            features = {name: feature.float().cpu().numpy() for name, feature in found.items()}
            if self._packed and len(sequences) > 1 and not all(np.isfinite(f).all() for f in features.values()):
                alone = [self.encode([sequence]) for sequence in sequences]  # a neighbour's may be spoilt with it
                return {name: np.concatenate([each[name] for each in alone]) for name in features}
            return features
        return self._in_halves(halves)

    def _in_halves(self, halves: Sequence[Sequence[TokenIds]]) -> dict[str, Features]:
        """Encode a batch that took too much memory, as these two."""
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
            return _Fetched(self._padded(sequences), self._copies)

    def _padded(self, sequences: Sequence[TokenIds]) -> dict[str, torch.Tensor]:
        """The model's own forward pass: (sequences, width) each."""
        longest = max(len(sequence) for sequence in sequences)
        pairs = sequences[0].ndim == 2
        ids = np.full((len(sequences), longest), self._tokenizer.pad_token_id or 0, np.int64)  # (sequences, longest)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence[:, 0] if pairs else sequence
            segments[row, : len(sequence)] = sequence[:, 1] if pairs else 0
            mask[row, : len(sequence)] = 1
        inputs = {"input_ids": self._to_device(ids), "attention_mask": self._to_device(mask)}
        if pairs:
            inputs["token_type_ids"] = self._to_device(segments)
        real = inputs["attention_mask"]
        layers = any(feature.layer is not None for feature in self._features)
        enabled = self._precision is not Precision.FLOAT32
        with torch.autocast(self._device.type, DTYPES[self._precision], enabled=enabled):
            output = self._model(**inputs, output_hidden_states=layers)
        found = {}
        for feature in self._features:
            # (sequences, longest, width); the first of the hidden states is the embeddings'
            hidden = output.last_hidden_state if feature.layer is None else output.hidden_states[feature.layer]
            pooler = output.pooler_output if feature.pooling is Pooling.POOLER else None
            found[feature.name] = _pool(hidden, real, feature.pooling) if pooler is None else pooler
        return found

    def _to_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._copies is None:
            return tensor.to(self._device)
        with torch.cuda.stream(self._copies):  # pinned, and on a queue of its own: it runs beside the batch before
            found = tensor.pin_memory().to(self._device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._copies)
        found.record_stream(torch.cuda.current_stream())
        return found

    def _try_packed(self) -> PackedEncoder | None:
        """The encoder without padding, where it fits the architecture and, tried out, gives the model's own numbers."""
        if self._device.type != "cpu" or not PackedEncoder.fits(self._model):
            return None
        packed = PackedEncoder(
            self._model, self._features, dtype=DTYPES[self._precision], batch_tokens=self.batch_tokens
        )
        tokens, positions = self._model.get_input_embeddings().num_embeddings, _positions(self._model)
        lengths = [min(length, positions) for length in (7, 7, 3)]
        # RoBERTa's padding, 1, is among them.
        trial = [(1 + np.arange(length) % max(tokens - 1, 1)).astype(np.int32) for length in lengths]
        if self._segments:
            trial = [np.stack([ids, ids > 2], axis=1).astype(np.int32) for ids in trial]
        with torch.inference_mode():
            ours, theirs = packed(trial), self._padded(trial)
        tolerance = 1e-5 if self._precision is Precision.FLOAT32 else 0.1
        agree = [torch.allclose(ours[n].float(), theirs[n].float(), rtol=tolerance, atol=tolerance) for n in theirs]
        return packed if all(agree) else None

    def _check_fit(self, pairs: bool) -> None:
        """Refuse what would give features that are wrong, or none."""
        embedded = getattr(self._model.get_input_embeddings(), "num_embeddings", None)
        if not isinstance(embedded, int) or not hasattr(self._model.config, "hidden_size"):
            raise EncoderError(
                f"encoder {self._name} ({self._model.config.model_type}) is not an encoder of texts, or of a kind that "
                "headstart does not know"
            )
        largest = max(self._tokenizer.get_vocab().values(), default=-1) + 1
        if largest > embedded:
            raise EncoderError(
                f"encoder {self._name}: its tokenizer knows {largest:,} tokens, its model {embedded:,}: they do not "
                "belong together"
            )
        positions = min(_positions(self._model), self._tokenizer.model_max_length)
        special = self._tokenizer.num_special_tokens_to_add(pair=pairs)
        if self.max_length > positions:
            raise SettingsError(
                f"max_length is {self.max_length}; encoder {self._name} reads at most {positions} tokens",
                field="max_length",
            )
        if self.max_length <= special:
            raise SettingsError(
                f"max_length is {self.max_length}, of which special tokens take {special}: no room for text",
                field="max_length",
            )
        backend = self._tokenizer.backend_tokenizer
        backend.enable_truncation(self.max_length, direction=self._tokenizer.truncation_side)
        backend.no_padding()
        with torch.inference_mode():
            states = [self._model(input_ids=torch.tensor([[1, token]], device=self._device)) for token in (2, 3)]
        first, second = (state.last_hidden_state[:, 0] for state in states)
        if torch.equal(first, second) and first.isfinite().all():
            raise EncoderError(
                f"encoder {self._name}: its first position does not see the tokens after it, so it cannot stand for a "
                "text: this is a decoder, not an encoder"
            )


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


def load_tokenizer(files: EncoderFiles) -> Any:
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        files.folder, use_fast=True, trust_remote_code=False, local_files_only=True
    )
    if not tokenizer.is_fast:
        raise EncoderError(f"encoder {files.name} has no fast tokenizer; save one as tokenizer.json beside its weights")
    return tokenizer


def _load_model(files: EncoderFiles, features: tuple[Feature, ...]) -> Any:
    model, loading = transformers.AutoModel.from_pretrained(
        files.folder,
        dtype=torch.float32,
        use_safetensors=not files.pickled,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are listed, and refused below in our own words
    )
    if model.config.is_encoder_decoder:
        raise EncoderError(
            f"encoder {files.name} is an encoder with a decoder ({model.config.model_type}); not supported"
        )
    # A pooler that was never saved is made up by transformers, which matters only where a feature reads it.
    pooled = any(feature.pooling is Pooling.POOLER for feature in features)
    if pooled and getattr(model, "pooler", None) is None:
        raise EncoderError(f"encoder {files.name} ({model.config.model_type}) has no pooler; choose other --features")
    made_up = sorted(key for key in loading["missing_keys"] if pooled or not key.startswith("pooler."))
    wrong = made_up or sorted(map(str, loading["mismatched_keys"])) or loading["error_msgs"]
    if wrong:
        raise EncoderError(
            f"encoder {files.name}: its weights do not fit its config.json ({len(wrong)} of them, such as {wrong[0]})"
        )
    if broken := next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None):
        raise EncoderError(f"encoder {files.name}: its weights {broken!r} hold values that are no numbers (NaN or inf)")
    model.requires_grad_(False)
    return model.eval()


def _pool(hidden: torch.Tensor, real: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(sequences, tokens, width) to (sequences, width), over the tokens where ``real`` is 1."""
    if pooling is Pooling.MEAN:
        weights = real[..., None].to(torch.float32)
        return (hidden.float() * weights).sum(1) / weights.sum(1)
    if pooling is Pooling.MAX:
        return hidden.masked_fill(real[..., None] == 0, -torch.inf).amax(1)
    return hidden[:, 0]


def _positions(model: Any) -> int:
    """Most tokens that the model has positions for; RoBERTa's start after its padding index."""
    most = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(most, int) or most < 1:
        return 1 << 30
    embedding = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    padding = getattr(embedding, "padding_idx", None)
    return most if padding is None else most - padding - 1


@contextlib.contextmanager
def _loading(files: EncoderFiles) -> Iterator[None]:
    """Turn whatever transformers raises while it reads files into one line."""
    try:
        yield
    except EncoderError:
        raise
    except Exception as error:  # it raises of every kind, according to what is wrong with which file
        reason = textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__
        raise EncoderError(f"encoder {files.name}: its files in {files.folder} cannot be read: {reason}") from error


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own bars and reports off the terminal while it loads; what matters is raised."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(logging.ERROR)
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()  # type: ignore[no-untyped-call]
