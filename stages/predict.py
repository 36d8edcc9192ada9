"""Classifying new texts: the encoder that a run names, then the run's head."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..cache.errors import EncoderError, OutputExistsError, SettingsError, TableError
from ..cache.hashing import Hashes, digest, hash_sequences, hash_texts
from ..cache.identity import Identity
from ..cache.lock import hold
from ..cache.siblings import followed
from .extraction.reuse import ReusableCaches, RowLocations, by_cache, find_rows, open_reusable
from .extraction.text_caches import NewRows, TextCaches
from .model import NO_TOKENS, Probabilities, TextClassifier
from .prefetch import prefetch
from .progress import Action, Note, Outcome, Report, Step, in_notebooks
from .runs.output_log import OutputLog, WindowOutputs
from .runs.run import HEAD_FILE, RUN
from .settings import BY_NAME, ExtractSettings, LineFormat, Storage, TableSettings, Task
from .tables.formats import DIALECTS
from .tables.scan import ColumnScan, read_column_windows, scan_columns
from .tables.stream import LineFields, json_line, read_lines
from .tables.table import Table, TableRows, open_table
from .tables.writer import open_writer, output_format
from .types import Features, Mask, TokenIds

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
    cache: str | os.PathLike[str] | None = None,
    keep: bool = False,
    overwrite: bool = False,
    window_rows: int = ExtractSettings.window_rows,
    report: Report = in_notebooks,
) -> Path:
    """Classify a table's rows, and write the table with its predictions to a file.

    The memory that it takes does not grow with the rows: they are read, encoded and written a window at a time. What
    the head says of each window is kept beside ``out`` until that is complete (see `OutputLog`), so a run that was
    stopped carries on after its last window, and the file has the same bytes. Where the run, the encoder, the cache or
    a setting is another one, it begins again, and a note says so; where texts have changed, it goes on from there.
    With ``keep``, what a stopped run has kept is not encoded again, so probabilities may differ by rounding.

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
        cache: A cache of the run's encoder and settings, or a folder of such caches, as `CachedEncoder` fills it:
            texts that it holds are not encoded. Where a cache stores float16, their features are rounded.
        keep: Keep the features of other texts in the folder at ``cache``, which is made where it is missing.
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
        IdentityError: the cache has another identity, or lacks the head's feature.
        StorageError: the machine cannot read or write.
        SettingsError: the delimiter occurs in a label, or ``keep`` has no folder.
        HeadstartError: as for `TextClassifier.predict`.
    """
    out = Path(out)
    _require_writable(out, overwrite)
    if keep and (cache is None or Path(cache).is_file()):
        raise SettingsError("`keep` needs a folder as `cache`: the cache of a table holds the rows of its table alone")
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
    held, folder = _cached(cache, classifier.head.identity, report, keep=keep)
    with hold(out, note=lambda text: report(Note(text))):
        work = _Work(classifier, source, held, delimiter, report, kept=folder if keep else None)
        counts = work.write(out, overwrite=overwrite)
    report(Outcome(command="predict", output=out, action=Action.MADE, counts=counts))
    return out


def predict_lines(
    run: str | os.PathLike[str],
    source: io.BufferedReader,
    write: Callable[[str], object],
    *,
    line_format: LineFormat = LineFormat.TEXT,
    text_column: str = "text",
    text_pair_column: str | None = None,
    encoder: str | None = None,
    device: str = "auto",
    allow_pickled_weights: bool = False,
    window_rows: int = ExtractSettings.window_rows,
    report: Report = in_notebooks,
) -> int:
    """Classify lines as they come, and answer each with a JSON object, in their order.

    An answer has the columns of its line, then those of `predict_table`. A line that cannot be classified has a null
    prediction, and ``prediction_problem`` says why.

    Args:
        run: The run folder.
        source: What is read to its end. Lines that are there already are encoded together.
        write: Receives the answers to these lines, in one text.
        line_format: What a line is.
        text_column: The column of the text; that of the answers, where a line is a text.
        text_pair_column: The column of the second text, where the head was trained on pairs.
        encoder: As for `predict`.
        device: As for `predict`.
        allow_pickled_weights: As for `predict`.
        window_rows: Lines that are encoded together, at most.
        report: Receives notes.

    Returns:
        The number of lines.

    Raises:
        TableError: a line has a column of the name of one of the predictions'.
        SettingsError: the head was trained on pairs and there are none, or the other way round.
        HeadstartError: as for `TextClassifier.predict`.
    """
    classifier = TextClassifier(
        run, encoder=encoder, device=device, allow_pickled_weights=allow_pickled_weights, report=report
    )
    classifier.require_pairs(text_pair_column is not None)
    model = classifier.load_encoder()
    if text_pair_column is not None and line_format is LineFormat.TEXT:
        raise SettingsError("a line of text is one text; give pairs as `line_format=json`")
    names = [f"probability_{name}" for name in classifier.head.label_names]
    fields, done = LineFields(format=line_format, text=text_column, pair=text_pair_column), 0
    for lines in read_lines(source, fields, most=window_rows):
        for number, line in enumerate(lines, done + 1):
            if taken := next((name for name in line.cells if name in {PREDICTION, PROBLEM, *names}), None):
                raise TableError(f"line {number:,} has a column {taken!r}, as the predictions have; rename it")
        good = [line.cells for line in lines if not line.problem]
        pairs = None if text_pair_column is None else [cells[text_pair_column] for cells in good]
        sequences, _ = model.tokenize([cells[text_column] for cells in good], pairs)
        said = [{PREDICTION: None, PROBLEM: NO_TOKENS} for _ in good]
        whole = [place for place, sequence in enumerate(sequences) if len(sequence)]
        numbers = [done + 1 + place for place, line in enumerate(lines) if not line.problem]

        def name(index: int, numbers: list[int] = numbers, whole: list[int] = whole) -> str:
            return f"line {numbers[whole[index]]:,}"

        outputs = classifier.outputs([sequences[place] for place in whole], name)
        for place, prediction, row in zip(whole, classifier.predictions(outputs).tolist(), outputs, strict=True):
            said[place] = {PREDICTION: prediction, **dict(zip(names, row.tolist(), strict=False))}
        answers = iter(said)
        write(
            "".join(
                json_line(line.cells | ({PREDICTION: None, PROBLEM: line.problem} if line.problem else next(answers)))
                for line in lines
            )
        )
        done += len(lines)
    return done


def _cached(
    cache: str | os.PathLike[str] | None, identity: Identity, report: Report, *, keep: bool
) -> tuple[ReusableCaches, TextCaches | None]:
    """Open what holds features already; of a folder of caches, give that, too."""
    if cache is not None and (keep or Path(cache).is_dir()):
        folder = TextCaches(Path(cache), identity, Storage.FLOAT32, report)
        return folder.open(), folder
    return ReusableCaches(
        open_reusable([] if cache is None else [Path(cache)], identity, Storage.FLOAT16), report
    ), None


def _require_writable(out: Path, overwrite: bool) -> None:
    output_format(out)
    followed(out)  # a link that leads to itself is refused
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):  # a folder, a pipe or a device
        raise OutputExistsError(f"{out} cannot be a file: make its folder first, or choose another `out`")
    if out.exists() and not overwrite:
        raise OutputExistsError(f"{out} exists already; choose another `out`, or pass `overwrite=True`")


class _Work:
    """A table on its way through a head."""

    def __init__(
        self,
        classifier: TextClassifier,
        source: Table,
        reusable: ReusableCaches,
        delimiter: str | None,
        report: Report,
        *,
        kept: TextCaches | None,
    ) -> None:
        """With a delimiter, lists of labels become text. New features are kept in ``kept``."""
        self.classifier, self.source, self.reusable = classifier, source, reusable
        self.delimiter, self.report, self.kept = delimiter, report, kept
        self.tokens, self.seconds = (
            0,
            0.0,
        )  # that went through the encoder since features were kept, and how long it took
        names = (
            "rows",
            "skipped_rows",
            "kept_rows",
            "cached_rows",
            "kept_texts",
            "sequences_encoded",
            "tokens_encoded",
        )
        self.counts: dict[str, float] = dict.fromkeys(names, 0)

    def write(self, out: Path, *, overwrite: bool) -> dict[str, float]:
        """Do what `predict_table` says; return the outcome's counts."""
        counts, source, report = self.counts, self.source, self.report
        scan = scan_columns(source, report)
        added = self._added(scan)
        schema = pa.schema([*scan.schema, *added], scan.schema.metadata)
        encoder = self.classifier.load_encoder()
        unknown = encoder.count_unknown([])
        with OutputLog(out, self._key()) as log:
            if log.is_other:
                report(Note(f"{log.path} is of another run, encoder, cache or settings: beginning again"))
            writing = open_writer(out, schema, scan.json_types, overwrite=overwrite)
            with writing as write, closing(self._classified(scan, log)) as windows:
                said = False
                for window, found in windows:
                    if window.found is None and not said:
                        self._note_kept(log)
                        said = True
                    write(_with_predictions(window.rows, found, added, self.classifier, self.delimiter))
                    if window.found is None:
                        log.add(window.texts, found)
                    unknown += type(unknown)(found.unknown, found.tokens)
                    counts["rows"] += len(window.rows)
                    counts["skipped_rows"] += int((~found.good).sum())
                    report(Step("encoding", int(counts["rows"]), scan.rows, "rows", int(counts["tokens_encoded"])))
                for cache in self.reusable.caches:
                    cache.require_unchanged()
            log.remove()
        counts["kept_rows"] = log.kept
        if note := unknown.note():
            report(Note(note))
        if counts["skipped_rows"]:
            number = f"{int(counts['skipped_rows']):,} of {int(counts['rows']):,} rows"
            report(Note(f"{number} of {source.source} have no prediction: the column {PROBLEM!r} says why"))
        return counts

    def _added(self, scan: ColumnScan) -> pa.Schema:
        """The columns that the output has besides those of the table."""
        head = self.classifier.head
        lists = pa.list_(pa.string()) if self.delimiter is None else pa.string()
        kind = {Task.REGRESSION: pa.float64(), Task.MULTI_LABEL: lists}.get(head.task, pa.string())
        added = pa.schema([(PREDICTION, kind), *((f"probability_{name}", pa.float64()) for name in head.label_names)])
        if self.source.skip_bad_rows:
            added = added.append(pa.field(PROBLEM, pa.string()))
        if taken := [name for name in added.names if name in scan.schema.names]:
            raise TableError(f"{self.source.source} has a column {taken[0]!r}, as the predictions have; rename it")
        return added

    def _key(self) -> bytes:
        """A hash of all that decides what the head says of a window, but its texts."""
        encoder, run = self.classifier.load_encoder(), self.classifier.run
        how = {"path": encoder.path, "batch_tokens": encoder.batch_tokens, "skip": bool(self.source.skip_bad_rows)}
        caches = [] if self.kept else self.reusable.caches  # what is kept grows while this runs
        held = [part for cache in caches for part in (cache.text_hashes, cache.block_checksums)]
        return digest(
            json.dumps([how, str(self.classifier.device)]).encode(),
            *((run / name).read_bytes() for name in (RUN.file, HEAD_FILE)),
            *held,
        )

    def _note_kept(self, log: OutputLog) -> None:
        if log.kept:
            changed = "; then the table's texts are others, and are encoded anew" if log.changed else ""
            self.report(Note(f"carrying on with {log.path}: {log.kept:,} rows are done{changed}"))
        elif log.changed:
            self.report(Note(f"{log.path} is of another table: beginning again"))

    def _classified(self, scan: ColumnScan, log: OutputLog) -> Generator[tuple[_Window, WindowOutputs], None, None]:
        """Yield the table's windows, each with what the head says of it, while the encoder works on the next."""
        windows = prefetch(_windows(self.classifier, self.source, scan, self.reusable, log))
        with closing(windows), closing(self.classifier.features_in_turn(windows, self._count)) as encoded:
            for window, features in encoded:
                yield window, window.found or self._classify(window, features)

    def _classify(self, window: _Window, features: Features) -> WindowOutputs:
        """Return what the head says of a window: of texts that a cache holds by its features, of others by the
        encoder's, (sequences, width)."""
        classifier, cached = self.classifier, window.cached["cache"] >= 0
        outputs = np.empty((len(window.good), classifier.no_outputs.shape[1]), np.float32)
        if window.sequences:
            outputs[~cached] = classifier.head.outputs(features)
            self._keep(window, features)
        (feature,) = classifier.head.identity.features
        for cache, positions, rows in by_cache(self.reusable.caches, window.cached):
            outputs[positions] = classifier.head.outputs(cache.features(feature)[rows])
        self.counts["cached_rows"] += int(cached.sum())
        good = np.zeros(len(window.rows), bool)
        good[window.good] = True
        unknown = classifier.load_encoder().count_unknown(window.sequences)
        return WindowOutputs(good, outputs, unknown.unknown, unknown.tokens)

    def _keep(self, window: _Window, features: Features) -> None:
        """Keep the features of a window's texts, if that is asked for."""
        if self.kept is None:
            return
        rows = NewRows(
            text_hashes=window.hashes,
            token_hashes=hash_sequences(window.sequences),
            lengths=np.array([len(sequence) for sequence in window.sequences], np.int32),
            truncated=window.truncated.astype(np.uint8),
            features=features,
        )
        self.counts["kept_texts"] += self.kept.add(
            rows,
            session=self.classifier.session(),
            table=self.source.source,
            batched=len(window.rows),
            tokens=self.tokens,
            seconds=self.seconds,
        )
        self.tokens, self.seconds = 0, 0.0

    def _count(self, batch: BatchReport) -> None:
        self.tokens, self.seconds = self.tokens + batch.tokens, self.seconds + batch.seconds
        self.counts["sequences_encoded"] += len(batch.sequences)
        self.counts["tokens_encoded"] += batch.tokens


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Window:
    """Some consecutive rows of a table, and the token sequences of those that are to be encoded."""

    rows: TableRows
    texts: bytes  # the hash of them all
    found: WindowOutputs | None = None  # what an earlier run found
    good: Sequence[int] = ()  # rows that can be classified
    cached: RowLocations  # (good,) where caches hold them
    sequences: Sequence[TokenIds] = ()  # of the good rows that no cache holds; the same for the next two
    hashes: Hashes  # (sequences, 16) uint8, of their texts
    truncated: Mask  # (sequences,), which texts have more tokens than their sequence

    def place(self, index: int) -> str:
        """The name of a row that is to be encoded."""
        lacking = np.flatnonzero(self.cached["cache"] < 0)
        return self.rows.place(self.good[int(lacking[index])])


def _windows(
    classifier: TextClassifier, source: Table, scan: ColumnScan, reusable: ReusableCaches, log: OutputLog
) -> Iterator[_Window]:
    """Yield the table's rows in windows, each with what an earlier run found, or with its token sequences.

    Raises:
        EncoderError: a text has no tokens, and bad rows are not skipped.
    """
    encoder = classifier.load_encoder()
    for rows in read_column_windows(source, scan, classifier.window_rows):
        hashes = hash_texts(rows.texts, rows.pairs)
        texts = digest(hashes)
        if (found := log.find(texts)) is not None:
            none = np.zeros(0, bool)
            yield _Window(
                rows=rows, texts=texts, found=found, cached=find_rows([], hashes[:0]), hashes=hashes[:0], truncated=none
            )
            continue
        good = [i for i in range(len(rows)) if rows.problems is None or not rows.problems[i]]
        cached = find_rows(reusable.texts, hashes[good])
        lacking = [good[i] for i in np.flatnonzero(cached["cache"] < 0)]
        pairs = None if rows.pairs is None else [rows.pairs[i] for i in lacking]
        sequences, truncated = encoder.tokenize([rows.texts[i] for i in lacking], pairs)
        empty = {i for i, sequence in zip(lacking, sequences, strict=True) if not len(sequence)}
        if empty and not source.skip_bad_rows:
            raise EncoderError(f"{rows.place(min(empty))}: {NO_TOKENS}; change it")
        kept = np.array([i not in empty for i in good], bool)
        encoded = [place for place, sequence in enumerate(sequences) if len(sequence)]
        yield _Window(
            rows=rows,
            texts=texts,
            good=[i for i in good if i not in empty],
            cached=cached[kept],
            sequences=[sequences[place] for place in encoded],
            hashes=hashes[[lacking[place] for place in encoded]],
            truncated=truncated[encoded],
        )


def _with_predictions(
    rows: TableRows, found: WindowOutputs, added: pa.Schema, classifier: TextClassifier, delimiter: str | None
) -> pa.Table:
    """Return the columns of some rows, and those of their predictions."""
    good = np.flatnonzero(found.good)
    predicted: list[Any] = [None] * len(rows)
    values = np.zeros((len(rows), len(classifier.classes_)))
    values[good] = found.outputs[:, : len(classifier.classes_)]
    for index, prediction in zip(good.tolist(), classifier.predictions(found.outputs).tolist(), strict=True):
        predicted[index] = prediction if delimiter is None else delimiter.join(prediction)
    columns = [pa.array(predicted, added[0].type), *(pa.array(column, mask=~found.good) for column in values.T)]
    if PROBLEM in added.names:
        known = rows.problems or [""] * len(rows)
        reasons = [None if fine else problem or NO_TOKENS for fine, problem in zip(found.good, known, strict=True)]
        columns.append(pa.array(reasons, pa.string()))
    cells = rows.cells
    assert cells is not None  # the table was opened to keep its other columns
    for field, column in zip(added, columns, strict=True):
        cells = cells.append_column(field, column)
    return cells
