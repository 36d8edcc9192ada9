"""The model's own forward pass over padded batches: any architecture, on any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..devices import DTYPES
from ..settings import ForwardMode, Precision
from ..types import TokenIds
from .encoder import EncoderSettings
from .pooling import Pooling

ToDevice = Callable[[npt.NDArray[np.int64]], torch.Tensor]


class PaddedForward:
    """The model's own pass over a batch whose sequences are padded to the longest."""

    mode = ForwardMode.PADDED

    def __init__(
        self, model: Any, settings: EncoderSettings, *, padding: int, to_device: ToDevice | None = None
    ) -> None:
        """Take a model on its device; ``padding`` is the token to pad with, ``to_device`` copies ids there."""
        self._model, self._settings, self._padding = model, settings, padding
        self._to_device = to_device or (lambda ids: torch.from_numpy(ids).to(settings.device))

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
        features, precision = self._settings.features, self._settings.precision
        half = precision is not Precision.FLOAT32
        with torch.autocast(self._settings.device.type, DTYPES[precision], enabled=half):
            output = self._model(**inputs, output_hidden_states=any(feature.layer is not None for feature in features))
        pooled: dict[str, torch.Tensor] = {}
        for feature in features:
            if feature.pooling is Pooling.POOLER:
                pooled[feature.name] = output.pooler_output
                continue
            # (sequences, longest, width); the first of the hidden states is the embeddings'
            hidden = output.last_hidden_state if feature.layer is None else output.hidden_states[feature.layer]
            pooled[feature.name] = _pool(hidden, inputs["attention_mask"], feature.pooling)
        return pooled


def _pool(hidden: torch.Tensor, real: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """(sequences, tokens, width) to (sequences, width), over the tokens where ``real`` is 1."""
    if pooling is Pooling.MEAN:
        weights = real[..., None].to(torch.float32)
        return (hidden.float() * weights).sum(1) / weights.sum(1)
    if pooling is Pooling.MAX:
        return hidden.masked_fill(real[..., None] == 0, -torch.inf).amax(1)
    return hidden[:, 0]
