"""The model's own forward pass over batches: any architecture, on any device."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...cache.errors import EncoderError
from ..devices import DTYPES
from ..settings import ForwardMode, Precision
from ..types import TokenIds
from .encoder import EncoderSettings
from .memory import is_memory_full
from .pooling import Feature, Pooling

ToDevice = Callable[[npt.NDArray[np.int64]], torch.Tensor]


class PaddedForward:
    """The model's own pass over a batch: padded to its longest sequence, or over the sequences of each length alone.

    ``mode`` says which.
    """

    mode: ForwardMode

    def __init__(
        self,
        model: Any,
        settings: EncoderSettings,
        *,
        name: str,
        padding: int,
    ) -> None:
        """Take a model on its device; ``name`` is the encoder's in messages, ``padding`` is the token to pad with."""
        self._model, self._settings, self._padding = model, settings, padding
        self.name, self.kind, self.mode = name, str(model.config.model_type), ForwardMode.PADDED
        self.to_device: ToDevice = lambda ids: torch.from_numpy(ids).to(settings.device)

    def __call__(self, sequences: Sequence[TokenIds]) -> dict[str, torch.Tensor]:
        """By the features' names: (sequences, width) each.

        Raises:
            EncoderError: the model's own code raises an exception that is not about memory.
        """
        try:
            return self._by_length(sequences) if self.mode is ForwardMode.SAME_LENGTH else self._padded(sequences)
        except Exception as error:  # of any kind: it is the model's own code
            if is_memory_full(error):
                raise
            longest = max(len(sequence) for sequence in sequences)
            half = "" if self._settings.precision is Precision.FLOAT32 else "in half precision, try float32; "
            reason = textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__
            raise EncoderError(
                f"{self.name} ({self.kind}) fails on {len(sequences):,} sequences of up to {longest:,} tokens, so "
                f"choose another one; {half}it says: {reason}"
            ) from error

    def _by_length(self, sequences: Sequence[TokenIds]) -> dict[str, torch.Tensor]:
        lengths = np.array([len(sequence) for sequence in sequences])
        groups = [np.flatnonzero(lengths == length) for length in np.unique(lengths)]
        parts = [self._padded([sequences[place] for place in group.tolist()]) for group in groups]
        order = np.argsort(np.concatenate(groups))
        return {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}

    def _padded(self, sequences: Sequence[TokenIds]) -> dict[str, torch.Tensor]:
        longest = max(len(sequence) for sequence in sequences)
        pairs = sequences[0].ndim == 2
        ids = np.full((len(sequences), longest), self._padding, np.int64)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, : len(sequence)] = sequence[:, 0] if pairs else sequence
            segments[row, : len(sequence)] = sequence[:, 1] if pairs else 0
            mask[row, : len(sequence)] = 1
        inputs = {"input_ids": self.to_device(ids), "attention_mask": self.to_device(mask)}
        if pairs:
            inputs["token_type_ids"] = self.to_device(segments)
        features, precision = self._settings.pooled, self._settings.precision
        half = precision is not Precision.FLOAT32
        with torch.autocast(self._settings.device.type, DTYPES[precision], enabled=half):
            output = self._model(**inputs, output_hidden_states=any(feature.layer is not None for feature in features))
        return {feature.name: pool_output(output, inputs["attention_mask"], feature) for feature in features}


def pool_output(output: Any, real: torch.Tensor, feature: Feature) -> torch.Tensor:
    """Return a feature of a model's output: (sequences, width), over the tokens where ``real`` is 1.

    ``real`` is (sequences, tokens) int64. Exporters trace this function.
    """
    if feature.pooling is Pooling.POOLER:
        return output.pooler_output  # type: ignore[no-any-return]
    # (sequences, tokens, width); the first of the hidden states is the embeddings'
    hidden: torch.Tensor = output.last_hidden_state if feature.layer is None else output.hidden_states[feature.layer]
    pooling, skipped = feature.pooling, feature.skipped
    if pooling is Pooling.LAST:
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), real.sum(1) - 1]
    if pooling is Pooling.CLS:
        return hidden[:, skipped]
    positions = real.cumsum(1)[:, skipped:]
    hidden, real = hidden[:, skipped:], real[:, skipped:]
    if pooling in (Pooling.MEAN, Pooling.MEAN_SQRT_LEN, Pooling.WEIGHTED_MEAN):
        weights = real[..., None].to(torch.float32)
        if pooling is Pooling.WEIGHTED_MEAN:
            weights = weights * positions[..., None]
        total = weights.sum(1)
        return (hidden.float() * weights).sum(1) / (total.sqrt() if pooling is Pooling.MEAN_SQRT_LEN else total)
    return hidden.masked_fill(real[..., None] == 0, -torch.inf).amax(1)
