"""One encoder at work on tables: what it has to do for each, what there is already, and what is recorded of it.

Torch takes a second to load. So what needs it is imported where it is first used, which is after the table was found
to be one, and while the encoder's files are hashed.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...cache.errors import DamagedError, FormatError, OutputExistsError, SettingsError
from ...cache.layout import read_layout
from ...cache.lock import hold
from ...cache.reader import Cache, open_any, open_cache
from ...cache.writer import CacheWriter, partial_path
from ..encoders.memory import freed_memory_kept
from ..encoders.session import EncoderSession
from ..progress import Note, Report, Step
from ..settings import ExtractSettings
from ..tables.scan import TableScan, scan_table
from ..tables.table import Table, open_table
from .resume import CacheRequest, remove_superseded, superseded_paths
from .reuse import ReusableCaches, require_reusable

BLOCK_ROWS = 1024
"""Rows that share a checksum: what is encoded again where one byte is lost."""
WINDOW_BLOCKS = 4
"""Blocks whose rows are batched together by length. More means fuller batches, and more to lose in a crash."""


class Extraction:
    """One encoder with its settings, found and loaded when it is first needed, and put to work on tables."""

    def __init__(self, settings: ExtractSettings, report: Report) -> None:
        self._settings, self._report = settings, report
        self.session = EncoderSession(settings, report)

    def run(
        self,
        table: Any,
        out: Path,
        *,
        labels: Sequence[str | int] | None,
        update: bool,
        reuse: Sequence[str | Path],
        overwrite: bool,
        wait: bool,
    ) -> Path:
        """Do for one table what `extract` says."""
        if update and overwrite:
            raise SettingsError("`update=True` keeps what is there and `overwrite=True` does not; choose one of them")
        source = self.check(table, out, labels)
        with hold(out, wait=wait, note=lambda text: self._report(Note(text))):
            return self._run(source, out, update=update, reuse=reuse, overwrite=overwrite)

    def _run(self, source: Table, out: Path, *, update: bool, reuse: Sequence[str | Path], overwrite: bool) -> Path:
        """Do it, with the output to oneself."""
        started, settings, report = time.perf_counter(), self._settings, self._report
        scan = scan_table(source, report)
        wanted = CacheRequest(
            out=out,
            table=source.source,
            scan=scan,
            identity=self.session.identity,
            storage=settings.storage.value,
            block_rows=BLOCK_ROWS,
        )
        if not overwrite and wanted.is_made_already(report, update=update):
            if not partial_path(out).exists():  # else they are its: a run was killed just before it removed them
                remove_superseded(out)
            return out
        caches = self._donors(out, update, reuse)  # refused, where they are of no use, before anything is written
        if caches and not self.session.is_loaded:
            from .reopen import reopen

            report(Step("loading the encoder", 0, 0, "files"))
            reopen(self.session, caches, scan)
        plan = {
            "batch_tokens": self.session.encoder.batch_tokens,
            "window_rows": WINDOW_BLOCKS * BLOCK_ROWS,
            "device": self.session.device.type,
            "path": self.session.encoder.path.value,
        }
        kept = wanted.prepare_partial(
            self.session.encoder.width, plan, overwrite=overwrite, update=update, report=report
        )
        del wanted  # and with it the only other hold on the survey's arrays
        scan = scan.in_file(open_any(partial_path(out)))
        donors = ReusableCaches(caches + self._earlier(out), report)
        self.fill(partial_path(out), out, source, scan, plan=plan, kept=kept, donors=donors, started=started)
        remove_superseded(out)
        return out

    def fill(
        self,
        unfinished: Path,
        out: Path,
        source: Table,
        scan: TableScan,
        *,
        plan: Mapping[str, Any],
        kept: set[int],
        donors: ReusableCaches,
        started: float,
    ) -> None:
        """Encode what an unfinished cache lacks, and let it take the place of ``out``.

        Args:
            unfinished: The file to fill.
            out: The finished cache's name.
            source: The table.
            survey: What its first reading found.
            plan: How rows are batched, as it stands in ``unfinished``.
            kept: Blocks of ``unfinished`` that are written already.
            donors: To take rows from.
            started: When the run began, by `time.perf_counter`.
        """
        from ..devices import machine
        from ..encoders.encoder import VERSIONS
        from .encode_table import encode_table

        with CacheWriter(unfinished) as writer, freed_memory_kept():
            counts = encode_table(
                source,
                scan,
                self.session.encoder,
                writer,
                donors=donors,
                kept=kept,
                plan=plan,
                report=self._report,
            )
            earlier = [cache.record for cache in donors.caches]
            record = {
                "headstart": version("headstart"),
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                "table": source.source,
                "rows": scan.rows,
                "skipped_rows": scan.skipped,
                "distinct_texts": scan.distinct_texts,
                "conflicting_texts": scan.conflicting_texts,
                **dataclasses.asdict(counts),
                # A few texts say little of an encoder's speed: the caches that rows were taken from are counted in.
                "measured_tokens": counts.tokens_encoded + sum(r.get("measured_tokens", 0) for r in earlier),
                "measured_seconds": counts.encode_seconds + sum(r.get("measured_seconds", 0) for r in earlier),
                "tokens_per_second": counts.tokens_per_second,
                "seconds": time.perf_counter() - started,
                **self.session.record(),
                "machine": machine(self.session.device),
                "versions": VERSIONS,
            }
            writer.finish(record, out)

    def check(self, table: Any, out: Path, labels: Sequence[str | int] | None = None) -> Table:
        """Refuse, without reading a row, a table that is none, and an output that cannot be written."""
        source = self.open(table, labels)
        in_folder = isinstance(table, (str, Path)) and Path(table).is_dir()
        _require_writable(out, source.files if in_folder else ())
        return source

    def open(self, table: Any, labels: Sequence[str | int] | None = None) -> Table:
        """Open a table as the settings say; no row is read."""
        settings = self._settings
        return open_table(
            table,
            labels=labels,
            text_column=settings.text_column,
            pair_column=settings.text_pair_column,
            label_column=settings.label_column,
            skip_bad_rows=settings.skip_bad_rows,
        )

    def _donors(self, out: Path, update: bool, reuse: Sequence[str | Path]) -> list[Cache]:
        """The finished caches to take rows from: the one that is replaced, and others."""
        caches = [open_cache(path) for path in reuse if Path(path).resolve() != out.resolve()]
        if update and out.exists():
            caches.insert(0, open_cache(out))
        for cache in caches:
            require_reusable(
                cache, self.session.identity, self._settings.storage.value, advice="leave it out, or extract it again"
            )
        return caches

    def _earlier(self, out: Path) -> list[Cache]:
        """Unfinished work on earlier rows, to take rows from as well."""
        caches = [open_any(path) for path in superseded_paths(out)]
        for cache in caches:
            require_reusable(
                cache, self.session.identity, self._settings.storage.value, advice="remove it, or pass `overwrite=True`"
            )
        return caches


def _require_writable(out: Path, folder_files: Sequence[Path]) -> None:
    """Refuse, before any work, an output that could not be written, or that would replace something precious."""
    if not out.name:
        raise OutputExistsError(f"{str(out)!r} is no name for a cache; choose a file with `out`")
    if out.resolve().parent in (file.resolve().parent for file in folder_files):
        raise OutputExistsError(
            f"{out} lies in the table's own folder, and would be taken for a part of it; choose another `out`"
        )
    if not out.parent.is_dir():
        raise OutputExistsError(f"{out.parent} is not a folder; make it first, or choose another `out`")
    if out.exists():
        try:
            read_layout(out)
        except FormatError as error:
            raise OutputExistsError(f"{error}; it is never overwritten, so choose another `out`") from None
        except DamagedError:
            return  # ours, and what `overwrite` is for
