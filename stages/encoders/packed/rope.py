"""What config.json says of rotary positions, for all architectures that have them; `attention.Rope` turns by them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

Tensor = torch.Tensor


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched, as Llama 3.1 does it: slow ones by ``factor``, quick ones not at all.

    Where ``low`` is 0, all are stretched, which is the kind "linear".
    """

    factor: float
    low: float = 0.0
    high: float = 0.0
    trained: int = 0  # on how many tokens

    def __call__(self, frequencies: Tensor) -> Tensor:
        """(pairs,) to (pairs,), in the order of transformers' own steps."""
        slow = frequencies / self.factor
        if not self.low:
            return slow
        waves = 2 * math.pi / frequencies
        smooth = (self.trained / waves - self.low) / (self.high - self.low)
        between = (1 - smooth) * frequencies / self.factor + smooth * frequencies
        mixed = torch.where(waves > self.trained / self.low, slow, frequencies)
        middle = (waves >= self.trained / self.high) & (waves <= self.trained / self.low)
        return torch.where(middle, between, mixed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeShape:
    """What config.json says of rotary positions."""

    theta: float
    scaling: RopeScaling | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *, theta: float) -> RopeShape | None:
        """Read config.json, which says it in the ways of several releases of transformers; ``theta`` is the default.

        Returns None where the positions are of a kind that is not computed here.
        """
        given = config.get("rope_scaling") or config.get("rope_parameters") or {}
        if not isinstance(given, Mapping) or config.get("partial_rotary_factor") not in (1.0, None):
            return None
        return cls.of_layers(given, theta=config.get("rope_theta", theta), most=config.get("max_position_embeddings"))

    @classmethod
    def of_layers(cls, fields: Mapping[str, Any], *, theta: Any, most: Any) -> RopeShape | None:
        """Read the fields of one kind of layers; None where they are of a kind that is not computed here.

        ``theta`` counts where the fields do not have it, ``most`` is the most positions.
        """
        kind, theta = fields.get("rope_type", fields.get("type", "default")), fields.get("rope_theta", theta)
        numbers: list[Any] = [theta]
        if kind in ("linear", "llama3"):
            numbers.append(fields.get("factor"))
        if kind == "llama3":
            numbers += [fields.get("low_freq_factor"), fields.get("high_freq_factor")]
            numbers.append(fields.get("original_max_position_embeddings", most))
        known = kind in ("default", "linear", "llama3") and fields.get("partial_rotary_factor") in (1.0, None)
        if not known or not all(type(number) in (int, float) and number > 0 for number in numbers):
            return None
        return cls(theta=float(theta), scaling=RopeScaling(*numbers[1:]) if numbers[1:] else None)

    def frequencies(self, width: int) -> Tensor:
        """(width / 2,) float32, for heads of ``width`` numbers."""
        frequencies = 1.0 / self.theta ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        return frequencies if self.scaling is None else self.scaling(frequencies)


def same_rope(rotary: Any, prefix: str, rope: RopeShape) -> bool:
    """Whether transformers' module turns by exactly these frequencies: a short trial does not show the slow ones."""
    found, scale = getattr(rotary, f"{prefix}inv_freq", None), getattr(rotary, f"{prefix}attention_scaling", None)
    return isinstance(found, Tensor) and scale == 1 and torch.equal(found.cpu(), rope.frequencies(2 * len(found)))
