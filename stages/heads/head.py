"""The result of stage two: a head that predicts, and is saved and loaded. It needs numpy alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from ...cache.errors import DamagedError, FormatError, StorageError, UserError
from ...cache.identity import Identity
from ..runs.run import HEAD_FILE, read_run

_PREDICT_ROWS = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """A classifier on one feature of one encoder.

    Attributes:
        weight: (classes, width) float32; an MLP's is (classes, hidden).
        bias: (classes,) float32.
        hidden_weight: (hidden, width) float32 of an MLP's hidden layer, which ends in a rectifier; None for a linear
            head.
        hidden_bias: (hidden,) float32, likewise.
        temperature: What the logits are divided by before they become probabilities: 1 where it was not fitted.
        label_names: The classes, in the order of ``weight``'s rows.
        identity: What the features must be of.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    hidden_weight: npt.NDArray[np.float32] | None = None
    hidden_bias: npt.NDArray[np.float32] | None = None
    temperature: float = 1.0
    label_names: tuple[str, ...]
    identity: Identity

    @property
    def width(self) -> int:
        return int((self.weight if self.hidden_weight is None else self.hidden_weight).shape[1])

    def logits(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """(rows, width) features to (rows, classes) float32, before the temperature."""
        if features.ndim != 2 or features.shape[1] != self.width:
            raise UserError(f"features have the shape {features.shape}; this head reads (rows, {self.width})")
        out = np.empty((len(features), len(self.bias)), np.float32)
        for start in range(0, len(features), _PREDICT_ROWS):  # a map of float16 is not turned into float32 whole
            rows = slice(start, start + _PREDICT_ROWS)
            inner = features[rows].astype(np.float32)
            if self.hidden_weight is not None and self.hidden_bias is not None:
                inner = np.maximum(inner @ self.hidden_weight.T + self.hidden_bias, 0)
            out[rows] = inner @ self.weight.T + self.bias
        return out

    def log_probabilities(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """(rows, width) features to (rows, classes) float64, natural logarithms."""
        return log_softmax(self.logits(features), self.temperature)

    def probabilities(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float32]:
        """(rows, width) features to (rows, classes) float32; each row sums to 1."""
        return np.exp(self.log_probabilities(features)).astype(np.float32)

    def predict(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
        """(rows, width) features to (rows,) int64, indices into ``label_names``."""
        predicted: npt.NDArray[np.int64] = self.logits(features).argmax(axis=1)
        return predicted

    def save(self, folder: Path) -> None:
        """Write ``head.safetensors``: ``weight``, ``bias``, and where there are such, ``hidden.weight``,
        ``hidden.bias`` and ``temperature`` (1,). The rest stands in ``run.json``."""
        tensors = {"weight": self.weight, "bias": self.bias}
        if self.hidden_weight is not None and self.hidden_bias is not None:
            tensors |= {"hidden.weight": self.hidden_weight, "hidden.bias": self.hidden_bias}
        if self.temperature != 1:
            tensors["temperature"] = np.array([self.temperature], np.float32)
        (folder / HEAD_FILE).write_bytes(safetensors.numpy.save(tensors))


def log_softmax(logits: npt.NDArray[np.float32], temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """(rows, classes) logits to the logarithms of their probabilities, float64."""
    scaled = logits.astype(np.float64) / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    result: npt.NDArray[np.float64] = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return result


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
        if not (folder / HEAD_FILE).is_file():
            raise FileNotFoundError
        tensors = safetensors.numpy.load((folder / HEAD_FILE).read_bytes())
    except FileNotFoundError:
        raise FormatError(
            f"{folder} holds no {HEAD_FILE}; train one with: headstart train-head CACHE --out {folder}"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot read {folder / HEAD_FILE}: {error.strerror}") from None
    except (safetensors.SafetensorError, KeyError) as error:  # a kind of number that numpy has not
        raise DamagedError(f"{folder / HEAD_FILE} cannot be read: {error}") from None
    weight, bias = tensors.get("weight"), tensors.get("bias")
    hidden_weight, hidden_bias = tensors.get("hidden.weight"), tensors.get("hidden.bias")
    if weight is None or bias is None or not _fit_each_other(weight, bias, len(names)):
        raise DamagedError(
            f"{folder / HEAD_FILE} does not hold a weight and a bias, finite and in float32, for {len(names)} classes"
        )
    if (hidden_weight is None) != (hidden_bias is None) or (
        hidden_weight is not None
        and hidden_bias is not None
        and not _fit_each_other(hidden_weight, hidden_bias, weight.shape[1])
    ):
        raise DamagedError(f"{folder / HEAD_FILE}: its hidden layer does not fit its weight")
    stored = tensors.get("temperature", np.ones(1))
    temperature = float(stored.reshape(-1)[0]) if stored.size == 1 else np.nan
    if not 0 < temperature < np.inf:
        raise DamagedError(f"{folder / HEAD_FILE}: its temperature is {temperature}, not a number above 0")
    return Head(
        weight=weight,
        bias=bias,
        hidden_weight=hidden_weight,
        hidden_bias=hidden_bias,
        temperature=temperature,
        label_names=names,
        identity=identity,
    )


def _fit_each_other(weight: npt.NDArray[Any], bias: npt.NDArray[Any], classes: int) -> bool:
    shapes = weight.ndim == 2 and weight.shape[0] == classes and bias.shape == (classes,)
    numbers = weight.dtype == bias.dtype == np.float32
    return shapes and numbers and bool(np.isfinite(weight).all() and np.isfinite(bias).all())
