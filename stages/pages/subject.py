"""What a report is about: a run, or a sweep with its winner, as plain values; and what may be known besides."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cache.errors import DamagedError, FormatError
from ..runs.predictions import PREDICTIONS_FILE
from ..runs.run import read_run
from ..runs.sweep_folder import SWEEP, TABLE_FILE, WINNER
from ..settings import Task
from ..types import Float64Array
from .html import Html

Key = tuple[int, str]
"""Which text: the number of its row in its table, from 1, and its hash."""
Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of a page, whose body is empty where there is nothing to say."""

    key: str
    title: str
    body: Html


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What ``predictions.parquet`` says of the rows of one part, in columns; see `write_predictions`."""

    columns: Mapping[str, list[Any]]
    names: tuple[str, ...]  # the labels that have a column of probabilities

    def __len__(self) -> int:
        return len(self.columns["row"])

    @property
    def keys(self) -> list[Key]:
        return list(zip(self.columns["row"], self.columns["text_hash"], strict=True))

    @functools.cached_property
    def probabilities(self) -> Float64Array:
        """(rows, names) float64."""
        columns = [self.columns[f"probability_{name}"] for name in self.names]
        return np.array(columns, np.float64).reshape(len(self.names), len(self)).T

    @functools.cached_property
    def has(self) -> Float64Array:
        """(rows, names) float64: 1 where a row has a label, where rows may have several."""
        return np.array([[name in labels for name in self.names] for labels in self.columns["label"]], np.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A run, or the winner of a sweep."""

    name: str
    run: Record
    test: Predictions | None  # None of a run that was made before runs held them
    chosen_by: Predictions | None  # the rows that it was chosen by
    sweep: Record | None = None
    epochs: Mapping[str, list[Any]] | None = None
    """The columns of a sweep's table."""

    @property
    def task(self) -> Task:
        return Task(self.run.get("task", Task.CLASSES))

    @property
    def metrics(self) -> Record:
        """Those of the test rows."""
        metrics: Record = self.run["metrics"]["test"]
        return metrics


def read_subject(path: Path, name: str) -> Subject:
    """Read a run or a sweep.

    Raises:
        FormatError: the folder is neither.
        DamagedError: one of its files is damaged.
        StorageError: one cannot be read.
    """
    if not (path / SWEEP.file).is_file():
        return _read_run(path, name)
    winner, epochs = _read_run(path / WINNER, name), _read_columns(path / TABLE_FILE)
    return dataclasses.replace(winner, sweep=SWEEP.read(path), epochs=epochs)


def _read_run(folder: Path, name: str) -> Subject:
    run, path = read_run(folder), folder / PREDICTIONS_FILE
    if not path.is_file():
        return Subject(name=name, run=run, test=None, chosen_by=None)
    columns = _read_columns(path)
    if missing := {"part", "row", "text_hash", "label", "prediction"} - columns.keys():
        raise DamagedError(f"{path} lacks the column {min(missing)!r}; train the run again")
    found: dict[str, Predictions | None] = {}
    names = tuple(name.removeprefix("probability_") for name in columns if name.startswith("probability_"))
    for key, part in (("test", "test"), ("chosen_by", "validation")):
        rows = [row for row, of in enumerate(columns["part"]) if of == part]
        of_part = {name: [values[row] for row in rows] for name, values in columns.items()}
        found[key] = Predictions(of_part, names) if rows else None
    return Subject(name=name, run=run, test=found["test"], chosen_by=found["chosen_by"])


def _read_columns(path: Path) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        columns: dict[str, list[Any]] = pa.parquet.read_table(path).to_pydict()
    except FileNotFoundError:
        raise FormatError(f"{path.parent} lacks {path.name}; make it again") from None
    except (OSError, pa.ArrowException) as error:
        raise DamagedError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    return columns


def read_issues(path: Path) -> list[dict[str, Any]]:
    """Read the lines of an audit; errors as for `read_subject`."""
    columns = _read_columns(path)
    return [dict(zip(columns, line, strict=True)) for line in zip(*columns.values(), strict=True)]


def texts_shown(texts: Mapping[Key, str] | None, keys: Sequence[Key]) -> list[str]:
    """The texts of some rows, "" where there are none."""
    return [(texts or {}).get(key, "") for key in keys]
