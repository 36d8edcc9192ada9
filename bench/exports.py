"""Every export beside headstart, loaded by the library that it is for, in a process that does not import headstart.

    .venv/bin/python bench/exports.py [--texts 200]

Heads on MiniLM's features of the VADER texts are exported; a card's own code loads each export. Of the first texts of
the table: the largest difference of two logits, and how many have the same label.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from headstart.stages.export import export
from headstart.stages.extract import extract
from headstart.stages.model import TextClassifier, load
from headstart.stages.settings import ExportSettings, ExtractSettings, TrainSettings
from headstart.stages.train_head import train_head

DATA = Path(__file__).resolve().parent.parent / ".data"
FORMATS = {
    "transformers": "cls",
    "torch": "cls",
    "sentence-transformers": "model",
    "onnx": "model",
    "onnx int8": "model",
    "numpy": "model",
}
"""The feature of the head that goes into each format."""
LOGITS = {
    "transformers": """
names = classify.model.config.id2label.values()
scores = [{s["label"]: s["score"] for s in row} for row in classify(texts, top_k=None, function_to_apply="none")]
logits = [[row[name] for name in names] for row in scores]
""",
    "onnx": "logits = session.run(['logits'], inputs)[0]",
    "numpy": "logits = head.logits(features)",
}
"""What gives logits after a card's own code, where that has none."""
LOADER = """
import json, os, sys
import numpy

texts = json.load(open("texts.json", encoding="utf-8"))
found, home = {}, os.getcwd()
for name, folder, code in json.load(open("exports.json", encoding="utf-8")):
    os.chdir(folder)
    sys.path.insert(0, folder)
    scope = {"texts": texts, "features": numpy.load(os.path.join(home, "features.npy"))}
    exec(code, scope)
    found[name] = {"labels": list(scope["labels"]), "logits": numpy.asarray(scope["logits"]).tolist()}
    sys.path.remove(folder)
assert not [module for module in sys.modules if module.startswith("headstart")]
json.dump(found, open(os.path.join(home, "found.json"), "w", encoding="utf-8"))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--texts", type=int, default=200)
    count = parser.parse_args().texts
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        texts = [row["text"] for row in csv.DictReader(file)][:count]
    with tempfile.TemporaryDirectory() as scratch:
        settings = ExtractSettings(encoder=str(DATA / "minilm"), features=("model", "cls"), precision="float32")
        cache = extract(DATA / "vader.csv", Path(scratch) / "cache.h5", settings)
        runs = {
            feature: train_head(cache, Path(scratch) / feature, TrainSettings(solver="exact", feature=feature))
            for feature in ("model", "cls")
        }
        folders = {name: Path(scratch) / name.replace(" ", "-") for name in FORMATS}
        for name, feature in FORMATS.items():
            to, _, int8 = name.partition(" ")
            options = {"texts": DATA / "vader.csv", "reading": ExtractSettings()}
            export(runs[feature], folders[name], ExportSettings(to=to, int8=bool(int8)), **options)
        models = {feature: load(run) for feature, run in runs.items()}
        expected = {feature: (logits(model, texts), model.predict(texts).tolist()) for feature, model in models.items()}
        found = answers(folders, texts, models["model"], Path(scratch))
        print(f"{len(texts)} texts\n\n| format | largest difference of two logits | same label |\n|---|---|---|")
        for name, feature in FORMATS.items():
            values, labels = expected[feature]
            difference = np.abs(np.array(found[name]["logits"]) - values).max()
            same = sum(a == b for a, b in zip(found[name]["labels"], labels, strict=True))
            print(f"| {name} | {difference:.1e} | {same / len(texts):.1%} |")


def answers(
    folders: Mapping[str, Path], texts: Sequence[str], model: TextClassifier, scratch: Path
) -> dict[str, dict[str, Any]]:
    """Return ``labels`` and ``logits`` of texts by the names of exports, as the code on their cards gives them.

    ``model`` gives the features that the format numpy reads. All are loaded in one process.
    """
    np.save(scratch / "features.npy", features(model, texts))
    jobs = [
        (name, str(folder.resolve()), card_code(folder, LOGITS.get(name.split()[0], "")))
        for name, folder in folders.items()
    ]
    (scratch / "exports.json").write_text(json.dumps(jobs), encoding="utf-8")
    (scratch / "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
    subprocess.run([sys.executable, "-c", LOADER], cwd=scratch, check=True)
    found: dict[str, dict[str, Any]] = json.loads((scratch / "found.json").read_text(encoding="utf-8"))
    return found


def card_code(folder: Path, more: str) -> str:
    """The code on the card of an export, and some more."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1] + more


def features(model: TextClassifier, texts: Sequence[str]) -> Any:
    """What a head reads of texts: (texts, width)."""
    from headstart.stages.encoders.encoder import encode_sequences

    encoder = model.load_encoder()
    (values,) = encode_sequences(encoder, encoder.tokenize(texts)[0]).values()
    return values


def logits(model: TextClassifier, texts: Sequence[str]) -> Any:
    """What headstart computes of texts: (texts, outputs)."""
    return model.head.logits(features(model, texts)) / model.head.temperature


if __name__ == "__main__":
    main()
