"""One page about runs and sweeps, to look at: a file that needs no network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..cache.errors import DamagedError, IdentityError, OutputExistsError, SettingsError, TableError, storage_errors
from ..cache.hashing import hash_texts
from ..cache.identity import Identity, differences
from ..cache.label_kind import LabelKind
from ..cache.lock import hold
from ..cache.reader import Cache, open_cache
from ..cache.siblings import followed
from ..cache.workspace import is_plain_file, replace_file, sync_file, workspace
from .pages import confusions
from .pages.audited import issues_shown
from .pages.feature_map import Map, project, sample_rows
from .pages.figures import plotly_script
from .pages.page import BEGINNING, Material, build
from .pages.subject import Key, Subject, read_issues, read_subject
from .pages.texts import least_sure, most_wrong
from .progress import Action, Note, Outcome, Report, Step, in_notebooks
from .runs.audit_folder import AUDIT, ISSUES_FILE
from .settings import ExtractSettings, ReportSettings, settings_from, takes
from .tables.table import open_table
from .types import Indices


@takes(ReportSettings)
def report(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    settings: ReportSettings | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    texts: Any = None,
    reading: ExtractSettings | None = None,
    audit: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    report: Report = in_notebooks,
    **options: Any,
) -> Path:
    """Write one self-contained HTML page about runs and sweeps.

    Args:
        sources: The folder of a run or a sweep, or several.
        out: The page, ``NAME.html``.
        settings: See `ReportSettings`.
        cache: The cache that the runs were trained on: the page gets a map of its features, and its counts.
        texts: The table that the test rows come from, as for `extract`: the page shows the texts that a head was most
            wrong and least sure about, and those of the map.
        reading: How to read that table.
        audit: The folder of an audit, to show what it found.
        overwrite: Replace the report at ``out``.
        report: Receives progress and the outcome.
        options: Settings by name, instead of ``settings``.

    Returns:
        The path of ``out``.

    Raises:
        SettingsError: plotly is not installed, or the same folder is given twice.
        FormatError: a folder is none of a run, a sweep or an audit, or ``cache`` is no cache.
        DamagedError: a file is damaged, or was not written by headstart.
        IdentityError: the cache holds other features than a head reads; or texts are pairs, and the table's are not.
        TableError: the table has another text in one of the rows.
        OutputExistsError: ``out`` exists, or is no name of a page.
        BusyError: another run is writing ``out``.
        StorageError: the machine cannot read or write.
    """
    settings, out = settings_from(ReportSettings, settings, options), Path(out)
    paths = [Path(sources)] if isinstance(sources, str | os.PathLike) else [Path(source) for source in sources]
    _require_writable(out, overwrite)
    plotly_script()  # an absent library is said at once
    subjects = [read_subject(path, name) for path, name in zip(paths, _names(paths), strict=True)]
    opened = None if cache is None else _open(cache, report)
    maps = [None if opened is None else _map(opened, subject, settings.points) for subject in subjects]
    found = None if audit is None else AUDIT.read(Path(audit))
    issues = [] if audit is None else read_issues(Path(audit) / ISSUES_FILE)
    try:
        wanted = {key for subject in subjects for key in _keys_shown(subject, settings.worst)}
        wanted |= {key for each in maps if each is not None for key in each.keys}
        wanted |= {(line["row"], line["text_hash"]) for line in issues_shown(issues, settings.worst)}
        read = None
        if texts is not None:
            pairs = bool(subjects[0].run["identity"].get("pairs"))
            read = _read_texts(texts, reading or ExtractSettings(), wanted, pairs=pairs, report=report)
        material = Material(
            cache=None if opened is None else _describe(opened),
            maps=maps,
            texts=read,
            audit=found,
            issues=issues,
            most=settings.worst,
        )
        page = build(subjects, material)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:  # headstart did not write it
        where = ", ".join(map(str, [*paths, *([] if audit is None else [audit])]))
        raise DamagedError(
            f"{where}: a record is not as headstart writes it ({type(error).__name__}: {error})"
        ) from error
    if opened is not None:
        opened.require_unchanged()
    with hold(out, note=lambda text: report(Note(text))):
        _write(out, page, overwrite=overwrite)
    report(Outcome(command="report", output=out, action=Action.MADE, counts={"bytes": len(page.encode())}))
    return out


def _require_writable(out: Path, overwrite: bool) -> None:
    if out.suffix.lower() not in (".html", ".htm"):
        raise OutputExistsError(f"{out} must end in .html")
    followed(out)  # a link that leads to itself is refused
    if not out.parent.is_dir() or (out.exists() and not out.is_file()):  # a folder, a pipe or a device
        raise OutputExistsError(f"{out} cannot be a file: make its folder first, or choose another `out`")
    if not out.exists():
        return
    if not overwrite:
        raise OutputExistsError(f"{out} exists already; choose another `out`, or pass `overwrite=True`")
    with storage_errors(f"cannot read {out}"), out.open("rb") as file:
        if is_plain_file(out) and file.read(len(BEGINNING)) != BEGINNING.encode():
            raise OutputExistsError(f"{out} is not a report, so it is not overwritten; choose another `out`")


def _write(out: Path, page: str, *, overwrite: bool) -> None:
    """Write the page under another name, which it changes for its own when it is whole."""
    with workspace(out) as work, storage_errors(f"cannot write {out}"):
        new = work / "new"
        new.write_text(page, encoding="utf-8", newline="\n")
        sync_file(new)
        if os.path.lexists(followed(out)):
            _require_writable(out, overwrite)  # another run may have made it in the meantime
        replace_file(new, out)


def _names(paths: Sequence[Path]) -> list[str]:
    """The names of the folders; where two are the same, with those of the folders that they lie in."""
    whole = [path.resolve() for path in paths]
    if len(set(whole)) < len(whole):
        raise SettingsError("the same folder is given twice; leave out one of them")
    for length in range(1, max((len(path.parts) for path in whole), default=1) + 1):
        names = ["/".join(path.parts[-length:]) for path in whole]
        if len(set(names)) == len(names):
            break
    return names


def _keys_shown(subject: Subject, most: int) -> Iterable[Key]:
    """The test rows whose texts the page shows."""
    if subject.test is None:
        return ()
    keys = subject.test.keys
    rows = np.concatenate([most_wrong(subject, most), least_sure(subject, most), confusions.rows_shown(subject)])
    return (keys[row] for row in rows.tolist())


def _read_texts(
    table: Any, reading: ExtractSettings, wanted: set[Key], *, pairs: bool, report: Report
) -> Mapping[Key, str]:
    """Read the texts of some rows, and check by their hashes that they are those rows' texts."""
    if pairs != (reading.text_pair_column is not None):
        advice = "pairs of texts; name the second column with" if pairs else "single texts; leave out"
        raise IdentityError(f"the runs are of {advice} `text_pair_column`")
    source = open_table(
        table,
        text_column=reading.text_column,
        pair_column=reading.text_pair_column,
        label_column=None,
        skip_bad_rows=reading.skip_bad_rows,
        settings=reading,
    )
    hashes: dict[int, set[str]] = {}
    for row, text_hash in wanted:
        hashes.setdefault(row, set()).add(text_hash)
    found: dict[Key, str] = {}
    rows = 0
    for batch in source.batches(lambda text: report(Note(text))):
        places = [place for place, number in enumerate(batch.numbers) if batch.earlier + number in hashes]
        texts = [batch.texts[place] for place in places]
        others = None if batch.pairs is None else [batch.pairs[place] for place in places]
        for index, key in enumerate(hash_texts(texts, others)):
            row, digits = batch.earlier + batch.numbers[places[index]], key.tobytes().hex()
            if hashes.pop(row) != {digits}:
                raise TableError(
                    f"{source.source}, row {row:,}: it is not the text that was encoded for this row; give the table "
                    "that the rows come from, or choose `text_column`"
                )
            found[row, digits] = texts[index] if others is None else f"{texts[index]} / {others[index]}"
        rows += len(batch)
        report(Step("reading", rows, 0, "rows"))
    if hashes:
        raise TableError(
            f"{source.source} has no row {min(hashes):,}, or it is a bad row; give the table that the rows come from"
        )
    return found


def _open(path: str | os.PathLike[str], report: Report) -> Cache:
    cache = open_cache(Path(path))
    cache.check(lambda block: report(Step("checking", block + 1, cache.layout.blocks, "blocks")))
    return cache


def _map(cache: Cache, subject: Subject, points: int) -> Map:
    """Some rows of the cache as points, in the feature that the subject's head reads."""
    feature = cache.feature_name(subject.run["settings"]["feature"])
    theirs = Identity.from_dict(subject.run["identity"], subject.name)
    ours = cache.identity.narrowed(feature)
    if clauses := differences(ours, theirs, our_name=str(cache.path), their_name=subject.name):
        raise IdentityError(
            f"{cache.path} is not of the features of {subject.name}: they differ in {'; '.join(clauses)}"
        )
    groups, labels = _labels(cache)
    rows = sample_rows(groups, points)
    projected, shares = project(np.asarray(cache.features(feature)[rows], np.float32))
    numbers = rows + 1 if cache.row_numbers is None else cache.row_numbers[rows]
    hashes = [cache.text_hashes[row].tobytes().hex() for row in rows]
    keys = list(zip(numbers.tolist(), hashes, strict=True))
    return Map(feature, cache.rows, projected, shares, [labels(row) for row in rows.tolist()], keys)


def _labels(cache: Cache) -> tuple[Indices, Any]:
    """Groups of rows with the same label, (rows,) int64, and a function that names the label of a row."""
    labels, names = cache.labels, cache.label_names
    if labels is None:
        return np.zeros(cache.rows, np.int64), lambda row: None
    if names is None:
        places = np.searchsorted(np.quantile(labels, np.linspace(0, 1, 11)[1:-1]), labels)
        return places.astype(np.int64), lambda row: float(labels[row])
    if cache.label_kind is LabelKind.MULTI_LABEL:
        groups = np.unique(np.asarray(labels), axis=0, return_inverse=True)[1].reshape(-1)
        return groups.astype(np.int64), lambda row: [names[place] for place in np.flatnonzero(labels[row])]
    return np.asarray(labels, np.int64), lambda row: names[labels[row]]


def _describe(cache: Cache) -> dict[str, Any]:
    """What the page says of a cache."""
    return {
        "path": str(cache.path),
        "rows": cache.rows,
        "features": dict(cache.layout.widths),
        "storage": cache.layout.storage,
        "label_rows": cache.label_counts(),
    }
