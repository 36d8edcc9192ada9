"""The numeric core of stage two: arrays in, fitted heads out. It knows no file and no terminal."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from ...cache.errors import SettingsError
from ..progress import Report, Step, silent
from ..settings import TrainSettings
from ..threads import WorkerThreads, open_threads
from .dataset import (
    CHUNK_ROWS,
    Dataset,
    Indices,
    ScaledDataset,
    batches,
    epoch_order,
    fits_in_memory,
    random_bits,
)
from .scaler import Parameters, absorb
from .stacked import AdamW, Loss, StackedHeads

TIE = 1e-6
"""Validation losses that differ by less count as equal, and the earlier epoch is kept: rounding does not choose."""
OWN = ("learning_rate", "weight_decay", "dropout", "label_smoothing", "class_weight")
"""The settings in which heads that train together may differ."""


@dataclasses.dataclass(frozen=True)
class Epoch:
    """One line of the training curve. Losses are mean cross-entropies, in nats: in training of the loss that is
    minimised, with dropout, smoothing and class weights; in validation the plain one."""

    epoch: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted head.

    Attributes:
        parameters: ``weight`` (classes, width) and ``bias`` (classes,) float32, of the best epoch, for features as they
            are. An MLP's ``weight`` is (classes, hidden), after ``hidden.weight`` (hidden, width) and ``hidden.bias``.
        best_epoch: The epoch of the lowest validation loss, from 1; the earliest of equals (within 1e-6). 0 where
            training diverged at once.
        history: One entry per epoch that was trained.
        diverged: The loss was no longer finite, and training ended.
        seconds: Spent training and validating; shared by the heads of one product.
    """

    parameters: Parameters
    best_epoch: int
    history: tuple[Epoch, ...]
    diverged: bool
    seconds: float


def fit_head(
    train: Dataset,
    validation: Dataset,
    *,
    classes: int,
    settings: TrainSettings,
    device: torch.device,
    report: Report = silent,
) -> Fit:
    """Train one head; see `fit_heads`, of which it is the case of one.

    Raises:
        SettingsError: the loss is no longer finite.
    """

    def on_epoch(trainer: Trainer) -> None:
        report(Step("training", trainer.epoch, settings.epochs, "epochs"))

    (fit,) = fit_heads(train, validation, classes=classes, settings=[settings], device=device, on_epoch=on_epoch)
    if fit.diverged:
        raise SettingsError(
            f"training diverged in epoch {len(fit.history)} (the loss is not finite); lower the learning rate"
        )
    return fit


def fit_heads(
    train: Dataset,
    validation: Dataset,
    *,
    classes: int,
    settings: Sequence[TrainSettings],
    device: torch.device,
    on_epoch: Callable[[Trainer], None] = lambda trainer: None,
) -> list[Fit]:
    """Train dropout and a linear layer (or an MLP) with AdamW on cross-entropy, and keep each head's best epoch.

    Many heads are one product over the same rows in the same order. Each is the head that it would be alone: it has
    its own optimiser's state, loss and stopping, and its dropout mask is a function of seed, epoch, rows and rate.

    Where ``center`` or ``standardize`` is set, the columns are shifted and scaled first, and the parameters that are
    returned have that in them: they read features as they are. Weight decay leaves the bias alone.

    Args:
        train: The rows to train on.
        validation: The rows that choose the epoch.
        classes: How many classes there are.
        settings: One for each head; they may differ in `OWN` alone.
        device: Where to compute.
        on_epoch: Called after each epoch.

    Returns:
        One fit for each head, in the order of the settings.
    """
    started = time.perf_counter()
    order = sorted(range(len(settings)), key=lambda head: settings[head].dropout)
    with open_threads() as lanes:
        trainer = Trainer(
            train, validation, classes=classes, settings=[settings[head] for head in order], device=device, lanes=lanes
        )
        for _ in trainer.run():
            on_epoch(trainer)
        fits = trainer.result(time.perf_counter() - started)
    return [fits[order.index(head)] for head in range(len(settings))]


class Trainer:
    """Heads while they train.

    Attributes:
        epoch: The last epoch that was trained; 0 before the first.
        active: Which heads still train, by their number.
    """

    def __init__(
        self,
        train: Dataset,
        validation: Dataset,
        *,
        classes: int,
        settings: Sequence[TrainSettings],
        device: torch.device,
        lanes: WorkerThreads,
    ) -> None:
        first = settings[0]
        alike = [dataclasses.replace(each, **{name: getattr(first, name) for name in OWN}) for each in settings]
        assert all(each == first for each in alike), f"heads that train together differ in {OWN} alone"
        assert list(settings) == sorted(settings, key=lambda each: each.dropout), "heads stand sorted by dropout"
        self._common, self._lanes, self._classes, self._device = first, lanes, classes, device
        in_memory = fits_in_memory((train, validation), first.memory)
        self._columns = train.measure(center=first.center, standardize=first.standardize)
        self._train = ScaledDataset(train, self._columns, in_memory=in_memory)
        self._validation = ScaledDataset(validation, self._columns, in_memory=in_memory)
        self._heads = StackedHeads(settings, width=train.width, classes=classes, device=device)
        self._loss = Loss.of(settings, np.bincount(self._train.targets, minlength=classes), device)
        self._validation_counts = np.bincount(self._validation.targets, minlength=classes)
        steps = first.epochs * math.ceil(len(train) / first.batch_size)
        self._optimizer = AdamW(self._heads, settings, steps)
        self.epoch = 0
        self.active = list(range(len(settings)))
        self._histories: list[list[Epoch]] = [[] for _ in settings]
        self._best: list[tuple[float, int, dict[str, torch.Tensor]] | None] = [None] * len(settings)
        self._diverged = [False] * len(settings)

    def run(self) -> Iterator[int]:
        """Train, and yield each epoch's number when it is over; ends when no head trains any more."""
        for epoch in range(1, self._common.epochs + 1):
            losses = self._train_epoch(epoch)
            validation = self._validate()
            self.epoch = epoch
            going = []
            for place, head in enumerate(self.active):
                line = Epoch(epoch, losses[place], *(values[place] for values in validation))
                if self._goes_on(head, place, line):
                    going.append(place)
            if len(going) < len(self.active):
                self.active = [self.active[place] for place in going]
                if going:
                    kept = torch.tensor(going, device=self._device)
                    self._heads.keep(kept)
                    self._optimizer.keep(kept)
                    self._loss = self._loss[kept]
            yield epoch
            if not self.active:
                return

    def parameters(self) -> dict[int, Parameters]:
        """The parameters as they are now, of each head that still trains."""
        values = self._heads.parameters
        return {
            head: self._absorbed({name: value[place] for name, value in values.items()})
            for place, head in enumerate(self.active)
        }

    def result(self, seconds: float) -> list[Fit]:
        """Each head at its best epoch."""
        fits = []
        for best, history, diverged in zip(self._best, self._histories, self._diverged, strict=True):
            parameters = {} if best is None else self._absorbed(best[2])
            epoch = 0 if best is None else best[1]
            fits.append(
                Fit(
                    parameters=parameters,
                    best_epoch=epoch,
                    history=tuple(history),
                    diverged=diverged,
                    seconds=seconds,
                )
            )
        return fits

    def _goes_on(self, head: int, place: int, line: Epoch) -> bool:
        """Note a head's epoch, and say whether it trains on."""
        self._histories[head].append(line)
        if not math.isfinite(line.train_loss) or not math.isfinite(line.validation_loss):
            self._diverged[head] = True
            return False
        best = self._best[head]
        if best is None or line.validation_loss < best[0] - TIE:
            values = self._heads.parameters
            kept = {name: value[place].clone() for name, value in values.items()}
            best = self._best[head] = (line.validation_loss, line.epoch, kept)
        return not self._common.patience or line.epoch - best[1] < self._common.patience

    def _train_epoch(self, epoch: int) -> list[float]:
        """One pass over the training rows: each active head's mean loss."""
        common = self._common
        order = epoch_order(len(self._train), batch_size=common.batch_size, seed=common.seed, epoch=epoch)
        total = torch.zeros(len(self._heads), dtype=torch.float64, device=self._device)
        for chunks in batches(order, common.batch_size):
            entry = self._heads.scaled_entry()

            def work(share: Sequence[tuple[int, Indices]], entry: torch.Tensor = entry) -> Sums:
                return self._add_up(share, epoch, entry)

            found = self._lanes.run(work, chunks)
            gradients, losses = found[0]
            for more, loss in found[1:]:
                losses += loss
                for name, value in more.items():
                    gradients[name] += value
            self._heads.finish(gradients, sum(len(positions) for _, positions in chunks))
            self._optimizer.step(self._heads.parameters, gradients)
            total += losses
        means: list[float] = (total / len(self._train)).tolist()
        return means

    def _add_up(self, chunks: Sequence[tuple[int, Indices]], epoch: int, entry: torch.Tensor) -> Sums:
        """Gradients and losses summed over some chunks."""
        gradients = {name: torch.zeros_like(value) for name, value in self._heads.parameters.items()}
        total = torch.zeros(len(self._heads), dtype=torch.float64, device=self._device)
        levels = self._heads.levels
        for number, positions in chunks:
            features = self._train.take(positions)
            inputs = [features]
            if levels != [0]:
                bits = random_bits(*features.shape, seed=self._common.seed, epoch=epoch, chunk=number)
                inputs = [features * (bits >= level) if level else features for level in levels]
            tensors = [torch.from_numpy(each).to(self._device) for each in inputs]
            labels = torch.from_numpy(self._train.targets[positions]).to(self._device)
            logits, hidden = self._heads.products(tensors, entry)
            losses, gradient = self._loss.gradient(logits, labels)
            self._heads.add_gradients(gradients, gradient, hidden, tensors)
            total += losses
        return gradients, total

    def _validate(self) -> tuple[list[float], list[float], list[float]]:
        """Each active head's mean cross-entropy, accuracy and macro F1 on the validation rows, without dropout."""
        rows = len(self._validation)
        spans = [(start, min(start + CHUNK_ROWS, rows)) for start in range(0, rows, CHUNK_ROWS)]
        found = self._lanes.run(self._score, spans)
        loss, matches, guessed = (torch.stack(each).sum(0) for each in zip(*found, strict=True))
        seen = guessed + torch.from_numpy(self._validation_counts).to(self._device)
        f1 = torch.where(seen > 0, 2 * matches / seen, 0).sum(1) / (seen > 0).sum(1)
        return (loss / rows).tolist(), (matches.sum(1) / rows).tolist(), f1.tolist()

    def _score(self, spans: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Over some rows: losses (heads,); how often each class was predicted rightly, and at all (heads, classes)."""
        heads, classes = len(self._heads), self._classes
        loss = torch.zeros(heads, dtype=torch.float64, device=self._device)
        matches, guessed = torch.zeros(2, heads * classes, dtype=torch.float64, device=self._device)
        entry = self._heads.parameters[self._heads.entry]
        first_class = torch.arange(heads, device=self._device)[:, None] * classes
        for start, stop in spans:
            features = torch.from_numpy(self._validation.between(start, stop)).to(self._device)
            labels = torch.from_numpy(self._validation.targets[start:stop]).to(self._device)
            logits, _ = self._heads.products([features], entry)
            highest, predicted = logits.max(1)
            own = logits.gather(1, labels.expand(heads, 1, -1))[:, 0]  # (heads, rows)
            cells = predicted + first_class
            guessed += torch.bincount(cells.reshape(-1), minlength=heads * classes)
            matches += torch.bincount(cells[predicted == labels], minlength=heads * classes)
            loss += ((logits - highest.unsqueeze(1)).exp_().sum(1).log_() + highest - own).sum(1, dtype=torch.float64)
        return loss, matches.view(heads, classes), guessed.view(heads, classes)

    def _absorbed(self, values: dict[str, torch.Tensor]) -> Parameters:
        """A head's parameters for features as they are."""
        arrays = {name: value.cpu().numpy().copy() for name, value in values.items()}  # training goes on
        return absorb(arrays, self._columns)


Sums = tuple[dict[str, torch.Tensor], torch.Tensor]
"""Gradients by name, and losses (heads,) float64, summed over rows."""
