"""Damage done to caches: bits flipped, files cut, structures changed. Shared by the tests and the soak."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from headstart.cache.errors import HeadstartError
from headstart.cache.layout import Span, read_layout
from headstart.cache.reader import open_cache
from headstart.cache.seal import SEAL_BYTES, read_seal, write_seal
from headstart.stages.verify import verify

Extents = list[tuple[int, int]]
KINDS = ("features", "labels", "hashes", "checksums", "identity")
_SAID = {
    "features": "features",
    "labels": "labels",
    "hashes": "hashes",
    "checksums": "damaged",
    "identity": "identity",
}
SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Flips:
    """Of so many flipped bits: those that were found, and those whose place was told."""

    flips: int
    found: int
    located: int


@dataclasses.dataclass(frozen=True)
class Fuzzed:
    """Of so many changed structures: those that were refused, and those that read back unchanged."""

    refused: int
    unchanged: int


def places(path: Path) -> dict[str, Extents]:
    """Where in a cache the bytes of each kind stand; the rest is of the kind ``""``."""
    found: dict[str, Extents] = {kind: [] for kind in KINDS}
    taken: Extents = []
    for name, span in read_layout(path)[1].items():
        kind = "identity" if name == "identity" else name.split("/", maxsplit=1)[0]
        if kind in found:
            found[kind].append(span.extent)
            taken.append(span.extent)
    return {**found, "": outside(sorted(taken), 0, path.stat().st_size)}


def outside(extents: Sequence[tuple[int, int]], start: int, stop: int) -> Extents:
    """What is between these bounds and in none of the extents, which stand in order."""
    edges = [start, *(edge for extent in extents for edge in extent), stop]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def flip_in(whole: Path, scratch: Path, kind: str | None, flips: int, *, seed: int) -> Flips:
    """Flip single bits of one kind of bytes, one at a time, and verify; ``kind`` None is everything else."""
    rng, content, extents = np.random.default_rng(seed), whole.read_bytes(), places(whole)[kind or ""]
    spans = read_layout(whole)[1]
    found = located = 0
    for offset in draw(rng, extents, flips):
        changed = bytearray(content)
        changed[offset] ^= 1 << int(rng.integers(8))
        scratch.write_bytes(changed)
        try:
            findings = verify(scratch).findings
        except HeadstartError:  # refused as none of ours: its first bytes are not a cache's
            found += 1
            continue
        found += bool(findings)
        said = " ".join(f"{finding.where} {finding.what}" for finding in findings)
        located += kind is not None and len(findings) == 1 and _SAID[kind] in said and rows_of(spans, offset) in said
    return Flips(flips, found, located)


def rows_of(spans: Mapping[str, Span], offset: int) -> str:
    """What a finding must say of the rows: the block's number, where the byte is of a row or of a block's checksum."""
    for name, span in spans.items():
        start, stop = span.extent
        if not start <= offset < stop:
            continue
        row = (offset - start) // (span.nbytes // span.shape[0]) if span.shape else 0
        if name in ("checksums/blocks", "checksums/labels"):
            return f"block {row + 1},"
        if name.startswith("checksums/") or not span.shape:
            return name.rsplit("/", 1)[-1]
        return f"block {row // 1024 + 1},"
    raise AssertionError(offset)


def cut_at_random(whole: Path, scratch: Path, cuts: int, *, seed: int) -> int:
    """Cut a cache at random lengths; how many were refused."""
    content, refused = whole.read_bytes(), 0
    for length in np.random.default_rng(seed).integers(len(content), size=cuts):
        scratch.write_bytes(content[:length])
        try:
            open_cache(scratch)
        except HeadstartError:
            refused += 1
    return refused


def fuzz_structure(whole: Path, folder: Path, changes: int, *, seed: int) -> Fuzzed:
    """Change bytes of the HDF5 structure at random, seal the file again, and open it, in a process of its own.

    Raises:
        AssertionError: the process crashed, hung, or met what is no error of ours; or a file read back otherwise.
    """
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_fuzz, args=(whole, folder / "fuzzed.h5", changes, seed, sender))
    child.start()
    sender.close()
    found = None
    try:
        if receiver.poll(SECONDS + changes / 10):
            found = receiver.recv()
    except EOFError:
        pass
    child.kill()
    child.join()
    assert isinstance(found, Fuzzed), found or f"the opener crashed or hung (exit code {child.exitcode})"
    return found


def _fuzz(whole: Path, scratch: Path, changes: int, seed: int, sender: Connection) -> None:
    rng, content = np.random.default_rng(seed), whole.read_bytes()
    expected = np.array(open_cache(whole).features())
    structure = outside(read_seal(whole).extents, SEAL_BYTES, len(content))
    refused = unchanged = 0
    try:
        for _ in range(changes):
            changed = bytearray(content)
            for offset in draw(rng, structure, int(rng.integers(1, 9))):
                changed[offset] = int(rng.integers(256))
            scratch.write_bytes(changed)
            try:
                reseal(scratch)
                cache = open_cache(scratch)
                cache.check()
                assert np.array_equal(cache.features(), expected), "it reads otherwise"
                unchanged += 1
            except HeadstartError:
                refused += 1
    except BaseException as error:
        sender.send(repr(error))
        return
    sender.send(Fuzzed(refused, unchanged))


def reseal(path: Path) -> None:
    """Seal a changed file with the extents of its old seal."""
    seal = json.loads(path.read_bytes()[:SEAL_BYTES].split(b"\0")[0])
    write_seal(path, block_rows=seal["block_rows"], extents=map(tuple, seal["datasets"]))


def draw(rng: np.random.Generator, extents: Sequence[tuple[int, int]], count: int) -> list[int]:
    """Offsets drawn evenly over these bytes."""
    sizes = np.array([stop - start for start, stop in extents])
    chosen = rng.integers(sizes.sum(), size=count)
    ends = np.cumsum(sizes)
    which = np.searchsorted(ends, chosen, side="right")
    return [int(extents[w][0] + at - (ends[w] - sizes[w])) for w, at in zip(which, chosen, strict=True)]
