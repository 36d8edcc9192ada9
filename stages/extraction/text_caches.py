"""A folder of caches that grows: `headstart.CachedEncoder` and ``headstart predict --keep`` keep features in it.

    FOLDER/<hash of identity and storage>/00001.h5, 00002.h5, ...

New texts make a new cache. Caches of similar size are merged, so that n texts in many small additions cost n log n, and
lie in few files (O'Neil et al., The Log-Structured Merge-Tree, 1996). The caches hold hashes of texts, and no texts.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...cache.errors import HeadstartError, storage_errors
from ...cache.hashing import Hashes, digest, hash_keys
from ...cache.identity import Identity
from ...cache.lock import hold
from ...cache.reader import Cache
from ...cache.workspace import workspace
from ...cache.writer import CacheWriter, create_cache
from ..encoders.session import EncoderSession
from ..progress import Note, Report, silent
from ..settings import ExtractSettings
from .reuse import ReusableCaches, by_cache, find_rows, open_reusable

_GROWTH = 4  # how many times larger a cache is than the next: more means fewer files, less means fewer copies
_FileState = tuple[str, int, int, int]
FolderState = tuple[_FileState, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewRows:
    """Rows to keep: of each the hash of its text, what the cache format says of a row, and its only feature."""

    text_hashes: Hashes
    token_hashes: Hashes
    lengths: npt.NDArray[np.int32]
    truncated: npt.NDArray[np.uint8]
    features: npt.NDArray[np.float32]  # (rows, width)

    def __len__(self) -> int:
        return len(self.text_hashes)

    def __getitem__(self, rows: Any) -> NewRows:
        return NewRows(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})


class TextCaches:
    """The caches of one identity in a folder that processes may share."""

    def __init__(self, folder: Path, identity: Identity, storage: str, report: Report) -> None:
        self.identity, self.storage, self._report = identity, storage, report
        self.folder = folder / digest(identity.to_json().encode(), storage.encode()).hex()

    def open(self) -> ReusableCaches:
        """Open all caches, the earliest first. Each is read whole once, and kept open until it changes.

        Raises:
            IdentityError: a cache in the folder is of another encoder or other settings.
            DamagedError: a cache has a damaged structure or document. What is in damaged blocks is left out.
        """
        while True:
            state = files_state(self.folder, "*.h5")
            try:
                opened = [_opened(file, self.identity, self.storage) for file in state]
            except (HeadstartError, OSError):
                if files_state(self.folder, "*.h5") == state:  # else another process has merged some of them
                    raise
            else:
                return ReusableCaches.joined(opened)

    def hold(self) -> AbstractContextManager[None]:
        """Wait for other processes that add to the folder, and keep them waiting. It is what they do all the time."""
        return hold(self.folder / "texts", wait=True, note=lambda text: self._report(Note(text)), note_waiting=False)

    def next_path(self, caches: Sequence[Cache]) -> Path:
        """The path of the cache that comes after these."""
        return self.folder / f"{max((int(cache.path.stem) for cache in caches), default=0) + 1:05}.h5"

    def add(
        self, rows: NewRows, *, session: EncoderSession, table: str, batched: int, tokens: int, seconds: float
    ) -> int:
        """Keep the rows whose texts no cache has; the first of those with one text.

        Args:
            rows: The rows.
            session: The encoder that they went through.
            table: Where their texts came from.
            batched: How many rows were batched together.
            tokens: How many tokens went through the encoder for them.
            seconds: How long that took.

        Returns:
            How many rows were kept.

        Raises:
            StorageError: the folder cannot be written.
        """
        first = np.sort(np.unique(hash_keys(rows.text_hashes), return_index=True)[1])
        with self.hold():
            held = self.open()
            new = rows[first[find_rows(held.texts, rows.text_hashes[first])["cache"] < 0]]
            if not len(new):
                return 0
            out = self.next_path(held.caches)
            (name,) = self.identity.features
            arrays = {field.name: getattr(new, field.name) for field in dataclasses.fields(new)}
            features, plan = arrays.pop("features"), session.plan(batched)
            with workspace(out) as work:
                _create(
                    work / "new", new.text_hashes, {name: features.shape[1]}, self, ExtractSettings.block_rows, plan
                )
                with CacheWriter(work / "new") as writer:
                    for block in range(writer.layout.blocks):
                        span = writer.layout.block_slice(block)
                        parts = {each: values[span] for each, values in arrays.items()}
                        writer.write_block(block, features={name: features[span]}, **parts)
                    writer.finish(_record(new, session, table, tokens, seconds), out)
            self.merge(held.caches, out)
        return len(new)

    def merge(self, caches: Sequence[Cache], added: Path) -> None:
        """Merge an added cache with those before it that are no larger by much."""
        number, smaller = int(added.stem), [*caches, *open_reusable([added], self.identity, self.storage)]
        names = (self.folder / f"{following:05}.h5" for following in itertools.count(number + 1))
        while len(smaller) > 1 and smaller[-2].rows < _GROWTH * smaller[-1].rows:
            newer, older = smaller.pop(), smaller.pop()
            smaller.append(_merge(older, newer, next(names), self))


def _record(rows: NewRows, session: EncoderSession, table: str, tokens: int, seconds: float) -> dict[str, Any]:
    """What the record of a cache of rows says, as `fill_cache` writes it."""
    from ..encoders.encoder import VERSIONS
    from ..provenance import provenance

    sequences = len(np.unique(hash_keys(rows.token_hashes)))
    fields = {
        "table": table,
        "rows": len(rows),
        "distinct_texts": len(rows),
        "distinct_sequences": sequences,
        **dict.fromkeys(("skipped_rows", "conflicting_texts", "kept_blocks", "reused_rows", "halved_batches"), 0),
        "tokens": int(rows.lengths.sum()),
        "truncated_rows": int(rows.truncated.sum()),
        "sequences_encoded": sequences,
        **dict.fromkeys(("tokens_encoded", "measured_tokens"), tokens),
        **dict.fromkeys(("encode_seconds", "measured_seconds", "seconds"), seconds),
        "tokens_per_second": tokens / seconds if seconds else None,
        **session.record(),
    }
    return provenance(session.device, fields, timespec="milliseconds", versions=VERSIONS)


def _create(
    path: Path, hashes: Hashes, widths: Mapping[str, int], caches: TextCaches, block_rows: int, plan: Mapping[str, Any]
) -> None:
    create_cache(
        path,
        block_rows=block_rows,
        widths=widths,
        storage=caches.storage,
        identity=caches.identity,
        plan=plan,
        text_hashes=hashes,
        labels=None,
        label_names=None,
    )


def _merge(older: Cache, newer: Cache, out: Path, caches: TextCaches) -> Cache:
    """Copy the rows of two caches into one, then remove them; rows of damaged blocks are left out."""
    held = ReusableCaches((older, newer), silent)
    hashes = np.concatenate([older.text_hashes, newer.text_hashes])
    hashes = hashes[np.sort(np.unique(hash_keys(hashes), return_index=True)[1])]
    locations = find_rows(held.texts, hashes)
    hashes, locations = hashes[locations["cache"] >= 0], locations[locations["cache"] >= 0]
    (name,) = older.layout.widths
    with workspace(out) as work:
        _create(work / "new", hashes, older.layout.widths, caches, older.layout.block_rows, newer.plan)
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


def files_state(folder: Path, pattern: str = "**/*") -> FolderState:
    """The name, inode, size and time of change of every file in a folder; nothing of what is no folder."""
    found = []
    for path in sorted(folder.glob(pattern)) if folder.is_dir() else ():
        try:
            status = path.stat()
        except OSError:  # removed meanwhile
            continue
        found.append((str(path), status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


@functools.lru_cache(maxsize=64)
def _opened(state: _FileState, identity: Identity, storage: str) -> ReusableCaches:
    """A cache, opened and read once; ``state`` says which file it is."""
    return ReusableCaches(open_reusable([Path(state[0])], identity, storage), silent)
