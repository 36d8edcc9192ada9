"""Kills and power cuts by the hundred: ``make soak`` runs this, and it prints counts.

200 processes are killed at random over one extraction. After each kill no block that held before may be lost, and the
next process must find them all; at the end every dataset and the identity are those of an undisturbed run, byte for
byte. Then kills before, inside and after the writes, syncs, renames and removals of a small extraction; and power cuts
in one, and in the runs that carry on with it, each of which leaves any part of what was not synced.
"""

from __future__ import annotations

import argparse
import csv
import re
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from extracting import datasets, holding
from extracting import run_small_blocks as run
from powercut import carry_on_after_cuts
from processes import blocks_of, fault_at, finish, start
from tiny import save_tiny_encoder, tiny_rows

SMALL = partial(blocks_of, 64)
POINTS = {"write": ("before", "inside", "after")} | dict.fromkeys(("fsync", "replace", "unlink"), ("before", "after"))


def write_table(path: Path, rows: int) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *tiny_rows(rows)])
    return path


def kill_at_random(folder: Path, encoder: Path, *, kills: int, rows: int, seed: int) -> None:
    """Kill processes of one extraction, one after another, and let the last one finish."""
    command = ["extract", write_table(folder / "table.csv", rows), "--encoder", encoder, "--precision", "float32"]
    command += ["--batch-tokens", "256", "--out"]
    out, log, rng = folder / "killed.h5", folder / "log", np.random.default_rng(seed)
    started = time.monotonic()
    code, said = finish([*command, folder / "whole.h5"], log, SMALL)
    assert code == 0, said
    undisturbed, blocks = time.monotonic() - started, -(-rows // 64)
    print(f"undisturbed: {rows:,} rows in {blocks:,} blocks, {undisturbed:.1f} s", flush=True)
    done: set[int] = set()
    at_work = lost = 0
    longest = 2.0  # seconds that a process may live: it starts, reads the table and checks the blocks, then encodes
    for kill in range(1, kills + 1):
        log.unlink(missing_ok=True)  # one that is killed before it opens it leaves none
        process = start([*command, out], log, SMALL)
        process.join(rng.uniform(0, longest))
        if process.exitcode is not None:
            raise SystemExit(f"the extraction ended before kill {kill}: {log.read_text()}; take more --rows")
        process.kill()
        process.join()
        text = log.read_text() if log.exists() else ""
        if said_kept := re.search(r"([\d,]+) of [\d,]+ blocks are done", text):
            assert int(said_kept[1].replace(",", "")) == len(done), text
        held = holding(out)
        at_work, lost = at_work + (held != done), lost + len(done - held)
        longest *= 1.1 if len(held) < 0.9 * blocks * kill / kills else 0.9  # so that the last kill comes near the end
        done = held
        if kill % 20 == 0:
            print(f"{kill} kills, {len(done):,} of {blocks:,} blocks hold, {lost} lost", flush=True)
    code, said = finish([*command, out], log, SMALL)
    assert code == 0, said
    same = datasets(out) == datasets(folder / "whole.h5")
    verdict = "are" if same else "are NOT"
    print(
        f"{kills} kills at random over one extraction, {at_work} of them of a process that had written blocks: "
        f"{lost} blocks lost; every dataset and the identity {verdict} those of the undisturbed run"
    )
    if lost or not same or not at_work:
        raise SystemExit(1)


def kill_everywhere(folder: Path, encoder: Path, *, step: int) -> None:
    """Kill at each call that writes, syncs or renames, before, inside and after it, and carry on."""
    command = ["extract", write_table(folder / "small.csv", 60), "--encoder", encoder, "--precision", "float32"]
    command += ["--batch-tokens", "64", "--out"]
    eight, log = partial(blocks_of, 8), folder / "log"
    assert finish([*command, folder / "small.h5"], log, eight)[0] == 0
    whole, kills = datasets(folder / "small.h5"), 0
    for point, moments in POINTS.items():
        _, said = finish(
            [*command, folder / "counted.h5", "--quiet", "--overwrite"],
            log,
            eight,
            partial(fault_at, point, 0, "count"),
        )
        calls = int(said.split()[0])
        for call in range(1, calls + 1, step):
            for moment in moments:
                out = folder / f"{point}-{call}-{moment}.h5"
                code, said = finish([*command, out], log, eight, partial(fault_at, point, call, moment))
                assert code == -signal.SIGKILL, (point, call, moment, said)
                kept = holding(out)
                code, said = finish([*command, out], log, eight)
                assert code == 0 and datasets(out) == whole, (point, call, moment, said)
                assert not kept or f"{len(kept)} of 8 blocks are done" in said, (point, call, moment, said)
                kills += 1
    print(
        f"{kills} kills before, inside and after writes, syncs, renames and removals: all carried on to the same bytes"
    )


def cut_power(folder: Path, encoder: Path, *, cuts: int, seed: int) -> None:
    """Cut the power in a small extraction, and carry on."""
    table, out = write_table(folder / "power.csv", 60), folder / "power"
    out.mkdir()
    run(table, folder / "power.h5", encoder)
    kept = carry_on_after_cuts(table, out, encoder, datasets(folder / "power.h5"), cuts=cuts, seed=seed)
    print(f"{cuts} power cuts: all carried on to the same bytes, with {kept} blocks kept and no synced one lost")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--rows", type=int, default=200_000, help="of the extraction that is killed")
    parser.add_argument("--step", type=int, default=3, help="kill at every so manieth call of a small extraction")
    parser.add_argument("--cuts", type=int, default=200, help="of the power")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        encoder = save_tiny_encoder(folder / "encoder")
        kill_at_random(folder, encoder, kills=options.kills, rows=options.rows, seed=options.seed)
        kill_everywhere(folder, encoder, step=options.step)
        cut_power(folder, encoder, cuts=options.cuts, seed=options.seed)
    print(f"{time.monotonic() - started:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
