"""A power cut in a folder, replayed: of what was not synced, any part may be missing, and writes may be torn.

A recorder keeps what a run in this process wrote, synced and renamed. A replay cuts at one event, and makes the folder
that a disk might show afterwards: each file as it was when it was last synced, with any subset of the writes since,
each whole or in part; and any subset of the renames since the folder was last synced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extracting import datasets, holding
from extracting import run_small_blocks as run
from headstart.cache.writer import CacheWriter
from processes import open_as


@dataclasses.dataclass(frozen=True)
class Event:
    """One thing that a run did to the disk: a write, a sync of a file or of the folder, a rename, a removal."""

    kind: str
    file: int = 0
    """Its inode."""
    offset: int = 0
    content: bytes = b""
    names: tuple[str, ...] = ()


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[list[Event]]:
    """Record what is done to a folder's caches; the list begins with what was there, all of it synced."""
    events = [
        Event("there", file.stat().st_ino, 0, file.read_bytes(), (file.name,)) for file in sorted(folder.iterdir())
    ]
    fsync, replace, unlink = os.fsync, Path.replace, Path.unlink

    class Recording(io.FileIO):
        def write(self, data: Any) -> int:
            events.append(Event("write", os.fstat(self.fileno()).st_ino, self.tell(), bytes(data)))
            return super().write(data)

    def sync(descriptor: int) -> None:
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            events.append(Event("folder"))
        else:
            events.append(Event("sync", state.st_ino, 0, os.pread(descriptor, state.st_size, 0)))
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        events.append(Event("rename", self.stat().st_ino, names=(self.name, Path(target).name)))
        return replace(self, target)

    def removed(self: Path, missing_ok: bool = False) -> None:
        if self.parent == folder and self.exists():
            events.append(Event("remove", names=(self.name,)))
        unlink(self, missing_ok=missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CacheWriter, "__init__", CacheWriter.__init__)  # put back at the end
        open_as(Recording)
        patch.setattr(os, "fsync", sync)
        patch.setattr(Path, "replace", renamed)
        patch.setattr(Path, "unlink", removed)
        yield events


def after_a_cut(events: list[Event], folder: Path, rng: np.random.Generator) -> None:
    """Leave a folder as a disk might after these events: the files in it are replaced."""
    names: dict[str, int] = {}
    pending_names: list[Event] = []
    synced: dict[int, bytes] = {}
    pending: dict[int, list[Event]] = {}
    for event in events:
        if event.kind == "there":
            names[event.names[0]], synced[event.file] = event.file, event.content
        elif event.kind == "write":
            pending.setdefault(event.file, []).append(event)
        elif event.kind == "sync":
            synced[event.file] = event.content
            pending.pop(event.file, None)
        elif event.kind == "folder":
            _rename(names, pending_names)
            pending_names = []
        else:
            pending_names.append(event)
    _rename(names, [event for event in pending_names if rng.random() < 0.5])
    for file in folder.iterdir():
        file.unlink()
    for name, inode in names.items():
        content = bytearray(synced.get(inode, b""))  # nothing is left of a file that was never synced
        for write in pending.get(inode, []):
            fate = rng.random()
            data = write.content if fate < 0.4 else write.content[: rng.integers(len(write.content) + 1)]
            if fate < 0.7 and write.offset + len(data) <= len(content):
                content[write.offset : write.offset + len(data)] = data
        (folder / name).write_bytes(content)


def _rename(names: dict[str, int], events: list[Event]) -> None:
    for event in events:
        names.pop(event.names[0], None)
        if event.kind == "rename":
            names[event.names[1]] = event.file


def carry_on_after_cuts(table: Path, folder: Path, tiny: Path, whole: dict[str, bytes], *, cuts: int, seed: int) -> int:
    """Cut the power again and again: of the run, and of the runs that carry on with it. Return the blocks kept."""
    rng, out, kept = np.random.default_rng(seed), folder / "c.h5", 0
    there = sorted((file.name, file.read_bytes()) for file in folder.iterdir())
    for _ in range(cuts):
        for file in folder.iterdir():
            file.unlink()
        for name, content in there:
            (folder / name).write_bytes(content)
        for _ in range(rng.integers(1, 3)):
            durable = holding(out)
            with recorded(folder) as events:
                run(table, out, tiny)
            first = next((i for i, event in enumerate(events) if event.kind != "there"), len(events))
            after_a_cut(events[: rng.integers(first, len(events) + 1)], folder, rng)
            assert out.exists() or durable <= holding(out)
        held = len(holding(out))
        cache, _ = run(table, out, tiny)
        if held:
            assert cache.record["kept_blocks"] == held
            kept += held
        assert datasets(out) == whole
    return kept
