"""What stage two costs: epochs, sweeps, the exact solver, and caches larger than memory, each beside the usual way.

    .venv/bin/python bench/heads.py epochs|order|exact|path|sweep|memory|million|wide|same

Real features are MiniLM's on the 23,703 VADER texts, extracted once into ``.data/heads.h5``. The 35,000 x 768 features
are random: a timing does not depend on their values. Ways that are compared take turns, and the medians are shown.
"""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from headstart.cache.hashing import hash_texts
from headstart.cache.identity import Identity
from headstart.cache.reader import Cache, open_cache
from headstart.cache.siblings import partial_path
from headstart.cache.writer import CacheWriter, create_cache
from headstart.stages.extract import extract
from headstart.stages.heads import sampling
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.fit import Trainer, fit_head
from headstart.stages.heads.logistic import LogisticSolver
from headstart.stages.heads.logistic_path import LogisticPath
from headstart.stages.heads.targets import ClassTarget
from headstart.stages.progress import silent
from headstart.stages.settings import ClassWeight, ExtractSettings, Scaling, SweepSettings, TrainSettings
from headstart.stages.splits.divide import divide
from headstart.stages.sweep import sweep
from headstart.stages.threads import open_threads
from headstart.stages.train_head import train_head
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

DATA = Path(__file__).resolve().parent.parent / ".data"
CPU = torch.device("cpu")
THREE = ClassTarget(("0", "1", "2"))
ROUNDS = 5


def real_cache() -> Cache:
    settings = ExtractSettings(encoder=str(DATA / "minilm"), features=("cls", "mean"), precision="float32")
    return open_cache(extract(DATA / "vader.csv", DATA / "heads.h5", settings))


def real_rows(feature: str) -> Dataset:
    """The rows that are not tested on: 18,963 x 384."""
    splits = divide(
        real_cache(), validation=None, test=None, settings=TrainSettings(solver="sgd", feature=feature), report=silent
    )
    index = np.sort(np.concatenate([splits.train.index, splits.validation.index]))
    return Dataset(features=splits.train.features, labels=splits.train.labels, index=index)


def random_rows(rows: int, width: int) -> Dataset:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=rows)
    features = rng.standard_normal((rows, width), np.float32) + 0.07 * rng.normal(size=(3, width))[labels]
    return Dataset(features=features.astype(np.float32), labels=labels, index=np.arange(rows))


# Epochs


def epochs() -> None:
    """One epoch of training, without validation: ours beside nn.Dropout and nn.Linear, at one thread and at two."""
    pairs = list(itertools.product(np.logspace(-4, -1, 8).tolist(), np.logspace(-4, -1, 8).tolist()))
    base = {"batch_size": 4096}
    many = [TrainSettings(solver="sgd", learning_rate=lr, weight_decay=wd, **base) for lr, wd in pairs]
    rates = [
        TrainSettings(solver="sgd", learning_rate=lr, weight_decay=wd, dropout=p, **base)
        for p, (lr, wd) in itertools.product((0.0, 0.1, 0.3, 0.5), pairs[::4])
    ]
    data = {
        "35,000 x 768": random_rows(35_000, 768),
        "VADER, CLS, 18,963 x 384": real_rows("cls"),
        "VADER, mean, 18,963 x 384": real_rows("mean"),
    }
    print("| features | way | ms an epoch | of a naive epoch |\n|---|---|---|---|")
    for name, rows in data.items():
        ways = {
            "naive: nn.Dropout(0.3) and nn.Linear, 2 threads": naive(rows, 2),
            "naive, 1 thread": naive(rows, 1),
            "ours, one head": ours(rows, [TrainSettings(solver="sgd", **base)]),
            "ours, one head, 1 thread": ours(rows, [TrainSettings(solver="sgd", **base)], threads=1),
            "ours, one head without dropout": ours(rows, [TrainSettings(solver="sgd", dropout=0.0, **base)]),
            "ours, 64 pairs of learning rate and decay": ours(rows, many),
            "ours, 4 dropout rates x 16 pairs": ours(rows, rates),
            "a module for each of 64 heads, as DINOv2 does, one mask, 1 thread": modules(rows, pairs, 1),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                seconds[way].append(run())
        medians = {way: statistics.median(each) for way, each in seconds.items()}
        plain = min(median for way, median in medians.items() if way.startswith("naive"))
        for way, median in medians.items():
            print(f"| {name} | {way} | {1000 * median:.0f} | {median / plain:.2f} |", flush=True)


def naive(rows: Dataset, threads: int) -> Callable[[], float]:
    """The usual loop over features in memory: a shuffled gather, nn.Dropout, nn.Linear, AdamW."""
    features, labels = torch.from_numpy(np.asarray(rows.features[rows.index])), torch.from_numpy(rows.targets)
    model = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Linear(rows.width, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)

    def epoch() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        started = time.perf_counter()
        for positions in torch.randperm(len(labels)).split(4096):
            loss = torch.nn.functional.cross_entropy(model(features[positions]), labels[positions])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - started
        torch.set_num_threads(before)
        return seconds

    return epoch


def modules(rows: Dataset, pairs: list[tuple[float, float]], threads: int) -> Callable[[], float]:
    """One nn.Linear for each setting, in a loop over the same batch (DINOv2, eval/linear.py)."""
    features, labels = torch.from_numpy(np.asarray(rows.features[rows.index])), torch.from_numpy(rows.targets)
    heads = [torch.nn.Linear(rows.width, 3) for _ in pairs]
    groups = [
        {"params": head.parameters(), "lr": lr, "weight_decay": wd} for head, (lr, wd) in zip(heads, pairs, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)

    def epoch() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        started = time.perf_counter()
        for positions in torch.randperm(len(labels)).split(4096):
            dropped = torch.nn.functional.dropout(features[positions], 0.3)
            losses = [torch.nn.functional.cross_entropy(head(dropped), labels[positions]) for head in heads]
            optimizer.zero_grad()
            sum(losses, torch.zeros(())).backward()
            optimizer.step()
        seconds = time.perf_counter() - started
        torch.set_num_threads(before)
        return seconds

    return epoch


def ours(rows: Dataset, settings: list[TrainSettings], threads: int = 2) -> Callable[[], float]:
    ordered = sorted(settings, key=lambda each: each.dropout)
    few = Dataset(features=rows.features, labels=rows.labels, index=rows.index[:10])
    count = itertools.count(1)
    trainers: list[Trainer] = []

    def epoch() -> float:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        with open_threads() as worker_threads:
            if not trainers:
                trainers.append(Trainer(rows, few, target=THREE, settings=ordered, device=CPU, threads=worker_threads))
            trainer = trainers[0]
            trainer._threads = worker_threads
            started = time.perf_counter()
            trainer._train_epoch(next(count))
            seconds = time.perf_counter() - started
        torch.set_num_threads(before)
        return seconds

    return epoch


def order() -> None:
    """A table sorted by class: single rows shuffled, runs of 32, and runs of 4,096. Validation accuracy by epoch."""
    splits = divide(
        real_cache(), validation=None, test=None, settings=TrainSettings(solver="sgd", feature="cls"), report=silent
    )
    by_class = splits.train.index[np.argsort(splits.train.targets, kind="stable")]
    train = Dataset(features=splits.train.features, labels=splits.train.labels, index=by_class)
    kept = sampling.RUN_ROWS, sampling.RUNS_PER_BATCH
    print("| rows that stay together | accuracy over epochs 20 to 60: mean | lowest | highest |\n|---|---|---|---|")
    for run in (1, 32, 4096):
        sampling.RUN_ROWS, sampling.RUNS_PER_BATCH = run, 1
        settings = TrainSettings(solver="sgd", epochs=60)
        fit = fit_head(train, splits.validation, target=THREE, settings=settings, device=CPU)
        found = [epoch.validation_accuracy for epoch in fit.history[19:]]
        print(f"| {run:,} | {statistics.mean(found):.4f} | {min(found):.4f} | {max(found):.4f} |", flush=True)
    sampling.RUN_ROWS, sampling.RUNS_PER_BATCH = kept


# The exact solver


def exact() -> None:
    """The exact solver beside scikit-learn's, which are given float64; objectives in float64, from the definition.

    A solver of scikit-learn's counts with the loosest tolerance that comes within 1e-9 of the best objective known, as
    ours promises; its seconds at that tolerance are compared. SAG and SAGA crawl on such
    features and are left out.
    """
    data = {"VADER, CLS": real_rows("cls"), "VADER, mean": real_rows("mean"), "35,000 x 768": random_rows(35_000, 768)}
    print("| features | solver | seconds | objective, float64 | above the lowest, relative |\n|---|---|---|---|---|")
    for name, rows in data.items():
        features, labels = np.asarray(rows.features[rows.index]), rows.targets
        wide = features.astype(np.float64)
        lines: list[tuple[str, float, float]] = []
        kinds = [(kind, tol) for kind in ("lbfgs", "newton-cg") for tol in (1e-4, 1e-5, 1e-6, 1e-7)]
        for kind, tol in [*kinds, ("newton-cholesky", 1e-6)]:
            took, value, iterations = sklearn(wide, labels, solver=kind, tol=tol, max_iter=10_000)
            lines.append((f"scikit-learn, {kind}, tol={tol:g} ({iterations} iterations)", took, value))
        ours: list[tuple[float, float]] = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            with open_threads() as worker_threads:
                settings = TrainSettings(solver="exact")
                solver = LogisticSolver(rows, classes=3, settings=settings, threads=worker_threads)
                parameters, convergence = solver.solve(1.0)
            took = time.perf_counter() - started
            ours.append((took, objective(wide, labels, parameters["weight"], parameters["bias"])))
        lines.insert(0, ("ours", *statistics.median_low(ours)))
        lowest = min(value for _, _, value in lines)
        for solver_name, took, value in lines:
            above = (value - lowest) / lowest
            print(f"| {name} | {solver_name} | {took:.2f} | {value:.6f} | {above:.1e} |", flush=True)
        best = min((took, what) for what, took, value in lines[1:] if value <= lowest * (1 + 1e-9))
        print(
            f"| {name} | *ours: {convergence.passes} passes, gradient {convergence.gradient_norm:.1e}; "
            f"{convergence.reason}; **{best[0] / lines[0][1]:.1f} times scikit-learn's best solver** "
            f"({best[1].removeprefix('scikit-learn, ')})* | | | |",
            flush=True,
        )


def path() -> None:
    """200 penalties x 5 folds in batches, beside each fold alone by the exact solver with warm starts (20 of them)."""
    for feature in ("cls", "mean"):
        rows = real_rows(feature)
        fold = np.random.default_rng(0).integers(1, 6, len(rows))
        for count in (20, 200):
            penalties = np.logspace(-2, 3, count).tolist()
            passes = itertools.count()
            started = time.perf_counter()
            with open_threads() as worker_threads:
                plain: dict[str, Any] = {"scaling": Scaling.NONE, "class_weight": ClassWeight.NONE, "memory": None}
                solver = LogisticPath(rows, fold=fold, folds=5, classes=3, threads=worker_threads, **plain)
                points = list(solver.solve(penalties, lambda passes=passes: next(passes)))
            took = time.perf_counter() - started
            solved = sum(point.converged for point in points)
            print(
                f"{feature}: {count} penalties x 5 folds in {took:.1f} s, {next(passes)} passes of a batch; "
                f"{solved} penalties converged",
                flush=True,
            )
        started = time.perf_counter()
        worst = 0.0
        with open_threads() as worker_threads:
            for number in range(1, 6):
                kept = Dataset(features=rows.features, labels=rows.labels, index=rows.index[fold != number])
                alone = LogisticSolver(kept, classes=3, settings=TrainSettings(solver="exact"), threads=worker_threads)
                out = np.flatnonzero(fold == number)
                held_out = rows.take(out)
                for point in points[::-1][::10][::-1]:
                    parameters, _ = alone.solve(point.l2)
                    logits = held_out @ parameters["weight"].T + parameters["bias"]
                    losses = [log_loss(each, rows.targets[out]) for each in (logits, point.logits[out])]
                    worst = max(worst, abs(losses[0] - losses[1]))
        took = time.perf_counter() - started
        print(f"{feature}: 20 of them alone, exact: {took:.1f} s; a held-out log loss differs by {worst:.1e} at most")


def log_loss(logits: Any, labels: Any) -> float:
    wide = logits.astype(np.float64)
    wide -= wide.max(1, keepdims=True)
    return float((np.log(np.exp(wide).sum(1)) - wide[np.arange(len(labels)), labels]).mean())


def objective(features: Any, labels: Any, weight: Any, bias: Any) -> float:
    """At C = 1."""
    logits = features @ weight.astype(np.float64).T + bias
    logits -= logits.max(1, keepdims=True)
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]
    return float(losses.sum() + (weight.astype(np.float64) ** 2).sum() / 2)


def sklearn(features: Any, labels: Any, **options: Any) -> tuple[float, float, int]:
    """Seconds, objective and iterations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        model = LogisticRegression(**{"max_iter": 1000, **options}).fit(features, labels)
        took = time.perf_counter() - started
    return took, objective(features, labels, model.coef_, model.intercept_), int(np.max(model.n_iter_))


# Sweeps


def sweeps() -> None:
    """200 settings x 5 folds on CLS features, in full; GridSearchCV on 5 values x 2 folds, scaled up."""
    cache = real_cache()
    grid = {
        "learning_rate": (0.003, 0.01, 0.03, 0.1),
        "weight_decay": (0.0, 0.001, 0.01, 0.1, 1.0),
        "dropout": (0.0, 0.3),
        "label_smoothing": (0.0, 0.1, 0.2, 0.3, 0.4),
    }
    with tempfile.TemporaryDirectory() as folder:
        for feature in ("cls", "mean"):
            settings = SweepSettings(
                base=TrainSettings(solver="sgd", folds=5, feature=feature, patience=10), values=grid
            )
            run = sweep(cache.path, Path(folder) / feature, settings)
            found = json.loads((run / "sweep.json").read_text())
            test = json.loads((run / "winner" / "run.json").read_text())["metrics"]["test"]
            print(
                f"{feature}: {len(found['ranking'])} settings x 5 folds with AdamW, up to 100 epochs, in "
                f"{found['seconds']:.1f} s; the winner: {test['accuracy']:.4f} on the test rows, log loss "
                f"{test['log_loss']:.4f}",
                flush=True,
            )
            path = {"l2": tuple(np.logspace(-2, 3, 200).tolist())}
            settings = SweepSettings(base=TrainSettings(folds=5, feature=feature, solver="exact"), values=path)
            run = sweep(cache.path, Path(folder) / f"{feature}-exact", settings)
            found = json.loads((run / "sweep.json").read_text())
            print(f"{feature}: 200 values of l2 x 5 folds, exact, in {found['seconds']:.1f} s", flush=True)
    rows = real_rows("cls")
    values, folds = [1e-2, 1e-1, 1.0, 1e1, 1e2], 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": values}, cv=folds, refit=False)
        started = time.perf_counter()
        search.fit(rows.features[rows.index].astype(np.float64), rows.targets)
        took = time.perf_counter() - started
    # Two folds train on a half of the rows, five on four fifths: cost is taken to grow with the rows.
    scaled = took / (len(values) * folds) * 1000 * (0.8 / 0.5)
    print(
        f"cls: GridSearchCV of LogisticRegression, {len(values)} values x {folds} folds: {took:.1f} s measured; scaled "
        f"up to 200 values x 5 folds (an estimate, not a measurement): {scaled:,.0f} s"
    )


# Memory

_WATCHED = """
import sys, threading, time, json
peak, over = 0, False
def watch():
    global peak
    while not over:
        with open('/proc/self/status') as file:
            peak = max(peak, next(int(line.split()[1]) for line in file if line.startswith('RssAnon')))
        time.sleep(0.005)
thread = threading.Thread(target=watch); thread.start()
from headstart.stages.settings import TrainSettings, SweepSettings
from headstart.stages.train_head import train_head
from headstart.stages.sweep import sweep
try:
    {call}
finally:
    over = True
    thread.join()
print(peak)
"""


def memory() -> None:
    """A cache of 5 times 256 MiB, streamed and in memory: peak anonymous memory, time a row, accuracy."""
    bound = 256 << 20
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        path = Path(folder) / "large.h5"
        rows = large_cache(path, 5 * bound // (4 * 768))
        print(f"{rows:,} x 768 float32: {path.stat().st_size / (1 << 20):,.0f} MiB, bound 256 MiB\n")
        print("| what | memory | peak, MiB | s | µs a row and epoch | test accuracy |\n|---|---|---|---|---|---|")
        for name, options, epochs in (
            ("one head, 3 epochs", "solver='sgd', epochs=3", 3),
            ("exact", "solver='exact'", None),
        ):
            for limit in (None, bound):
                out = Path(folder) / "run"
                peak = watched(
                    f"train_head({str(path)!r}, {str(out)!r}, TrainSettings({options}, memory={limit}), overwrite=True)"
                )
                run = json.loads((out / "run.json").read_text())
                passes = epochs or run["certificate"]["passes"]
                each = run["fit_seconds"] / passes / (run["rows"]["train"] + run["rows"]["validation"]) * 1e6
                accuracy = run["metrics"]["test"]["accuracy"]
                show(name, limit, peak, run["fit_seconds"], each, accuracy)
        for limit in (None, bound):
            out = Path(folder) / "sweep"
            values = {"learning_rate": tuple(np.logspace(-4, -1, 16).tolist()), "dropout": (0.0, 0.3)}
            peak = watched(
                f"sweep({str(path)!r}, {str(out)!r}, SweepSettings(base="
                f"TrainSettings(solver='sgd', epochs=2, memory={limit}), "
                f"values={values!r}), overwrite=True)"
            )
            found = json.loads((out / "sweep.json").read_text())
            test = json.loads((out / "winner" / "run.json").read_text())["metrics"]["test"]["accuracy"]
            show("sweep of 32 heads, 2 epochs", limit, peak, found["seconds"], None, test)


def million() -> None:
    """The default head on 1,000,000 x 384, streamed under 512 MiB: peak anonymous memory, time, accuracy."""
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        path, out = Path(folder) / "large.h5", Path(folder) / "run"
        rows = large_cache(path, 1_000_000, 384)
        peak = watched(f"train_head({str(path)!r}, {str(out)!r}, TrainSettings(memory={512 << 20}))")
        run = json.loads((out / "run.json").read_text())
        print(f"{rows:,} x 384 float32: {path.stat().st_size / (1 << 20):,.0f} MiB, bound 512 MiB")
        print(f"peak {peak:,.0f} MiB, {run['seconds']:.0f} s, {len(run['search']['candidates'])} candidates")
        print(f"test accuracy {run['metrics']['test']['accuracy']:.4f}")


_WIDE = """
import numpy as np, torch
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.logistic import LogisticSolver
from headstart.stages.settings import TrainSettings
from headstart.stages.threads import open_threads
features, labels = np.load({folder!r} + "/features.npy", mmap_mode="r"), np.load({folder!r} + "/labels.npy")
rows = Dataset(features=features, labels=labels, index=np.arange(len(labels)))
with open_threads() as threads:
    settings = TrainSettings(solver="exact", memory={memory})
    solver = LogisticSolver(rows, classes=int(labels.max()) + 1, settings=settings, threads=threads)
    found, report = solver.solve({l2})
np.savez({folder!r} + "/found.npz", **found, passes=report.passes, seconds=report.seconds, reason=report.reason)
"""


def wide() -> None:
    """One fit of wide features and of many classes under a memory bound, and without one: peak anonymous memory,
    seconds, and the objective in float64 beside the lowest that is known, of the lines shown."""
    print("| rows x width, classes | solver | peak, MiB | s | passes | objective, float64 | above the lowest |")
    print("|---|---|---|---|---|---|---|")
    for count, width, classes, bound, l2 in ((20_000, 4096, 10, 512, 200.0), (10_000, 384, 5000, 256, 1.0)):
        with tempfile.TemporaryDirectory(dir=DATA) as folder:
            features = np.lib.format.open_memmap(f"{folder}/features.npy", "w+", np.float32, (count, width))
            labels = wide_rows(features, classes)
            np.save(f"{folder}/labels.npy", labels)
            lines = []
            for memory in (bound << 20, None):
                peak = watched(_WIDE.format(folder=folder, memory=memory, l2=l2).replace("\n", "\n    "))
                found = np.load(f"{folder}/found.npz")
                value = objective_in_parts(features, labels, found["weight"], found["bias"], l2)
                name = "ours, no bound" if memory is None else f"ours, bound {bound} MiB"
                lines.append(
                    (f"{name} ({found['reason']})", peak, float(found["seconds"]), int(found["passes"]), value)
                )
            if classes < 100:
                model = LogisticRegression(C=1 / l2, tol=1e-6, max_iter=10_000)
                started = time.perf_counter()
                model.fit(features.astype(np.float64), labels)
                took = time.perf_counter() - started
                value = objective_in_parts(features, labels, model.coef_, model.intercept_, l2)
                lines.append(("scikit-learn, lbfgs, tol=1e-6", float("nan"), took, int(model.n_iter_[0]), value))
            lowest = min(line[-1] for line in lines)
            for name, peak, took, passes, value in lines:
                what = f"{count:,} x {width:,}, {classes:,}"
                above = (value - lowest) / lowest
                print(
                    f"| {what} | {name} | {peak:,.0f} | {took:.1f} | {passes} | {value:.9g} | {above:.1e} |", flush=True
                )


def wide_rows(features: Any, classes: int) -> Any:
    """Fill features (rows, width) whose columns differ in spread, with classes that overlap; their labels, (rows,)."""
    rng = np.random.default_rng(0)
    count, width = features.shape
    labels = rng.integers(classes, size=count)
    labels[:classes] = np.arange(classes)
    spread = np.logspace(0, -1, width).astype(np.float32)
    centres = 2 / width**0.5 * rng.standard_normal((classes, width), np.float32)
    for start in range(0, count, 4096):
        rows = slice(start, min(start + 4096, count))
        noise = rng.standard_normal((rows.stop - start, width), np.float32)
        features[rows] = (noise + centres[labels[rows]]) * spread
    return labels


def objective_in_parts(features: Any, labels: Any, weight: Any, bias: Any, l2: float) -> float:
    wide_weight, total = weight.astype(np.float64), 0.0
    for start in range(0, len(labels), 2048):
        rows = slice(start, start + 2048)
        logits = features[rows].astype(np.float64) @ wide_weight.T + bias
        total += log_loss(logits, labels[rows]) * len(logits)
    return total + l2 / 2 * float((wide_weight**2).sum())


def show(name: str, limit: int | None, peak: float, seconds: float, each: float | None, accuracy: float) -> None:
    bound = "no bound" if limit is None else "256 MiB"
    cell = "" if each is None else f"{each:.2f}"
    print(f"| {name} | {bound} | {peak:,.0f} | {seconds:.1f} | {cell} | {accuracy:.4f} |", flush=True)


def watched(call: str) -> float:
    """Run a call in a process of its own; its peak anonymous memory, in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED.replace("{call}", call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]) / 1024


def large_cache(path: Path, rows: int, width: int = 768) -> int:
    """A cache of random features of three classes that overlap: (rows, width)."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=rows)
    centres = rng.normal(size=(3, width)) * 0.07
    hashes = hash_texts(map(str, range(rows)))
    identity = Identity(
        weights_sha256="0" * 64,
        config_sha256="0" * 64,
        tokenizer_sha256="0" * 64,
        modules_sha256=None,
        model=None,
        prefix="",
        prefix_pooled=True,
        lower_case=False,
        pairs=False,
        max_length=128,
        truncation_side="right",
        long="cut",
        overlap=0,
        chunk_pooling=None,
        precision="float32",
        quantization="none",
        features=("cls",),
    )
    like = real_cache()
    create_cache(
        partial_path(path),
        block_rows=4096,
        widths={"cls": width},
        storage="float32",
        identity=identity,
        plan=like.plan,
        text_hashes=hashes,
        labels=labels,
        label_names=("a", "b", "c"),
    )
    with CacheWriter(partial_path(path)) as writer:
        for block in range(writer.layout.blocks):
            place = writer.layout.block_slice(block)
            noise = rng.standard_normal((place.stop - place.start, width), np.float32)
            writer.write_block(
                block,
                features={"cls": noise + centres[labels[place]].astype(np.float32)},
                text_hashes=hashes[place],
                token_hashes=hashes[place],
                lengths=np.ones(place.stop - place.start, np.int32),
                truncated=np.zeros(place.stop - place.start, np.uint8),
            )
        writer.finish({**like.record, "rows": rows}, path)
    return rows


# Sameness


def same() -> None:
    """The same seed gives the same bytes; a sweep's heads are train-head's, at every epoch, on real features."""
    path = real_cache().path
    with tempfile.TemporaryDirectory() as folder:
        runs = [train_head(path, Path(folder) / name, TrainSettings(solver="sgd", feature="cls")) for name in "ab"]
        runs.append(train_head(path, Path(folder) / "c", TrainSettings(solver="sgd", feature="cls", memory=1 << 24)))
        heads = [(run / "head.safetensors").read_bytes() for run in runs]
        print(f"same seed, same bytes: {heads[0] == heads[1]}; streamed under 16 MiB, the same: {heads[0] == heads[2]}")
        settings = SweepSettings(
            base=TrainSettings(solver="sgd", feature="cls"),
            values={"learning_rate": (0.003, 0.01, 0.03), "weight_decay": (0.0, 0.01), "dropout": (0.0, 0.1, 0.3)},
        )
        folders = [sweep(path, Path(folder) / f"sweep-{name}", settings) for name in "ab"]
        files = ("sweep.parquet", "winner/head.safetensors")
        equal = all((folders[0] / file).read_bytes() == (folders[1] / file).read_bytes() for file in files)
        print(f"two sweeps, same bytes: {equal}")
    splits = divide(
        open_cache(path), validation=None, test=None, settings=TrainSettings(solver="sgd", feature="cls"), report=silent
    )
    cells = [each for _, each in settings.cells()]
    together = trace(splits, cells)
    worst = 0.0
    for each in cells:
        alone = trace(splits, [each])
        for (_, epoch), values in alone.items():
            other = together[each, epoch]
            worst = max(worst, *(float(np.abs(values[name] - other[name]).max()) for name in values))
    print(
        f"{len(cells)} heads x {TrainSettings().epochs} epochs: a sweep's weights differ from those of the head "
        f"trained alone by at most {worst:.1e}"
    )


def trace(splits: Any, settings: list[TrainSettings]) -> dict[Any, Any]:
    ordered = sorted(settings, key=lambda each: each.dropout)
    found = {}
    with open_threads() as worker_threads:
        trainer = Trainer(
            splits.train, splits.validation, target=THREE, settings=ordered, device=CPU, threads=worker_threads
        )
        for epoch in trainer.run():
            for place, head in enumerate(trainer.active):
                values = {name: value[place] for name, value in trainer._heads.parameters.items()}
                found[ordered[head], epoch] = trainer._for_raw_features(values)
    return found


if __name__ == "__main__":
    commands = {
        "epochs": epochs,
        "order": order,
        "exact": exact,
        "path": path,
        "sweep": sweeps,
        "memory": memory,
        "million": million,
        "wide": wide,
        "same": same,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        sys.exit(f"usage: bench/heads.py {'|'.join(commands)}")
    commands[sys.argv[1]]()
