"""Damage by the hundred: ``make soak`` runs this, and it prints counts.

200 single bits flipped in each kind of a finished cache's bytes, and 200 anywhere else; 1,000 random cuts; 2,000
changes of its HDF5 structure, sealed again. It ends with an error where anything was not found, or was met with
anything but an error of headstart's own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from damage import KINDS, cut_at_random, flip_in, fuzz_structure
from extracting import run
from tiny import save_tiny_encoder, tiny_rows

FLIPS, CUTS, CHANGES = 200, 1000, 2000


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts, labels = zip(*tiny_rows(3000), strict=True)
        table, whole = {"text": list(texts), "label": list(labels)}, folder / "whole.h5"
        run(table, whole, save_tiny_encoder(folder / "tiny"), batch_tokens=2048)
        print(f"a cache of 3,000 rows in 3 blocks, {whole.stat().st_size:,} bytes\n")
        print("| flipped bits in | flips | found | located |\n|---|---|---|---|")
        good = True
        for kind in (*KINDS, None):
            found = flip_in(whole, folder / "flipped.h5", kind, FLIPS, seed=1)
            good &= found.found == FLIPS and (kind is None or found.located == FLIPS)
            located = found.located if kind else ""
            print(f"| {kind or 'anything else'} | {FLIPS} | {found.found} | {located} |", flush=True)
        refused = cut_at_random(whole, folder / "cut.h5", CUTS, seed=1)
        print(f"\n{CUTS:,} random cuts: {refused:,} refused on opening", flush=True)
        fuzzed = fuzz_structure(whole, folder, CHANGES, seed=1)
        print(
            f"{CHANGES:,} changed structures, sealed again: {fuzzed.refused:,} refused, {fuzzed.unchanged:,} read back "
            "unchanged, none crashed"
        )
    if not good or refused < CUTS:
        sys.exit("something was not found")


if __name__ == "__main__":
    main()
