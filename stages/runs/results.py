"""What `train_head` and `sweep` return: the folder that they wrote, as a path and as what it records."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.errors import DamagedError, FormatError, storage_errors
from ...cache.notebook import import_pandas, summary
from ..units import duration
from .predictions import PREDICTIONS_FILE
from .run import RunMetrics, read_run
from .sweep_folder import SWEEP, WINNER

if TYPE_CHECKING:
    import pandas

SCORES = {
    "accuracy": "accuracy",
    "R2": "r2",
    "mean error": "mean_absolute_error",
    "root mean squared error": "root_mean_squared_error",
    "Spearman": "spearman",
    "quadratic kappa": "quadratic_kappa",
    "micro F1": "micro_f1",
    "macro F1": "macro_f1",
    "weighted F1": "weighted_f1",
    "F1 of rows": "samples_f1",
    "average precision": "average_precision",
    "all labels right": "subset_accuracy",
    "log loss": "log_loss",
}
"""What is shown of the test rows' metrics, in this order, where a head's task has it."""
MEASURES = {
    "validation_loss": "log loss",
    "validation_accuracy": "accuracy",
    "validation_macro_f1": "macro F1",
    "validation_average_precision": "average precision",
    "validation_r2": "R2",
    "validation_mae": "mean error",
    "validation_rmse": "root mean squared error",
    "validation_spearman": "Spearman",
}
"""What is shown of a sweep's ranking, where the heads' task has it."""
_MOST_ROWS = 10


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Result(os.PathLike[str]):
    """A folder. It stands where a path can stand, equals the paths that name it, and ``/`` gives the paths inside."""

    path: Path
    record: Mapping[str, Any]
    """What its JSON file holds."""

    def __fspath__(self) -> str:
        return str(self.path)

    __str__ = __fspath__

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, os.PathLike) and os.fspath(other) == os.fspath(self)

    def __hash__(self) -> int:
        return hash(self.path)


class Run(_Result):
    """A trained and tested head: the folder with ``head.safetensors``, ``predictions.parquet`` and ``run.json``.

    Attributes:
        path: The folder.
        record: What ``run.json`` holds.
    """

    @property
    def metrics(self) -> RunMetrics:
        """The metrics of the ``validation`` and ``test`` rows."""
        metrics: RunMetrics = self.record["metrics"]
        return metrics

    def to_frame(self) -> pandas.DataFrame:
        """Return ``predictions.parquet`` as a table: one row for each validation and test row; see `write_predictions`.

        Raises:
            FormatError: the run was made by an earlier headstart, which wrote no such file.
            DamagedError: the file cannot be read.
        """
        import_pandas()
        import pyarrow as pa
        import pyarrow.parquet

        path = self.path / PREDICTIONS_FILE
        if not path.is_file():
            raise FormatError(f"{self.path} holds no {PREDICTIONS_FILE}: an earlier headstart made it; train it again")
        try:
            with storage_errors(f"cannot read {path}"):
                frame: pandas.DataFrame = pa.parquet.read_table(path).to_pandas()
        except pa.ArrowException as error:
            raise DamagedError(f"{path} cannot be read: {' '.join(str(error).split())}") from None
        return frame.astype({"fold": "Int64"})

    def __repr__(self) -> str:
        test = self.metrics["test"]
        name, key = next((pair for pair in SCORES.items() if test.get(pair[1]) is not None), ("", ""))
        score = f", {name} {test[key]:.4f} on {self.record['rows']['test']:,} test rows" if key else ""
        return f"Run({str(self.path)!r}{score})"

    def _repr_html_(self) -> str:
        rows, settings = self.record["rows"], self.record["settings"]
        facts = {
            "encoder": str(self.record["encoder"]["name"]),
            "feature": str(settings["feature"]),
            "rows": ", ".join(f"{part} {rows[part]:,}" for part in ("train", "validation", "test")),
            "time": duration(self.record["seconds"]),
        }
        return summary(str(self.path), facts, [["test rows", "", "95%"], *_scores(self.metrics["test"])])


class Sweep(_Result):
    """Heads of many settings, ranked: the folder with ``sweep.json``, ``sweep.parquet`` and the run ``winner``.

    Attributes:
        path: The folder.
        record: What ``sweep.json`` holds.
    """

    @property
    def winner(self) -> Run:
        """The head of the best settings, trained again and tested."""
        return open_run(self.path / WINNER)

    @property
    def metrics(self) -> RunMetrics:
        """The metrics of the winner."""
        return self.winner.metrics

    def to_frame(self) -> pandas.DataFrame:
        """Return the ranking as a table, the best settings first.

        Columns: ``rank``, from 1; the settings that vary; each measure's mean over seeds and folds, under its name, and
        its standard deviation, under ``NAME_spread``; ``heads`` and ``diverged``, their numbers.
        """
        return import_pandas().DataFrame(self._lines())

    def __repr__(self) -> str:
        return f"Sweep({str(self.path)!r}, {self.record['heads']:,} heads, {len(self._lines()):,} settings)"

    def _repr_html_(self) -> str:
        lines = self._lines()
        facts = {
            "heads": f"{self.record['heads']:,}, {self.record['diverged']:,} diverged",
            "ranked by": str(self.record["settings"]["rank_by"]),
            "time": duration(self.record["seconds"]),
        }
        if len(lines) > _MOST_ROWS:
            facts["shown"] = f"the best {_MOST_ROWS} of {len(lines):,} settings"
        cells = [[_cell(value) for value in line.values()] for line in lines[:_MOST_ROWS]]
        return summary(str(self.path), facts, [list(lines[0]), *cells])

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for rank, line in enumerate(self.record["ranking"], 1):
            found = {"rank": rank, **line["values"]}
            for name, value in line.items():
                if isinstance(value, dict) and value.keys() == {"mean", "spread"}:
                    found |= {name: value["mean"], f"{name}_spread": value["spread"]}
            lines.append({**found, "heads": line["heads"], "diverged": line["diverged"]})
        return lines


def open_run(path: str | os.PathLike[str]) -> Run:
    """Open the folder of a run.

    Raises:
        FormatError: the folder is not a run, or was written by a newer version.
        DamagedError: ``run.json`` lacks a field, or a field has the wrong type.
        StorageError: it cannot be read.
    """
    return Run(Path(path), read_run(Path(path)))


def open_sweep(path: str | os.PathLike[str]) -> Sweep:
    """Open the folder of a sweep. Errors are as for `open_run`."""
    return Sweep(Path(path), SWEEP.read(Path(path)))


def _scores(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A row for each score: its name, its value, its interval."""
    found = [(name, metrics[key], metrics.get(f"{key}_interval")) for name, key in SCORES.items() if key in metrics]
    return [
        [name, _cell(value), f"{bounds[0]:.4f} to {bounds[1]:.4f}" if bounds else ""] for name, value, bounds in found
    ]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
