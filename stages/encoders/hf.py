"""Encoders loaded by transformers: as any architecture is, and as one whose features are trusted.

Beside the program that is measured against (`baseline`), this is the one module that knows transformers. It takes
seconds to load, so `extract` imports it only where it turns out to need it.
"""

from __future__ import annotations

import contextlib
import logging
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from ...cache.errors import EncoderError, SettingsError
from ..devices import DTYPES
from ..settings import ForwardMode, Precision
from ..types import TokenIds
from .config import PackedShape, Recipe, fits, tokenizer_sha256
from .encoder import Encoder, EncoderSettings
from .files import EncoderFiles
from .packed.bert import PackedEncoder
from .pooling import Feature, Pooling


def load_encoder(files: EncoderFiles, settings: EncoderSettings) -> Encoder:
    """Load the tokenizer and the weights.

    Raises:
        EncoderError: the files are damaged, do not fit each other, or are not an encoder's.
        SettingsError: ``max_length`` is more than the encoder has positions for, or leaves no room for text.
    """
    copies: Any = None
    if settings.device.type == "cuda":
        copies = torch.cuda.Stream(settings.device)  # type: ignore[no-untyped-call]
    with quiet_transformers(), _loading(files):
        tokenizer = load_tokenizer(files)
        model = _load_model(files, settings.features)
    model.to(settings.device)
    _check_fit(files.name, tokenizer, model, settings)
    backend, side, width = tokenizer.backend_tokenizer, tokenizer.truncation_side, int(model.config.hidden_size)
    backend.enable_truncation(settings.max_length, direction=side)
    backend.no_padding()
    segments = "token_type_ids" in tokenizer.model_input_names and getattr(model.config, "type_vocab_size", 0) > 1
    padded = PaddedPass(model, settings, padding=tokenizer.pad_token_id or 0, copies=copies)
    shape = packed_shape(model) if settings.device.type == "cpu" else None
    packed = None if shape is None else _try_packed(model, shape, settings, padded, segments)
    recipe = None
    if shape is not None and packed is not None and not backend.encode_special_tokens:  # which its JSON does not say
        recipe = Recipe(
            shape=shape,
            width=width,
            segments=segments,
            tokenizer_sha256=tokenizer_sha256(backend),
        )
    return Encoder(
        settings,
        tokenizer=backend,
        run=packed or padded,  # the model's weights live on in the packed encoder
        width=width,
        segments=segments,
        recipe=recipe,
        copies=copies,
    )


class PaddedPass:
    """The model's own forward pass, over a batch that is padded to its longest sequence."""

    def __init__(self, model: Any, settings: EncoderSettings, *, padding: int, copies: Any) -> None:
        """``padding`` is the token to pad with, ``copies`` on CUDA the stream of the copies."""
        self._model, self._settings, self._padding, self._copies = model, settings, padding, copies

    def __call__(self, sequences: Sequence[TokenIds]) -> dict[str, torch.Tensor]:
        """By the features' names: (sequences, width) each."""
        longest = max(len(sequence) for sequence in sequences)
        pairs = sequences[0].ndim == 2
        ids = np.full((len(sequences), longest), self._padding, np.int64)  # (sequences, longest)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence[:, 0] if pairs else sequence
            segments[row, : len(sequence)] = sequence[:, 1] if pairs else 0
            mask[row, : len(sequence)] = 1
        inputs = {"input_ids": self._to_device(ids), "attention_mask": self._to_device(mask)}
        if pairs:
            inputs["token_type_ids"] = self._to_device(segments)
        real = inputs["attention_mask"]
        layers = any(feature.layer is not None for feature in self._settings.features)
        enabled = self._settings.precision is not Precision.FLOAT32
        with torch.autocast(self._settings.device.type, DTYPES[self._settings.precision], enabled=enabled):
            output = self._model(**inputs, output_hidden_states=layers)
        found = {}
        for feature in self._settings.features:
            # (sequences, longest, width); the first of the hidden states is the embeddings'
            hidden = output.last_hidden_state if feature.layer is None else output.hidden_states[feature.layer]
            pooler = output.pooler_output if feature.pooling is Pooling.POOLER else None
            found[feature.name] = _pooled(hidden, real, feature.pooling) if pooler is None else pooler
        return found

    def _to_device(self, array: npt.NDArray[np.int64]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._copies is None:
            return tensor.to(self._settings.device)
        with torch.cuda.stream(self._copies):  # pinned, and on a queue of its own: it runs beside the batch before
            found = tensor.pin_memory().to(self._settings.device, non_blocking=True)
        torch.cuda.current_stream().wait_stream(self._copies)
        found.record_stream(torch.cuda.current_stream())
        return found


def packed_shape(model: Any) -> PackedShape | None:
    """What a packed encoder needs to know of a model; None where it would not compute the same, going by its
    configuration."""
    config, norms = model.config, [module for module in model.modules() if isinstance(module, torch.nn.LayerNorm)]
    epsilons = {norm.eps for norm in norms}
    if not fits(config.to_dict()) or len(epsilons) != 1:
        return None
    return PackedShape(
        model_type=config.model_type,
        heads=config.num_attention_heads,
        layers=config.num_hidden_layers,
        epsilon=epsilons.pop(),
        position_padding=model.embeddings.position_embeddings.padding_idx,
    )


def _try_packed(
    model: Any, shape: PackedShape, settings: EncoderSettings, padded: PaddedPass, segments: bool
) -> PackedEncoder | None:
    """The encoder without padding, where, tried out, it gives the model's own numbers."""
    packed = PackedEncoder(
        model.state_dict(),
        shape,
        settings.features,
        dtype=DTYPES[settings.precision],
        batch_tokens=settings.chosen_batch_tokens(ForwardMode.PACKED),
    )
    tokens, positions = model.get_input_embeddings().num_embeddings, _positions(model)
    lengths = [min(length, positions) for length in (7, 7, 3)]
    # RoBERTa's padding, 1, is among them.
    trial = [(1 + np.arange(length) % max(tokens - 1, 1)).astype(np.int32) for length in lengths]
    if segments:
        trial = [np.stack([ids, ids > 2], axis=1).astype(np.int32) for ids in trial]
    with torch.inference_mode():
        ours, theirs = packed(trial), padded(trial)
    tolerance = 1e-5 if settings.precision is Precision.FLOAT32 else 0.1
    agree = [torch.allclose(ours[n].float(), theirs[n].float(), rtol=tolerance, atol=tolerance) for n in theirs]
    return packed if all(agree) else None


def _check_fit(name: str, tokenizer: Any, model: Any, settings: EncoderSettings) -> None:
    """Refuse what would give features that are wrong, or none."""
    embedded = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if not isinstance(embedded, int) or not hasattr(model.config, "hidden_size"):
        raise EncoderError(
            f"encoder {name} ({model.config.model_type}) is not an encoder of texts, or of a kind that "
            "headstart does not know"
        )
    largest = max(tokenizer.get_vocab().values(), default=-1) + 1
    if largest > embedded:
        raise EncoderError(
            f"encoder {name}: its tokenizer knows {largest:,} tokens, its model {embedded:,}: they do not "
            "belong together"
        )
    positions = min(_positions(model), tokenizer.model_max_length)
    special = tokenizer.num_special_tokens_to_add(pair=settings.pairs)
    if settings.max_length > positions:
        raise SettingsError(f"`max_length` is {settings.max_length}; encoder {name} reads at most {positions} tokens")
    if settings.max_length <= special:
        raise SettingsError(
            f"`max_length` is {settings.max_length}, of which special tokens take {special}: no room for text"
        )
    with torch.inference_mode():
        states = [model(input_ids=torch.tensor([[1, token]], device=settings.device)) for token in (2, 3)]
    first, second = (state.last_hidden_state[:, 0] for state in states)
    if torch.equal(first, second) and first.isfinite().all():
        raise EncoderError(
            f"encoder {name}: its first position does not see the tokens after it, so it cannot stand for a "
            "text: this is a decoder, not an encoder"
        )


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
        raise EncoderError(f"encoder {files.name} ({model.config.model_type}) has no pooler; choose other `features`")
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


def _pooled(hidden: torch.Tensor, real: torch.Tensor, pooling: Pooling) -> torch.Tensor:
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
