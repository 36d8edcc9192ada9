"""``predictions.parquet`` of a run: what the head says of every validation and test row, for the analysis of errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..heads.dataset import Dataset
from ..heads.head import Head
from ..heads.metrics import MAX_MATRIX_CLASSES
from ..settings import Task
from ..types import Float64Array, Indices

PREDICTIONS_FILE = "predictions.parquet"
_GROUP_ROWS = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartPredictions:
    """What a head says of the validation or test rows."""

    part: str  # validation or test
    dataset: Dataset  # it knows where its rows come from
    outputs: Float64Array  # what `outputs_of` says of them
    thresholds: Float64Array | None = None
    """(labels,) or (rows, labels), the least probability of a label that is predicted; None for one half, or the most
    probable class."""
    fold: Indices | None = None
    """(rows,) int64, from 1: the fold that a row was in, so that the head that says this was trained without it. None
    without folds."""


def write_predictions(folder: Path, head: Head, parts: Sequence[PartPredictions]) -> None:
    """Write ``predictions.parquet``, a row for each row of the parts, in their order.

    Columns: ``part``; ``fold``, null without folds; ``row``, its number in the table that the part comes from, from 1;
    ``text_hash``, 32 hexadecimal digits; ``label``; ``prediction``; ``label_probability`` and
    ``prediction_probability``, those of these two classes; and ``probability_NAME`` for each class, but not of more
    than 256 classes: the file would grow with their number. Where a row may have several labels, ``label`` and
    ``prediction`` are lists; of numbers, they are numbers. Neither has the two probabilities, and numbers have none.
    """
    import pyarrow as pa  # training does not need it otherwise
    from pyarrow.parquet import ParquetWriter

    names, numbers = head.label_names, pa.float64()
    shown = names if len(names) <= MAX_MATRIX_CLASSES else ()
    kind = {Task.REGRESSION: numbers, Task.MULTI_LABEL: pa.list_(pa.string())}.get(head.task, pa.string())
    of_two = {"label_probability": numbers, "prediction_probability": numbers} if kind == pa.string() else {}
    schema = pa.schema(
        {"part": pa.string(), "fold": pa.int64(), "row": pa.int64(), "text_hash": pa.string()}
        | {"label": kind, "prediction": kind, **of_two}
        | {f"probability_{name}": numbers for name in shown}
    )
    with ParquetWriter(folder / PREDICTIONS_FILE, schema) as file:
        for part in parts:
            for columns in _columns(part, head, len(shown)):
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                file.write_table(pa.table(arrays, schema=schema))


def _columns(part: PartPredictions, head: Head, shown: int) -> Iterator[list[Any]]:
    """The columns of some rows after the others."""
    for start in range(0, len(part.dataset), _GROUP_ROWS):
        rows = slice(start, start + _GROUP_ROWS)
        labels, outputs = part.dataset.targets[rows], part.outputs[rows]
        least = None if part.thresholds is None else np.broadcast_to(part.thresholds, part.outputs.shape)[rows]
        count, said = range(len(labels)), head.predictions(outputs, least)
        digits = part.dataset.text_hashes[rows].tobytes().hex()
        yield [
            [part.part] * len(labels),
            [None] * len(labels) if part.fold is None else part.fold[rows],
            part.dataset.row_numbers[rows],
            [digits[32 * row : 32 * row + 32] for row in count],
            *_said(head, labels, outputs, said),
            *outputs.T[:shown],
        ]


def _said(head: Head, labels: Any, outputs: Float64Array, predicted: Any) -> list[Any]:
    """The columns of the labels and predictions, and of their probabilities where each row has one class."""
    names = np.array(head.label_names, object)
    if head.task is Task.REGRESSION:
        return [labels, predicted]
    if head.task is Task.MULTI_LABEL:
        return [[names[row == 1].tolist() for row in sets] for sets in (labels, predicted)]
    count = range(len(labels))
    return [names[labels], names[predicted], outputs[count, labels], outputs[count, predicted]]
