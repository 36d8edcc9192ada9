"""Attention within a batch: with each sequence's own keys alone, with keys added up to a multiple of 16, and compiled.

    .venv/bin/python bench/attention.py [--dtype bfloat16] [--heads 12] [--per-head 64]

Both ways take turns; shown are medians over rounds, for about 2,048 tokens in sequences of one length. A mask leaves
the added keys out, so the result is the same. `headstart.stages.encoders.packed.attention` adds keys
where that takes less time, and where it does not call `headstart.stages.encoders.native`, which computes float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
import unittest.mock

import torch
from facts import cpu_name
from headstart.stages.encoders.memory import freed_memory_kept
from headstart.stages.encoders.native.loops import compiled
from headstart.stages.encoders.packed import attention
from headstart.stages.encoders.packed.attention import Heads, attend, group_sequences

LENGTHS = (9, 15, 18, 20, 23, 27, 31, 32, 33, 37, 44, 50, 53, 61, 64, 66, 75, 90, 100, 127, 256, 512)
LOOPS = compiled()
TOKENS, ROUNDS, CALLS = 2048, 9, 3


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--per-head", type=int, default=64)
    given = parser.parse_args()
    dtype = getattr(torch, given.dtype)
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, {given.heads} heads of {given.per_head}, {given.dtype}\n")
    print("| length | keys | own keys, ms | keys added, ms | ratio | headstart adds | compiled, ms | difference |")
    print("|---|---|---|---|---|---|---|---|")
    with freed_memory_kept():
        for length in LENGTHS:
            show(length, dtype, given.heads, given.per_head)


def show(length: int, dtype: torch.dtype, heads: int, per_head: int) -> None:
    count = TOKENS // length
    keys = -(-length // 16) * 16
    found = torch.randn(count * length + 16, 3 * heads * per_head).to(dtype)
    # What follows leaves room for keys to be added.
    chosen = group_sequences([length] * count + [16])[0]
    how = Heads(heads=heads, key_value_heads=heads, width=per_head)
    by_torch = [dataclasses.replace(chosen, keys=each, _made={}) for each in (length, keys)]
    ways = [*((way, None) for way in by_torch), (by_torch[0], LOOPS)]
    if LOOPS is None or not LOOPS.attends(found, length, per_head):
        del ways[-1]
    results = [found.new_empty(len(found), heads * per_head) for _ in ways]
    times: list[list[float]] = [[] for _ in ways]
    for number in range(ROUNDS + 1):
        for (way, loops), out, seconds in zip(ways, results, times, strict=True):
            with unittest.mock.patch.object(attention, "compiled", lambda loops=loops: loops):
                started = time.perf_counter()
                for _ in range(CALLS):
                    attend(found, way, how, out=out)
                if number:  # the first is not timed
                    seconds.append((time.perf_counter() - started) / CALLS)
    own, more, *compiled = (1000 * statistics.median(seconds) for seconds in times)
    ratio = statistics.median(b / a for a, b in zip(times[0], times[1], strict=True))
    plain, *others = (out[chosen.tokens] for out in results)
    off, adds = max(float((plain - other).abs().max()) for other in others), "yes" if chosen.keys > length else "no"
    by_library = f"{compiled[0]:.2f}" if compiled else ""
    cells = [length, keys, f"{own:.2f}", f"{more:.2f}", f"{ratio:.2f}", adds, by_library, f"{off:.1e}"]
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
