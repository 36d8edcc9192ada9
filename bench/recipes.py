"""The feature `model` beside `SentenceTransformer(folder).encode(texts)`: the largest difference of any number.

    .venv/bin/python bench/recipes.py [FOLDER ...]      # needs the extra `bench`: make .venv/installed-bench

No option is given but float32, to both. The texts are 300 of VADER's, of all lengths, in a random order; one more is
longer than any encoder reads. Without folders, MiniLM's is taken, and all-mpnet-base-v2's where it is in `.data`.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
import transformers
from headstart.cache.reader import open_cache
from headstart.stages.extract import extract
from headstart.stages.settings import ExtractSettings
from samples import read_rows
from sentence_transformers import SentenceTransformer

DATA = Path(__file__).resolve().parent.parent / ".data"
USUAL = [folder for folder in (DATA / "minilm", DATA / "all-mpnet-base-v2") if folder.is_dir()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="*", type=Path, default=USUAL)
    texts = sample()
    print(f"| encoder, {len(texts)} texts | its own vector | numbers | pass | largest difference | largest number |")
    print("|---|---|---|---|---|---|")
    for folder in parser.parse_args().folders:
        print(f"| {folder.name} | {compare(folder, texts)} |", flush=True)


def sample() -> list[str]:
    """300 texts, and one longer than any encoder reads."""
    texts = sorted((text for text, _ in read_rows(DATA / "vader.csv")), key=len)
    chosen = [texts[place] for place in np.linspace(0, len(texts) - 1, 300).astype(int)]
    return [*(chosen[place] for place in np.random.default_rng(0).permutation(300)), " ".join(texts[-40:])]


def compare(folder: Path, texts: list[str]) -> str:
    settings = ExtractSettings(encoder=str(folder), precision="float32", label_column=None)
    with tempfile.TemporaryDirectory() as scratch:
        cache = open_cache(extract(texts, Path(scratch) / "cache.h5", settings))
        ours = np.array(cache.features())
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    theirs = model.encode(texts, show_progress_bar=False)
    own = f"{cache.record['encoder'].get('model', 'cls')}, {cache.identity.max_length} tokens"
    largest, difference = np.abs(theirs).max(), np.abs(ours - theirs).max()
    return f"{own} | {ours.shape[1]} | {cache.plan['path']} | {difference:.1e} | {largest:.2f}"


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main()
