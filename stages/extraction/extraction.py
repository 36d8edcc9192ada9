"""One encoder at work on tables: what it has to do for each, what there is already, and what is recorded of it.

Torch takes a second to load. So what needs it is imported where it is first used, which is after the table was found
to be one, and while the encoder's files are hashed.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...cache.errors import DamagedError, FormatError, OutputExistsError, SettingsError
from ...cache.identity import Identity
from ...cache.layout import read_layout
from ...cache.lock import hold
from ...cache.reader import Cache, open_any, open_cache
from ...cache.writer import CacheWriter, partial_path
from ..encoders.allocator import freed_memory_kept
from ..encoders.files import EncoderFiles, find_encoder
from ..encoders.pooling import parse_features
from ..prefetch import in_background
from ..progress import Note, Report, Step
from ..settings import ExtractSettings
from ..tables.scan import TableScan, scan_table
from ..tables.table import Table, open_table
from .encode_table import encode_table
from .resume import CacheRequest, remove_superseded, superseded_paths
from .reuse import ReusableCaches, require_reusable

if TYPE_CHECKING:
    from ..encoders.encoder import Encoder, EncoderSettings

BLOCK_ROWS = 1024
"""Rows that share a checksum: what is encoded again where one byte is lost."""
WINDOW_BLOCKS = 4
"""Blocks whose rows are batched together by length. More means fuller batches, and more to lose in a crash."""


class Extraction:
    """One encoder with its settings, found and loaded when it is first needed, and put to work on tables."""

    def __init__(self, settings: ExtractSettings, report: Report) -> None:
        self._settings, self._report = settings, report
        self._encoder: Encoder | None = None

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
            identity=self.identity,
            storage=settings.storage.value,
            block_rows=BLOCK_ROWS,
        )
        if not overwrite and wanted.is_made_already(report, update=update):
            if not partial_path(out).exists():  # else they are its: a run was killed just before it removed them
                remove_superseded(out)
            return out
        caches = self._donors(out, update, reuse)  # refused, where they are of no use, before anything is written
        if self._encoder is None and caches:
            from ..encoders.fast_load import reopen

            report(Step("loading the encoder", 0, 0, "files"))
            self._encoder = reopen(self._files, self._encoder_settings, caches, scan)
        plan = {
            "batch_tokens": self.encoder.batch_tokens,
            "window_rows": WINDOW_BLOCKS * BLOCK_ROWS,
            "device": self.device.type,
            "path": self.encoder.path.value,
        }
        kept = wanted.prepare_partial(self.encoder.width, plan, overwrite=overwrite, update=update, report=report)
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

        with CacheWriter(unfinished) as writer, freed_memory_kept():
            counts = encode_table(
                source,
                scan,
                self.encoder,
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
                "precision_reason": self._precision[1],
                "encoder": {
                    "name": self._files.name,
                    "folder": str(self._files.folder),
                    "revision": self._files.revision,
                    **self._packed_record(),
                },
                "machine": machine(self.device),
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
                cache, self.identity, self._settings.storage.value, advice="leave it out, or extract it again"
            )
        return caches

    def _earlier(self, out: Path) -> list[Cache]:
        """Unfinished work on earlier rows, to take rows from as well."""
        caches = [open_any(path) for path in superseded_paths(out)]
        for cache in caches:
            require_reusable(
                cache, self.identity, self._settings.storage.value, advice="remove it, or pass `overwrite=True`"
            )
        return caches

    @functools.cached_property
    def _files(self) -> EncoderFiles:
        settings = self._settings
        self._report(Step("finding the encoder", 0, 0, "files"))
        return find_encoder(
            settings.encoder, revision=settings.revision, allow_pickled_weights=settings.allow_pickled_weights
        )

    @functools.cached_property
    def identity(self) -> Identity:
        """What features of this encoder with these settings are of."""
        features = parse_features(self._settings.features, self._files.layers())
        with in_background(self._files.hashes) as hashes:  # a second for each GB, and torch takes one to load
            precision = self._precision[0].value
            return Identity(
                **hashes(),
                prefix=self._settings.prefix,
                pairs=self._settings.text_pair_column is not None,
                max_length=self._settings.max_length,
                precision=precision,
                features=tuple(feature.name for feature in features),
            )

    @functools.cached_property
    def device(self) -> Any:
        """Where it runs."""
        from ..devices import choose_device

        return choose_device(self._settings.device)

    @functools.cached_property
    def _precision(self) -> Any:
        from ..devices import choose_precision

        return choose_precision(self._settings.precision, self.device)

    @functools.cached_property
    def _encoder_settings(self) -> EncoderSettings:
        from ..encoders.encoder import EncoderSettings

        settings = self._settings
        return EncoderSettings(
            features=parse_features(settings.features, self._files.layers()),
            device=self.device,
            precision=self._precision[0],
            prefix=settings.prefix,
            max_length=settings.max_length,
            pairs=settings.text_pair_column is not None,
            batch_tokens=settings.batch_tokens,
        )

    @property
    def encoder(self) -> Encoder:
        """Loaded by transformers, unless it is there already."""
        if self._encoder is None:
            from ..encoders.hf import load_encoder  # which loads transformers: that takes seconds

            self._report(Step("loading the encoder", 0, 0, "files"))
            self._encoder = load_encoder(self._files, self._encoder_settings)
        return self._encoder

    def _packed_record(self) -> dict[str, Any]:
        recipe = self.encoder.recipe
        return {} if recipe is None else {"packed": dataclasses.asdict(recipe)}


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
