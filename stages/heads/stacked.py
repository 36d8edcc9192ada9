"""Several heads that train as one: stacked parameters, and AdamW.

The first dimension of every tensor is the head. Logits are (heads, outputs, rows), so that the softmax runs over
contiguous rows however many heads and classes there are. DINOv2's linear evaluation also trains many linear heads in
one pass over the features, with one module per head (Oquab et al., 2023); here the heads share matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..settings import ClassWeight, HeadKind, Schedule, TrainSettings
from ..types import Float64Array, Indices
from .sampling import dropout_threshold, keep_scale

Tensor = torch.Tensor

ADAM_EPSILON = 1e-5
"""AdamW's guard against division by zero, much larger than torch's 1e-8. Real features have columns that are constant
to 1e-9; with a small epsilon, the rounding noise of their gradients becomes steps of full length. With 1e-5, the same
texts in other batches give the same head, and no training curve is worse (bench/README.md)."""
_BETAS = 0.9, 0.999


def class_weights(kind: ClassWeight, counts: Indices) -> Float64Array:
    """The weight of a row of each class, (classes,) float64; the mean over all rows is 1."""
    if kind is ClassWeight.NONE:
        return np.ones(len(counts))
    weights: Float64Array = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return weights


class StackedHeads:
    """Several heads of one kind, sorted by their dropout rates, that share matrix products.

    Attributes:
        parameters: ``weight`` (heads, outputs, width) and ``bias`` (heads, outputs, 1), float32; all outputs may share
            one row of weights. Of MLPs ``weight`` is (heads, outputs, hidden), after ``hidden_weight``
            (heads, hidden, width) and ``hidden_bias`` (heads, hidden, 1).
        thresholds: The heads' distinct dropout thresholds, ascending.
    """

    def __init__(
        self,
        settings: Sequence[TrainSettings],
        *,
        width: int,
        weights: int,
        bias: npt.NDArray[np.float32],
        device: torch.device,
    ) -> None:
        """Make heads whose last layer has so many rows of weights, and biases (outputs,) that begin so."""
        heads, first = len(settings), settings[0]
        self.parameters: dict[str, Tensor] = {}
        inputs = width
        if first.head is HeadKind.MLP:
            inputs = first.hidden
            # Kaiming's uniform initialization (He et al., 2015) from the seed; the last layer starts at zero.
            generator = torch.Generator().manual_seed(first.seed)
            bound = math.sqrt(6 / width)
            start = (torch.rand(inputs, width, generator=generator) * 2 - 1) * bound
            self.parameters["hidden_weight"] = start.to(device).repeat(heads, 1, 1)
            self.parameters["hidden_bias"] = torch.zeros(heads, inputs, 1, device=device)
        # Zeros: the linear problem is convex, and so a linear head does not depend on the seed's first weights.
        self.parameters["weight"] = torch.zeros(heads, weights, inputs, device=device)
        self.parameters["bias"] = torch.from_numpy(bias)[:, None].to(device).repeat(heads, 1, 1)
        self.device = device
        self._first_layer = "hidden_" if "hidden_weight" in self.parameters else ""
        self._set_dropout(settings)

    def _set_dropout(self, settings: Sequence[TrainSettings]) -> None:
        """Find out which heads share a dropout mask."""
        thresholds = [dropout_threshold(head.dropout) for head in settings]
        self.thresholds = sorted(set(thresholds))
        first = [thresholds.index(threshold) for threshold in self.thresholds]
        self._same_mask = [slice(*ends) for ends in zip(first, [*first[1:], len(settings)], strict=True)]
        scales = [keep_scale(head.dropout) for head in settings]
        self._scale = torch.tensor(scales, dtype=torch.float32, device=self.device).reshape(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._scale)

    @property
    def first_weight(self) -> Tensor:
        """The weight that is multiplied with the features, (heads, outputs, width)."""
        return self.parameters[f"{self._first_layer}weight"]

    def scaled_first_weight(self) -> Tensor:
        """The first weight times the scale of kept values: that is cheaper than to scale the values themselves."""
        return self.first_weight * self._scale

    def forward(self, inputs: Sequence[Tensor], first_weight: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the logits.

        Args:
            inputs: (rows, width) features: one tensor for each of `thresholds`, or one for all heads.
            first_weight: `scaled_first_weight` in training, `first_weight` in validation.

        Returns:
            Logits (heads, outputs, rows), and the hidden layer's outputs (heads, hidden, rows), which are empty for
            linear heads.
        """
        product = torch.empty(*first_weight.shape[:2], len(inputs[0]), device=self.device)
        for features, heads in zip(inputs, self._same_mask if len(inputs) > 1 else [slice(None)], strict=True):
            torch.mm(first_weight[heads].flatten(0, 1), features.T, out=product[heads].flatten(0, 1))
        if not self._first_layer:
            return self._add_bias(product), product.new_empty(0)
        hidden = product.add_(self.parameters["hidden_bias"]).relu_()
        return self._add_bias(torch.bmm(self.parameters["weight"], hidden)), hidden

    def _add_bias(self, product: Tensor) -> Tensor:
        bias = self.parameters["bias"]
        return product.add_(bias) if product.shape[1] == bias.shape[1] else product + bias

    def backward(self, sums: dict[str, Tensor], gradient: Tensor, hidden: Tensor, inputs: Sequence[Tensor]) -> None:
        """Add the parameters' gradients on one chunk of rows to their sums over earlier chunks.

        The gradient is with respect to the logits, (heads, outputs, rows); hidden and inputs are those of `forward`.
        The first weight's sum is not scaled yet: see `average`.
        """
        sums["bias"] += gradient.sum(2, keepdim=True)
        if gradient.shape[1] != self.parameters["weight"].shape[1]:
            gradient = gradient.sum(1, keepdim=True)
        if self._first_layer:
            sums["weight"].baddbmm_(gradient, hidden.transpose(1, 2))
            gradient = torch.bmm(self.parameters["weight"].transpose(1, 2), gradient).mul_(hidden > 0)
            sums["hidden_bias"] += gradient.sum(2, keepdim=True)
        weight_sum = sums[f"{self._first_layer}weight"]
        for features, heads in zip(inputs, self._same_mask, strict=True):
            weight_sum[heads].flatten(0, 1).addmm_(gradient[heads].flatten(0, 1), features)

    def average(self, sums: dict[str, Tensor], rows: int) -> None:
        """Turn sums of gradients over a batch of so many rows into the gradients of its mean loss, in place."""
        for gradient in sums.values():
            gradient.div_(rows)
        sums[f"{self._first_layer}weight"] *= self._scale

    def select(self, heads: Tensor, settings: Sequence[TrainSettings]) -> None:
        """Keep these heads alone, which have these settings."""
        self.parameters = {name: value[heads].contiguous() for name, value in self.parameters.items()}
        self._set_dropout(settings)


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) for several heads, each with its own learning rate and weight decay.

    It computes what torch.optim.AdamW does, with `ADAM_EPSILON`, and without decay of the biases.
    """

    def __init__(self, heads: StackedHeads, settings: Sequence[TrainSettings], steps: int) -> None:
        rates = torch.Tensor([[head.learning_rate, head.weight_decay] for head in settings]).to(heads.device)
        self._learning_rate, self._decay = (rates[:, column].reshape(-1, 1, 1) for column in range(2))
        self._first_moment = {name: torch.zeros_like(value) for name, value in heads.parameters.items()}
        self._second_moment = {name: torch.zeros_like(value) for name, value in heads.parameters.items()}
        self._schedule, self._warmup = settings[0].schedule, settings[0].warmup
        self._steps, self._step = steps, 0

    def step(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """Update the parameters, in place, by the gradients of one batch."""
        rate = self._learning_rate * schedule_factor(self._step, self._steps, self._schedule, self._warmup)
        self._step += 1
        correction_first, correction_second = (1 - beta**self._step for beta in _BETAS)
        for name, value in parameters.items():
            gradient, first, second = gradients[name], self._first_moment[name], self._second_moment[name]
            if name.endswith("weight"):
                value.mul_(1 - rate * self._decay)
            first.lerp_(gradient, 1 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            denominator = (second.sqrt() / math.sqrt(correction_second)).add_(ADAM_EPSILON)
            value.addcdiv_(first * (-rate / correction_first), denominator)

    def select(self, heads: Tensor) -> None:
        """Keep these heads alone."""
        self._learning_rate, self._decay = self._learning_rate[heads], self._decay[heads]
        for moments in (self._first_moment, self._second_moment):
            moments.update({name: value[heads].contiguous() for name, value in moments.items()})


def schedule_factor(step: int, steps: int, schedule: Schedule, warmup: float) -> float:
    """The factor of the learning rate at a step, counted from 0: a linear warm-up, then the schedule."""
    warmup_steps = math.ceil(warmup * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule is Schedule.CONSTANT:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / max(steps - warmup_steps, 1)))
