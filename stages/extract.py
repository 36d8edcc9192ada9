"""Stage one: the frozen encoder reads every distinct text of a table once, and its features go into one file."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..cache.errors import DamagedError, NotOursError, OutputExistsError
from ..cache.identity import Identity
from ..cache.layout import read_layout
from ..cache.writer import CacheWriter, partial_path
from .devices import choose_device, choose_precision, default_batch_tokens, machine
from .encode_table import encode_table
from .encoder import VERSIONS, Encoder
from .encoder_files import find_encoder
from .features import parse_features
from .progress import Report, Step, silent
from .settings import ExtractSettings
from .survey import survey_table
from .table import open_table
from .wanted import Wanted

BLOCK_ROWS = 1024
"""Rows that share a checksum: what is encoded again where one byte is lost."""
WINDOW_BLOCKS = 4
"""Blocks whose rows are batched together by length. More means less padding, and more to lose in a crash."""


def extract(
    table: Any,
    out: str | Path,
    settings: ExtractSettings | None = None,
    *,
    labels: Sequence[str | int] | None = None,
    overwrite: bool = False,
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
        overwrite: Encode again and replace what is at ``out``, which stays whole until the new cache is.
        report: Where progress and notes go.

    Returns:
        The cache's path.

    Raises:
        TableError: the table cannot be read, has a bad row, or changes while it is read.
        EncoderError: the encoder cannot be found or read, or gives a feature that is not finite.
        OutputExistsError: ``out``, or an unfinished cache of that name, holds something else.
        StorageError: the machine cannot read or write.
    """
    started = time.perf_counter()
    settings = settings or ExtractSettings()
    out = Path(out)
    source = open_table(
        table,
        labels=labels,
        text_column=settings.text_column,
        label_column=settings.label_column,
        skip_bad_rows=settings.skip_bad_rows,
    )
    in_folder = isinstance(table, (str, Path)) and Path(table).is_dir()
    _require_writable(out, source.files if in_folder else ())
    survey = survey_table(source, report)
    report(Step("finding the encoder", 0, 0, "files"))
    files = find_encoder(
        settings.encoder, revision=settings.revision, allow_pickled_weights=settings.allow_pickled_weights
    )
    features = parse_features(settings.features, files.layers())
    device = choose_device(settings.device)
    precision, why = choose_precision(settings.precision, device)
    identity = Identity(
        **files.hashes(),
        prefix=settings.prefix,
        max_length=settings.max_length,
        precision=precision.value,
        features=tuple(feature.name for feature in features),
    )
    wanted = Wanted(
        out=out,
        table=source.source,
        survey=survey,
        identity=identity,
        storage=settings.storage.value,
        block_rows=BLOCK_ROWS,
    )
    if not overwrite and wanted.is_made_already(report):
        return out
    report(Step("loading the encoder", 0, 0, "files"))
    encoder = Encoder(
        files,
        features=features,
        device=device,
        precision=precision,
        prefix=settings.prefix,
        max_length=settings.max_length,
    )
    plan = {
        "batch_tokens": settings.batch_tokens or default_batch_tokens(device),
        "window_rows": WINDOW_BLOCKS * BLOCK_ROWS,
        "device": device.type,
        "path": encoder.path.value,
    }
    kept = wanted.prepare_partial(encoder.width, plan, overwrite=overwrite, report=report)
    with CacheWriter(partial_path(out)) as writer:
        counts = encode_table(source, survey, encoder, writer, kept=kept, plan=plan, report=report)
        record = {
            "headstart": version("headstart"),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "table": source.source,
            "rows": survey.rows,
            "skipped_rows": survey.skipped,
            "distinct_texts": survey.distinct_texts(),
            "conflicting_texts": survey.conflicting_texts(),
            **dataclasses.asdict(counts),
            "tokens_per_second": counts.tokens_per_second,
            "seconds": time.perf_counter() - started,
            "precision_reason": why,
            "encoder": {"name": files.name, "folder": str(files.folder), "revision": files.revision},
            "machine": machine(device),
            "versions": VERSIONS,
        }
        writer.finish(record, out)
    return out


def _require_writable(out: Path, folder_files: Sequence[Path]) -> None:
    """Refuse, before any work, an output that could not be written, or that would replace something precious."""
    if not out.name:
        raise OutputExistsError(f"{str(out)!r} is no name for a cache; choose a file with --out")
    if out.resolve().parent in (file.resolve().parent for file in folder_files):
        raise OutputExistsError(
            f"{out} lies in the table's own folder, and would be taken for a part of it; choose another --out"
        )
    if not out.parent.is_dir():
        raise OutputExistsError(f"{out.parent} is not a folder; make it first, or choose another --out")
    if out.exists():
        try:
            read_layout(out)
        except NotOursError as error:
            raise OutputExistsError(f"{error}; it is never overwritten, so choose another --out") from None
        except DamagedError:
            return  # ours, and what --overwrite is for
