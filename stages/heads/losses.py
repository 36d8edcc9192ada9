"""What heads that train together by AdamW minimise, for each kind of target, and how their curves are scored.

Logits are (heads, outputs, rows) float32 throughout. A loss is made for the heads' settings and the training rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from ..settings import ClassWeight, TrainSettings
from ..types import Float64Array, Indices
from .dataset import Values
from .head import Parameters
from .stacked import Tensor, class_weights

LEAST_VARIANCE = 1e-300
_LEAST_GAP = 1e-3
"""Between two neighbouring biases of cumulative logits, so that each class keeps a probability."""
Curves = tuple[list[float], list[float | None], list[float | None]]
"""Of each head: its loss on the validation rows, and accuracy and macro F1, None where there are none."""


class Loss(Protocol):
    """What heads minimise.

    Attributes:
        weights: Rows of the last layer's weight.
        bias: (outputs,) float32, what the last layer's bias starts at.
    """

    weights: int
    bias: npt.NDArray[np.float32]

    def encode(self, values: Values) -> Values:
        """Turn the values of rows into what the other methods take."""

    def loss_and_gradient(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The losses summed over the rows, (heads,) float64, and the gradient with respect to the logits, which may be
        overwritten."""

    def tally(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """What `curves` needs of some rows, to be summed over all; (heads, ...) float64 each."""

    def curves(self, sums: Sequence[Tensor], rows: int) -> Curves:
        """The scores of rows from the sums of their tallies. The loss is without smoothing and class weights."""

    def project(self, bias: Tensor) -> None:
        """Move biases (heads, outputs, 1) back to where they have a meaning, in place."""

    def fold_back(self, parameters: Parameters) -> Parameters:
        """Turn parameters for encoded values into parameters for the values themselves."""


class _Plain:
    """What most losses do."""

    def encode(self, values: Values) -> Values:
        return values

    def project(self, bias: Tensor) -> None:
        pass

    def fold_back(self, parameters: Parameters) -> Parameters:
        return parameters


class _ClassLoss(_Plain):
    """Losses of rows that have one of several classes: targets are (rows,) int64."""

    def __init__(self, settings: Sequence[TrainSettings], counts: Indices, device: torch.device) -> None:
        """Make the loss of heads with these settings; counts are (classes,) int64, the training rows of each class."""
        weights = np.stack([class_weights(head.class_weight, counts) for head in settings]).astype(np.float32)
        self._class_weights = torch.from_numpy(weights).to(device)  # (heads, classes)
        self._classes = len(counts)
        self._is_weighted = any(head.class_weight is not ClassWeight.NONE for head in settings)

    def _weigh(self, labels: Tensor) -> Tensor:
        return self._class_weights.index_select(1, labels)  # (heads, rows)

    def _hits(self, predicted: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """True positives and predicted counts, (heads, classes), and the rows of each class, (classes,)."""
        heads, classes = len(predicted), self._classes
        cells = predicted + torch.arange(heads, device=predicted.device)[:, None] * classes
        counts = (cells[predicted == labels], cells.reshape(-1))
        by_class = (torch.bincount(count, minlength=heads * classes).view(heads, classes) for count in counts)
        return (*(count.double() for count in by_class), torch.bincount(labels, minlength=classes).double())

    def curves(self, sums: Sequence[Tensor], rows: int) -> Curves:
        loss, true_positives, predicted, support = sums
        both = predicted + support
        f1 = torch.where(both > 0, 2 * true_positives / both, 0).sum(1) / (both > 0).sum(1)
        return (loss / rows).tolist(), (true_positives.sum(1) / rows).tolist(), f1.tolist()


class CrossEntropy(_ClassLoss):
    """Of one of several classes: cross-entropy with label smoothing and class weights."""

    def __init__(self, settings: Sequence[TrainSettings], counts: Indices, device: torch.device) -> None:
        super().__init__(settings, counts, device)
        self.weights, self.bias = len(counts), np.zeros(len(counts), np.float32)
        self._smoothing, self._is_smoothed = _smoothing(settings, device)

    def loss_and_gradient(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        _, classes, rows = logits.shape
        target = torch.zeros(classes, rows, device=logits.device).scatter_(0, targets[None], 1.0)
        if self._is_smoothed:
            target = target * (1 - self._smoothing) + self._smoothing / classes  # (heads, classes, rows)
        logits -= logits.amax(1, keepdim=True)
        target_logits = (logits * target).sum(1)  # (heads, rows)
        total = logits.exp_().sum(1, keepdim=True)
        losses = total.log()[:, 0] - target_logits
        gradient = logits.div_(total).sub_(target)
        if self._is_weighted:
            weights = self._weigh(targets)
            losses *= weights
            gradient *= weights.unsqueeze(1)
        return losses.sum(1, dtype=torch.float64), gradient

    def tally(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        highest, predicted = logits.max(1)  # (heads, rows)
        label_logits = logits.gather(1, targets.expand(len(logits), 1, -1))[:, 0]  # (heads, rows)
        losses = (logits - highest.unsqueeze(1)).exp_().sum(1).log_() + highest - label_logits
        return losses.sum(1, dtype=torch.float64), *self._hits(predicted, targets)


class CumulativeLogits(_ClassLoss):
    """Of classes with an order: -log of the class's probability times class weight, as in `ordinal`.

    All outputs share one row of weights. Their biases begin at the logits of the training rows' shares.
    """

    def __init__(self, settings: Sequence[TrainSettings], counts: Indices, device: torch.device) -> None:
        super().__init__(settings, counts, device)
        above = (counts[::-1].cumsum()[-2::-1] + 0.5) / (counts.sum() + 1)  # the share of rows above each but the last
        self.weights, self.bias = 1, np.log(above / (1 - above)).astype(np.float32)

    def loss_and_gradient(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        number = torch.arange(self._classes - 1, device=logits.device)[:, None]
        above = (targets > number).float()  # (outputs, rows)
        weights = self._weigh(targets).unsqueeze(1)  # (heads, 1, rows)
        near = ((targets == number) | (targets == number + 1)) * weights  # the biases on both sides of the class
        losses = ((torch.nn.functional.softplus(logits) - above * logits) * near).sum(1)
        gradient = (logits.sigmoid() - above) * near
        inside = (targets == number[1:]) * weights  # (heads, outputs - 1, rows): classes with a bias on both sides
        gaps = logits[:, :-1, :1] - logits[:, 1:, :1]  # equal in all rows
        losses -= (inside * torch.log(-torch.expm1(-gaps))).sum(1)
        push = inside / torch.expm1(gaps)
        gradient[:, :-1] -= push
        gradient[:, 1:] += push
        return losses.sum(1, dtype=torch.float64), gradient

    def tally(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        edge = torch.full_like(logits[:, :1], math.inf)
        upper, lower = torch.cat([edge, logits], 1), torch.cat([logits, -edge], 1)  # (heads, classes, rows)
        # Of a class: sigmoid(upper) - sigmoid(lower), in factors of which none cancels.
        log_probabilities = (
            torch.nn.functional.logsigmoid(upper)
            + torch.nn.functional.logsigmoid(-lower)
            + torch.log(-torch.expm1(lower - upper))
        )
        losses = -log_probabilities.gather(1, targets.expand(len(logits), 1, -1))[:, 0]
        return losses.sum(1, dtype=torch.float64), *self._hits(log_probabilities.argmax(1), targets)

    def project(self, bias: Tensor) -> None:
        steps = _LEAST_GAP * torch.arange(bias.shape[1], device=bias.device)[:, None]
        bias.copy_(torch.cummin(bias + steps, 1).values - steps)


class BinaryCrossEntropy(_Plain):
    """Of any number of labels: binary cross-entropy with label smoothing and class weights. Its gradient is that of the
    sum over the labels, as if each had a head of its own, and the loss their mean. Targets are (rows, labels) uint8."""

    def __init__(self, settings: Sequence[TrainSettings], counts: Indices, rows: int, device: torch.device) -> None:
        """Make the loss of heads with these settings; counts are (labels,) int64, the training rows with each."""
        self.weights, self.bias = len(counts), np.zeros(len(counts), np.float32)
        sides = [[class_weights(head.class_weight, np.array([rows - n, n])) for n in counts] for head in settings]
        self._side_weights = torch.tensor(np.array(sides), dtype=torch.float32, device=device)  # (heads, labels, 2)
        self._is_weighted = any(head.class_weight is not ClassWeight.NONE for head in settings)
        self._smoothing, self._is_smoothed = _smoothing(settings, device)

    def loss_and_gradient(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        target = true = targets.T.float()  # (labels, rows)
        if self._is_smoothed:
            target = true * (1 - self._smoothing) + self._smoothing / 2
        losses = torch.nn.functional.softplus(logits) - target * logits
        gradient = logits.sigmoid_().sub_(target)
        if self._is_weighted:
            weights = self._side_weights[:, :, :1] * (1 - true) + self._side_weights[:, :, 1:] * true
            losses *= weights
            gradient *= weights
        return losses.sum((1, 2), dtype=torch.float64) / self.weights, gradient

    def tally(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        true, said = targets.T.bool(), logits >= 0
        losses = torch.nn.functional.softplus(logits) - true * logits
        counts = ((said & true).sum(2), said.sum(2), true.sum(1), (said == true).all(1).sum(1))
        return losses.sum((1, 2), dtype=torch.float64) / self.weights, *(count.double() for count in counts)

    def curves(self, sums: Sequence[Tensor], rows: int) -> Curves:
        loss, hits, said, support, right = sums
        both = said + support
        f1 = torch.where(both > 0, 2 * hits / both, 0).mean(1)
        return (loss / rows).tolist(), (right / rows).tolist(), f1.tolist()


class SquaredError(_Plain):
    """Of numbers: the squared error in units of the training rows' variance, for which numbers are standardized. The
    loss of curves is `NumberTarget`'s log loss. Targets are (rows,) float32."""

    def __init__(self, heads: int, values: Float64Array) -> None:
        self.weights, self.bias, self._heads = 1, np.zeros(1, np.float32), heads
        self._mean, self._scale = float(values.mean()), float(values.std())

    def encode(self, values: Values) -> Values:
        return ((values - self._mean) / self._scale).astype(np.float32)

    def loss_and_gradient(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        errors = logits.sub_(targets)
        return errors.square().sum((1, 2), dtype=torch.float64), errors.mul_(2)

    def tally(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return ((logits - targets).square().sum((1, 2), dtype=torch.float64),)

    def curves(self, sums: Sequence[Tensor], rows: int) -> Curves:
        none: list[float | None] = [None] * self._heads
        return [normal_log_loss(float(total) / rows * self._scale**2) for total in sums[0]], none, none

    def fold_back(self, parameters: Parameters) -> Parameters:
        weight, bias = (parameters[name].astype(np.float64) * self._scale for name in ("weight", "bias"))
        return parameters | {"weight": weight.astype(np.float32), "bias": (bias + self._mean).astype(np.float32)}


def normal_log_loss(variance: float) -> float:
    """The mean log loss, in nats, of a normal distribution whose variance is the mean squared error."""
    return math.log(2 * math.pi * math.e * max(variance, LEAST_VARIANCE)) / 2


def _smoothing(settings: Sequence[TrainSettings], device: torch.device) -> tuple[Tensor, bool]:
    """Each head's label smoothing, (heads, 1, 1) float32, and whether there is any."""
    smoothing = torch.tensor([head.label_smoothing for head in settings], dtype=torch.float32, device=device)
    return smoothing.reshape(-1, 1, 1), any(head.label_smoothing > 0 for head in settings)
