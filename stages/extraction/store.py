"""A folder of caches that grows: a text that was asked for once is in one of them, and is not encoded again.

    FOLDER/<hash of identity and storage>/00001.h5, 00002.h5, ...

New texts make a new cache. Caches of similar size are merged, so that n texts in many small additions cost n log n, and
lie in few files (O'Neil et al., The Log-Structured Merge-Tree, 1996). The caches hold hashes of texts, and no texts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...cache.errors import HeadstartError, storage_errors
from ...cache.hashing import digest, hash_keys, hash_texts
from ...cache.identity import Identity
from ...cache.lock import hold
from ...cache.reader import Cache
from ...cache.siblings import superseded_paths
from ...cache.workspace import remove_leftovers, workspace
from ...cache.writer import CacheWriter, create_cache
from ..encoders.session import EncoderSession
from ..progress import Note, Report, in_notebooks, silent
from ..settings import ExtractSettings
from ..tables.scan import scan_table
from ..tables.table import open_table
from ..types import StoredFeatures
from .fill import fill_cache, note_truncated
from .resume import CacheRequest, open_unfinished, remove_superseded
from .reuse import ReusableCaches, by_cache, find_rows, open_reusable

_GROWTH = 4  # how many times larger a cache is than the next: more means fewer files, less means fewer copies
_State = tuple[tuple[str, int, int, int], ...]


class TextStore:
    """The texts of one encoder with its settings, in a folder that processes may share."""

    def __init__(self, folder: Path, settings: ExtractSettings, report: Report) -> None:
        """Find the encoder and its identity; both are kept for the next store of this process, until a file changes.

        Raises:
            EncoderError: the encoder cannot be found or read.
        """
        self._settings = dataclasses.replace(settings, label_column=None)
        self._session, self._report = _session(self._settings, _state(Path(settings.encoder or ""))), report
        name = digest(self.identity.to_json().encode(), settings.storage.encode()).hex()
        self._folder = folder / name

    @property
    def identity(self) -> Identity:
        return self._session.identity

    def features(self, texts: Sequence[str]) -> StoredFeatures:
        """Return the only feature of each text, (texts, width); those that no cache holds are encoded first.

        Raises:
            IdentityError: a cache in the folder is of another encoder or other settings.
            DamagedError: a cache is damaged, or was changed meanwhile.
            HeadstartError: as for `encode_table`.
        """
        hashes = hash_texts(texts)
        held = self._open()
        locations = find_rows(held.texts, hashes)
        if (locations["cache"] < 0).any():
            with hold(self._folder / "texts", wait=True, note=lambda text: self._report(Note(text))):
                held = self._open()  # another process may have encoded them
                lacking = np.flatnonzero(find_rows(held.texts, hashes)["cache"] < 0).tolist()
                if lacking:
                    self._append(list(dict.fromkeys(texts[row] for row in lacking)), held.caches)
                    held = self._open()
            locations = find_rows(held.texts, hashes)
        (name,) = self.identity.features
        width = held.caches[0].features(name).shape[1]
        found = np.empty((len(texts), width), held.caches[0].features(name).dtype)
        for cache, positions, rows in by_cache(held.caches, locations):
            found[positions] = cache.features(name)[rows]
            cache.require_unchanged()
        return found

    def _open(self) -> ReusableCaches:
        """Open all caches of the folder, the earliest first. They are read whole, and kept open until one changes."""
        while True:
            state = _state(self._folder, "*.h5")
            try:
                return _opened(state, self.identity, self._settings.storage)
            except (HeadstartError, OSError):
                if _state(self._folder, "*.h5") == state:  # else another process has merged some of them
                    raise

    def _append(self, texts: list[str], caches: Sequence[Cache]) -> None:
        """Encode texts into a new cache, and merge it with those before it that are no larger by much."""
        number = max((int(cache.path.stem) for cache in caches), default=0) + 1
        added = self._encode(texts, self._folder / f"{number:05}.h5")
        names = (self._folder / f"{following:05}.h5" for following in itertools.count(number + 1))
        smaller = [*caches, added]
        while len(smaller) > 1 and smaller[-2].rows < _GROWTH * smaller[-1].rows:
            newer, older = smaller.pop(), smaller.pop()
            smaller.append(_merge(older, newer, next(names)))

    def _encode(self, texts: list[str], out: Path) -> Cache:
        """Make a cache of texts; what an earlier process has encoded of them before it ended is used."""
        started, settings, session = time.perf_counter(), self._settings, self._session
        table = open_table(texts, text_column="text", label_column=None)
        scan = scan_table(table, self._report)
        remove_leftovers(out)
        request = CacheRequest(
            out=out,
            table=table.source,
            scan=scan,
            identity=session.identity,
            storage=settings.storage,
            block_rows=settings.block_rows,
            update=True,
            overwrite=False,
        )
        plan = session.plan(settings.window_rows)
        unfinished = open_unfinished(request, widths=session.encoder.widths, plan=plan, report=self._report)
        earlier = open_reusable(superseded_paths(out), session.identity, settings.storage, superseded=True)
        reusable = ReusableCaches(earlier, self._report)
        record = fill_cache(
            unfinished,
            out,
            table=table,
            session=session,
            reusable=reusable,
            started=started,
            report=self._report,
        )
        remove_superseded(out)
        note_truncated(record, session.identity, self._report)
        (cache,) = open_reusable([out], session.identity, settings.storage)
        return cache


def _merge(older: Cache, newer: Cache, out: Path) -> Cache:
    """Copy the rows of two caches into one, then remove them; rows of damaged blocks are left out."""
    held = ReusableCaches((older, newer), silent)
    hashes = np.concatenate([older.text_hashes, newer.text_hashes])
    hashes = hashes[np.sort(np.unique(hash_keys(hashes), return_index=True)[1])]
    locations = find_rows(held.texts, hashes)
    hashes, locations = hashes[locations["cache"] >= 0], locations[locations["cache"] >= 0]
    (name,) = older.layout.widths
    with workspace(out) as work:
        create_cache(
            work / "new",
            block_rows=older.layout.block_rows,
            widths=older.layout.widths,
            storage=older.layout.storage,
            identity=older.identity,
            plan=newer.plan,
            text_hashes=hashes,
            labels=None,
            label_names=None,
        )
        with CacheWriter(work / "new") as writer:
            for block in range(writer.layout.blocks):
                part, arrays = locations[writer.layout.block_slice(block)], dict[str, Any]()
                for cache, positions, rows in by_cache(held.caches, part):
                    for each, values in {**cache.row_metadata(slice(None)), name: cache.features(name)}.items():
                        arrays.setdefault(each, np.empty((len(part), *values.shape[1:]), values.dtype))
                        arrays[each][positions] = values[rows]
                writer.write_block(block, features={name: arrays.pop(name)}, **arrays)
            records: list[dict[str, Any]] = [dict(cache.record) for cache in held.caches]
            numbers = [n for n in records[1] if all(isinstance(r.get(n), int | float) for r in records)]
            sums = {n: records[0][n] + records[1][n] for n in numbers}
            for cache in held.caches:
                cache.require_unchanged()
            writer.finish({**records[1], **sums, "rows": len(hashes), "distinct_texts": len(hashes)}, out)
    with storage_errors("cannot remove what was merged"):
        for cache in held.caches:
            cache.path.unlink()
    (merged,) = open_reusable([out], older.identity, older.layout.storage)
    return merged


def _state(folder: Path, pattern: str = "**/*") -> _State:
    """The name, inode, size and time of change of every file in a folder; nothing of what is no folder."""
    found = []
    for path in sorted(folder.glob(pattern)) if folder.is_dir() else ():
        try:
            status = path.stat()
        except OSError:  # removed meanwhile
            continue
        found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


@functools.lru_cache(maxsize=2)
def _session(settings: ExtractSettings, state: _State) -> EncoderSession:
    """The encoder of settings; ``state`` says which files its folder has."""
    return EncoderSession(settings, in_notebooks)


@functools.lru_cache(maxsize=4)
def _opened(state: _State, identity: Identity, storage: str) -> ReusableCaches:
    """Caches, opened and read once; ``state`` says which files they are. What is in damaged blocks is encoded again."""
    return ReusableCaches(open_reusable([Path(path) for path, *_ in state], identity, storage), silent)
