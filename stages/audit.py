"""Auditing labels: likely errors, near-duplicates of another label, outliers, what to label next. No encoder runs."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache.errors import SettingsError, TableError
from ..cache.hashing import hash_keys, hash_texts
from ..cache.label_kind import LabelKind
from ..cache.reader import Cache, open_cache
from .heads.audit import OutOfFold, above_fence, choose_next, class_distances, out_of_fold
from .heads.confident_learning import LabelErrors, find_label_errors, label_scores
from .heads.dataset import Dataset, Origin
from .heads.logistic import LogisticSolver
from .heads.near_duplicates import find_partners
from .heads.scratch import take
from .progress import Action, Note, Outcome, Report, Step, in_notebooks
from .provenance import provenance
from .runs.audit_folder import AUDIT, ISSUES_FILE, NEXT_FILE, write_lines
from .runs.savings import passes_of_cached
from .settings import AuditSettings, ExtractSettings, Labels, Solver, Task, TrainSettings, settings_from, takes
from .splits.divide import find_dims, require_fit, require_unchanged
from .splits.relabel import is_labelled, relabel
from .splits.stratify import assign_folds, group_rows, require_trainable
from .threads import open_threads
from .types import Float64Array, Indices

LABEL_ERROR, DUPLICATE, NEAR_DUPLICATE, OUTLIER = KINDS = ("label-error", "duplicate", "near-duplicate", "outlier")
PENALTIES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""L2 penalties to choose from, each times the number of columns, which are standardized."""
_WORST = 5
"""Lines of each kind that ``audit.json`` repeats."""
_PAIRS = 20
"""Pairs of classes that ``audit.json`` counts."""
_OF_NEXT: dict[str, type] = {
    **{"row": int, "text_hash": str, "suggested": str},
    **{"suggested_probability": float, "margin": float, "text": str, "text_pair": str},
}
_OF_ISSUES: dict[str, type] = {
    **{"kind": str, "row": int, "text_hash": str, "label": str, "label_probability": float},
    **{"suggested": str, "suggested_probability": float, "score": float, "partner_row": int, "partner_label": str},
    **{"text": str, "text_pair": str},
}
Line = dict[str, Any]


@takes(AuditSettings)
def audit(
    cache: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: AuditSettings | None = None,
    *,
    pool: str | os.PathLike[str] | None = None,
    labels: Labels | None = None,
    texts: Any = None,
    reading: ExtractSettings | None = None,
    overwrite: bool = False,
    wait: bool = False,
    report: Report = in_notebooks,
    **options: Any,
) -> Path:
    """Find what is likely wrong with the labels of a cache, from its features.

    ``issues.parquet`` has a line for each problem, the worst of each kind first. Its columns are ``kind``, ``row`` (the
    number in the table, from 1), ``text_hash`` (32 hexadecimal digits), ``label``, ``label_probability``, ``suggested``
    (the class that heads trained on other rows find most probable), ``suggested_probability``, ``score``,
    ``partner_row``, ``partner_label``, and ``text`` and ``text_pair`` where ``texts`` has them. The kinds:

        label-error     confident learning; the score is that of `AuditSettings.score`
        duplicate       another row of the same text (the partner) has another label
        near-duplicate  the nearest row of another label, by cosine (the score)
        outlier         far from all classes; the score is the Mahalanobis distance

    Args:
        cache: The cache, with one class for each row.
        out: The folder to write.
        settings: See `AuditSettings`.
        pool: A cache of rows to choose ``settings.next`` rows from, for labelling: ``next.parquet``. Its own labels are
            not read, and texts that ``cache`` holds are left out.
        labels: A table whose labels replace the cache's own. Rows whose text it does not hold are left out.
        texts: A table that holds the texts, as for `extract`. Lines get the texts that it has, by their hashes.
        reading: How to read that table.
        overwrite: Replace the audit at ``out``.
        wait: If another run is writing ``out``, wait until it has ended.
        report: Receives progress, notes and the outcome. In a notebook, progress is shown by default.
        options: Settings by name, instead of ``settings``.

    Returns:
        The folder: ``audit.json``, ``issues.parquet``, and ``next.parquet`` if rows are to be chosen.

    Raises:
        FormatError: a path is not a cache, or the cache is unfinished.
        DamagedError: a cache's checksums do not match.
        IdentityError: the pool comes from another encoder or other settings.
        SettingsError: rows are to be chosen without a pool, or there is a pool and no row is to be chosen.
        TableError: the labels are not one class for each row, or there are too few; the pool has no text of its own;
            or the table of texts has none of the texts.
        OutputExistsError: ``out`` exists already.
        BusyError: another run is writing ``out``, and ``wait`` is False.
    """
    settings, out = settings_from(AuditSettings, settings, options), Path(out)
    if (settings.next > 0) != (pool is not None):
        raise SettingsError(
            "`next` and `pool` go together: how many rows to choose for labelling, and from which cache"
        )
    with AUDIT.held(out, overwrite=overwrite, wait=wait, report=report):
        started = time.perf_counter()
        opened = _open(cache, report)
        if labels is not None:
            opened = relabel(opened, labels, report, task=Task.AUTO, order=None)
        settings = dataclasses.replace(settings, feature=opened.feature_name(settings.feature))
        candidates = None if pool is None else _open_pool(pool, opened, settings.feature, report)
        classes, names = _classes_of(opened)
        rows = np.flatnonzero(is_labelled(classes))
        dataset, groups = _dataset(opened, settings, classes, rows), group_rows(opened.token_hashes)[rows]
        require_trainable(dataset.targets, groups, names, str(opened.path), divided=False)
        judged = _judge(dataset, groups, names, settings, where=str(opened.path), report=report)
        probabilities = take(judged.probabilities, np.flatnonzero(judged.judged))
        found = find_label_errors(probabilities, dataset.targets[judged.judged], prune=settings.prune)
        lines, facts = _issues(dataset, groups, names, judged, found, settings, report)
        chosen: list[Line] = []
        if candidates is not None:
            chosen = _next(dataset, candidates, names, judged.l2, settings, report)
        if texts is not None:
            _add_texts([*lines, *chosen], opened, texts, reading or ExtractSettings(), report)
        require_unchanged((opened, candidates and candidates[0]))
        counts = {kind: sum(line["kind"] == kind for line in lines) for kind in KINDS}
        passes = passes_of_cached(opened.record, len(dataset) + (0 if candidates is None else len(candidates[1])))
        fields = {
            "settings": dataclasses.asdict(settings),
            "label_names": list(names),
            "identity": dataclasses.asdict(opened.identity.narrowed(settings.feature)),
            "encoder": opened.record["encoder"],
            "cache": str(opened.path.resolve()),
            "pool": None if candidates is None else str(candidates[0].path.resolve()),
            "labels": None if labels is None else {**dataclasses.asdict(labels), "table": str(labels.table)},
            "rows": {
                "audited": len(dataset),
                "judged": int(judged.judged.sum()),
                "texts": len(np.unique(groups)),
                "pool": 0 if candidates is None else len(candidates[1]),
            },
            "head": {
                "l2": judged.l2,
                "log_losses": [{"l2": l2, "log_loss": loss} for l2, loss in judged.losses.items()],
                "chosen_by": judged.chosen_by,
                "log_loss": judged.log_loss,
                "accuracy": judged.accuracy,
            },
            "issues": counts,
            **facts,
            "worst": [line for kind in KINDS for line in [each for each in lines if each["kind"] == kind][:_WORST]],
            "next": len(chosen),
            "encoder_passes": dataclasses.asdict(passes),
            "seconds": time.perf_counter() - started,
        }
        with AUDIT.new(out, overwrite=overwrite) as folder:
            write_lines(folder / ISSUES_FILE, lines, _OF_ISSUES)
            if candidates is not None:
                write_lines(folder / NEXT_FILE, chosen, _OF_NEXT)
            AUDIT.write(folder, provenance(torch.device("cpu"), fields))
    report(Outcome(command="audit", output=out, action=Action.MADE, counts={**counts, "next": len(chosen)}))
    return out


def _open(path: str | os.PathLike[str], report: Report) -> Cache:
    cache = open_cache(path)
    cache.check(lambda block: report(Step("checking", block + 1, cache.layout.blocks, "blocks")))
    return cache


def _classes_of(cache: Cache) -> tuple[Indices, tuple[str, ...]]:
    """The class number of each row, and the classes' names."""
    if cache.labels is None or cache.label_names is None:
        what = "has no labels" if cache.labels is None else "has numbers as labels"
        raise TableError(
            f"{cache.path} {what}; an audit needs one class for each row: name a table of them with `labels`"
        )
    if cache.label_kind is LabelKind.MULTI_LABEL:
        raise TableError(f"{cache.path} has several labels for each row; an audit needs one class for each row")
    return np.asarray(cache.labels, np.int64), cache.label_names


def _dataset(cache: Cache, settings: AuditSettings, labels: Indices, rows: Indices) -> Dataset:
    return Dataset(
        features=cache.features(settings.feature),
        labels=labels,
        index=rows,
        dims=find_dims(cache, TrainSettings(feature=settings.feature, dims=settings.dims)),
        origin=Origin(text_hashes=cache.text_hashes, row_numbers=cache.row_numbers),
    )


def _open_pool(path: str | os.PathLike[str], cache: Cache, feature: str, report: Report) -> tuple[Cache, Indices]:
    """Open the pool; return it and the rows to choose from: the first of each text that the other cache lacks."""
    pool = _open(path, report)
    pool.features(feature)  # refused if it lacks it
    require_fit(pool, cache, feature)
    keys = hash_keys(pool.token_hashes)
    _, first = np.unique(keys, return_index=True)
    rows = np.sort(first[~np.isin(keys[first], hash_keys(cache.token_hashes))]).astype(np.int64)
    if not len(rows):
        raise TableError(f"{pool.path} holds no text that {cache.path} lacks; give another `pool`")
    return pool, rows


def _judge(
    dataset: Dataset, groups: Indices, names: tuple[str, ...], settings: AuditSettings, *, where: str, report: Report
) -> OutOfFold:
    """Divide the rows into folds, and judge each by heads that were trained on the others."""
    labels, steps = dataset.targets, 0

    def step() -> None:
        nonlocal steps
        steps += 1
        report(Step("judging", steps, 0, "steps"))

    fold = assign_folds(
        np.arange(len(dataset)),
        labels,
        groups,
        folds=settings.folds,
        rng=np.random.default_rng(settings.split_seed),
        where=where,
    )
    penalties = [dataset.width * share for share in PENALTIES] if settings.l2 is None else [settings.l2]
    with open_threads() as threads:
        judged = out_of_fold(
            dataset,
            fold,
            classes=len(names),
            penalties=penalties,
            memory=settings.memory,
            threads=threads,
            on_step=step,
        )
    if missing := int((~judged.judged).sum()):
        report(Note(f"{missing:,} rows of {where} are not judged: no other text has their label"))
    if not judged.converged:
        report(Note(f"{where}: a fold's head did not converge with l2 {judged.l2:g}; a larger `l2` converges sooner"))
    if settings.l2 is None and judged.l2 in (max(penalties), min(penalties)):
        report(
            Note(f"the best `l2` is {judged.l2:g}, at the end of those that were tried; name another one to compare")
        )
    return judged


def _issues(
    dataset: Dataset,
    groups: Indices,
    names: tuple[str, ...],
    judged: OutOfFold,
    found: LabelErrors,
    settings: AuditSettings,
    report: Report,
) -> tuple[list[Line], dict[str, Any]]:
    """The lines of ``issues.parquet``, and fields of ``audit.json``."""
    labels, rows = dataset.targets, np.arange(len(dataset))
    suggested = judged.probabilities.argmax(axis=1)
    own, best = judged.probabilities[rows, labels], judged.probabilities.max(axis=1)
    scores = label_scores(judged.probabilities, labels, settings.score)
    errors = np.flatnonzero(judged.judged)[found.found]
    partners = find_partners(
        dataset,
        groups,
        threshold=settings.similarity,
        on_rows=lambda done, total: report(Step("comparing", done, total, "texts")),
    )
    paired = np.flatnonzero(partners.partner >= 0)
    copies = groups[paired] == groups[partners.partner[paired]]
    distances = class_distances(dataset, len(names))
    outliers = np.flatnonzero(above_fence(distances, settings.fence))

    def lines(kind: str, chosen: Indices, values: Float64Array, *, lowest: bool = False) -> Iterator[Line]:
        order = np.argsort(values[chosen] if lowest else -values[chosen], kind="stable")
        for row in chosen[order].tolist():
            partner = int(partners.partner[row]) if kind in (DUPLICATE, NEAR_DUPLICATE) else None
            known = bool(judged.judged[row])
            yield {
                "kind": kind,
                **_place(dataset, row),
                "label": names[labels[row]],
                "label_probability": float(own[row]) if known else None,
                "suggested": names[suggested[row]] if known else None,
                "suggested_probability": float(best[row]) if known else None,
                "score": float(values[row]),
                "partner_row": None if partner is None else int(dataset.row_numbers[partner]),
                "partner_label": None if partner is None else names[labels[partner]],
            }

    pairs = np.bincount(labels[errors] * len(names) + suggested[errors], minlength=1)
    most = np.argsort(-pairs, kind="stable")[:_PAIRS].tolist()
    off = found.joint.copy()
    np.fill_diagonal(off, 0)
    facts = {
        "estimated_errors": int(off.sum()),
        "confusions": [
            {"label": names[pair // len(names)], "suggested": names[pair % len(names)], "rows": int(pairs[pair])}
            for pair in most
            if pairs[pair]
        ],
        "thresholds": {
            name: None if np.isnan(value) else value
            for name, value in zip(names, found.thresholds.tolist(), strict=True)
        },
        "compared": {"components": partners.components, "first": partners.first, "products": partners.products},
        "distance": {f"quantile_{share:g}": float(np.quantile(distances, share)) for share in (0.25, 0.5, 0.75, 1)},
    }
    every = [
        *lines(LABEL_ERROR, errors, scores, lowest=True),
        *lines(DUPLICATE, paired[copies], partners.similarity),
        *lines(NEAR_DUPLICATE, paired[~copies], partners.similarity),
        *lines(OUTLIER, outliers, distances),
    ]
    return every, facts


def _next(
    dataset: Dataset,
    candidates: tuple[Cache, Indices],
    names: tuple[str, ...],
    l2: float,
    settings: AuditSettings,
    report: Report,
) -> list[Line]:
    """The lines of ``next.parquet``: rows of the pool to label, the most uncertain first."""
    pool, rows = candidates
    unlabelled = _dataset(pool, settings, np.zeros(pool.rows, np.int64), rows)
    training = TrainSettings(solver=Solver.EXACT, standardize=True, memory=settings.memory)
    with open_threads() as threads:
        solver = LogisticSolver(dataset, classes=len(names), settings=training, threads=threads)
        parameters, convergence = solver.solve(l2, lambda step: report(Step("training", step, 0, "steps")))
    if not convergence.converged:
        report(Note(f"the head that chooses rows of {pool.path} did not converge: {convergence.reason}"))
    choice = choose_next(unlabelled, parameters, settings.next)
    if len(choice.rows) < settings.next:
        report(Note(f"{pool.path} has {len(choice.rows):,} texts to choose from; all are taken"))
    return [
        {
            **_place(unlabelled, row),
            "suggested": names[choice.predictions[row]],
            "suggested_probability": float(choice.probabilities[row]),
            "margin": float(choice.margins[row]),
        }
        for row in choice.rows.tolist()
    ]


def _place(dataset: Dataset, row: int) -> Line:
    """Where a row stands in its table, and the hash of its text."""
    one = dataclasses.replace(dataset, index=dataset.index[row : row + 1])
    return {"row": int(one.row_numbers[0]), "text_hash": one.text_hashes.tobytes().hex()}


def _add_texts(lines: Sequence[Line], cache: Cache, table: Any, reading: ExtractSettings, report: Report) -> None:
    """Add to the lines the texts that a table has, by their hashes."""
    from .extraction.resume import open_source  # loads pyarrow, and much that an audit without texts does not need

    source = open_source(cache, table, reading)
    wanted: dict[str, list[Line]] = {}
    for line in lines:
        wanted.setdefault(line["text_hash"], []).append(line)
    missing = dict(wanted)
    rows = 0
    for batch in source.batches(lambda text: report(Note(text))):
        for number, key in enumerate(hash_texts(batch.texts, batch.pairs)):
            for line in missing.pop(key.tobytes().hex(), ()):
                line["text"] = batch.texts[number]
                line["text_pair"] = None if batch.pairs is None else batch.pairs[number]
        rows += len(batch)
        report(Step("reading", rows, 0, "rows"))
    if wanted and len(missing) == len(wanted):
        raise TableError(
            f"{source.source} has none of the texts of {cache.path}; choose another table, or `text_column`"
        )
    if missing:
        report(Note(f"{len(missing):,} of {len(wanted):,} texts are not in {source.source}"))
