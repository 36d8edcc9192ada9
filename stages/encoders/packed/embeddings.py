"""What the first layer begins with, where positions are attention's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import embedding

from ...types import TokenIds
from .attention import Group, Norm
from .linear import padded_rows

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordEmbeddings:
    """The normalised embeddings of the tokens, float32: positions are attention's."""

    words: Tensor  # (vocabulary, width)
    norm: Norm

    def __call__(self, sequences: Sequence[TokenIds], groups: Sequence[Group]) -> Tensor:
        """(tokens, width) float32, with rows of zeros up to a number that suits the products."""
        rows = self.norm(embedding(torch.from_numpy(np.concatenate(sequences).astype(np.int64)), self.words))
        hidden_states = rows.new_zeros(padded_rows(len(rows)), rows.shape[1])
        hidden_states[: len(rows)] = rows
        return hidden_states
