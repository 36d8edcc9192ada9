"""How many tokens a batch should have: the same sequences in batches of several sizes, taking turns.

    .venv/bin/python bench/batches.py [--encoder .data/minilm] [--precision float32] [--length 32]

The sequences are of one length that fills each batch exactly. Shown is the median over rounds of each size's speed as a
ratio to that of 2,048 tokens, and the peak of resident memory so far, the smallest size first.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from facts import cpu_name
from headstart.stages.allocator import freed_memory_kept
from headstart.stages.encoder import EncoderSettings
from headstart.stages.encoder_files import find_encoder
from headstart.stages.features import parse_features
from headstart.stages.pretrained import load_encoder
from headstart.stages.settings import Precision

DATA = Path(__file__).resolve().parent.parent / ".data"
SIZES, ROUNDS = (1024, 2048, 4096, 8192, 16384), 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--encoder", type=Path, default=DATA / "minilm")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--length", type=int, default=32)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    files = find_encoder(str(given.encoder))
    rng = np.random.default_rng(0)
    encoders, batches, memory = {}, {}, {}
    for size in SIZES:
        settings = EncoderSettings(
            features=parse_features(("cls",), files.layers()),
            device=torch.device("cpu"),
            precision=Precision(given.precision),
            prefix="",
            max_length=128,
            batch_tokens=size,
        )
        encoders[size] = load_encoder(files, settings)
        batches[size] = [rng.integers(1000, 20000, given.length).astype(np.int32) for _ in range(size // given.length)]
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    with freed_memory_kept():
        for number in range(ROUNDS + 1):
            for size in SIZES:
                started = time.perf_counter()
                for _ in range(SIZES[-1] // size):
                    encoders[size].encode(batches[size])
                if number:  # the first round warms up
                    seconds[size].append(time.perf_counter() - started)
                else:
                    memory[size] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{cpu_name()}; {given.encoder.name}, {given.precision}, sequences of {given.length} tokens\n")
    print("| tokens a batch | tokens/s | of the speed at 2,048 | peak resident, MiB |\n|---|---|---|---|")
    for size in SIZES:
        speed = SIZES[-1] / statistics.median(seconds[size])
        ratio = statistics.median(b / a for a, b in zip(seconds[size], seconds[2048], strict=True))
        print(f"| {size:,} | {speed:,.0f} | {ratio:.3f} | {memory[size]:,.0f} |")


if __name__ == "__main__":
    main()
