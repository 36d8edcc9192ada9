"""How long the encoder's pass takes with batches of various sizes, and with its layers cut into chunks of various rows.

    .venv/bin/python bench/batches.py [--encoder .data/minilm] [--precision bfloat16] [--length 32] [--padded]

Sizes take turns, each with the same tokens to encode, on all cores; shown is the median over rounds of the ratio to
the default. `headstart.stages.devices` and `headstart.stages.encoders.packed.layers` choose by what this prints.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from facts import cpu_name
from headstart.stages.devices import default_batch_tokens
from headstart.stages.encoders import hf
from headstart.stages.encoders.encoder import Encoder, EncoderSettings
from headstart.stages.encoders.files import find_encoder
from headstart.stages.encoders.hf import load_encoder
from headstart.stages.encoders.memory import freed_memory_kept
from headstart.stages.encoders.packed import layers
from headstart.stages.encoders.pooling import parse_features
from headstart.stages.settings import ForwardMode, Precision

DATA = Path(__file__).resolve().parent.parent / ".data"
CPU = torch.device("cpu")
BATCHES, CHUNKS = (1024, 2048, 4096, 8192), (128, 256, 512, 1024, 2048)
TOKENS, ROUNDS = 16384, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--encoder", type=Path, default=DATA / "minilm")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--padded", action="store_true", help="the stock path, which other architectures take")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    print(f"{cpu_name()}; {given.encoder.name}, {given.precision}, sequences of {given.length} tokens\n")
    path = ForwardMode.PADDED if given.padded else ForwardMode.PACKED
    usual = default_batch_tokens(CPU, path, width=0), layers.CHUNK_ROWS
    if given.padded:
        hf.find_architecture = lambda config: None
    show("tokens a batch", {size: (size, usual[1]) for size in BATCHES}, usual[0], given)
    if not given.padded:
        show("rows a chunk", {size: (usual[0], size) for size in CHUNKS}, usual[1], given)


def show(title: str, sizes: dict[int, tuple[int, int]], usual: int, given: argparse.Namespace) -> None:
    """Time some sizes, each of a batch and of a chunk, and print a table."""
    rng = np.random.default_rng(0)
    encoders, batches = {}, {}
    for size, (batch, chunk) in sizes.items():
        layers.CHUNK_ROWS = chunk
        encoders[size] = load(given.encoder, Precision(given.precision), batch)
        sequences = [rng.integers(1000, 20000, given.length).astype(np.int32) for _ in range(batch // given.length)]
        batches[size] = [sequences] * (TOKENS // batch)
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    with freed_memory_kept():
        for number in range(ROUNDS + 1):
            for size, (_, chunk) in sizes.items():
                layers.CHUNK_ROWS = chunk
                started = time.perf_counter()
                for _ in encoders[size].backend.encode_all(batches[size]):
                    pass
                if number:  # the first round warms up
                    seconds[size].append(time.perf_counter() - started)
    print(f"| {title} | tokens/s | of the speed at {usual:,} |\n|---|---|---|")
    for size in sizes:
        ratio = statistics.median(b / a for a, b in zip(seconds[size], seconds[usual], strict=True))
        print(f"| {size:,} | {TOKENS / statistics.median(seconds[size]):,.0f} | {ratio:.3f} |")
    print()


def load(folder: Path, precision: Precision, batch_tokens: int) -> Encoder:
    files = find_encoder(str(folder))
    settings = EncoderSettings(
        features=parse_features(("cls",), files.layers()),
        device=CPU,
        precision=precision,
        prefix="",
        max_length=128,
        batch_tokens=batch_tokens,
    )
    return load_encoder(files, settings)


if __name__ == "__main__":
    main()
