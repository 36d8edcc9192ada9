"""The folder of a training run: ``head.safetensors`` holds the head's arrays, ``predictions.parquet`` its predictions
for validation and test rows, ``run.json`` everything else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import safetensors
import safetensors.numpy

from ...cache.documents import are_names, checked
from ...cache.errors import DamagedError, FormatError, StorageError
from ...cache.identity import Identity
from ...cache.record import EncoderRecord
from ..heads.dims import Dims
from ..heads.head import Head
from ..settings import Scaling, Task
from .folders import FolderKind
from .predictions import PartPredictions, write_predictions

HEAD_FILE = "head.safetensors"
_TENSORS = {name.replace("_", "."): name for name in ("weight", "bias", "hidden_weight", "hidden_bias")}
"""The names of a head's tensors in the file, and in `Head`."""


class RunRows(TypedDict):
    """Number of rows in each split."""

    train: int
    validation: int
    test: int


class RunMetrics(TypedDict):
    """Metrics on the validation and test rows; see `evaluate`. None without validation rows."""

    validation: dict[str, Any] | None
    test: dict[str, Any]


class _DimsRecord(TypedDict):
    """Which part of the vectors a head reads: `Dims`."""

    dims: int
    of: int
    normalized: bool


class RunRecord(TypedDict):
    """Fields that every ``run.json`` holds; it MAY hold more, such as ``dims``."""

    label_names: list[str]
    identity: dict[str, Any]
    settings: dict[str, Any]
    encoder: EncoderRecord
    rows: RunRows
    metrics: RunMetrics
    history: list[Any]
    temperature: float
    seconds: float


RUN = FolderKind(
    name="run",
    file="run.json",
    format="headstart-run",
    version=2,
    command="headstart train-head",
    others=r"head\.safetensors|predictions\.parquet|tensorboard/([^/]+)?",
    record=RunRecord,
)


def read_run(folder: Path) -> dict[str, Any]:
    """Read and check ``run.json``.

    Raises:
        As `FolderKind.read`; FormatError also for an unknown task, DamagedError for label names that are none.
    """
    fields, path = RUN.read(folder), folder / RUN.file
    task = _task(fields, str(path))
    if not are_names(fields["label_names"]) and (task is not Task.REGRESSION or fields["label_names"]):
        raise DamagedError(f"{path}: its label_names are not a list of distinct names")
    return fields


def _task(fields: dict[str, Any], where: str) -> Task:
    """Return what a head is for.

    Raises:
        FormatError: a newer headstart alone knows it.
    """
    task = fields.get("task", Task.CLASSES)
    if task not in list(Task) or task == Task.AUTO:
        raise FormatError(f"{where}: its task is {str(task)[:80]!r}, which this headstart does not know: upgrade it")
    return Task(task)


def write_run(folder: Path, head: Head, fields: dict[str, Any], predictions: Sequence[PartPredictions]) -> None:
    """Write a run into a folder that `RUN.new` gave: ``run.json``; ``head.safetensors`` with the head's arrays, and
    ``temperature`` (1,) float32 if one was fitted; and ``predictions.parquet``."""
    arrays = {name: getattr(head, attribute) for name, attribute in _TENSORS.items()}
    tensors = {name: array for name, array in arrays.items() if array is not None}
    if head.temperature != 1:
        tensors["temperature"] = np.array([head.temperature], np.float32)
    (folder / HEAD_FILE).write_bytes(safetensors.numpy.save(tensors))
    write_predictions(folder, head, predictions)
    # As every headstart predicts.
    plain = head.task is Task.CLASSES and not head.normalize and head.thresholds is None
    thresholds = None if head.thresholds is None else list(head.thresholds)
    RUN.write(folder, {**fields, "task": head.task, "thresholds": thresholds}, version=1 if plain else 2)


def load_head(run: str | os.PathLike[str]) -> Head:
    """Load the head of a run folder.

    Raises:
        FormatError: the folder is not a run.
        DamagedError: the head cannot be read, or does not fit ``run.json``.
        StorageError: a file cannot be read.
    """
    folder = Path(run)
    fields, path = read_run(folder), folder / HEAD_FILE
    names, task = tuple(fields["label_names"]), _task(fields, str(folder / RUN.file))
    identity = Identity.from_dict(fields["identity"], str(folder))
    try:
        if not path.is_file():
            raise FormatError(
                f"{folder} holds no {HEAD_FILE}; train one with: headstart train-head CACHE --out {folder}"
            )
        tensors = safetensors.numpy.load(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None
    except (safetensors.SafetensorError, KeyError) as error:  # KeyError: a type of number that numpy does not have
        raise DamagedError(f"{path} cannot be read: {error}") from None
    biases = {Task.REGRESSION: 1, Task.ORDINAL: len(names) - 1}.get(task, len(names))
    outputs = 1 if task in (Task.REGRESSION, Task.ORDINAL) else biases
    if not _is_layer(tensors, "", outputs=outputs, biases=biases):
        raise DamagedError(
            f"{path} does not hold a weight and a bias, finite and in float32, for "
            + ("numbers" if task is Task.REGRESSION else f"{len(names)} classes")
        )
    if tensors.keys() & {"hidden.weight", "hidden.bias"} and not _is_layer(
        tensors, "hidden.", outputs=tensors["weight"].shape[1], biases=tensors["weight"].shape[1]
    ):
        raise DamagedError(f"{path}: its hidden layer does not fit its weight")
    stored = tensors.get("temperature", np.ones(1))
    temperature = float(stored.reshape(-1)[0]) if stored.size == 1 else np.nan
    if not 0 < temperature < np.inf:
        raise DamagedError(f"{path}: its temperature is {temperature}, not a number above 0")
    parameters = {attribute: tensors[name] for name, attribute in _TENSORS.items() if name in tensors}
    scaling = fields.get("scaling", Scaling.NONE)
    if scaling not in tuple(Scaling):
        raise FormatError(
            f"{folder / RUN.file}: its scaling is {scaling!r}, which this headstart does not know: upgrade it"
        )
    normalize = scaling == Scaling.NORMALIZED
    head = Head(
        **parameters,
        temperature=temperature,
        label_names=names,
        task=task,
        thresholds=_thresholds(fields, names, str(folder / RUN.file)),
        identity=identity,
        dims=None,
        normalize=normalize,
    )
    if fields.get("dims") is None:
        return head
    said = checked(fields["dims"], _DimsRecord, f"{folder / RUN.file}: its 'dims'")
    if not head.width == said["dims"] < said["of"]:
        raise DamagedError(f"{folder / RUN.file}: its 'dims' do not fit {HEAD_FILE}")
    dims = Dims(dims=said["dims"], of=said["of"], normalized=said["normalized"])
    return dataclasses.replace(head, dims=dims)


def _thresholds(fields: dict[str, Any], names: tuple[str, ...], where: str) -> tuple[float, ...] | None:
    found = fields.get("thresholds")
    if found is None:
        return None
    # Of classes, the largest ratio of probability and threshold decides.
    zero = fields.get("task") == Task.MULTI_LABEL
    numbers = isinstance(found, list) and all(
        type(t) in (int, float) and 0 <= t < np.inf and (t or zero) for t in found
    )
    if not numbers or len(found) != len(names):
        raise DamagedError(f"{where}: its 'thresholds' are not a number for each of {len(names)} labels")
    return tuple(map(float, found))


def _is_layer(tensors: dict[str, Any], layer: str, *, outputs: int, biases: int) -> bool:
    """Whether the tensors hold such a layer: weight (outputs, any) and bias (biases,), finite float32."""
    weight, bias = tensors.get(f"{layer}weight"), tensors.get(f"{layer}bias")
    if weight is None or bias is None:
        return False
    shapes = weight.ndim == 2 and weight.shape[0] == outputs and bias.shape == (biases,)
    numbers = weight.dtype == bias.dtype == np.float32
    return shapes and numbers and bool(np.isfinite(weight).all() and np.isfinite(bias).all())
