"""Classifying new texts: the encoder that a run names, then the run's head."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..cache.errors import OutputExistsError, SettingsError, TableError
from ..cache.lock import hold
from ..cache.siblings import followed
from .model import NO_TOKENS, Outputs, Probabilities, TextClassifier
from .prefetch import prefetch
from .progress import Action, Note, Outcome, Report, Step, in_notebooks
from .settings import BY_NAME, ExtractSettings, TableSettings, Task
from .tables.formats import DIALECTS
from .tables.scan import ColumnScan, read_column_windows, scan_columns
from .tables.table import Table, TableRows, open_table
from .tables.writer import open_writer, output_format
from .types import TokenIds

if TYPE_CHECKING:
    from .encoders.encoder import BatchReport

PREDICTION, PROBLEM = "prediction", "prediction_problem"
"""The columns of the prediction, and of why a bad row has none. The column of a class's probability is
``probability_`` and its name."""


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What `predict` returns.

    Attributes:
        texts: The texts.
        pairs: The second texts; None for single texts.
        labels: The prediction for each, as of `TextClassifier.predict`: the most probable class, a list of labels, or a
            number.
        probabilities: (texts, classes) float32; (texts, 0) where the head predicts numbers.
        label_names: The classes, in the order of the columns of ``probabilities``.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[Any]
    probabilities: Probabilities
    label_names: tuple[str, ...]


def predict(
    run: str | os.PathLike[str],
    texts: Any,
    *,
    pairs: Any = None,
    encoder: str | None = None,
    device: str = "auto",
    allow_pickled_weights: bool = False,
    report: Report = in_notebooks,
) -> Predictions:
    """Classify texts once. To classify again and again, `headstart.load` keeps the encoder loaded.

    Args:
        run: The run folder.
        texts: One text, or a list, a tuple, a one-dimensional array or a Series of texts.
        pairs: The second text of each, where the head was trained on pairs.
        encoder: A folder or hub id, where the encoder is no longer where the run says; it must be the same encoder.
        device: ``auto``, or a torch device.
        allow_pickled_weights: Read a ``pytorch_model.bin`` where the encoder has no safetensors.
        report: Receives progress.

    Raises:
        HeadstartError: as for `TextClassifier` and `TextClassifier.predict`.
    """
    classifier = TextClassifier(
        run, encoder=encoder, device=device, allow_pickled_weights=allow_pickled_weights, report=report
    )
    checked = classifier.read(texts, pairs)
    outputs, names = classifier.classify(checked), classifier.head.label_names
    labels = classifier.predictions(outputs).tolist()
    return Predictions(checked.texts, checked.pairs, labels, outputs[:, : len(names)], names)


def predict_table(
    run: str | os.PathLike[str],
    table: Any,
    out: str | os.PathLike[str],
    *,
    text_column: str = "text",
    text_pair_column: str | None = None,
    encoder: str | None = None,
    device: str = "auto",
    allow_pickled_weights: bool = False,
    table_settings: TableSettings = BY_NAME,
    label_delimiter: str = ";",
    skip_bad_rows: bool = False,
    overwrite: bool = False,
    window_rows: int = ExtractSettings.window_rows,
    report: Report = in_notebooks,
) -> Path:
    """Classify a table's rows, and write the table with its predictions to a file.

    The memory that it takes does not grow with the rows: they are read, encoded and written a window at a time.

    Args:
        run: The run folder.
        table: A table as for `extract`.
        out: The file to write; its name tells its format. It has all columns of the table, then ``prediction`` (the
            most probable class, a list of labels, or a number) and ``probability_NAME`` for each class.
        text_column: Column of the texts.
        text_pair_column: Column of the second texts, where the head was trained on pairs.
        encoder: As for `predict`.
        device: As for `predict`.
        allow_pickled_weights: As for `predict`.
        table_settings: How the table's files are read.
        label_delimiter: What stands between several labels of a row in a CSV or TSV file; other formats hold lists.
        skip_bad_rows: Give a bad row (without text, not UTF-8, with too many or too few cells, or with a text of no
            tokens) an empty prediction, instead of raising. One more column, ``prediction_problem``, says why; it is
            empty for the other rows. A row whose cells cannot be read is written with empty cells.
        overwrite: Replace the file at ``out``.
        window_rows: Rows that are read, encoded and written together.
        report: Receives progress, and an `Outcome` at the end.

    Returns:
        The path of ``out``.

    Raises:
        OutputExistsError: ``out`` exists, is the table itself, or cannot be a file of predictions.
        TableError: the table cannot be read, has a bad row, has a column of the name of one of the predictions',
            changes while it is read, or has a column that the format of ``out`` cannot hold.
        BusyError: another run is writing ``out``.
        StorageError: the machine cannot read or write.
        SettingsError: the delimiter occurs in a label.
        HeadstartError: as for `TextClassifier.predict`.
    """
    out = Path(out)
    _require_writable(out, overwrite)
    source = open_table(
        table,
        text_column=text_column,
        pair_column=text_pair_column,
        label_column=None,
        skip_bad_rows=skip_bad_rows,
        keep_others=True,
        settings=table_settings,
    )
    source.require_outside(out)
    classifier = TextClassifier(
        run,
        encoder=encoder,
        device=device,
        allow_pickled_weights=allow_pickled_weights,
        window_rows=window_rows,
        report=report,
    )
    classifier.require_pairs(text_pair_column is not None)
    delimiter = label_delimiter if classifier.head.task is Task.MULTI_LABEL and output_format(out) in DIALECTS else None
    if delimiter is not None and (joined := [name for name in classifier.head.label_names if delimiter in name]):
        raise SettingsError(f"the label {joined[0]!r} holds {delimiter!r}; choose another `label_delimiter`")
    with hold(out, note=lambda text: report(Note(text))):
        counts = _classify_table(classifier, source, out, delimiter=delimiter, overwrite=overwrite, report=report)
    report(Outcome(command="predict", output=out, action=Action.MADE, counts=counts))
    return out


def _require_writable(out: Path, overwrite: bool) -> None:
    output_format(out)
    followed(out)  # a link that leads to itself is refused
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):  # a folder, a pipe or a device
        raise OutputExistsError(f"{out} cannot be a file: make its folder first, or choose another `out`")
    if out.exists() and not overwrite:
        raise OutputExistsError(f"{out} exists already; choose another `out`, or pass `overwrite=True`")


def _classify_table(
    classifier: TextClassifier, source: Table, out: Path, *, delimiter: str | None, overwrite: bool, report: Report
) -> dict[str, float]:
    """Do what `predict_table` says; return the outcome's counts. With a delimiter, lists of labels become text."""
    scan = scan_columns(source, report)
    lists = pa.list_(pa.string()) if delimiter is None else pa.string()
    kind = {Task.REGRESSION: pa.float64(), Task.MULTI_LABEL: lists}.get(classifier.head.task, pa.string())
    added = pa.schema(
        [(PREDICTION, kind), *((f"probability_{name}", pa.float64()) for name in classifier.head.label_names)]
    )
    if source.skip_bad_rows:
        added = added.append(pa.field(PROBLEM, pa.string()))
    if taken := [name for name in added.names if name in scan.schema.names]:
        raise TableError(f"{source.source} has a column {taken[0]!r}, as the predictions have; rename it")
    schema = pa.schema([*scan.schema, *added], scan.schema.metadata)
    counts: dict[str, float] = {"rows": 0, "skipped_rows": 0, "sequences_encoded": 0, "tokens_encoded": 0}

    def count(batch: BatchReport) -> None:
        counts["sequences_encoded"] += len(batch.sequences)
        counts["tokens_encoded"] += batch.tokens

    with open_writer(out, schema, scan.json_types, overwrite=overwrite) as write:
        encoder = classifier.load_encoder()
        unknown = encoder.count_unknown([])
        for window in prefetch(_windows(classifier, source, scan)):
            outputs = classifier.no_outputs
            if window.sequences:
                outputs = classifier.outputs(window.sequences, window.place, count)
            write(_with_predictions(window, added, classifier, outputs, delimiter))
            unknown += encoder.count_unknown(window.sequences)
            counts["rows"] += len(window.rows)
            counts["skipped_rows"] += len(window.rows) - len(window.good)
            report(Step("encoding", int(counts["rows"]), scan.rows, "rows", int(counts["tokens_encoded"])))
    if note := unknown.note():
        report(Note(note))
    if counts["skipped_rows"]:
        number = f"{int(counts['skipped_rows']):,} of {int(counts['rows']):,} rows"
        report(Note(f"{number} of {source.source} have no prediction: the column {PROBLEM!r} says why"))
    return counts


@dataclasses.dataclass(frozen=True)
class _Window:
    """Some consecutive rows of a table, and the token sequences of those that can be classified."""

    rows: TableRows
    problems: list[str]  # (rows,) why a row cannot be classified, or ""
    good: list[int]  # the other rows
    sequences: list[TokenIds]  # (good,)

    def place(self, index: int) -> str:
        return self.rows.place(self.good[index])


def _windows(classifier: TextClassifier, source: Table, scan: ColumnScan) -> Iterator[_Window]:
    """Yield the table's rows, each window with its token sequences."""
    for rows in read_column_windows(source, scan, classifier.window_rows):
        if rows.problems is None:
            sequences = classifier.tokenize(rows.texts, rows.pairs, rows.place)
            yield _Window(rows, [""] * len(rows), list(range(len(rows))), sequences)
            continue
        sequences, _ = classifier.load_encoder().tokenize(rows.texts, rows.pairs)
        empty = (NO_TOKENS if not len(sequence) else "" for sequence in sequences)
        problems = [known or found for known, found in zip(rows.problems, empty, strict=True)]
        good = [index for index, problem in enumerate(problems) if not problem]
        yield _Window(rows, problems, good, [sequences[index] for index in good])


def _with_predictions(
    window: _Window, added: pa.Schema, classifier: TextClassifier, outputs: Outputs, delimiter: str | None
) -> pa.Table:
    """Return the columns of some rows, and those of their predictions."""
    predicted: list[Any] = [None] * len(window.rows)
    values = np.zeros((len(window.rows), len(classifier.classes_)))
    values[window.good] = outputs[:, : len(classifier.classes_)]
    for index, prediction in zip(window.good, classifier.predictions(outputs).tolist(), strict=True):
        predicted[index] = prediction if delimiter is None else delimiter.join(prediction)
    bad = np.array(window.problems, object) != ""
    columns = [pa.array(predicted, added[0].type), *(pa.array(column, mask=bad) for column in values.T)]
    if PROBLEM in added.names:
        columns.append(pa.array([problem or None for problem in window.problems], pa.string()))
    cells = window.rows.cells
    assert cells is not None  # the table was opened to keep its other columns
    for field, column in zip(added, columns, strict=True):
        cells = cells.append_column(field, column)
    return cells
