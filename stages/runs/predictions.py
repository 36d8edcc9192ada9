"""``predictions.parquet`` of a run: what the head says of every validation and test row, for the analysis of errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..heads.dataset import Dataset
from ..heads.metrics import MAX_MATRIX_CLASSES
from ..types import Float64Array, Indices

PREDICTIONS_FILE = "predictions.parquet"
_GROUP_ROWS = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartPredictions:
    """What a head says of the validation or test rows."""

    part: str  # validation or test
    dataset: Dataset  # it knows where its rows come from
    log_probabilities: Float64Array  # (rows, classes); the largest of a row is the predicted class
    fold: Indices | None = None
    """(rows,) int64, from 1: the fold that a row was in, so that the head that says this was trained without it. None
    without folds."""


def write_predictions(folder: Path, names: tuple[str, ...], parts: Sequence[PartPredictions]) -> None:
    """Write ``predictions.parquet``, a row for each row of the parts, in their order.

    Columns: ``part``; ``fold``, null without folds; ``row``, its number in the table that the part comes from, from 1;
    ``text_hash``, 32 hexadecimal digits; ``label``; ``prediction``; ``label_probability`` and
    ``prediction_probability``, those of these two classes; and ``probability_NAME`` for each class, but not of more
    than 256 classes: the file would grow with their number.
    """
    import pyarrow as pa  # training does not need it otherwise
    from pyarrow.parquet import ParquetWriter

    shown = names if len(names) <= MAX_MATRIX_CLASSES else ()
    texts, numbers = dict.fromkeys(("text_hash", "label", "prediction"), pa.string()), pa.float64()
    schema = pa.schema(
        {"part": pa.string(), "fold": pa.int64(), "row": pa.int64(), **texts}
        | {"label_probability": numbers, "prediction_probability": numbers}
        | {f"probability_{name}": numbers for name in shown}
    )
    with ParquetWriter(folder / PREDICTIONS_FILE, schema) as file:
        for part in parts:
            for columns in _columns(part, np.array(names, object), len(shown)):
                arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
                file.write_table(pa.table(arrays, schema=schema))


def _columns(part: PartPredictions, names: Any, shown: int) -> Iterator[list[Any]]:
    """The columns of some rows after the others."""
    for start in range(0, len(part.dataset), _GROUP_ROWS):
        rows = slice(start, start + _GROUP_ROWS)
        labels, predicted = part.dataset.targets[rows], part.log_probabilities[rows].argmax(axis=1)
        probabilities, count = np.exp(part.log_probabilities[rows]), range(len(labels))
        digits = part.dataset.text_hashes[rows].tobytes().hex()
        yield [
            [part.part] * len(labels),
            [None] * len(labels) if part.fold is None else part.fold[rows],
            part.dataset.row_numbers[rows],
            [digits[32 * row : 32 * row + 32] for row in count],
            names[labels],
            names[predicted],
            probabilities[count, labels],
            probabilities[count, predicted],
            *probabilities.T[:shown],
        ]
