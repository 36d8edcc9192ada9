"""The result of stage two: a linear head that predicts, and is saved and loaded. It needs numpy alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from ..cache.errors import DamagedError, NotOursError, StorageError, UserError
from ..cache.identity import Identity
from .run import HEAD_FILE, read_run

_PREDICT_ROWS = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """A linear classifier on one feature of one encoder.

    Attributes:
        weight: (classes, width) float32.
        bias: (classes,) float32.
        label_names: The classes, in the order of ``weight``'s rows.
        identity: What the features must be of.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    label_names: tuple[str, ...]
    identity: Identity

    def logits(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """(rows, width) features to (rows, classes) float32."""
        if features.ndim != 2 or features.shape[1] != self.weight.shape[1]:
            raise UserError(f"features have the shape {features.shape}; this head reads (rows, {self.weight.shape[1]})")
        out = np.empty((len(features), len(self.bias)), np.float32)
        for start in range(0, len(features), _PREDICT_ROWS):  # a map of float16 is not turned into float32 whole
            rows = slice(start, start + _PREDICT_ROWS)
            out[rows] = features[rows].astype(np.float32) @ self.weight.T + self.bias
        return out

    def probabilities(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """(rows, width) features to (rows, classes) float32; each row sums to 1."""
        logits = self.logits(features)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: npt.NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return probabilities

    def predict(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
        """(rows, width) features to (rows,) int64, indices into ``label_names``."""
        predicted: npt.NDArray[np.int64] = self.logits(features).argmax(axis=1)
        return predicted

    def save(self, folder: Path) -> None:
        """Write ``head.safetensors``: ``weight`` and ``bias``. The rest stands in ``run.json``."""
        data = safetensors.numpy.save({"weight": self.weight, "bias": self.bias})
        (folder / HEAD_FILE).write_bytes(data)


def load_head(run: str | Path) -> Head:
    """Load the head of a run folder.

    Raises:
        NotOursError: the folder is not a run.
        DamagedError: the head cannot be read, or does not fit its ``run.json``.
    """
    folder = Path(run)
    fields = read_run(folder)
    names = tuple(fields["label_names"])
    identity = Identity.from_dict(fields["identity"], str(folder))
    try:
        tensors = safetensors.numpy.load((folder / HEAD_FILE).read_bytes())
    except FileNotFoundError:
        raise NotOursError(
            f"{folder} holds no {HEAD_FILE}; train one with: headstart train-head CACHE --out {folder}"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot read {folder / HEAD_FILE}: {error.strerror}") from None
    except safetensors.SafetensorError as error:
        raise DamagedError(f"{folder / HEAD_FILE} cannot be read: {error}") from None
    weight, bias = tensors.get("weight"), tensors.get("bias")
    if weight is None or bias is None or not _fit_each_other(weight, bias, len(names)):
        raise DamagedError(f"{folder / HEAD_FILE} does not hold a finite weight and a bias for {len(names)} classes")
    return Head(weight=weight, bias=bias, label_names=names, identity=identity)


def _fit_each_other(weight: npt.NDArray[Any], bias: npt.NDArray[Any], classes: int) -> bool:
    shapes = weight.ndim == 2 and weight.shape[0] == classes and bias.shape == (classes,)
    return shapes and bool(np.isfinite(weight).all() and np.isfinite(bias).all())
