"""How exactly the cache stands in for the encoder: CLS features beside plain transformers', and a head beside one
trained with the frozen encoder in its loop. Prints the largest differences; the tests assert their bounds.
"""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from headstart.cache.reader import open_cache
from headstart.stages.encoders import hf
from headstart.stages.encoders.packed.architecture import find_architecture
from headstart.stages.extract import extract
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.fit import fit_head
from headstart.stages.heads.sampling import training_batches
from headstart.stages.heads.stacked import ADAM_EPSILON
from headstart.stages.heads.targets import ClassTarget
from headstart.stages.settings import ExtractSettings, Precision, TrainSettings

DATA = Path(__file__).resolve().parent.parent / ".data"


def main() -> None:
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: len(row["text"]))
    rows = [rows[i] for i in np.linspace(0, len(rows) - 1, 300).astype(int)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(300)]
    texts = [row["text"] for row in rows]
    plain = plain_features(texts)
    taken = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, precision, find in (
            ("packed", Precision.FLOAT32, find_architecture),
            ("padded", Precision.FLOAT32, lambda config: None),
            ("bfloat16", Precision.BFLOAT16, find_architecture),
        ):
            hf.find_architecture = find
            table = {key: [row[key] for row in rows] for key in ("text", "label")}
            chosen = {"features": ("cls",), "max_length": 128, "precision": precision}
            settings = ExtractSettings(encoder=str(DATA / "minilm"), **chosen)
            cache = open_cache(extract(table, Path(folder) / f"{name}.h5", settings))
            taken[name] = np.array(cache.features())
        labels = np.array(cache.labels)
    for name in ("packed", "padded"):
        print(f"{name}, float32: largest difference from transformers {np.abs(taken[name] - plain).max():.2e}")
    sample = slice(0, 100)
    products = (taken["bfloat16"][sample] * plain[sample]).sum(1)
    norms = np.linalg.norm(taken["bfloat16"][sample], axis=1) * np.linalg.norm(plain[sample], axis=1)
    print(f"bfloat16: smallest cosine {(products / norms).min():.6f} of 100 texts")
    print("head from the cache beside the encoder in the loop: weights differ by at most ", end="")
    print(f"{head_difference(texts, labels, taken['packed']):.2e}")


def plain_features(texts: list[str]) -> np.ndarray:
    """transformers as documented, in padded batches of 16 in the order given: (texts, width)."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "minilm")
    model = transformers.AutoModel.from_pretrained(DATA / "minilm").eval()
    found = []
    with torch.no_grad():
        for start in range(0, len(texts), 16):
            part = texts[start : start + 16]
            batch = tokenizer(part, truncation=True, max_length=128, padding=True, return_tensors="pt")
            found.append(model(**batch).last_hidden_state[:, 0])
    return torch.cat(found).numpy()


def head_difference(texts: list[str], labels: np.ndarray, cached: np.ndarray) -> float:
    settings = TrainSettings(solver="sgd", epochs=5, batch_size=64)
    train, validation = np.arange(240), np.arange(240, 300)
    parts = [Dataset(features=cached, labels=labels, index=index) for index in (train, validation)]
    fit = fit_head(*parts, target=ClassTarget(("0", "1", "2")), settings=settings, device=torch.device("cpu"))
    linear = torch.nn.Linear(384, 3)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    groups = [{"params": [linear.weight], "weight_decay": settings.weight_decay}, {"params": [linear.bias]}]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, weight_decay=0, eps=ADAM_EPSILON)
    means, weights = torch.from_numpy(plain_features(texts[:240])).mean(0), []
    for batches in training_batches(240, 384, epochs=5, batch_size=64, dropout=settings.dropout, seed=settings.seed):
        for positions, keep in batches:
            features = torch.from_numpy(plain_features([texts[row] for row in positions])) - means
            features *= torch.from_numpy(keep)
            loss = torch.nn.functional.cross_entropy(linear(features), torch.from_numpy(labels[positions]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        weights.append(linear.weight.detach().numpy().copy())
    return float(np.abs(weights[fit.best_epoch - 1] - fit.parameters["weight"]).max())


if __name__ == "__main__":
    transformers.logging.disable_progress_bar()
    main()
