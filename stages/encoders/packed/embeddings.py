"""What the first layer begins with, where positions are attention's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from ...types import TokenIds
from .attention import Group, Norm
from .kernels import Kernels
from .states import Input, States

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordEmbeddings:
    """The normalised embeddings of the tokens, float32: positions are attention's."""

    words: Tensor  # (vocabulary, width)
    norm: Norm
    kernels: Kernels

    def __call__(self, sequences: Sequence[TokenIds], groups: Sequence[Group], following: Input) -> States:
        """With rows of zeros up to a number that suits the products."""
        ids = self.kernels.place(torch.from_numpy(np.concatenate(sequences).astype(np.int64)))
        return self.kernels.embed([(self.words, ids)], self.norm, following)
