"""What it costs to tokenize long texts, whole and as far as it is needed, taking turns; beside encoding what is kept.

    .venv/bin/python bench/long_texts.py [--encoder .data/minilm] [--precision bfloat16]

The texts are VADER's, strung together. Shown are medians over rounds, and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
from facts import cpu_name
from headstart.stages.encoders.encoder import EncoderSettings
from headstart.stages.encoders.files import find_encoder
from headstart.stages.encoders.hf import load_encoder
from headstart.stages.encoders.memory import freed_memory_kept
from headstart.stages.encoders.pooling import parse_features
from headstart.stages.encoders.tokenizer import Tokenizer
from headstart.stages.settings import Precision

DATA = Path(__file__).resolve().parent.parent / ".data"
MAX_LENGTH, TEXTS, ROUNDS = 128, 256, 7
STRUNG = (1, 10, 50, 250)
"""So many of VADER's texts make one."""


def microseconds(call: Callable[[], Any]) -> float:
    """How long a call takes for each text."""
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) / TEXTS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--encoder", type=Path, default=DATA / "minilm")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    files = find_encoder(str(given.encoder))
    settings = EncoderSettings(
        features=parse_features(("cls",), files.layers()),
        device=torch.device("cpu"),
        precision=Precision(given.precision),
        prefix="",
        max_length=MAX_LENGTH,
    )
    encoder = load_encoder(files, settings)
    tokenizer = tokenizers.Tokenizer.from_file(str(given.encoder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    tokenizer.no_padding()
    tokenizing = Tokenizer(tokenizer)
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        rows = [row["text"] for row in csv.DictReader(file)]
    print(f"{cpu_name()}; {given.encoder.name}, cut at {MAX_LENGTH} tokens; microseconds a text\n")
    print(f"| words | tokenized whole | as far as needed | times as fast | encoded in {given.precision} |")
    print("|---|---|---|---|---|")
    for strung in STRUNG:
        texts = [" ".join(rows[(start + i) % len(rows)] for i in range(strung)) for start in range(0, 20 * TEXTS, 20)]
        whole: list[float] = []
        needed: list[float] = []
        encoded: list[float] = []
        with freed_memory_kept():
            for number in range(ROUNDS + 1):
                times = (
                    microseconds(lambda: tokenizer.encode_batch(texts)),  # noqa: B023
                    microseconds(lambda: tokenizing.encode(texts)),  # noqa: B023
                )
                sequences = sorted(encoder.tokenize(texts)[0], key=len)
                size = max(1, encoder.batch_tokens // len(sequences[-1]))
                batches = [sequences[start : start + size] for start in range(0, TEXTS, size)]
                of_encoder = microseconds(lambda: list(encoder.backend.encode_all(batches)))  # noqa: B023
                if number:  # the first round warms up
                    whole.append(times[0])
                    needed.append(times[1])
                    encoded.append(of_encoder)
        assert [e.ids for e in tokenizer.encode_batch(texts)] == [e.ids for e in tokenizing.encode(texts)]
        ratio = statistics.median(a / b for a, b in zip(whole, needed, strict=True))
        words = sum(len(text.split()) for text in texts) / TEXTS
        medians = [statistics.median(values) for values in (whole, needed, encoded)]
        print(f"| {words:,.0f} | {medians[0]:,.0f} | {medians[1]:,.0f} | {ratio:.1f} | {medians[2]:,.0f} |")


if __name__ == "__main__":
    main()
