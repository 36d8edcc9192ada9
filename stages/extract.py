"""Stage one: the frozen encoder reads every distinct text of a table once, and its features go into one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..cache.errors import OutputExistsError
from ..cache.layout import storage_errors
from .extraction.extraction import Extraction
from .progress import Report, silent
from .settings import ExtractSettings
from .tables.formats import table_name


def extract(
    table: Any,
    out: str | Path,
    settings: ExtractSettings | None = None,
    *,
    labels: Sequence[str | int] | None = None,
    update: bool = False,
    reuse: Sequence[str | Path] = (),
    overwrite: bool = False,
    wait: bool = False,
    report: Report = silent,
) -> Path:
    """Encode a table's texts into a cache, doing only what is not done yet.

    A cache that is current is left as it is; one that differs in its labels alone gets the new ones, and nothing
    is encoded; an unfinished one is carried on with.

    Args:
        table: A CSV, TSV, JSON lines or Parquet file, or a folder of one of them. In memory: a sequence of texts,
            a mapping of columns, an Arrow table, or a DataFrame.
        out: The cache to write.
        settings: See `ExtractSettings`.
        labels: One label per text, where ``table`` is a sequence of texts.
        update: Where the cache at ``out`` is of other rows, make one of the table's rows, and encode only texts that
            the old one lacks. The old one stays whole until the new one takes its place.
        reuse: Other caches of the same identity, from which rows are taken instead of encoding them.
        overwrite: Encode again and replace what is at ``out``, which stays whole until the new cache is.
        wait: Where another run is writing ``out``, wait until it is done.
        report: Where progress and notes go.

    Returns:
        The cache's path.

    Raises:
        TableError: the table cannot be read, has a bad row, or changes while it is read.
        EncoderError: the encoder cannot be found or read, or gives a feature that is not finite.
        IdentityError: a cache to reuse is of another encoder or other settings.
        OutputExistsError: ``out``, or an unfinished cache of that name, holds something else.
        BusyError: another run is writing ``out``.
        StorageError: the machine cannot read or write.
    """
    extraction = Extraction(settings or ExtractSettings(), report)
    return extraction.run(
        table, Path(out), labels=labels, update=update, reuse=list(reuse), overwrite=overwrite, wait=wait
    )


def extract_tables(
    tables: Sequence[str | Path],
    folder: str | Path,
    settings: ExtractSettings | None = None,
    *,
    update: bool = False,
    reuse: Sequence[str | Path] = (),
    overwrite: bool = False,
    wait: bool = False,
    report: Report = silent,
) -> list[Path]:
    """Encode several tables into one cache each, with one encoder; what they share is encoded once.

    Args:
        tables: Files or folders; each gives its name to its cache: ``train.csv`` becomes ``train.h5``.
        folder: Where the caches go; it is made where it is missing.
        settings: See `ExtractSettings`.
        update: As for `extract`, for each of them.
        reuse: As for `extract`.
        overwrite: As for `extract`.
        wait: As for `extract`.
        report: Where progress and notes go.

    Returns:
        The caches' paths, in the order of the tables.

    Raises:
        OutputExistsError: two tables have the same name, or ``folder`` is a file.
        HeadstartError: as for `extract`; the caches of the tables before stay.
    """
    folder = Path(folder)
    outs = [folder / f"{table_name(table)}.h5" for table in tables]
    if twice := next((out for out in outs if outs.count(out) > 1), None):
        raise OutputExistsError(f"two tables would both be written to {twice}; rename one of them")
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; several tables go into a folder: choose another `out`")
    with storage_errors(f"cannot make the folder {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
    extraction, made = Extraction(settings or ExtractSettings(), report), list(reuse)
    for table, out in zip(tables, outs, strict=True):
        extraction.check(table, out)  # a mistake in the last is said before the first is encoded
    for table, out in zip(tables, outs, strict=True):
        made.append(extraction.run(table, out, labels=None, update=update, reuse=made, overwrite=overwrite, wait=wait))
    return outs
