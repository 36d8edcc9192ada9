"""Making one shard: the unit of work that this process and Ray's actors do alike."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...cache.errors import BusyError, DamagedError, FormatError, IdentityError
from ...cache.identity import differences
from ...cache.lock import hold
from ...cache.reader import Cache, open_shard, shard_fields
from ...cache.seal import begins_as_cache
from ...cache.siblings import partial_path, shards_path
from ...cache.workspace import remove_leftovers, workspace
from ...cache.writer import CacheWriter, copy_with_labels
from ..encoders.session import EncoderSession
from ..progress import Event, Note, Report, Step, silent
from ..tables.part import RowReader, part_of
from ..tables.scan import TableScan
from ..tables.table import Table, TableRows, join_rows
from .fill import compare_with_float32, fill_cache
from .plan import SHARD_FILE, Shard, ShardPlan
from .resume import CacheRequest, open_unfinished
from .reuse import ReusableCaches, open_reusable
from .shard_store import ShardStore

_OURS = re.compile(r"\d{5}-[0-9a-f]{16}(\.common)?(\.[\w-]+)?\.h5")
"""Files of shards and of common texts, also under the private names of unfinished work."""


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """A shard to make, or its file of common texts."""

    number: int  # of the shard, from 1
    common: bool = False

    def __str__(self) -> str:
        return f"{'the common texts of ' if self.common else ''}shard {self.number}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """What was done for one shard, or for its common texts."""

    number: int
    rows: int
    sequences_encoded: int = 0
    tokens_encoded: int = 0
    reused_rows: int = 0
    kept_blocks: int = 0
    encode_seconds: float = 0.0
    seconds: float = 0.0
    skipped: bool = False  # it was there already, whole
    common: bool = False  # of its common texts


class ShardRunner:
    """Makes shards of one plan, with one encoder and one reading of the table for shards in order."""

    def __init__(
        self,
        plan: ShardPlan,
        out: Path,
        *,
        table: Table,
        session: EncoderSession,
        reuse: tuple[Path, ...] = (),
        overwrite: bool = False,
        store: ShardStore | None = None,
        report: Report = silent,
    ) -> None:
        """Prepare; no file is read yet.

        Args:
            plan: The plan.
            out: The joined cache that is asked for, whose shards lie in a folder beside it.
            table: The table that was planned.
            session: The encoder.
            reuse: Other caches whose rows are copied instead of encoded.
            overwrite: Make shards again that are there.
            store: Where what is made is uploaded to, and what is there is taken from.
            report: Receives notes, and progress by the rows of the whole table.

        Raises:
            IdentityError: the encoder is not that of the plan.
        """
        if clauses := differences(plan.identity, session.identity, our_name="the plan", their_name="this encoder"):
            raise IdentityError(f"{out}: its shards are of another encoder: they differ in {'; '.join(clauses)}")
        self.plan, self.folder, self._session = plan, shards_path(out), session
        self.folder.mkdir(exist_ok=True)
        self._overwrite, self._store, self._report = overwrite, store, report
        self._reader, self._reuse = RowReader(table), reuse
        self._table_state = table.state()
        self._reusable: ReusableCaches | None = None
        self._tokens_encoded = 0  # of the shards that were made so far

    def make(self, job: ShardJob, *, private: str = "") -> Made:
        """Make a shard, or the file of its common texts, unless a whole one is there, or in the store.

        A shard that only got other labels is copied. An unfinished one is carried on. What the store lacks is uploaded.

        Args:
            job: Which shard. The common texts that it copies are there.
            private: Part of the names of unfinished work, beginning with a dot: no other process works under them, and
                none carries such work on.

        Raises:
            HeadstartError: as for `encode_table`.
            BusyError: another run is making this shard.
            StorageError: also where it could not be uploaded; it stays here, and the next call uploads it.
        """
        shard, common = self.plan.shard(job.number), job.common
        out = self.folder / (shard.common_file if common else shard.file)
        work = out.with_name(f"{out.stem}{private}.h5")
        with hold(work, wait=True, note=lambda text: self._report(Note(text))):
            whole = is_whole(out, shard.common if common else shard.id)
            if not self._overwrite and (whole or self._fetch(out, work)):
                made = Made(number=shard.number, rows=0, skipped=True, common=common)
            else:
                made = self._make(shard, work, out, common=common)
            self._offer(out)
        return made

    def _make(self, shard: Shard, work: Path, out: Path, *, common: bool) -> Made:
        """Make a shard's file, or that of its common texts, whose lock is held."""
        remove_leftovers(work)
        scan = self.plan.scan_of_common(shard) if common else self.plan.scan_of(shard)
        scan = dataclasses.replace(scan, state=self._table_state)
        if not common and (old := self._other_labels(shard)) is not None:
            _copy(old, work, out, scan, self._fields(shard, common=False))
            return Made(number=shard.number, rows=shard.rows, reused_rows=shard.rows)
        record = self._fill(shard, scan, work, out, common=common)
        counted = {field.name for field in dataclasses.fields(Made)} & record.keys()
        return Made(number=shard.number, common=common, **{name: record[name] for name in counted})

    def exchange(self) -> None:
        """Download the shards that the store holds and this folder lacks; upload those that the store lacks.

        Raises:
            StorageError: the store cannot be read or written.
        """
        if self._store is None or self._overwrite:
            return
        stored = self._store.shards()
        for shard in self.plan.shards:
            out = self.folder / shard.file
            with hold(out, wait=True, note=lambda text: self._report(Note(text))):
                if not is_whole(out, shard.id):
                    if shard.file in stored:
                        self._fetch(out, out)
                elif stored.get(shard.file) != out.stat().st_size:
                    self._offer(out)

    def is_stored(self, shard: Shard) -> bool:
        """Whether the store holds a shard, and none is to be made; see `ShardStore.holds`."""
        return self._store is not None and not self._overwrite and self._store.holds(shard.file)

    def _fetch(self, out: Path, work: Path) -> bool:
        """Download a file whose lock is held; return whether the store holds it whole."""
        if self._store is None:
            return False
        self._report(Step("downloading", 0, 1, "files"))
        try:
            return self._store.fetch(out, work)
        except DamagedError as error:
            self._report(Note(f"{error}; it is made again"))
            return False

    def _offer(self, out: Path) -> None:
        """Upload a whole file, unless the store holds it."""
        if self._store is not None and (self._overwrite or not self._store.holds(out.name)):
            self._report(Step("uploading", 0, 1, "files"))
            self._store.upload(out)

    def sources(self, shard: Shard) -> list[Shard]:
        """The shards whose common texts must be there before this one is made; none if it is there, or is copied."""
        return self.plan.sources(shard) if self.is_missing(shard) and self._other_labels(shard) is None else []

    def _fill(self, shard: Shard, scan: TableScan, work: Path, out: Path, *, common: bool) -> Mapping[str, Any]:
        """Encode and copy the rows of a shard; return the record of its file."""
        started, plan, session = time.perf_counter(), self.plan, self._session
        request = CacheRequest(
            out=work,
            table=self._reader.table.source,
            scan=scan,
            identity=plan.identity,
            storage=plan.storage,
            block_rows=plan.block_rows,
            update=False,
            overwrite=self._overwrite,
        )
        batching = {**session.plan(plan.window_rows), "shard": self._fields(shard, common=common)}
        unfinished = open_unfinished(request, widths=session.encoder.widths, plan=batching, report=self._report)
        paths = [self.folder / source.common_file for source in (() if common else plan.sources(shard))]
        reused = ReusableCaches(open_reusable(paths, plan.identity, plan.storage), self._report)
        part = part_of(self._reader, shard.start, shard.stop, plan.first(shard) if common else None)
        if shard.start == 0:
            self._look_at(next(part.batches(), join_rows([])), part.source)
        if self._reusable is None:
            self._reusable = ReusableCaches(open_reusable(self._reuse, plan.identity, plan.storage), self._report)
        record = fill_cache(
            unfinished,
            out,
            table=part,
            session=session,
            reusable=ReusableCaches.joined([reused, self._reusable]),
            started=started,
            report=_of_common(self._report) if common else self._of_the_whole(shard),
        )
        self._tokens_encoded += 0 if common else record["tokens_encoded"]
        return record

    def _look_at(self, top: TableRows, table: str) -> None:
        """Look at a table's first rows: whether the encoder knows their words, and what int8 costs."""
        from .windows import require_known_words  # which loads torch

        if not self._reuse:
            require_known_words(self._session.encoder, top, table)
        compare_with_float32(self._session, top)

    def _of_the_whole(self, shard: Shard) -> Report:
        """Report the progress of a shard as progress of the whole table."""
        last, rows, tokens_before = self.plan.last, self.plan.scan.rows, self._tokens_encoded

        def send(event: Event) -> None:
            if isinstance(event, Step) and event.phase == "encoding":
                detail = ", ".join(filter(None, (f"shard {shard.number:,} of {last:,}", event.detail)))
                done, tokens = shard.start + event.done, tokens_before + event.tokens
                event = dataclasses.replace(event, done=done, total=rows, tokens=tokens, detail=detail)
            self._report(event)

        return send

    def is_missing(self, shard: Shard) -> bool:
        """Whether a shard is to be made."""
        return self._overwrite or not is_whole(self.folder / shard.file, shard.id)

    def _fields(self, shard: Shard, *, common: bool) -> dict[str, Any]:
        """What the plan of a shard's file says of it."""
        fields = {"number": shard.number, "of": self.plan.last, "first_row": self.plan.first_row(shard)}
        return fields | ({"common": shard.common} if common else {"id": shard.id, "work": shard.work})

    def _other_labels(self, shard: Shard) -> Cache | None:
        """Return the same shard with other labels or row numbers; None where there is none, or all is made again."""
        if self._overwrite:
            return None
        for path in shard_files(self.folder, shard.number):
            try:
                cache = open_shard(path)
            except (DamagedError, FormatError):
                continue
            if shard_fields(cache).get("work") == shard.work:
                return cache
        return None


def is_whole(path: Path, id: str) -> bool:
    """Whether a file is the whole shard of this id, or the whole file of common texts of this id.

    What else has the name was cut short or damaged: nobody gives a file such a name. Its checksums are not verified.
    """
    if not path.exists():
        return False
    try:
        fields = shard_fields(open_shard(path))
    except DamagedError:
        return False
    return id in (fields.get("id"), fields.get("common"))


def shard_files(folder: Path, number: int | None = None) -> list[Path]:
    """The files of shards in a folder, in order; those of one shard's number, if it is given."""
    names = sorted(path for path in folder.glob("*.h5") if SHARD_FILE.fullmatch(path.name))
    return [path for path in names if number is None or int(path.name[:5]) == number]


def remove_others(folder: Path, kept: set[str]) -> None:
    """Remove the files of shards and of common texts that are not among these, and what killed runs left of any.

    What another run is making stays.
    """
    for name in sorted({path.name.partition(".headstart-")[0] for path in folder.glob("*.h5*")}):
        if not _OURS.fullmatch(name):
            continue
        path = folder / name
        with contextlib.suppress(BusyError), hold(path):
            remove_leftovers(path)
            for unwanted in (partial_path(path), *(() if name in kept else (path,))):
                if begins_as_cache(unwanted):
                    unwanted.unlink()


def _copy(old: Cache, work: Path, out: Path, scan: TableScan, fields: Mapping[str, Any]) -> None:
    """Copy a shard, with the table's labels and row numbers."""
    with workspace(work) as folder:
        damaged = copy_with_labels(
            old,
            folder / "new",
            labels=scan.labels,
            label_names=scan.label_names,
            label_kind=scan.label_kind,
            row_numbers=scan.row_numbers,
            plan={**old.plan, "shard": fields},
        )
        if damaged:
            raise DamagedError(f"{old.path}: {len(damaged)} blocks are damaged; repair the cache first")
        changed = {"skipped_rows": scan.skipped, "conflicting_texts": scan.conflicting_texts}
        with CacheWriter(folder / "new") as writer:
            writer.finish({**old.record, **changed}, out)


def _of_common(report: Report) -> Report:
    """Report the progress of common texts, which come before all shards, under a name of its own."""

    def send(event: Event) -> None:
        if isinstance(event, Step) and event.phase == "encoding":
            event = dataclasses.replace(event, phase="encoding texts of several shards")
        report(event)

    return send
