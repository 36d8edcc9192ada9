"""A trained head on new rows: its metrics, what it got most wrong, and how far the rows are from those of training."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache.errors import HeadstartError, IdentityError, TableError
from ..cache.hashing import Hashes, hash_keys, hash_sequences
from ..cache.identity import differences
from ..cache.label_kind import LabelKind
from ..cache.reader import Cache, open_cache
from ..cache.seal import begins_as_cache
from .heads.dataset import Dataset, Origin
from .heads.drift import measure_drift
from .heads.head import Head, outputs_of
from .heads.targets import Scores, target_of
from .model import TextClassifier
from .prefetch import prefetch
from .progress import Action, Note, Outcome, Report, Step, in_notebooks
from .provenance import provenance
from .runs.evaluation_folder import EVALUATION
from .runs.predictions import PREDICTIONS_FILE, PartPredictions, write_predictions
from .runs.run import load_head, read_run
from .settings import EvaluateSettings, ExtractSettings, Task, settings_from, takes
from .splits.divide import require_unchanged
from .splits.stratify import assign_folds, group_rows
from .splits.tasks import for_task
from .threads import open_threads
from .types import Features, Float64Array, Indices, Mask

_FOLDS = 5
"""Folds that choose the penalty of the classifier that tells new rows from those of training."""
_STEP = 8192  # rows of a cache that are read at a time
_LEAST = 1e-300  # probability that has a logarithm
_NEW = "new"
"""The part of a row of ``predictions.parquet``."""


@takes(EvaluateSettings)
def evaluate(
    run: str | os.PathLike[str],
    rows: Any,
    settings: EvaluateSettings | None = None,
    *,
    reading: ExtractSettings | None = None,
    train_cache: str | os.PathLike[str] | None = None,
    encoder: str | None = None,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    wait: bool = False,
    report: Report = in_notebooks,
    **options: Any,
) -> dict[str, Any]:
    """Score a run's head on new rows with labels.

    Args:
        run: The run folder.
        rows: A cache of the run's encoder and settings, or a table as for `extract`, whose texts are encoded.
        settings: See `EvaluateSettings`.
        reading: How to read a table, and on which device to encode its texts.
        train_cache: The cache that the head was trained on; None for the one that the run names.
        encoder: A folder or hub id, where the encoder is no longer where the run says; it must be the same encoder.
        out: A folder to write, with ``evaluation.json`` and ``predictions.parquet`` (as that of a run), or None.
        overwrite: Replace the evaluation at ``out``.
        wait: If another run is writing ``out``, wait until it has ended.
        report: Receives progress, notes and the outcome. In a notebook, progress is shown by default.
        options: Settings by name, instead of ``settings``.

    Returns:
        What ``evaluation.json`` holds: ``metrics`` as in ``run.json``; ``rows``: how many were ``evaluated``, how many
        were left out for an unknown label (``unknown``) and as ``seen``, and of how many texts in training the metrics
        count (``seen_evaluated``; None without the training cache); ``worst``: the rows with the largest loss, or
        error of numbers; ``drift``: ``auc`` and its ``auc_interval`` (see `measure_drift`), or None.

    Raises:
        TableError: the table or its labels cannot be read, the cache has no labels, a label is unknown to the run, or
            no row is left.
        IdentityError: the cache, ``train_cache`` or the encoder is not of the run's identity.
        FormatError: a path is not what it should be.
        DamagedError: checksums do not match.
        OutputExistsError: ``out`` exists already.
        HeadstartError: as for `TextClassifier.predict`.
    """
    settings = settings_from(EvaluateSettings, settings, options)
    reading, run = reading or ExtractSettings(), Path(run)
    out = None if out is None else Path(out)
    started, head, fields = time.perf_counter(), load_head(run), read_run(run)
    held: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if out is not None:
        held = EVALUATION.held(out, overwrite=overwrite, wait=wait, report=report)
    with held:
        train = _open_train(train_cache, fields, head, run, report)
        seen_texts = None if train is None else hash_keys(train.text_hashes)[_seen_rows(train, run)]
        made = _Evaluated(run, head, seen_texts, settings, report)
        path = Path(rows) if isinstance(rows, str | os.PathLike) else None
        cache = None
        if path is not None and begins_as_cache(path.resolve()):
            cache = _open(path, head, run, report)
            found = made.of_cache(cache)
        else:
            found = made.of_table(rows, reading, encoder)
        outputs = outputs_of(head.task, found.scores.astype(np.float64) / head.temperature)
        metrics = target_of(head.task, head.label_names).evaluate(
            found.labels,
            found.scores,
            group_rows(found.token_hashes),
            temperature=head.temperature,
            thresholds=None if head.thresholds is None else np.array(head.thresholds),
        )
        drift = None if train is None else _drift(found, train, head, settings, run, report)
        require_unchanged((train, cache))
        record = {
            "run": str(run.resolve()),
            "source": found.source,
            "train_cache": None if train is None else str(train.path.resolve()),
            "settings": dataclasses.asdict(settings),
            "task": head.task,
            "label_names": list(head.label_names),
            "identity": dataclasses.asdict(head.identity),
            "rows": {"evaluated": len(found.labels), **found.left_out},
            "metrics": metrics,
            "test_metrics": fields["metrics"]["test"],
            "worst": _worst(found, head, outputs, settings.worst),
            "drift": drift,
            "sequences_encoded": found.sequences_encoded,
            "seconds": time.perf_counter() - started,
        }
        record = provenance(torch.device(found.device), record)
        if out is not None:
            with EVALUATION.new(out, overwrite=overwrite) as folder:
                write_predictions(folder, head, [PartPredictions(part=_NEW, dataset=found.dataset, outputs=outputs)])
                EVALUATION.write(folder, record)
    counts = {"rows": len(found.labels), "sequences_encoded": found.sequences_encoded}
    report(Outcome(command="evaluate", output=out or run, action=Action.MADE, counts=counts))
    return record


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Found:
    """The rows that are evaluated."""

    source: str
    labels: Any  # `Values`, with the classes' numbers of the run
    scores: Scores  # (rows, biases)
    text_hashes: Hashes
    token_hashes: Hashes
    row_numbers: Indices  # (rows,) in their table, from 1
    sample: Indices  # (sample,) rows to compare with those of training
    features: Features  # (sample, width)
    left_out: dict[str, int | None]
    texts: dict[int, tuple[str, str | None]]  # of the worst rows, where they are known
    device: str
    sequences_encoded: int

    @property
    def dataset(self) -> Dataset:
        """The rows without their features."""
        count = len(self.labels)
        return Dataset(
            features=np.empty((count, 0), np.float32),
            labels=self.labels,
            index=np.arange(count),
            origin=Origin(text_hashes=self.text_hashes, row_numbers=self.row_numbers),
        )


class _Evaluated:
    """Reads new rows, and scores them."""

    def __init__(self, run: Path, head: Head, seen_texts: Any, settings: EvaluateSettings, report: Report) -> None:
        """``seen_texts`` are the hashes of the texts of training as keys; None where they are not known."""
        self.run, self.head, self.seen_texts = run, head, seen_texts
        self.settings, self.report = settings, report

    def of_cache(self, cache: Cache) -> _Found:
        head, task = self.head, self.head.task
        named = task in (Task.CLASSES, Task.ORDINAL)
        if named and cache.label_kind in (LabelKind.CLASS, LabelKind.ORDINAL):
            read = cache
        else:
            read = for_task(cache, Task.CLASSES if named else task, None)
        numbers = np.arange(1, cache.rows + 1) if cache.row_numbers is None else np.asarray(cache.row_numbers)
        labels, kept, left_out = self._choose(
            read.labels, read.label_names, numbers, cache.text_hashes, str(cache.path)
        )
        features = cache.features(head.identity.features[0])
        scores = np.empty((len(kept), len(head.bias)), np.float32)
        for start in range(0, len(kept), _STEP):
            scores[start : start + _STEP] = head.logits(features[kept[start : start + _STEP]])
        sample = self._sample(cache.token_hashes[kept])
        return _Found(
            source=str(cache.path.resolve()),
            labels=labels,
            scores=scores,
            text_hashes=cache.text_hashes[kept],
            token_hashes=cache.token_hashes[kept],
            row_numbers=numbers[kept],
            sample=sample,
            features=features[kept[sample]].astype(np.float32),
            left_out=left_out,
            texts={},
            device="cpu",
            sequences_encoded=0,
        )

    def of_table(self, table: Any, reading: ExtractSettings, encoder: str | None) -> _Found:
        from .tables.labels import LabelRules  # loads pyarrow, which rows of a cache do not need
        from .tables.scan import read_windows, scan_table
        from .tables.table import open_table

        head, report = self.head, self.report
        classifier = TextClassifier(
            self.run,
            encoder=encoder,
            device=reading.device,
            allow_pickled_weights=reading.allow_pickled_weights,
            report=report,
        )
        classifier.require_pairs(reading.text_pair_column is not None)
        task = Task.CLASSES if head.task is Task.ORDINAL else head.task
        source = open_table(
            table,
            text_column=reading.text_column,
            pair_column=reading.text_pair_column,
            label_column=reading.label_column,
            label_rules=LabelRules(task, reading.label_delimiter),
            skip_bad_rows=reading.skip_bad_rows,
            settings=reading,
        )
        scan = scan_table(source, report)
        numbers = np.arange(1, scan.rows + 1) if scan.row_numbers is None else scan.row_numbers
        labels, kept, left_out = self._choose(scan.labels, scan.label_names, numbers, scan.text_hashes, source.source)
        model = classifier.load_encoder()
        sample = self._sample(scan.text_hashes[kept])
        scores = np.empty((len(kept), len(head.bias)), np.float32)
        token_hashes = np.empty((len(kept), scan.text_hashes.shape[1]), np.uint8)
        features = np.empty((len(sample), head.width), np.float32)
        unknown, encoded, texts = model.count_unknown([]), 0, dict[int, tuple[str, str | None]]()
        losses = np.empty(len(kept))
        for span, rows in prefetch(read_windows(source, scan, classifier.window_rows)):
            first, end = np.searchsorted(kept, [span.start, span.stop]).tolist()
            inside, here = (kept[first:end] - span.start).tolist(), slice(first, end)

            def place(index: int, rows: Any = rows, inside: list[int] = inside) -> str:
                return str(rows.place(inside[index]))

            pairs = None if rows.pairs is None else [rows.pairs[row] for row in inside]
            sequences = classifier.tokenize([rows.texts[row] for row in inside], pairs, place)
            if sequences:
                vectors = classifier.features(sequences, place)
                token_hashes[here], scores[here] = hash_sequences(sequences), head.logits(vectors)
                in_sample = (sample >= first) & (sample < end)
                features[in_sample] = vectors[sample[in_sample] - first]
                losses[here] = _losses(head, labels[here], scores[here])
                for row in _largest(losses[here], self.settings.worst) + first:
                    text = inside[row - first]
                    texts[int(row)] = rows.texts[text], None if rows.pairs is None else rows.pairs[text]
                known = np.array(sorted(texts), np.int64)
                texts = {row: texts[row] for row in known[_largest(losses[known], self.settings.worst)].tolist()}
            unknown += model.count_unknown(sequences)
            encoded += len(sequences)
            report(Step("encoding", end, len(kept), "rows"))
        if note := unknown.note():
            report(Note(note))
        return _Found(
            source=source.source,
            labels=labels,
            scores=scores,
            text_hashes=scan.text_hashes[kept],
            token_hashes=token_hashes,
            row_numbers=numbers[kept],
            sample=sample,
            features=features,
            left_out=left_out,
            texts=texts,
            device=classifier.device,
            sequences_encoded=encoded,
        )

    def _choose(
        self, values: Any, names: tuple[str, ...] | None, numbers: Indices, text_hashes: Hashes, where: str
    ) -> tuple[Any, Indices, dict[str, int | None]]:
        """Return the labels of the rows to evaluate, these rows, and how many are left out.

        Raises:
            TableError: a row has a label that the run does not know, or no row is left.
        """
        labels, strange = _matched(values, names, self.head)
        if strange.any() and not self.settings.skip_unknown_labels:
            row = int(np.argmax(strange))
            held = names or ()
            own = [held[c] for c in (np.flatnonzero(values[row]) if values.ndim == 2 else [values[row]])]
            name = next(each for each in own if each not in self.head.label_names)
            known = ", ".join(self.head.label_names[:5]) + (", ..." if len(self.head.label_names) > 5 else "")
            raise TableError(
                f"{where}, row {int(numbers[row]):,}: {self.run} does not know its label {name!r} (it knows {known}); "
                "correct it, or leave out such rows with `skip_unknown_labels=True`"
            )
        seen = np.zeros(len(labels), bool)
        if self.seen_texts is not None:
            seen = np.isin(hash_keys(text_hashes), self.seen_texts)
        kept = ~strange & ~(seen if self.settings.leave_out_seen else np.zeros(len(labels), bool))
        still = int((seen & kept).sum())
        gone = {"labels that the run does not know": strange, "texts that were in training": seen & ~kept & ~strange}
        for what, rows in gone.items():
            if rows.any():
                self.report(Note(f"{where}: rows with {what} are left out: {int(rows.sum()):,}"))
        if still:
            texts = f"the head was trained on or chosen by the texts of {still:,} of {int(kept.sum()):,} rows"
            advice = "leave them out with `leave_out_seen=True`"
            self.report(Note(f"{where}: {texts}, whose metrics are too good; {advice}"))
        if not kept.any():
            raise TableError(f"{where} has no row that is left to evaluate; give other rows")
        unknown, left = (int(rows.sum()) for rows in gone.values())
        counts = {"unknown": unknown, "seen": left, "seen_evaluated": None if self.seen_texts is None else still}
        return labels[kept], np.flatnonzero(kept), counts

    def _sample(self, hashes: Hashes) -> Indices:
        return _sample_rows(hashes, np.arange(len(hashes)), self.settings)


def _open(path: str | os.PathLike[str], head: Head, run: Path, report: Report) -> Cache:
    """Open and check a cache of the run's identity."""
    cache = open_cache(path)
    (feature,) = head.identity.features
    if feature not in cache.identity.features:
        raise IdentityError(f"{path} lacks the feature {feature!r} that {run} reads; extract it")
    theirs = cache.identity.narrowed(feature)
    if clauses := differences(theirs, head.identity, our_name=str(path), their_name=str(run)):
        raise IdentityError(f"{path} does not fit {run}: they differ in {'; '.join(clauses)}; extract it again")
    cache.check(lambda block: report(Step("checking", block + 1, cache.layout.blocks, "blocks")))
    return cache


def _open_train(
    given: str | os.PathLike[str] | None, fields: Any, head: Head, run: Path, report: Report
) -> Cache | None:
    """Open the cache that a head was trained on. Where the run's own is not there, a note says so."""
    if given is not None:
        return _open(given, head, run, report)
    try:
        return _open(fields["cache"], head, run, report)
    except (HeadstartError, KeyError, TypeError) as error:
        reason = str(error) if isinstance(error, HeadstartError) else "the run does not name it"
        report(Note(f"no drift, and no count of texts that were in training: {reason}; or name it with `train_cache`"))
        return None


def _seen_rows(train: Cache, run: Path) -> Mask:
    """Which rows of the training cache a head was trained on or chosen by: all but those of the run's test rows."""
    if not (run / PREDICTIONS_FILE).is_file():  # a run that was made earlier
        return np.ones(train.rows, bool)
    from pyarrow.parquet import read_table

    tested = read_table(run / PREDICTIONS_FILE, columns=["text_hash"], filters=[("part", "=", "test")])
    digits = bytes.fromhex("".join(tested.column(0).to_pylist()))
    hashes = np.frombuffer(digits, np.uint8).reshape(-1, train.text_hashes.shape[1])
    result: Mask = ~np.isin(hash_keys(train.text_hashes), hash_keys(hashes))
    return result


def _matched(values: Any, names: tuple[str, ...] | None, head: Head) -> tuple[Any, Mask]:
    """Return labels with the classes' numbers of a head, and which rows have a label that it does not know."""
    if names is None:
        return np.asarray(values, np.float64), np.zeros(len(values), bool)
    ranks = {name: number for number, name in enumerate(head.label_names)}
    order = np.array([ranks.get(name, -1) for name in names], np.int64)
    if values.ndim == 1:
        labels = order[values]
        return labels, labels < 0
    matched = np.zeros((len(values), len(ranks)), np.uint8)
    matched[:, order[order >= 0]] = values[:, order >= 0]
    return matched, values[:, order < 0].any(axis=1)


def _losses(head: Head, labels: Any, scores: Scores) -> Float64Array:
    """How wrong a head is about each row: minus the logarithm of its label's probability, the mean of these over
    labels, or the error of a number: (rows,) float64."""
    outputs = outputs_of(head.task, scores.astype(np.float64) / head.temperature)
    losses: Float64Array
    if head.task is Task.REGRESSION:
        losses = np.abs(outputs[:, 0] - labels)
    elif head.task is Task.MULTI_LABEL:
        losses = -np.log(np.maximum(np.where(labels, outputs, 1 - outputs), _LEAST)).mean(axis=1)
    else:
        losses = -np.log(np.maximum(outputs[np.arange(len(labels)), labels], _LEAST))
    return losses


def _largest(values: Float64Array, count: int) -> Indices:
    """The places of the largest values, the largest first."""
    return np.argsort(-values, kind="stable")[:count]


def _worst(found: _Found, head: Head, outputs: Float64Array, count: int) -> list[dict[str, Any]]:
    """The rows that a head got most wrong."""
    losses = _losses(head, found.labels, found.scores)
    lines: list[dict[str, Any]] = []
    for row in _largest(losses, count).tolist():
        said, label = head.predictions(outputs[row : row + 1])[0], found.labels[row]
        text, pair = found.texts.get(row, (None, None))
        lines.append(
            {
                "row": int(found.row_numbers[row]),
                "text_hash": found.text_hashes[row].tobytes().hex(),
                "label": _name(head, label),
                "prediction": _name(head, said),
                "error" if head.task is Task.REGRESSION else "loss": float(losses[row]),
                "text": text,
                "text_pair": pair,
            }
        )
    return lines


def _name(head: Head, value: Any) -> Any:
    if head.task is Task.REGRESSION:
        return float(value)
    if head.task is Task.MULTI_LABEL:
        return [head.label_names[number] for number in np.flatnonzero(value)]
    return head.label_names[int(value)]


def _sample_rows(hashes: Hashes, rows: Indices, settings: EvaluateSettings) -> Indices:
    """Choose rows with distinct hashes, ascending; ``hashes`` are those of ``rows``."""
    _, first = np.unique(hash_keys(hashes), return_index=True)
    chosen = np.random.default_rng(settings.split_seed).permutation(first)[: settings.drift_sample]
    return np.sort(rows[chosen])


def _drift(
    found: _Found, train: Cache, head: Head, settings: EvaluateSettings, run: Path, report: Report
) -> dict[str, Any] | None:
    """How well a classifier tells new rows from those of training; None where there are too few, or none is wanted."""
    if not settings.drift_sample:
        return None
    (feature,) = head.identity.features
    trained = np.flatnonzero(_seen_rows(train, run))
    rows = _sample_rows(train.token_hashes[trained], trained, settings)
    labels = np.repeat(np.array([1, 0]), [len(found.sample), len(rows)])
    groups = group_rows(np.concatenate([found.token_hashes[found.sample], train.token_hashes[rows]]))
    texts = min(len(found.sample), len(rows))
    if texts < 4 * _FOLDS:
        report(Note(f"no drift: {texts} distinct texts are too few to tell new ones from those of training"))
        return None
    dataset = Dataset(
        features=np.concatenate([found.features, train.features(feature)[rows].astype(np.float32)]),
        labels=labels,
        index=np.arange(len(labels)),
        dims=head.dims,
    )
    rng, fold = np.random.default_rng(settings.split_seed), np.zeros(len(labels), np.int64)
    half = np.flatnonzero(assign_folds(dataset.index, labels, groups, folds=2, rng=rng) == 1)
    fold[half] = assign_folds(half, labels, groups, folds=_FOLDS, rng=rng)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        report(Step("comparing with training", steps, 0, "steps"))

    with open_threads() as threads:
        drift = measure_drift(dataset, fold, threads=threads, on_step=step)
    return {
        "auc": drift.auc,
        "auc_interval": list(drift.interval),
        "l2": drift.l2,
        "texts": len(found.sample),
        "texts_of_training": len(rows),
    }
