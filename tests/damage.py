"""Damage to caches: flipped bits, cut files, changed structures. The tests and the soak use it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from headstart.cache.errors import HeadstartError
from headstart.cache.layout import Span, read_layout
from headstart.cache.reader import open_cache
from headstart.cache.seal import SEAL_BYTES, read_seal, write_seal
from headstart.cli import inspect_command
from headstart.stages.verify import verify
from processes import SERVER, forked

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
    """How many bits were flipped, how many of them were found, and how many were located."""

    flips: int
    found: int
    located: int


@dataclasses.dataclass(frozen=True)
class Fuzzed:
    """How many structures were changed, how many of them were refused, and how many read back unchanged."""

    refused: int
    unchanged: int


def places(path: Path) -> dict[str, Extents]:
    """Return the extents of each kind of bytes in a cache; all other bytes are of the kind ``""``."""
    found: dict[str, Extents] = {kind: [] for kind in KINDS}
    taken: Extents = []
    for name, span in read_layout(path)[1].items():
        kind = "identity" if name == "identity" else name.split("/", maxsplit=1)[0]
        if kind in found:
            found[kind].append(span.extent)
            taken.append(span.extent)
    return {**found, "": outside(sorted(taken), 0, path.stat().st_size)}


def outside(extents: Sequence[tuple[int, int]], start: int, stop: int) -> Extents:
    """Return the extents between these bounds that are in none of the given ones, which are in order."""
    edges = [start, *(edge for extent in extents for edge in extent), stop]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if a < b]


def flip_in(whole: Path, scratch: Path, kind: str | None, flips: int, *, seed: int) -> Flips:
    """Flip bits of one kind of bytes, one at a time, and verify the cache each time."""
    rng, content, extents = np.random.default_rng(seed), whole.read_bytes(), places(whole)[kind or ""]
    spans = read_layout(whole)[1]
    found = located = 0
    for offset in draw(rng, extents, flips):
        changed = bytearray(content)
        changed[offset] ^= 1 << int(rng.integers(8))
        scratch.write_bytes(changed)
        try:
            findings = verify(scratch).findings
        except HeadstartError:  # refused: its first bytes are not those of a cache
            found += 1
            continue
        found += bool(findings)
        said = " ".join(f"{finding.where} {finding.what}" for finding in findings)
        located += kind is not None and len(findings) == 1 and _SAID[kind] in said and rows_of(spans, offset) in said
    return Flips(flips, found, located)


def rows_of(spans: Mapping[str, Span], offset: int) -> str:
    """Return what a finding must say: the number of the block, if the byte belongs to a row or a block's checksum."""
    for name, span in spans.items():
        start, stop = span.extent
        if not start <= offset < stop:
            continue
        row = (offset - start) // (span.nbytes // span.shape[0]) if span.shape else 0
        if name in ("checksums/blocks", "checksums/labels", "checksums/rows"):
            return f"block {row + 1},"
        if name.startswith("checksums/") or not span.shape:
            return name.rsplit("/", 1)[-1]
        return f"block {row // 1024 + 1},"
    raise AssertionError(offset)


def cut_at_random(whole: Path, scratch: Path, cuts: int, *, seed: int) -> int:
    """Cut a cache at random lengths; return how many were refused."""
    content, refused = whole.read_bytes(), 0
    for length in np.random.default_rng(seed).integers(len(content), size=cuts):
        scratch.write_bytes(content[:length])
        try:
            open_cache(scratch)
        except HeadstartError:
            refused += 1
    return refused


def fuzz_structure(whole: Path, folder: Path, changes: int, *, seed: int) -> Fuzzed:
    """Change bytes of the HDF5 structure at random, seal the file again, and open it, all in a new process.

    Raises:
        AssertionError: the process crashed, hung, or raised an error of another kind; or a file read back changed.
    """
    receiver, sender = SERVER.Pipe(duplex=False)
    child = forked(_fuzz, whole, folder / "fuzzed.h5", changes, seed, sender)
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
    """Seal a changed file again, with the extents of its old seal."""
    seal = json.loads(path.read_bytes()[:SEAL_BYTES].split(b"\0")[0])
    extents = map(tuple, seal["datasets"])
    write_seal(path, block_rows=seal["block_rows"], label_kind=seal.get("label_kind"), extents=extents)


def draw(rng: np.random.Generator, extents: Sequence[tuple[int, int]], count: int) -> list[int]:
    """Return random offsets in these extents."""
    sizes = np.array([stop - start for start, stop in extents])
    chosen = rng.integers(sizes.sum(), size=count)
    ends = np.cumsum(sizes)
    which = np.searchsorted(ends, chosen, side="right")
    return [int(extents[w][0] + at - (ends[w] - sizes[w])) for w, at in zip(which, chosen, strict=True)]


def inspect_absurd(folder: Path, file: str) -> int:
    """Give each field of a folder's document absurd values, and inspect it each time; return how many were refused.

    Raises:
        AssertionError: an error is no line of headstart's.
    """
    path, refused = folder / file, 0
    whole = json.loads(path.read_bytes())
    for place in fields_of(whole):
        for value in (math.inf, -math.inf, math.nan, 10**400, -(10**400), 1e300, "x", [], None):
            document = json.loads(json.dumps(whole))
            inner = document
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            path.write_text(json.dumps(document))
            try:
                inspect_command(folder, as_json=False)
            except HeadstartError as error:
                refused += 1
                assert "\n" not in str(error), (place, value)
            except Exception as error:
                raise AssertionError(f"{place}: {value}") from error
    path.write_text(json.dumps(whole))
    return refused


def fields_of(document: Any) -> Iterator[tuple[Any, ...]]:
    """The places of all fields in a document; of a list, those of its first item."""
    inner = document.items() if isinstance(document, dict) else enumerate(document[:1]) if document else ()
    for key, value in inner:
        yield (key,)
        if isinstance(value, dict | list):
            yield from ((key, *place) for place in fields_of(value))
