"""Many heads as one product: their parameters, their losses' gradients, and AdamW, each head with its own settings.

Every tensor's first dimension is the head's. Logits are (heads, classes, rows): softmax then runs over whole rows of
memory whatever the number of heads and classes. Training many linear heads in one pass over the features is what
DINOv2's linear evaluation does with one module for each (Oquab et al., 2023); here they share the products.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ..settings import ClassWeight, HeadKind, Schedule, TrainSettings
from .dataset import Indices, drop_level, keep_scale

Tensor = torch.Tensor

ADAM_EPSILON = 1e-5
"""AdamW's guard against division by zero, far above torch's 1e-8: real features have columns that are constant to
1e-9, and a small epsilon turns the rounding noise of their gradients into steps of full length. With this one the
same texts batched otherwise give the same head, and no curve is worse for it (bench/README.md)."""
_BETAS = 0.9, 0.999


@dataclasses.dataclass(frozen=True)
class Loss:
    """What each head's loss is: cross-entropy with smoothed labels, a row weighing what its class does.

    Attributes:
        smoothing: (heads, 1, 1) float32.
        class_weights: (heads, classes) float32.
        smooth: Some head smooths its labels.
        weighted: Some head weighs its classes.
    """

    smoothing: Tensor
    class_weights: Tensor
    smooth: bool
    weighted: bool

    @classmethod
    def of(cls, settings: Sequence[TrainSettings], counts: Indices, device: torch.device) -> Loss:
        """Args: settings: one for each head. counts: (classes,) int64, training rows of each class."""
        smoothing = torch.tensor([[[each.label_smoothing]] for each in settings], dtype=torch.float32, device=device)
        weights = [class_weights(each.class_weight, counts) for each in settings]
        return cls(
            smoothing,
            torch.from_numpy(np.stack(weights).astype(np.float32)).to(device),
            smooth=any(each.label_smoothing > 0 for each in settings),
            weighted=any(each.class_weight is not ClassWeight.NONE for each in settings),
        )

    def gradient(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Losses summed over the rows, (heads,) float64, and their gradient by the logits, (heads, classes, rows).

        The logits (heads, classes, rows) are overwritten; labels are (rows,) int64.
        """
        _, classes, rows = logits.shape
        target = torch.zeros(classes, rows, device=logits.device).scatter_(0, labels[None], 1.0)
        if self.smooth:
            target = target * (1 - self.smoothing) + self.smoothing / classes  # (heads, classes, rows)
        logits -= logits.amax(1, keepdim=True)
        aimed = (logits * target).sum(1)  # (heads, rows)
        total = logits.exp_().sum(1, keepdim=True)
        losses = total.log()[:, 0] - aimed
        gradient = logits.div_(total).sub_(target)
        if self.weighted:
            weights = self.class_weights.index_select(1, labels)  # (heads, rows)
            losses *= weights
            gradient *= weights.unsqueeze(1)
        return losses.sum(1, dtype=torch.float64), gradient

    def __getitem__(self, heads: Tensor) -> Loss:
        return dataclasses.replace(self, smoothing=self.smoothing[heads], class_weights=self.class_weights[heads])


def class_weights(kind: ClassWeight, counts: Indices) -> npt.NDArray[np.float64]:
    """What a row of each class counts, (classes,) float64: 1 on average over the rows."""
    if kind is ClassWeight.NONE:
        return np.ones(len(counts))
    weights: npt.NDArray[np.float64] = counts.sum() / (len(counts) * np.maximum(counts, 1))
    return weights


class StackedHeads:
    """Several heads of one kind, and the products that they share.

    Attributes:
        parameters: ``weight`` and ``bias``; for an MLP also ``hidden.weight`` and ``hidden.bias``.
    """

    def __init__(self, settings: Sequence[TrainSettings], *, width: int, classes: int, device: torch.device) -> None:
        heads, first = len(settings), settings[0]
        self.parameters: dict[str, Tensor] = {}
        inner = width
        if first.head is HeadKind.MLP:
            inner = first.hidden
            # Kaiming's uniform start (He et al., 2015), from the seed; the last layer starts at zero as ever.
            generator = torch.Generator().manual_seed(first.seed)
            bound = math.sqrt(6 / width)
            start = (torch.rand(inner, width, generator=generator) * 2 - 1) * bound
            self.parameters["hidden.weight"] = start.to(device).repeat(heads, 1, 1)
            self.parameters["hidden.bias"] = torch.zeros(heads, inner, 1, device=device)
        # Zero: the linear problem is convex, and a start that no seed chooses is one thing fewer to vary.
        self.parameters["weight"] = torch.zeros(heads, classes, inner, device=device)
        self.parameters["bias"] = torch.zeros(heads, classes, 1, device=device)
        self.device = device
        self._set_rates([each.dropout for each in settings])

    def _set_rates(self, rates: list[float]) -> None:
        """Note which heads share a dropout mask: heads must stand sorted by their rate."""
        self._rates = rates
        self.levels = sorted({drop_level(rate) for rate in rates})
        levels = [drop_level(rate) for rate in rates]
        self._spans = [(levels.index(level), levels.index(level) + levels.count(level)) for level in self.levels]
        scales = [keep_scale(rate) for rate in rates]
        self._scale = torch.tensor(scales, dtype=torch.float32, device=self.device).reshape(-1, 1, 1)

    def __len__(self) -> int:
        return len(self._rates)

    @property
    def entry(self) -> str:
        """The parameter that is multiplied by the features."""
        return "hidden.weight" if "hidden.weight" in self.parameters else "weight"

    def scaled_entry(self) -> Tensor:
        """The first weight times what dropout scales kept values by: cheaper than scaling the values."""
        return self.parameters[self.entry] * self._scale

    def products(self, inputs: Sequence[Tensor], entry: Tensor) -> tuple[Tensor, Tensor]:
        """Forward pass.

        Args:
            inputs: (rows, width) features, one for each dropout rate in ascending order, or one for all heads.
            entry: The first weight, from `scaled_entry`, or the parameter itself where nothing is dropped.

        Returns:
            Logits (heads, classes, rows), and what the last layer saw: an MLP's (heads, hidden, rows), else nothing.
        """
        heads, outputs, _ = entry.shape
        flat = entry.reshape(heads * outputs, -1)
        if len(inputs) == 1:
            product = torch.mm(flat, inputs[0].T)
        else:
            product = torch.empty(len(flat), len(inputs[0]), device=self.device)
            for features, (start, stop) in zip(inputs, self._spans, strict=True):
                rows = slice(start * outputs, stop * outputs)
                torch.mm(flat[rows], features.T, out=product[rows])
        product = product.view(heads, outputs, -1)
        if "hidden.weight" not in self.parameters:
            return product.add_(self.parameters["bias"]), product.new_empty(0)
        hidden = product.add_(self.parameters["hidden.bias"]).relu_()
        return torch.baddbmm(self.parameters["bias"], self.parameters["weight"], hidden), hidden

    def add_gradients(
        self, into: dict[str, Tensor], gradient: Tensor, hidden: Tensor, inputs: Sequence[Tensor]
    ) -> None:
        """Backward pass: add the parameters' gradients (the first weight's unscaled) to those of earlier chunks."""
        into["bias"] += gradient.sum(2, keepdim=True)
        if "hidden.weight" in self.parameters:
            into["weight"].baddbmm_(gradient, hidden.transpose(1, 2))
            gradient = torch.bmm(self.parameters["weight"].transpose(1, 2), gradient).mul_(hidden > 0)
            into["hidden.bias"] += gradient.sum(2, keepdim=True)
        outputs = gradient.shape[1]
        flat, target = gradient.reshape(-1, gradient.shape[2]), into[self.entry].view(-1, inputs[0].shape[1])
        for features, (start, stop) in zip(inputs, self._spans, strict=True):
            rows = slice(start * outputs, stop * outputs)
            target[rows].addmm_(flat[rows], features)

    def finish(self, gradients: dict[str, Tensor], rows: int) -> None:
        """Turn sums over a batch into its mean's gradients."""
        for gradient in gradients.values():
            gradient.div_(rows)
        gradients[self.entry] *= self._scale

    def keep(self, heads: Tensor) -> None:
        """Go on with these heads alone."""
        self.parameters = {name: value[heads].contiguous() for name, value in self.parameters.items()}
        self._set_rates([self._rates[head] for head in heads.tolist()])


class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) over several heads, each with its own learning rate and decay.

    As torch.optim.AdamW, with `ADAM_EPSILON`, and no decay for a bias.
    """

    def __init__(self, heads: StackedHeads, settings: Sequence[TrainSettings], steps: int) -> None:
        column = torch.Tensor([[each.learning_rate, each.weight_decay] for each in settings]).to(heads.device)
        self._rate, self._decay = (column[:, i].reshape(-1, 1, 1) for i in range(2))
        self._first = {name: torch.zeros_like(value) for name, value in heads.parameters.items()}
        self._second = {name: torch.zeros_like(value) for name, value in heads.parameters.items()}
        self._schedule, self._warmup = settings[0].schedule, settings[0].warmup
        self._steps, self._step = steps, 0

    def step(self, parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        """Move the parameters by one batch's gradients."""
        rate = self._rate * schedule_factor(self._step, self._steps, self._schedule, self._warmup)
        self._step += 1
        bias_first, bias_second = (1 - beta**self._step for beta in _BETAS)
        for name, value in parameters.items():
            gradient, first, second = gradients[name], self._first[name], self._second[name]
            if name.endswith("weight"):
                value.mul_(1 - rate * self._decay)
            first.lerp_(gradient, 1 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1 - _BETAS[1])
            spread = (second.sqrt() / math.sqrt(bias_second)).add_(ADAM_EPSILON)
            value.addcdiv_(first * (-rate / bias_first), spread)

    def keep(self, heads: Tensor) -> None:
        """Go on with these heads alone."""
        self._rate, self._decay = self._rate[heads], self._decay[heads]
        for moments in (self._first, self._second):
            moments.update({name: value[heads].contiguous() for name, value in moments.items()})


def schedule_factor(step: int, steps: int, schedule: Schedule, warmup: float) -> float:
    """What the learning rate is multiplied by at a step, counted from 0: a linear rise, then as the schedule says."""
    rising = math.ceil(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    if schedule is Schedule.CONSTANT:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
