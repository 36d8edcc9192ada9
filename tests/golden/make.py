"""Make the golden files: caches, a run and a sweep that every later headstart must read.

    python tests/golden/make.py FOLDER
    python tests/golden/make.py FOLDER kinds
    python tests/golden/make.py FOLDER joined

writes them into a new folder: ``v1``; or, with the encoder of ``v1``, ``v1-kinds``, caches with labels of other kinds
than classes, and runs; or ``v1-joined``, a cache of three shards, one of which was appended. Those of a released
version of the format are never made again. They hold what `tests/cache/test_golden.py` needs: a tiny random encoder
with modules of its own, the tables, and ``expected.json``: what plain h5py reads from each cache, and what the runs
predict.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import headstart
import numpy as np

CACHES: dict[str, dict[str, Any]] = {
    "features": {"features": ("cls", "mean", "model"), "prompt": "query"},
    "pairs": {"features": ("cls",), "label_column": None, "text_pair_column": "second", "max_length": 12},
    "float16": {"features": ("model",), "storage": "float16"},
    "chunks": {"features": ("cls", "model"), "max_length": 8, "long": "chunks", "overlap": 2, "chunk_pooling": "max"},
    "left_out": {"features": ("cls",), "skip_bad_rows": True, "prefix": "the "},
}
"""Of each cache: the settings of `extract`; its table has the same name."""
KINDS: dict[str, dict[str, Any]] = {
    "number": {},
    "multi_label": {"label_delimiter": ";"},
    "ordinal": {"task": "ordinal", "order": ("low", "mid", "high")},
}
"""Those of ``v1-kinds``."""
JOINED = "joined"
"""The cache of ``v1-joined``; the folder of that name holds its tables."""
TEXTS = ("a good film", "very bad", "the plot")
"""Texts whose predictions are expected."""


def settings(cache: str) -> headstart.ExtractSettings:
    """Settings of a cache, for a process in the golden folder: paths are relative."""
    return headstart.ExtractSettings(
        **{"encoder": "encoder", "precision": "float32", "device": "cpu", "block_rows": 16, "window_rows": 32},
        **({**CACHES, **KINDS, JOINED: {"skip_bad_rows": True}}[cache]),
    )


def read_plainly(path: Path) -> dict[str, Any]:
    """What plain h5py reads: attributes, documents, and of each dataset its shape, its type and a hash of its bytes."""
    datasets: dict[str, Any] = {}

    def note(name: str, item: h5py.HLObject) -> None:
        if isinstance(item, h5py.Dataset) and item.shape:
            digest = hashlib.sha256(np.ascontiguousarray(item[:]).tobytes()).hexdigest()
            datasets[name] = [list(item.shape), str(item.dtype), digest]

    with h5py.File(path) as file:
        file.visititems(note)
        documents = ("identity", "plan", "label_names", "record", "shards")
        return {
            "attributes": {name: value if isinstance(value, str) else int(value) for name, value in file.attrs.items()},
            "datasets": datasets,
            "documents": {name: json.loads(file[name][()]) for name in documents if name in file},
            "first_row": {name: feature[0].astype(float).tolist() for name, feature in file["features"].items()},
            "rows": file["rows"][:].tolist() if "rows" in file else None,
        }


def make(folder: Path) -> None:
    """Write all golden files into a new folder, and stay in it."""
    from recipes import add_dense, with_recipe
    from tiny import save_tiny_encoder, tiny_rows

    folder.mkdir(parents=True)
    folder = folder.resolve()
    os.chdir(folder)  # what is recorded has no path of this machine
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16, "max_position_embeddings": 64}
    plain = save_tiny_encoder(folder / "plain", **sizes)
    mean = {"word_embedding_dimension": 16, "pooling_mode": "mean"}
    with_recipe(plain, folder / "encoder", "Dense", "Normalize", pooling=mean)
    add_dense(folder / "encoder" / "2_Dense", inputs=16)
    shutil.rmtree(plain)
    rows = tiny_rows(48)
    write_table("features", ["text", "label"], rows)
    write_table("float16", ["text", "label"], rows[:20])
    write_table(
        "chunks", ["text", "label"], [(f"{text} {rows[-1 - n][0]}", y) for n, (text, y) in enumerate(rows[:20])]
    )
    write_table("pairs", ["text", "second"], [(text, rows[-1 - n][0]) for n, (text, _) in enumerate(rows[:20])])
    write_table("left_out", ["text", "label"], [("", "class0"), *rows[:20], ("  ", "class1"), *rows[20:30]])
    for name in CACHES:
        headstart.extract(f"{name}.csv", f"{name}.h5", settings(name))
        without_paths(name)
    headstart.train_head("features.h5", "run", headstart.TrainSettings(solver="sgd", feature="model", epochs=3))
    values = {"learning_rate": (0.01, 0.1)}
    base = headstart.TrainSettings(solver="sgd", feature="mean", head="mlp", hidden=4, epochs=2)
    headstart.sweep("features.h5", "sweep", headstart.SweepSettings(base=base, values=values))
    for document in (Path("run/run.json"), Path("sweep/sweep.json"), Path("sweep/winner/run.json")):
        document.write_text(document.read_text(encoding="utf-8").replace(f"{folder}/", ""), encoding="utf-8")
    predictions = {run: headstart.load(run).predict_proba(TEXTS).tolist() for run in ("run", "sweep/winner")}
    expected = {"caches": {name: read_plainly(Path(f"{name}.h5")) for name in CACHES}, "predictions": predictions}
    Path("expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def make_kinds(folder: Path) -> None:
    """Write the golden files with labels of other kinds into a new folder, and stay in it."""
    from headstart.cache.reader import open_cache
    from tiny import tiny_rows

    shutil.copytree(Path(__file__).parent / "v1" / "encoder", folder.resolve() / "encoder")
    os.chdir(folder)
    texts = [text for text, _ in tiny_rows(40)]
    labels = {
        "number": [f"{number / 8 - 2}" for number in range(40)],
        "multi_label": [";".join(["red", "green"][: number % 3]) for number in range(40)],
        "ordinal": [("low", "mid", "high")[number % 3] for number in range(40)],
    }
    for name in KINDS:
        write_table(name, ["text", "label"], list(zip(texts, labels[name], strict=True)))
        headstart.extract(f"{name}.csv", f"{name}.h5", settings(name))
        without_paths(name)
        headstart.train_head(f"{name}.h5", f"{name}-run")
        (Path(f"{name}-run") / "predictions.parquet").unlink()
        document = Path(f"{name}-run") / "run.json"
        document.write_text(document.read_text(encoding="utf-8").replace(f"{Path.cwd()}/", ""), encoding="utf-8")
    outputs = {name: headstart.load(f"{name}-run").head.outputs for name in KINDS}
    said = {name: of(open_cache(f"{name}.h5").features()[:3]).tolist() for name, of in outputs.items()}
    expected = {"caches": {name: read_plainly(Path(f"{name}.h5")) for name in KINDS}, "outputs": said}
    Path("expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree("encoder")


def make_joined(folder: Path) -> None:
    """Write a joined cache and its shards into a new folder, and stay in it."""
    from headstart.cache.reader import open_cache
    from tiny import tiny_rows

    shutil.copytree(Path(__file__).parent / "v1" / "encoder", folder.resolve() / "encoder")
    os.chdir(folder)
    rows, cache = tiny_rows(60), f"{JOINED}.h5"
    Path(JOINED).mkdir()
    write_table(f"{JOINED}/1", ["text", "label"], [*rows[:40], ("", "class0")])
    write_table(f"{JOINED}/2", ["text", "label"], [("", "class0"), *rows[35:]])
    headstart.extract(f"{JOINED}/1.csv", cache, settings(JOINED), shards=2)
    headstart.extract(f"{JOINED}/2.csv", cache, append=True, skip_bad_rows=True)
    files = [file.path.with_suffix("").as_posix() for file in open_cache(cache).files]
    for file in files:
        without_paths(file)
    headstart.join(cache)
    expected = {"caches": {name: read_plainly(Path(f"{name}.h5")) for name in (JOINED, *files)}}
    Path("expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree("encoder")


def write_table(name: str, header: list[str], rows: list[tuple[str, str]]) -> None:
    with Path(f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def without_paths(name: str) -> None:
    """Write the record of a cache again, with the encoder's folder relative."""
    from headstart.cache.reader import open_cache
    from headstart.cache.writer import CacheWriter

    path = Path(f"{name}.h5")
    record: Mapping[str, Any] = open_cache(path).record
    with CacheWriter(path) as writer:
        writer._write_document("record", {**record, "encoder": {**record["encoder"], "folder": "encoder"}})


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    which = {"kinds": make_kinds, "joined": make_joined}
    (which[sys.argv[2]] if sys.argv[2:] else make)(Path(sys.argv[1]))
