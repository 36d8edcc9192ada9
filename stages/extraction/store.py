"""Features of texts from a folder of caches: a text that was asked for once is there, and is not encoded again."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...cache.hashing import hash_texts
from ...cache.identity import Identity
from ...cache.siblings import superseded_paths
from ...cache.workspace import remove_leftovers
from ..encoders.session import EncoderSession
from ..progress import Report, in_notebooks
from ..settings import ExtractSettings
from ..tables.scan import scan_table
from ..tables.table import open_table
from ..types import StoredFeatures
from .fill import fill_cache, note_truncated
from .resume import CacheRequest, open_unfinished, remove_superseded
from .reuse import ReusableCaches, by_cache, find_rows, open_reusable
from .text_caches import FolderState, TextCaches, files_state


class TextStore:
    """The texts of one encoder with its settings, in a folder that processes may share."""

    def __init__(self, folder: Path, settings: ExtractSettings, report: Report) -> None:
        """Find the encoder and its identity; both are kept for the next store of this process, until a file changes.

        Raises:
            EncoderError: the encoder cannot be found or read.
        """
        self._settings = dataclasses.replace(settings, label_column=None)
        self._session, self._report = _session(self._settings, files_state(Path(settings.encoder or ""))), report
        self._caches = TextCaches(folder, self.identity, settings.storage, report)

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
        held = self._caches.open()
        locations = find_rows(held.texts, hashes)
        if (locations["cache"] < 0).any():
            with self._caches.hold():
                held = self._caches.open()  # another process may have encoded them
                lacking = np.flatnonzero(find_rows(held.texts, hashes)["cache"] < 0).tolist()
                if lacking:
                    out = self._caches.next_path(held.caches)
                    self._encode(list(dict.fromkeys(texts[row] for row in lacking)), out)
                    self._caches.merge(held.caches, out)
                    held = self._caches.open()
            locations = find_rows(held.texts, hashes)
        (name,) = self.identity.features
        width = held.caches[0].features(name).shape[1]
        found = np.empty((len(texts), width), held.caches[0].features(name).dtype)
        for cache, positions, rows in by_cache(held.caches, locations):
            found[positions] = cache.features(name)[rows]
            cache.require_unchanged()
        return found

    def _encode(self, texts: list[str], out: Path) -> None:
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
        unfinished = open_unfinished(
            request,
            widths=session.encoder.widths,
            plan=plan,
            any_batch_tokens=session.any_batch_tokens,
            report=self._report,
        )
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


@functools.lru_cache(maxsize=2)
def _session(settings: ExtractSettings, state: FolderState) -> EncoderSession:
    """The encoder of settings; ``state`` says which files its folder has."""
    return EncoderSession(settings, in_notebooks)
