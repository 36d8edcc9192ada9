"""Long texts: cut, their first and last tokens, or all of them in chunks: accuracy, and what each encodes.

    .venv/bin/python demo/fetch.py --news
    .venv/bin/python bench/long_documents.py [--max-length 128] [--encoder .data/minilm] [--rows 200]

The texts are news articles with their outlets as labels (`demo/fetch.py --news`); half have more than 430 words. Each
way is `extract --long ...` and `train-head` with their defaults otherwise, for the same three seeds of the split.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
from facts import cpu_name
from headstart.cache.reader import open_cache
from headstart.stages.extract import extract
from headstart.stages.settings import ExtractSettings, TrainSettings
from headstart.stages.train_head import train_head
from samples import read_rows

ROOT = Path(__file__).resolve().parent.parent
DATA, KEPT = ROOT / ".data", ROOT / ".bench" / "long-documents"
SEEDS = range(3)
WAYS: dict[str, dict[str, Any]] = {
    "cut": {},
    "head-tail": {"long": "head-tail"},
    "chunks, mean": {"long": "chunks"},
    "chunks, max": {"long": "chunks", "chunk_pooling": "max"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--table", type=Path, default=DATA / "news.csv", help="a table with the columns text and label")
    parser.add_argument("--encoder", type=Path, default=DATA / "minilm")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--rows", type=int, help="so many rows, from all parts of the table")
    given = parser.parse_args()
    texts, labels = map(list, zip(*read_rows(given.table), strict=True))
    chosen = np.linspace(0, len(texts) - 1, given.rows or len(texts)).astype(int)
    table = {"text": [texts[row] for row in chosen], "label": [labels[row] for row in chosen]}
    folder = KEPT / f"{given.table.stem}-{given.encoder.name}-{given.max_length}-{len(chosen)}"
    folder.mkdir(parents=True, exist_ok=True)
    words = np.median([len(text.split()) for text in table["text"]])
    print(f"{cpu_name()}; {given.encoder.name}, {given.max_length} tokens; {len(chosen):,} texts, {words:.0f} words")
    print("\n| way | texts that are long | sequences encoded | tokens encoded | accuracy, mean of 3 | of each seed |")
    print("|---|---|---|---|---|---|")
    for way, options in WAYS.items():
        name = way.replace(", ", "-")
        settings = ExtractSettings(encoder=str(given.encoder), max_length=given.max_length, **options)
        record = open_cache(extract(table, folder / f"{name}.h5", settings, overwrite=True)).record
        accuracies = []
        for seed in SEEDS:
            head = TrainSettings(split_seed=seed)
            run = train_head(folder / f"{name}.h5", folder / f"{name}-{seed}", head, overwrite=True)
            accuracies.append(json.loads((run / "run.json").read_text())["metrics"]["test"]["accuracy"])
        numbers = (
            record["truncated_rows"] + record["split_rows"],
            record["sequences_encoded"],
            record["tokens_encoded"],
        )
        shown = " | ".join(f"{number:,}" for number in numbers)
        each = ", ".join(f"{accuracy:.4f}" for accuracy in accuracies)
        print(f"| {way} | {shown} | {np.mean(accuracies):.4f} | {each} |", flush=True)


if __name__ == "__main__":
    main()
