"""What `headstart audit` finds, beside cleanlab; what its choice of rows to label gains; its time and memory.

    .venv/bin/python bench/audit.py noise [--seeds 3]
    .venv/bin/python bench/audit.py next [--seeds 5]
    .venv/bin/python bench/audit.py large [--rows 350000] [--width 768]

`noise` needs cleanlab beside headstart, and what `demo/fetch.py --news` fetches:

    pip install --target .bench/cleanlab --no-deps cleanlab==2.9.0 termcolor
    PYTHONPATH=.bench/cleanlab .venv/bin/python bench/audit.py noise

It changes labels of the VADER texts and of the news articles: 5, 10 and 20% of the rows get another label at random, or
the label that the clean heads most often mistake theirs for. A row is found rightly if it is one of these. But the
tables have wrong labels of their own, which count as found wrongly: so precision says less than the comparison, and "of
new" is the precision among rows that the clean audit does not find. cleanlab is given headstart's probabilities, and in
another line makes its own (`LogisticRegression(max_iter=1000)` in five folds, which divide copies of a text, where ours
do not). "First" is the precision of as many rows as were changed, those with the lowest score: self-confidence, and the
normalized margin. What was encoded, and the probabilities of each trial, stay in `.bench/audit`: a run that was stopped
goes on where it was.

`next` trains a head on 100 rows of the same tables, and four times labels 100 more and trains again: those that
`--next` chooses, those that a plainer rule chooses, or any. It prints the accuracy on a third of the rows, and what is
gained over any rows, with the standard error of the mean gain over the seeds.

`large` makes rows of 20 classes with a spectrum like that of texts, one in a hundred nearly a copy of another, one in
ten with another label. Each part of the audit runs in a process of its own; its memory is the peak of `RssAnon`, beside
what the libraries alone take; the features are a map of a file. The nearest rows of another label are compared with all
products for 1,000 rows and as many of those found, whose time tells that of all products for all rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from facts import cpu_name
from headstart.cache.reader import Cache, open_cache
from headstart.stages.audit import PENALTIES
from headstart.stages.extract import extract
from headstart.stages.heads.audit import choose_next, class_distances, out_of_fold
from headstart.stages.heads.confident_learning import find_label_errors, label_scores
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.logistic import LogisticSolver
from headstart.stages.heads.near_duplicates import find_partners
from headstart.stages.heads.targets import log_softmax
from headstart.stages.settings import ExtractSettings, LabelScore, Precision, Pruning, Solver, TrainSettings
from headstart.stages.splits.stratify import assign_folds, group_rows
from headstart.stages.threads import open_threads

ROOT = Path(__file__).resolve().parent.parent
DATA, KEPT = ROOT / ".data", ROOT / ".bench" / "audit"
RATES = (0.05, 0.1, 0.2)
ROUND, ROUNDS = 100, 4
"""Rows that are labelled at first and each time, and how often."""
SAMPLE = 1000
"""Rows that are compared with all others."""
MEMORY = 512 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("part", choices=["noise", "next", "large", *PARTS])
    parser.add_argument("--corpora", nargs="*", default=["vader", "news"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=350_000)
    parser.add_argument("--width", type=int, default=768)
    arguments = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    if arguments.part == "noise":
        noise(arguments.corpora, arguments.seeds)
    elif arguments.part == "next":
        following_labels(arguments.corpora, arguments.seeds)
    elif arguments.part == "large":
        large(arguments.rows, arguments.width)
    else:
        measure(arguments.part, arguments.rows, arguments.width)


def noise(corpora: list[str], seeds: int) -> None:
    print(f"{cpu_name()}; means of {seeds} seeds")
    for name in corpora:
        cache = open_corpus(name)
        corpus = Corpus(
            name, np.array(cache.features(), np.float32), np.array(cache.labels), group_rows(cache.token_hashes)
        )
        clean = corpus.ours(corpus.labels, "clean")
        confusion = np.zeros((corpus.classes, corpus.classes))
        np.add.at(confusion, (corpus.labels, clean.argmax(axis=1)), 1)
        np.fill_diagonal(confusion, -1)
        before = find_label_errors(clean, corpus.labels).found
        print(
            f"\n{name}: {len(before):,} rows, {corpus.classes} classes; {before.mean():.1%} found as the labels are\n"
        )
        columns = ("labels changed", "way", "found", "precision", "of new", "recall", "first", "first, margin")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for kind in ("at random", "to the class they are mistaken for"):
            for rate in RATES:
                runs = [trial(corpus, confusion, before, kind, rate, seed) for seed in range(seeds)]
                for way in runs[0]:
                    count, *shares = np.mean([run[way] for run in runs], axis=0)
                    cells = (f"{rate:.0%} {kind}", way, f"{count:,.0f}", *(f"{share:.3f}" for share in shares))
                    print(f"| {' | '.join(cells)} |", flush=True)


@dataclasses.dataclass
class Corpus:
    """A table, and out-of-fold probabilities for labels of it, which are computed once."""

    name: str
    features: Any
    labels: Any
    groups: Any

    @property
    def classes(self) -> int:
        return int(self.labels.max()) + 1

    def ours(self, labels: Any, trial: str) -> Any:
        return self._kept("ours", trial, lambda: judge(self.features, labels, self.groups, self.classes).probabilities)

    def theirs(self, labels: Any, trial: str) -> Any:
        from cleanlab.count import estimate_confident_joint_and_cv_pred_proba
        from sklearn.linear_model import LogisticRegression

        def compute() -> Any:
            learner = LogisticRegression(max_iter=1000)
            return estimate_confident_joint_and_cv_pred_proba(self.features, labels, learner, cv_n_folds=5, seed=0)[1]

        return self._kept("theirs", trial, compute)

    def _kept(self, way: str, trial: str, compute: Callable[[], Any]) -> Any:
        path = KEPT / f"{self.name}-{trial}-{way}.npy"
        if not path.exists():
            np.save(path.with_suffix(".part.npy"), compute())
            path.with_suffix(".part.npy").rename(path)
        return np.load(path)


def open_corpus(name: str) -> Cache:
    path = KEPT / f"{name}.h5"
    if not path.exists():
        extract(DATA / f"{name}.csv", path, ExtractSettings(encoder=str(DATA / "minilm"), precision=Precision.FLOAT32))
    return open_cache(path)


def trial(corpus: Corpus, confusion: Any, before: Any, kind: str, rate: float, seed: int) -> dict[str, list[float]]:
    """Change labels and find them in each way; see `noise` for what is returned of each."""
    rng, labels = np.random.default_rng(seed), corpus.labels
    rows, classes = len(labels), corpus.classes
    changed = np.zeros(rows, bool)
    changed[rng.permutation(rows)[: round(rate * rows)]] = True
    other = (labels + rng.integers(1, classes, size=rows)) % classes
    if kind != "at random":
        other = confusion.argmax(axis=1)[labels]
    given = np.where(changed, other, labels)
    name = f"{kind.rsplit(maxsplit=1)[-1]}-{rate:g}-{seed}"
    ours = corpus.ours(given, name)
    ways = {"headstart": (find_label_errors(ours, given).found, ours)}
    ways["headstart, --prune both"] = find_label_errors(ours, given, prune=Pruning.BOTH).found, ours
    try:
        from cleanlab.filter import find_label_issues
    except ImportError:
        print("cleanlab is not installed; the docstring of this file says how", file=sys.stderr)
    else:
        theirs = corpus.theirs(given, name)
        ways["cleanlab, headstart's probabilities"] = find_label_issues(given, ours, n_jobs=1), ours
        ways["cleanlab, its own"] = find_label_issues(given, theirs, n_jobs=1), theirs
    result = {}
    for way, (found, probabilities) in ways.items():
        hits, new = found & changed, found & ~before
        firsts = [
            changed[np.argsort(label_scores(probabilities, given, score), kind="stable")[: changed.sum()]].mean()
            for score in (LabelScore.SELF_CONFIDENCE, LabelScore.NORMALIZED_MARGIN)
        ]
        shares = [hits.sum() / max(found.sum(), 1), (hits & new).sum() / max(new.sum(), 1), hits.sum() / changed.sum()]
        result[way] = [found.sum(), *shares, *firsts]
    return result


def judge(features: Any, labels: Any, groups: Any, classes: int, memory: int | None = None) -> Any:
    """Probabilities as `audit` finds them."""
    rows = np.arange(len(labels))
    fold = assign_folds(rows, labels, groups, folds=5, rng=np.random.default_rng(0))
    dataset = Dataset(features=features, labels=labels, index=rows)
    penalties = [share * features.shape[1] for share in PENALTIES]
    with open_threads() as threads:
        return out_of_fold(dataset, fold, classes=classes, penalties=penalties, memory=memory, threads=threads)


def following_labels(corpora: list[str], seeds: int) -> None:
    sizes = [f"{ROUND * (number + 2)} rows" for number in range(ROUNDS)]
    print(f"{cpu_name()}; means of {seeds} seeds\n")
    print(f"| table | way | {' | '.join(sizes)} | mean gain | standard error |\n|{'---|' * (ROUNDS + 4)}")
    for name in corpora:
        cache = open_corpus(name)
        _, first = np.unique(group_rows(cache.token_hashes), return_index=True)
        whole = Dataset(features=np.array(cache.features(), np.float32), labels=np.array(cache.labels), index=first)
        results: dict[str, list[list[float]]] = {}
        for seed in range(seeds):
            rows = np.random.default_rng(seed).permutation(first)
            test, start, pool = np.split(rows, [len(rows) // 3, len(rows) // 3 + ROUND])
            begin = head_of(whole, start)
            for way, choose in WAYS.items():
                labelled, unlabelled, head, scores = start, pool, begin, []
                for _ in range(ROUNDS):
                    chosen = choose(dataclasses.replace(whole, index=unlabelled), head)
                    labelled = np.concatenate([labelled, unlabelled[chosen]])
                    unlabelled = np.delete(unlabelled, chosen)
                    head = head_of(whole, labelled)
                    logits = logits_of(dataclasses.replace(whole, index=test), head)
                    scores.append(float((logits.argmax(axis=1) == whole.labels[test]).mean()))
                results.setdefault(way, []).append(scores)
        for way, accuracies in results.items():
            gains = (np.array(accuracies) - results["any"]).mean(axis=1)
            error = gains.std(ddof=1) / np.sqrt(seeds)
            cells = " | ".join(f"{score:.4f}" for score in np.mean(accuracies, axis=0))
            print(f"| {name} | {way} | {cells} | {gains.mean():+.4f} | {error:.4f} |", flush=True)


def head_of(whole: Dataset, rows: Any) -> Any:
    """Logistic regression on these rows, with the penalty that `audit` would choose."""
    train = dataclasses.replace(whole, index=rows)
    classes = int(whole.labels.max()) + 1
    l2 = judge(train.take(slice(None)), train.targets, np.arange(len(rows)), classes).l2
    with open_threads() as threads:
        settings = TrainSettings(solver=Solver.EXACT, standardize=True)
        return LogisticSolver(train, classes=classes, settings=settings, threads=threads).solve(l2)[0]


def logits_of(rows: Dataset, head: Any) -> Any:
    return rows.take(slice(None)) @ head["weight"].T + head["bias"]


def least_certain(score: Callable[[Any], Any]) -> Callable[[Dataset, Any], Any]:
    """Take the rows with the lowest score of their probabilities."""
    return lambda pool, head: np.argsort(score(np.exp(log_softmax(logits_of(pool, head)))), kind="stable")[:ROUND]


WAYS: dict[str, Callable[[Dataset, Any], Any]] = {
    "any": lambda pool, head: np.arange(ROUND),
    "--next": lambda pool, head: choose_next(pool, head, ROUND).rows,
    "smallest margin": least_certain(lambda p: np.diff(np.sort(p, axis=1)[:, -2:], axis=1)[:, 0]),
    "largest entropy": least_certain(lambda p: (p * np.log(np.maximum(p, 1e-300))).sum(axis=1)),
}


def large(rows: int, width: int) -> None:
    make(rows, width)
    print(f"{cpu_name()}; {rows:,} x {width}, {rows * width * 4 / 2**20:,.0f} MiB as float32\n")
    print("| part | seconds | CPU seconds | MiB | of it libraries | |\n|---|---|---|---|---|---|")
    for part in PARTS:
        command = [sys.executable, __file__, part, "--rows", str(rows), "--width", str(width)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        said = json.loads(done.stdout.splitlines()[-1])
        columns = (("seconds", 1), ("cpu", 1), ("peak", 0), ("before", 0))
        cells = " | ".join(f"{said[name]:,.{digits}f}" for name, digits in columns)
        print(f"| {part} | {cells} | {said['note']} |", flush=True)


def make(rows: int, width: int) -> None:
    """Write features and labels, unless they are there."""
    if (KEPT / f"{rows}x{width}.labels.npy").exists():
        return
    rng = np.random.default_rng(0)
    spectrum = (1 / np.sqrt(np.arange(1, width + 1))).astype(np.float32)  # variances fall as 1 / rank
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0].astype(np.float32)
    centres = rng.normal(size=(20, width)).astype(np.float32) * spectrum * 0.5
    labels = rng.integers(20, size=rows)
    features = np.lib.format.open_memmap(KEPT / f"{rows}x{width}.npy", mode="w+", dtype=np.float32, shape=(rows, width))
    for start in range(0, rows, 8192):
        part = labels[start : start + 8192]
        drawn = rng.normal(size=(len(part), width)).astype(np.float32) * spectrum
        features[start : start + 8192] = (drawn + centres[part]) @ turn
    copies = rng.permutation(rows)[: rows // 100]
    sources = rng.integers(rows, size=len(copies))
    scale = float(np.sqrt((spectrum**2).sum() / width)) * 0.25
    features[copies] = features[sources] + rng.normal(size=(len(copies), width)).astype(np.float32) * scale
    labels[copies] = labels[sources]
    features.flush()
    changed = rng.random(rows) < 0.1
    np.save(KEPT / f"{rows}x{width}.labels.npy", np.where(changed, rng.integers(20, size=rows), labels))


def partners(dataset: Dataset) -> str:
    found = find_partners(dataset, np.arange(len(dataset)), threshold=0.9)
    rows = np.random.default_rng(1).permutation(len(dataset))[:SAMPLE]
    chosen = np.concatenate([rows, np.flatnonzero(found.partner >= 0)[:SAMPLE]])
    mean = sum(chunk.sum(axis=0, dtype=np.float64) for chunk in dataset.chunks()) / len(dataset)

    def unit(vectors: Any) -> Any:
        vectors = vectors - mean.astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    mine, labels, best = unit(dataset.take(chosen)), dataset.targets, np.zeros(len(chosen), np.float32)
    seconds = 0.0
    for start in range(0, len(dataset), 2048):
        part = slice(start, start + 2048)
        others = unit(dataset.take(part))
        started = time.perf_counter()
        cosines = mine @ others.T
        cosines[labels[chosen][:, None] == labels[part]] = 0
        best = np.maximum(best, cosines.max(axis=1))
        seconds += time.perf_counter() - started
    missed = int(((best >= 0.9 + 1e-5) & (found.partner[chosen] < 0)).sum())
    false = int(((best < 0.9 - 1e-5) & (found.partner[chosen] >= 0)).sum())
    whole = seconds / len(chosen) * len(dataset)
    return (
        f"{(found.partner >= 0).sum():,} rows have a partner; of {len(chosen):,} rows {missed} missed, {false} wrong; "
        f"{found.products:.1e} of the pairs compared in full; all products: about {whole:,.0f} s"
    )


def heads(dataset: Dataset) -> str:
    groups = np.arange(len(dataset))
    judged = judge(dataset.features, dataset.targets, groups, 20, MEMORY)
    errors = find_label_errors(judged.probabilities, dataset.targets)
    return (
        f"{len(judged.losses)} penalties x 5 folds of {judged.chosen_by:,} rows, one of all, streamed above 512 MiB; "
        f"{errors.found.sum():,} label errors"
    )


def distances(dataset: Dataset) -> str:
    return f"median distance {np.median(class_distances(dataset, 20)):.1f}"


def following(dataset: Dataset) -> str:
    weight = np.random.default_rng(0).normal(size=(20, dataset.width)).astype(np.float32)
    choice = choose_next(dataset, {"weight": weight, "bias": np.zeros(20, np.float32)}, 500)
    return f"{len(choice.rows):,} rows chosen, without the head's training"


PARTS: dict[str, Callable[[Dataset], str]] = {
    "near-duplicates": partners,
    "outliers": distances,
    "label-errors": heads,
    "next": following,
}


def measure(part: str, rows: int, width: int) -> None:
    """Run a part, and print its seconds, its memory and what it found as JSON. Its check is not in the seconds."""
    features = np.load(KEPT / f"{rows}x{width}.npy", mmap_mode="r")
    labels = np.load(KEPT / f"{rows}x{width}.labels.npy")
    dataset = Dataset(features=features, labels=labels, index=np.arange(rows))
    peak, stop = Peak(), threading.Event()
    before, started, cpu = anonymous(), time.perf_counter(), time.process_time()
    watch = threading.Thread(target=peak.watch, args=(stop,))
    watch.start()
    checked = part == "near-duplicates"
    if checked:  # the check afterwards takes memory and time of its own
        find_partners(dataset, np.arange(rows), threshold=0.9)
    note = "" if checked else PARTS[part](dataset)
    said = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - cpu, "before": before}
    stop.set()
    watch.join()
    print(json.dumps({**said, "peak": peak.mebibytes, "note": note or PARTS[part](dataset)}))


class Peak:
    mebibytes = 0.0

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(0.05):
            self.mebibytes = max(self.mebibytes, anonymous())


def anonymous() -> float:
    """Mebibytes of memory that this process asked for."""
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    main()
