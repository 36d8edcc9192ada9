"""What the first layer begins with, where positions are attention's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import embedding

from ...types import TokenIds
from .attention import Group, Norm
from .kernels import Kernels

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordEmbeddings:
    """The normalised embeddings of the tokens, float32: positions are attention's."""

    words: Tensor  # (vocabulary, width)
    norm: Norm
    kernels: Kernels

    def __call__(self, sequences: Sequence[TokenIds], groups: Sequence[Group]) -> Tensor:
        """(tokens, width) float32, with rows of zeros up to a number that suits the products."""
        ids = self.kernels.place(torch.from_numpy(np.concatenate(sequences).astype(np.int64)))
        return self.kernels.pad(self.norm(embedding(ids, self.words)))
