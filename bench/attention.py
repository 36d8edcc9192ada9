"""Attention within a batch: with each sequence's own keys alone, and with keys added up to a multiple of 16.

    .venv/bin/python bench/attention.py [--dtype bfloat16] [--heads 12] [--per-head 64]

Both ways take turns; shown are medians over rounds, for about 2,048 tokens in sequences of one length. A mask leaves
the added keys out, so the result is the same. `headstart.stages.encoders.packed.attention` adds keys
where that takes less time.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import torch
from facts import cpu_name
from headstart.stages.encoders.memory import freed_memory_kept
from headstart.stages.encoders.packed.attention import Heads, attend, group_sequences

LENGTHS = (9, 15, 18, 20, 23, 27, 31, 32, 33, 37, 44, 50, 53, 61, 64, 66, 75, 90, 100, 127)
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
    print("| length | keys | own keys, ms | keys added, ms | ratio | largest difference | headstart adds |")
    print("|---|---|---|---|---|---|---|")
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
    ways = [dataclasses.replace(chosen, keys=each, _made={}) for each in (length, keys)]
    results = [found.new_empty(len(found), heads * per_head) for _ in ways]
    for way, out in zip(ways, results, strict=True):
        attend(found, way, how, out=out)
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for way, out, seconds in zip(ways, results, times, strict=True):
            started = time.perf_counter()
            for _ in range(CALLS):
                attend(found, way, how, out=out)
            seconds.append((time.perf_counter() - started) / CALLS)
    own, more = (1000 * statistics.median(seconds) for seconds in times)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    plain, added = (out[chosen.tokens] for out in results)
    off, adds = float((plain - added).abs().max()), "yes" if chosen.keys > length else "no"
    print(f"| {length} | {keys} | {own:.2f} | {more:.2f} | {ratio:.2f} | {off:.1e} | {adds} |", flush=True)


if __name__ == "__main__":
    main()
