"""Do two checkouts write the same bytes? Runs the same commands in both with one seed, and compares their outputs.

    .venv/bin/python bench/same_bytes.py OLD NEW [--rows 3000]

OLD and NEW are folders of checkouts. Each runs with the ``.venv`` inside it where there is one, else with this Python.
The encoder is ``minilm`` and the texts are rows of ``vader.csv`` in ``.data`` of the checkout that holds this file.

Compared byte for byte: every dataset of a cache and its place in the file, ``head.safetensors``, ``sweep.parquet``.
Compared value by value, and key by key in their order: a cache's record, ``run.json`` and ``sweep.json``, except for
times. Of a table of predictions: each column that OLD writes. A line for each output; exits with 1 where one differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

DATA = Path(__file__).resolve().parent.parent / ".data"
FEATURES = "cls,mean,layer*.max,pooler"
TIMES = ("created", "seconds", "tokens_per_second")
"""Ends of the keys whose values are times or speeds."""


def commands(encoder: Path) -> Iterator[list[str]]:
    """The commands to run in one folder, in order. The last word of each is the file or folder that it makes."""
    extract = ["extract", "all.csv", "--encoder", str(encoder)]
    yield [*extract, "--features", FEATURES, "--precision", "float32", "--out", "float32.h5"]
    yield [*extract, "--features", FEATURES, "--out", "auto.h5"]
    yield [*extract, "--text-pair-column", "other", "--out", "pairs.h5"]
    yield [*extract, "--features", FEATURES, "--precision", "float32", "--reuse", "float32.h5", "--out", "reused.h5"]
    yield ["extract", "some.csv", *extract[2:], "--precision", "float32", "--out", "updated.h5"]
    yield [*extract, "--precision", "float32", "--update", "--out", "updated.h5"]
    for name, options in {
        "search": "",
        "default": "--features cls --solver sgd",
        "mlp": "--features cls --solver sgd --head mlp --epochs 20",
        "exact": "--features cls --solver exact",
        "folds": "--features cls --solver sgd --folds 5 --fold 2 --schedule cosine --warmup 0.1",
        "calibrate": "--features cls --solver sgd --calibrate --standardize --class-weight balanced --patience 5 "
        "--label-smoothing 0.1",
        "pooled": "--features layer6.max --solver sgd --dropout 0 --split-seed 3 --seed 3",
    }.items():
        yield ["train-head", "float32.h5", *options.split(), "--out", f"run-{name}"]
    values = "--solver sgd --features cls,mean --lr 1e-3,1e-2 --dropout 0,0.3 --seed 0,1 --folds 2 --epochs 20"
    yield ["sweep", "float32.h5", *values.split(), "--out", "sweep-sgd"]
    yield [
        "sweep",
        "float32.h5",
        "--features",
        "cls",
        "--solver",
        "exact",
        "--l2",
        "0.1,1,10",
        "--folds",
        "3",
        "--out",
        "sweep-exact",
    ]
    yield ["predict", "run-default", "--input", "all.csv", "--out", "predicted.csv"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", type=Path, help="the checkout to compare with")
    parser.add_argument("new", type=Path, help="the checkout that is compared")
    parser.add_argument("--rows", type=int, default=3000, help="rows of the table")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = {}
        for name in ("old", "new"):
            # Both run in a folder of one name: outputs hold the paths that they were made from.
            work = Path(scratch) / "work"
            run_all(getattr(arguments, name).resolve(), work, arguments.rows)
            made[name] = work.rename(Path(scratch) / name)
        same = compare_all(made["old"], made["new"])
    if not same:
        sys.exit(1)


def run_all(checkout: Path, work: Path, rows: int) -> None:
    """Write the tables into the folder ``work``, and run every command there with the code of ``checkout``."""
    work.mkdir()
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    chosen = [table[i] for i in np.random.default_rng(0).permutation(len(table))[:rows]]
    for name, count in (("all.csv", rows), ("some.csv", rows * 3 // 4)):
        with (work / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "other", "label"))
            writer.writerows((row["text"], row["source"], row["label"]) for row in chosen[:count])
    # A folder named as the package, so that an installed headstart is not taken.
    package = work.parent / f"{checkout.name}-source" / "headstart"
    package.parent.mkdir(exist_ok=True)
    package.unlink(missing_ok=True)
    package.symlink_to(checkout)
    python = checkout / ".venv" / "bin" / "python"
    python = python if python.exists() else Path(sys.executable)
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "HF_HUB_OFFLINE": "1"}
    for command in commands((DATA / "minilm").resolve()):
        print(f"{checkout}: headstart {' '.join(command)}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [python, "-m", "headstart", *command],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"it ended with {done.returncode}: {done.stderr}")


def compare_all(old: Path, new: Path) -> bool:
    """Print a line for each output, and return whether all are the same."""
    same = True
    for path in sorted(old.rglob("*")):
        name = path.relative_to(old)
        if path.is_dir() or name.name in ("all.csv", "some.csv") or name.name.endswith("-lock"):
            continue
        differences = list(compare(path, new / name)) if (new / name).exists() else ["is missing"]
        print(f"{name}: {'; '.join(differences) or 'the same'}", flush=True)
        same = same and not differences
    for path in sorted(new.rglob("*")):
        if path.is_file() and not path.name.endswith("-lock") and not (old / path.relative_to(new)).exists():
            print(f"{path.relative_to(new)}: is new")
            same = False
    return same


def compare(old: Path, new: Path) -> Iterator[str]:
    """Say what differs between two files, by their kind."""
    if old.suffix == ".h5":
        yield from compare_caches(old, new)
    elif old.suffix == ".json":
        yield from compare_values(json.loads(old.read_bytes()), json.loads(new.read_bytes()))
    elif old.suffix == ".csv":
        yield from compare_columns(old, new)
    elif old.read_bytes() != new.read_bytes():
        yield "bytes differ"


def compare_caches(old: Path, new: Path) -> Iterator[str]:
    if old.stat().st_size != new.stat().st_size:
        yield f"{old.stat().st_size:,} bytes, and {new.stat().st_size:,}"
    with h5py.File(old) as before, h5py.File(new) as after:
        if dict(before.attrs) != dict(after.attrs):
            yield "attributes differ"
        datasets = [datasets_of(file) for file in (before, after)]
        if list(datasets[0]) != list(datasets[1]):
            yield f"datasets {', '.join(datasets[0].keys() ^ datasets[1].keys())} are in one alone"
        for name in datasets[0].keys() & datasets[1].keys():
            first, second = (found[name] for found in datasets)
            places = [(data.shape, data.dtype, data.id.get_offset()) for data in (first, second)]
            if places[0] != places[1]:
                yield f"{name}: {places[0]}, and {places[1]}"
            elif name == "record":
                yield from compare_values(*(json.loads(bytes(data[()]).rstrip(b"\0")) for data in (first, second)))
            elif name != "checksums/record" and np.asarray(first).tobytes() != np.asarray(second).tobytes():
                yield f"{name} differs"


def datasets_of(file: h5py.File) -> dict[str, Any]:
    found: dict[str, Any] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return found


def compare_values(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Say where two JSON documents differ, times left out."""
    if where.endswith(TIMES) and type(old) is type(new):
        return
    if isinstance(old, dict) and isinstance(new, dict):
        if list(old) != list(new):
            yield f"keys of {where or 'the document'}: {', '.join(old)}; and {', '.join(new)}"
        for key in old.keys() & new.keys():
            yield from compare_values(old[key], new[key], f"{where}.{key}" if where else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (first, second) in enumerate(zip(old, new, strict=True)):
            yield from compare_values(first, second, f"{where}[{number}]")
    elif (type(old), old) != (type(new), new):
        yield f"{where}: {old!r}, and {new!r}"


def compare_columns(old: Path, new: Path) -> Iterator[str]:
    columns = []
    for path in (old, new):
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        columns.append(dict(zip(header, zip(*rows, strict=True), strict=True)))
    if "prediction" not in columns[0]:  # what was predicted was once called `label`; now that is the input's own column
        columns[0]["prediction"] = columns[0].pop("label")
    for name, values in columns[0].items():
        if columns[1].get(name) != values:
            yield f"column {name} differs"


if __name__ == "__main__":
    main()
