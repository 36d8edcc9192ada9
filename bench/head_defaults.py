"""How the defaults of ``train-head --solver sgd`` were chosen: on validation rows, on real features of several widths.

Prints, for each setting, the lowest validation loss and the accuracy at that epoch, as means over split seeds. The
test rows are never looked at. Then it prints, for the default head, the penalties that folds choose. Features: MiniLM
on the VADER texts, the CLS position and the mean over tokens.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from headstart.cache.hashing import hash_sequences
from headstart.stages.heads import stacked
from headstart.stages.heads.dataset import Dataset, Splits
from headstart.stages.heads.fit import fit_head
from headstart.stages.heads.search import LARGEST, search
from headstart.stages.heads.targets import ClassTarget
from headstart.stages.settings import Scaling, TrainSettings
from headstart.stages.splits.stratify import choosing_folds, group_rows, hold_out

DATA = Path(__file__).resolve().parent.parent / ".data"
SEEDS = (0, 1)
THREE = ClassTarget(("0", "1", "2"))
EPOCHS = (10, 20, 50, 100)
BASE = TrainSettings(
    solver="sgd", epochs=max(EPOCHS), learning_rate=0.01, weight_decay=0.01, batch_size=4096, dropout=0.3
)
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("lr 0.003", {"learning_rate": 0.003}),
    ("lr 0.01", {}),
    ("lr 0.03", {"learning_rate": 0.03}),
    ("lr 0.01, weight decay 0.1", {"weight_decay": 0.1}),
    ("lr 0.01, batch 1024", {"batch_size": 1024}),
    ("lr 0.01, not centered", {"center": False}),
    ("lr 0.01, dropout 0", {"dropout": 0.0}),
)


def real_features() -> dict[str, Any]:
    """CLS and mean features, (23703, 384) float32 each, with labels and token groups; computed once and kept."""
    path = DATA / "features.npz"
    if not path.exists():
        print("encoding the texts once for the experiment", file=sys.stderr)
        np.savez(path, **_encode())
    return dict(np.load(path))


def _encode() -> dict[str, Any]:
    import csv

    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "minilm")
    model = transformers.AutoModel.from_pretrained(DATA / "minilm").eval()
    ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=128)["input_ids"]
    order = np.argsort([len(sequence) for sequence in ids], kind="stable")
    cls, mean = np.empty((2, len(ids), 384), np.float32)
    with torch.inference_mode():
        for batch in np.array_split(order, len(order) // 64):
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            hidden, mask = model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
            cls[batch], mean[batch] = hidden[:, 0], (hidden * mask).sum(1) / mask.sum(1)
    names = sorted({row["label"] for row in rows})
    groups = group_rows(hash_sequences(np.array(sequence, np.int32) for sequence in ids))
    return {"cls": cls, "mean": mean, "labels": np.array([names.index(row["label"]) for row in rows]), "groups": groups}


def curves(features: Any, data: dict[str, Any], settings: TrainSettings, seed: int) -> Any:
    """(epochs, 2): validation loss and accuracy."""
    rng, everything = np.random.default_rng(seed), np.arange(len(features))
    labels, groups = data["labels"], data["groups"]
    rest, _ = hold_out(everything, labels, groups, fraction=0.2, rng=rng)
    train, validation = hold_out(rest, labels, groups, fraction=0.1, rng=rng)
    datasets = [Dataset(features=features, labels=labels, index=index) for index in (train, validation)]
    seeded = dataclasses.replace(settings, seed=seed)
    history = fit_head(*datasets, target=THREE, settings=seeded, device=torch.device("cpu")).history
    return np.array([(epoch.validation_loss, epoch.validation_accuracy) for epoch in history])


def choose() -> None:
    data = real_features()
    sets = {
        "CLS, 384 wide": data["cls"],
        "mean, 384 wide": data["mean"],
        "CLS and mean, 768 wide": np.hstack([data["cls"], data["mean"]]),
        "first half of the mean, 192 wide": np.ascontiguousarray(data["mean"][:, :192]),
        "first quarter of the mean, 96 wide": np.ascontiguousarray(data["mean"][:, :96]),
    }
    print(f"| features | setting | {' | '.join(f'{n} epochs' for n in EPOCHS)} |")
    print("|---" * (2 + len(EPOCHS)) + "|")
    for name, features in sets.items():
        for variant, changes in VARIANTS:
            found = [curves(features, data, dataclasses.replace(BASE, **changes), seed) for seed in SEEDS]
            cells = []
            for epochs in EPOCHS:
                best = np.mean([curve[curve[:epochs, 0].argmin()] for curve in found], axis=0)
                cells.append(f"{best[0]:.4f}, {best[1]:.4f}")
            print(f"| {name} | {variant} | {' | '.join(cells)} |", flush=True)


def noise() -> None:
    """How far rounding noise of 1e-6 in the features moves the weights, for each of AdamW's epsilons."""
    data = real_features()
    features, rng = data["cls"], np.random.default_rng(0)
    noisy = features + 1e-6 * rng.normal(size=features.shape).astype(np.float32)
    constant = features.std(0) < 1e-6
    rows = rng.permutation(len(features))
    print(f"\n| AdamW's epsilon | weights of {constant.sum()} constant columns move | others move | validation loss |")
    print("|---|---|---|---|")
    kept = stacked.ADAM_EPSILON
    for epsilon in (1e-8, 1e-6, 1e-5, 1e-4):
        stacked.ADAM_EPSILON = epsilon
        settings = dataclasses.replace(BASE, epochs=20)
        fits = [
            fit_head(
                Dataset(features=x, labels=data["labels"], index=rows[:17000]),
                Dataset(features=x, labels=data["labels"], index=rows[17000:19000]),
                target=THREE,
                settings=settings,
                device=torch.device("cpu"),
            )
            for x in (features, noisy)
        ]
        moved = np.abs(fits[0].parameters["weight"] - fits[1].parameters["weight"])
        loss = fits[0].history[-1].validation_loss
        print(f"| {epsilon:g} | {moved[:, constant].max():.1e} | {moved[:, ~constant].max():.1e} | {loss:.5f} |")
    stacked.ADAM_EPSILON = kept


def penalties() -> None:
    """Which penalty five folds choose, in quarters of a decade from the mean squared length of the centered vectors."""
    data, target = real_features(), ClassTarget(("negative", "neutral", "positive"))
    print(
        "\n| features | rows | scaling | quarters of a decade of the best | log loss | with the next larger, smaller |"
    )
    print("|---|---|---|---|---|---|")
    for name in ("cls", "mean"):
        for rows in (100, 1000, len(data["labels"])):
            index = np.random.default_rng(0).permutation(len(data["labels"]))[:rows]
            train = Dataset(features=data[name], labels=data["labels"], index=index)
            fold = choosing_folds(index, data["labels"], data["groups"], rng=np.random.default_rng(0))
            empty = dataclasses.replace(train, index=index[:0])
            groups = data["groups"]
            splits = Splits(
                train=train,
                validation=empty,
                test=empty,
                train_groups=groups[index],
                validation_groups=groups[:0],
                test_groups=groups[:0],
                shared_rows=0,
                fold=fold,
            )
            found = search({name: splits}, target=target, settings=TrainSettings()).search
            for scaling in Scaling:
                tried = [candidate for candidate in found.candidates if candidate.scaling is scaling]
                means = [candidate.mean for candidate in tried]
                best = int(np.argmin(means))
                beside = [f"{means[place]:.4f}" if 0 <= place < len(means) else "" for place in (best - 1, best + 1)]
                print(f"| {name} | {rows:,} | {scaling} | {LARGEST - best} | {means[best]:.4f} | {', '.join(beside)} |")


if __name__ == "__main__":
    started = time.perf_counter()
    choose()
    noise()
    penalties()
    print(f"\n{time.perf_counter() - started:.0f} s")
