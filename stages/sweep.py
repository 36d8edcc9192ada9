"""Many experiments in one pass over the features: heads of all settings, ranked on validation rows; one is tested."""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..cache.errors import SettingsError
from ..cache.hashing import digest
from ..cache.reader import Cache
from .devices import machine
from .heads.head import Head
from .heads.logistic import LogisticSolver
from .heads.metrics import evaluate
from .heads.ranking import rank, table_columns
from .heads.trainer import OWN, Fit, Trainer, fit_heads
from .progress import Note, Report, Step, silent
from .runs.run import read_run
from .runs.savings import passes_of_cached
from .runs.sweep_folder import SWEEP, WINNER, SweepFolder, open_folder
from .settings import HeadKind, Solver, SweepSettings, TrainSettings
from .splits.divide import Splits, divide
from .threads import open_threads
from .train_head import Labels, head_device, make_head, open_checked, require_one_way, train_head

_MOST_COLUMNS = 1536
"""Classes of all heads of a product, at most: past that their logits leave a core's cache and nothing is gained."""
_COPIES = 12
"""Tensors of the size of the parameters that training holds: the moments, the lanes' gradients, the best epochs."""
Cell = tuple[int, TrainSettings]
"""A head to train: the number of its settings, and the settings with seed and fold."""


def sweep(
    cache: str | Path,
    out: str | Path,
    settings: SweepSettings | None = None,
    *,
    test: str | Path | None = None,
    validation: str | Path | None = None,
    labels: Labels | None = None,
    overwrite: bool = False,
    wait: bool = False,
    report: Report = silent,
) -> Path:
    """Train a head for every setting, seed and fold; rank the settings; train the winner and test it once.

    Heads that read the same rows in the same order train as one product, and each is the head that `train_head` would
    train with its settings. No test row is looked at before the winner is known. With folds, the winner trains again on
    all folds but ``validation_fraction`` of their rows, which choose its epoch; its seed is the first.

    A sweep that is interrupted keeps what is finished, and the same call carries on with it.

    Args:
        cache: The cache to train on.
        out: The folder to write.
        settings: See `SweepSettings`.
        test: A cache for the winner's test; without it, a share of the rows is held out.
        validation: A cache to rank by; without it, a share or folds of the rows.
        labels: Labels to put in the place of the caches' own.
        overwrite: Replace the sweep at ``out``.
        wait: Where another run is writing ``out``, wait until it is done.
        report: Where progress and notes go.

    Returns:
        The folder: ``sweep.json`` with the ranking, ``sweep.parquet`` with every epoch of every head, and ``winner``, a
        run.

    Raises:
        As `train_head`; SettingsError also where every head diverged.
    """
    settings = settings or SweepSettings()
    out = Path(out)
    with SWEEP.held(out, overwrite=overwrite, wait=wait, report=report):
        started = time.perf_counter()
        require_one_way(settings.base, validation)
        device = head_device(settings.base.device)
        caches = open_checked(cache, validation, test, labels=labels, report=report)
        train_cache, validation_cache, test_cache = caches
        assert train_cache is not None

        def parts_of(each: TrainSettings) -> Splits:  # says nothing: what there is to say, the winner's training says
            return divide(train_cache, validation=validation_cache, test=test_cache, settings=each, report=silent)

        classes = len(train_cache.label_names or ())
        width = max(train_cache.features(each.feature).shape[1] for each in settings.settings())
        folder = open_folder(out, _plan(settings, caches), overwrite=overwrite)
        found = _train_groups(
            group_cells(settings.cells(), classes=classes, width=width),
            folder,
            parts_of=parts_of,
            cache=train_cache,
            device=device,
            report=report,
        )
        ranking = rank(settings, found)
        if ranking[0]["diverged"]:
            folder.discard()
            raise SettingsError("training diverged with every one of the settings; lower the learning rates")
        winner = dataclasses.replace(
            settings.settings()[ranking[0]["setting"]], folds=0, fold=1, seed=settings.seeds[0]
        )
        train_head(
            cache,
            folder.scratch / WINNER,
            winner,
            test=test,
            validation=validation,
            labels=labels,
            overwrite=True,
            report=report,
        )
        trained = read_run(folder.scratch / WINNER)
        # Every head reads the rows that the winner trains on and is chosen by, in every epoch.
        epochs = sum(len(result["history"]["epoch"]) for result in found)
        passes = (
            epochs * (trained["rows"]["train"] + trained["rows"]["validation"]) + trained["encoder_passes"]["saved"]
        )
        folder.write_table(table_columns(settings, found))
        folder.finish(
            {
                "headstart": version("headstart"),
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "settings": dataclasses.asdict(settings),
                "heads": len(found),
                "diverged": sum(result["diverged"] for result in found),
                "ranking": ranking,
                "winner": dataclasses.asdict(winner),
                "kept_heads": sum(result["kept"] for result in found),
                "seconds": time.perf_counter() - started,
                "encoder_passes": dataclasses.asdict(passes_of_cached(train_cache.record, passes)),
                "machine": machine(device),
                "versions": {"torch": torch.__version__},
            }
        )
        return out


def group_cells(cells: Sequence[Cell], *, classes: int, width: int) -> list[list[Cell]]:
    """Sort heads into groups that train together: equal in all but `OWN`, or for the exact solver but the penalty.

    A group is no larger than the memory bound and a core's cache let it be.
    """
    groups: dict[TrainSettings, list[Cell]] = {}
    base = cells[0][1]
    own = ("l2",) if base.solver is Solver.EXACT else OWN
    for number, each in cells:
        common = dataclasses.replace(each, **{name: getattr(base, name) for name in own})
        groups.setdefault(common, []).append((number, each))
    inner = width if base.head is HeadKind.LINEAR else base.hidden
    numbers = classes * inner + (0 if base.head is HeadKind.LINEAR else base.hidden * width)
    most = max(1, _MOST_COLUMNS // (classes if base.head is HeadKind.LINEAR else base.hidden))
    if base.memory is not None:
        most = max(1, min(most, base.memory // 4 // (4 * _COPIES * numbers)))
    if base.solver is Solver.EXACT:
        most = len(cells)
    return [group[at : at + most] for group in groups.values() for at in range(0, len(group), most)]


def _train_groups(
    groups: Sequence[Sequence[Cell]],
    folder: SweepFolder,
    *,
    parts_of: Callable[[TrainSettings], Splits],
    cache: Cache,
    device: torch.device,
    report: Report,
) -> list[dict[str, Any]]:
    """Train what is not finished yet; a result for each head, in the order of the groups."""
    found: list[dict[str, Any]] = []
    progress = _Progress(groups, report)
    for number, group in enumerate(groups):
        results = folder.finished(number)
        wanted = {(setting, each.seed, each.fold) for setting, each in group}
        # Another release may have grouped the heads otherwise.
        if results is not None and {(r["setting"], r["seed"], r["fold"]) for r in results} == wanted:
            found += [{**result, "kept": True} for result in results]
            progress.skip(group)
            continue
        parts = parts_of(group[0][1])
        if group[0][1].solver is Solver.EXACT:
            results = _solve_group(group, parts, cache, progress)
        else:
            results = _train_group(group, parts, len(cache.label_names or ()), device, progress)
        folder.keep(number, results)
        found += [{**result, "kept": False} for result in results]
    unsure = [result["certificate"] for result in found if (result["certificate"] or {}).get("converged") is False]
    if unsure:
        first = f"l2 {unsure[0]['l2']:g}: {unsure[0]['reason']}"
        report(Note(f"{len(unsure):,} of {len(found):,} heads did not converge; the first, {first}"))
    if kept := sum(result["kept"] for result in found):
        report(Note(f"carried on: {kept:,} of {len(found):,} heads were finished already"))
    return found


class _Progress:
    """Tells how many heads and epochs are left. An epoch of one head counts as one; a head that stops early, as all."""

    def __init__(self, groups: Sequence[Sequence[Cell]], report: Report) -> None:
        self._report = report
        exact = groups[0][0][1].solver is Solver.EXACT
        self._epochs = 1 if exact else groups[0][0][1].epochs
        self._unit = "heads" if exact else "epochs of heads"
        self._heads = sum(len(group) for group in groups)
        self._done_heads = 0

    def skip(self, group: Sequence[Cell]) -> None:
        self._done_heads += len(group)

    def epoch(self, heads: int, trainer: Trainer) -> None:
        """Report an epoch of a group of so many heads."""
        active = len(trainer.active)
        over = trainer.epoch == self._epochs or not active
        done = self._done_heads + (heads if over else heads - active)
        epochs = done * self._epochs + (0 if over else active * trainer.epoch)
        self._tell(epochs, f"{self._heads - done:,} of {self._heads:,} heads left")
        if over:
            self._done_heads = done

    def head(self) -> None:
        """Report a head that was solved for."""
        self._done_heads += 1
        self._tell(self._done_heads, f"{self._heads - self._done_heads:,} left")

    def _tell(self, done: int, detail: str) -> None:
        self._report(Step("sweeping", done, self._heads * self._epochs, self._unit, detail=detail))


def _train_group(
    group: Sequence[Cell], parts: Splits, classes: int, device: torch.device, progress: _Progress
) -> list[dict[str, Any]]:
    fits = fit_heads(
        parts.train,
        parts.validation,
        classes=classes,
        settings=[each for _, each in group],
        device=device,
        on_epoch=lambda trainer: progress.epoch(len(group), trainer),
    )
    return [_result(number, each, fit) for (number, each), fit in zip(group, fits, strict=True)]


def _result(number: int, settings: TrainSettings, fit: Fit) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(fit.history[0])]
    return {
        "setting": number,
        "seed": settings.seed,
        "fold": settings.fold,
        "diverged": fit.diverged,
        "best_epoch": fit.best_epoch,
        "history": {name: [getattr(epoch, name) for epoch in fit.history] for name in names},
        "certificate": None,
    }


def _solve_group(group: Sequence[Cell], parts: Splits, cache: Cache, progress: _Progress) -> list[dict[str, Any]]:
    """Solve along a path from the largest penalty to the smallest."""
    results = []
    rows = len(parts.train)
    with open_threads() as lanes:
        classes = len(cache.label_names or ())
        solver = LogisticSolver(parts.train, classes=classes, settings=group[0][1], lanes=lanes)
        for number, each in sorted(group, key=lambda cell: -cell[1].l2):
            parameters, certificate = solver.solve(each.l2)
            scores = _scores(make_head(parameters, cache, each), parts)
            penalty = each.l2 / 2 * float((parameters["weight"].astype(np.float64) ** 2).sum())
            history = {
                "epoch": [0],
                "train_loss": [(certificate.objective - penalty) / rows],
                **{name: [value] for name, value in scores.items()},
            }
            results.append(
                {
                    "setting": number,
                    "seed": each.seed,
                    "fold": each.fold,
                    "diverged": False,
                    "best_epoch": 0,
                    "history": history,
                    "certificate": dataclasses.asdict(certificate),
                }
            )
            progress.head()
    return results


def _scores(head: Head, parts: Splits) -> dict[str, float]:
    said = np.concatenate([head.log_probabilities(chunk) for chunk in parts.validation.chunks()])
    found = evaluate(parts.validation.targets, said, parts.validation_groups, names=head.label_names, resamples=1)
    return {
        "validation_loss": found["log_loss"],
        "validation_accuracy": found["accuracy"],
        "validation_macro_f1": found["macro_f1"],
    }


def _plan(settings: SweepSettings, caches: Sequence[Cache | None]) -> dict[str, Any]:
    """What must be the same for a sweep to be carried on: settings, features, texts and labels."""
    return {
        "settings": dataclasses.asdict(settings),
        "caches": [
            None
            if cache is None or cache.labels is None
            else {
                "identity": dataclasses.asdict(cache.identity),
                "content": digest(cache.block_checksums, cache.labels).hex(),
                "label_names": cache.label_names,
            }
            for cache in caches
        ],
    }
