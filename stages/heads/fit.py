"""Heads fitted with either solver, and scored: arrays in, fitted heads out. `Trainer` is the training loop of AdamW."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ...cache.errors import SettingsError
from ..devices import choose_device
from ..progress import Note, Report, Step, silent
from ..settings import Scaling, Solver, TrainSettings
from ..threads import WorkerThreads, open_threads
from .dataset import Dataset, ScaledDataset, fit_scaler, fits_in_memory
from .head import Head, Parameters
from .logistic import ConvergenceReport
from .losses import Curves
from .sampling import CHUNK_ROWS, Chunk, epoch_order, random_bits, split_batches
from .scratch import empty
from .stacked import AdamW, StackedHeads, Tensor
from .targets import Scores, Target

TIE_TOLERANCE = 1e-6
"""Validation losses that differ by less are equal. The earlier epoch is kept, so that rounding does not choose."""
PER_HEAD = ("learning_rate", "weight_decay", "dropout", "label_smoothing", "class_weight")
"""The settings that may differ between heads that train together."""


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One line of the training curve.

    The training loss is the mean of what is minimised, with dropout, smoothing and class weights: see `Loss`. The
    validation loss is the log loss that a head of this kind can be chosen by, in nats, without them.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float | None  # None of numbers
    validation_macro_f1: float | None  # likewise


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted head."""

    parameters: Parameters  # of the best epoch, for raw features
    best_epoch: int | None = None
    """The epoch with the lowest validation loss, from 1; of equal ones (within 1e-6) the earliest. 0 if training
    diverged in the first epoch; None from the exact solver."""
    history: tuple[Epoch, ...] = ()  # one entry per epoch; empty from the exact solver
    diverged: bool = False  # training stopped because the loss was no longer finite
    convergence: ConvergenceReport | None = None  # None from SGD
    seconds: float  # heads that train together report the time of all


def head_device(name: str) -> torch.device:
    """Choose a device as `choose_device` does, but never MPS: it has no float64, in which losses are summed.

    Raises:
        SettingsError: there is no such device, or MPS is asked for by name.
    """
    device = choose_device(name)
    if device.type == "mps" and name != "auto":
        raise SettingsError(f"device {name!r} has no float64, in which losses are summed; try `device=cpu`")
    return torch.device("cpu") if device.type == "mps" else device


def fit_head(
    train: Dataset,
    validation: Dataset,
    *,
    target: Target,
    settings: TrainSettings,
    device: torch.device,
    report: Report = silent,
) -> Fit:
    """Find one head with the solver that the settings name: by `fit_heads`, or by the target's solver.

    Raises:
        SettingsError: training diverged.
    """
    started = time.perf_counter()
    if settings.solver is Solver.SGD:
        (fit,) = fit_heads(
            train,
            validation,
            target=target,
            settings=[settings],
            device=device,
            on_epoch=lambda trainer: report(Step("training", trainer.epoch, settings.epochs, "epochs")),
        )
        if fit.diverged:
            message = f"training diverged in epoch {len(fit.history)} (the loss is not finite)"
            raise SettingsError(f"{message}; lower the learning rate")
        return fit
    report(Step("solving", 0, 0, "iterations"))
    scaling = Scaling.STANDARDIZED if settings.standardize else Scaling.NONE
    with open_threads() as threads:
        solver = target.solver(train, scaling=scaling, settings=settings, threads=threads)
        parameters, convergence = solver.solve(settings.l2, lambda done: report(Step("solving", done, 0, "iterations")))
    if not convergence.converged:
        report(Note(f"the exact solver did not converge: {convergence.reason}"))
    return Fit(parameters=parameters, convergence=convergence, seconds=time.perf_counter() - started)


def fit_heads(
    train: Dataset,
    validation: Dataset,
    *,
    target: Target,
    settings: Sequence[TrainSettings],
    device: torch.device,
    on_epoch: Callable[[Trainer], None] = lambda trainer: None,
) -> list[Fit]:
    """Train linear heads or MLPs with dropout and AdamW on the target's loss, and keep each head's best epoch.

    The heads share matrix products over the same rows in the same order. Each is the head that it would be alone: it
    has its own optimizer state, loss and early stopping, and its dropout mask depends on seed, epoch, rows and rate
    alone.

    With ``center`` or ``standardize``, the columns are scaled first, and the scaling is folded into the parameters that
    are returned: they read raw features. Biases are not decayed.

    There is one of the settings for each head; they may differ in `PER_HEAD` alone. ``on_epoch`` is called after each
    epoch.

    Returns:
        One fit per head, in the order of the settings.
    """
    started = time.perf_counter()
    order = sorted(range(len(settings)), key=lambda head: settings[head].dropout)
    with open_threads() as threads:
        ordered = [settings[head] for head in order]
        trainer = Trainer(train, validation, target=target, settings=ordered, device=device, threads=threads)
        for _ in trainer.run():
            on_epoch(trainer)
        fits = trainer.result(time.perf_counter() - started)
    return [fits[order.index(head)] for head in range(len(settings))]


def scores_of(head: Head, dataset: Dataset, memory: int | None = None) -> Scores:
    """A head's outputs before they become probabilities, (rows, outputs) float32; see `empty` of the memory bound."""
    scores: Scores = empty((len(dataset), len(head.bias)), np.float32, memory)
    for span, chunk in dataset.chunks_at():
        scores[span] = head.logits(chunk)
    return scores


class Trainer:
    """Heads in training.

    Attributes:
        epoch: The last epoch that is finished; 0 before the first.
        active: The heads that still train, by their numbers.
    """

    def __init__(
        self,
        train: Dataset,
        validation: Dataset,
        *,
        target: Target,
        settings: Sequence[TrainSettings],
        device: torch.device,
        threads: WorkerThreads,
    ) -> None:
        first = settings[0]
        common = {dataclasses.replace(head, **{name: getattr(first, name) for name in PER_HEAD}) for head in settings}
        assert common == {first}, f"heads that train together differ in {PER_HEAD} alone"
        assert list(settings) == sorted(settings, key=lambda head: head.dropout), "heads are sorted by dropout"
        self._settings, self._common, self._values = settings, first, train.targets
        self._target, self._threads, self._device = target, threads, device
        in_memory = fits_in_memory((train, validation), first.memory)
        self._scaler = fit_scaler(train, center=first.center, standardize=first.standardize)
        self._train = ScaledDataset(train, self._scaler, in_memory=in_memory)
        self._validation = ScaledDataset(validation, self._scaler, in_memory=in_memory)
        self._loss = target.loss(settings, self._values, device)
        for rows in (self._train, self._validation):
            rows.targets = self._loss.encode(rows.targets)
        self._heads = StackedHeads(
            settings, width=train.width, weights=self._loss.weights, bias=self._loss.bias, device=device
        )
        steps = first.epochs * math.ceil(len(train) / first.batch_size)
        self._optimizer = AdamW(self._heads, settings, steps)
        self.epoch = 0
        self.active = list(range(len(settings)))
        self._histories: list[list[Epoch]] = [[] for _ in settings]
        self._best: list[tuple[float, int, dict[str, Tensor]]] = [(math.inf, 0, {})] * len(settings)
        self._diverged = [False] * len(settings)

    def run(self) -> Iterator[int]:
        """Train, and yield each epoch's number when the epoch is over. Ends when no head trains any more."""
        for epoch in range(1, self._common.epochs + 1):
            curves = zip(self._train_epoch(epoch), *self._validate(), strict=True)
            trains_on = [self._record(place, Epoch(epoch, *line)) for place, line in enumerate(curves)]
            remaining = [place for place, on in enumerate(trains_on) if on]
            self.epoch = epoch
            if len(remaining) < len(self.active):
                self.active = [self.active[place] for place in remaining]
                if remaining:
                    selected = torch.tensor(remaining, device=self._device)
                    settings = [self._settings[head] for head in self.active]
                    self._heads.select(selected, settings)
                    self._optimizer.select(selected)
                    self._loss = self._target.loss(settings, self._values, self._device)
            yield epoch
            if not self.active:
                return

    def result(self, seconds: float) -> list[Fit]:
        """Each head at its best epoch."""
        heads = zip(self._best, self._histories, self._diverged, strict=True)
        return [
            Fit(
                parameters=self._for_raw_features(parameters) if parameters else {},
                best_epoch=epoch,
                history=tuple(history),
                diverged=diverged,
                seconds=seconds,
            )
            for (_, epoch, parameters), history, diverged in heads
        ]

    def _record(self, place: int, line: Epoch) -> bool:
        """Record an epoch of the active head at this place; returns whether the head trains on."""
        head = self.active[place]
        self._histories[head].append(line)
        if not math.isfinite(line.train_loss) or not math.isfinite(line.validation_loss):
            self._diverged[head] = True
            return False
        if line.validation_loss < self._best[head][0] - TIE_TOLERANCE:
            copies = {name: value[place].clone() for name, value in self._heads.parameters.items()}
            self._best[head] = (line.validation_loss, line.epoch, copies)
        return not self._common.patience or line.epoch - self._best[head][1] < self._common.patience

    def _train_epoch(self, epoch: int) -> list[float]:
        """Train for one pass over the rows; returns each active head's mean loss."""
        common = self._common
        order = epoch_order(len(self._train), batch_size=common.batch_size, seed=common.seed, epoch=epoch)
        total = torch.zeros(len(self._heads), dtype=torch.float64, device=self._device)
        for chunks in split_batches(order, common.batch_size):
            work = functools.partial(self._sum_gradients, epoch=epoch, first_weight=self._heads.scaled_first_weight())
            sums, *others = self._threads.map_shares(work, chunks)
            for other in others:
                for name, value in other.items():
                    sums[name] += value
            total += sums.pop("losses")
            self._heads.average(sums, sum(len(positions) for _, positions in chunks))
            self._optimizer.step(self._heads.parameters, sums)
            self._loss.project(self._heads.parameters["bias"])
        means: list[float] = (total / len(self._train)).tolist()
        return means

    def _sum_gradients(self, chunks: Sequence[Chunk], epoch: int, first_weight: Tensor) -> dict[str, Tensor]:
        """Gradients by name, and ``losses`` (heads,) float64, all summed over some chunks."""
        gradients = {name: torch.zeros_like(value) for name, value in self._heads.parameters.items()}
        total = torch.zeros(len(self._heads), dtype=torch.float64, device=self._device)
        thresholds = self._heads.thresholds
        for number, positions in chunks:
            features = self._train.take(positions)  # (rows, width)
            dropped = [features]
            if thresholds != [0]:
                bits = random_bits(*features.shape, seed=self._common.seed, epoch=epoch, chunk=number)
                dropped = [features * (bits >= threshold) if threshold else features for threshold in thresholds]
            inputs = [torch.from_numpy(array).to(self._device) for array in dropped]
            targets = torch.from_numpy(self._train.targets[positions]).to(self._device)
            logits, hidden = self._heads.forward(inputs, first_weight)
            losses, gradient = self._loss.loss_and_gradient(logits, targets)
            self._heads.backward(gradients, gradient, hidden, inputs)
            total += losses
        return {**gradients, "losses": total}

    def _validate(self) -> Curves:
        """Each active head's scores on the validation rows, without dropout."""
        rows = len(self._validation)
        shares = self._threads.map_shares(self._tally, range(0, rows, CHUNK_ROWS))
        return self._loss.curves([torch.stack(sums).sum(0) for sums in zip(*shares, strict=True)], rows)

    def _tally(self, starts: Sequence[int]) -> list[Tensor]:
        """What the loss needs of some chunks, summed over them."""
        tallies = []
        for start in starts:
            rows = slice(start, start + CHUNK_ROWS)
            features = torch.from_numpy(self._validation.take(rows)).to(self._device)
            targets = torch.from_numpy(self._validation.targets[rows]).to(self._device)
            logits, _ = self._heads.forward([features], self._heads.first_weight)
            tallies.append(self._loss.tally(logits, targets))
        return [torch.stack(terms).sum(0) for terms in zip(*tallies, strict=True)]

    def _for_raw_features(self, parameters: dict[str, Tensor]) -> Parameters:
        """Copy a head's parameters, because training goes on, and fold the scaling into them."""
        copies = {name: value.cpu().numpy().copy() for name, value in parameters.items()}
        return self._loss.fold_back(self._scaler.fold_into(copies))
