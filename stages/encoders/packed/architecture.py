"""What an architecture is to the packed pass, and how the ones of this folder are found.

A new architecture is a new file here, which names its classes in ``ARCHITECTURES``. No other file changes, unless the
architecture computes attention in another way.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from ..pooling import Feature
from .cpu import CPU
from .forward import PackedForward
from .kernels import Kernels
from .layers import LayerNames

_LEGACY = {"gamma": "weight", "beta": "bias"}  # old names of a norm's weights


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(abc.ABC):
    """One encoder's architecture. Its fields hold what the weights do not say, and stand in a cache's record."""

    BASE: ClassVar[str]  # its name within a larger model, which some files put before the name of each weight
    NAMES: ClassVar[LayerNames]
    BIASED_SCORES: ClassVar[bool] = False  # whether attention adds to a score what depends on more than a window
    model_type: str
    heads: int  # of each layer
    layers: int
    epsilon: float  # of every norm

    @classmethod
    @abc.abstractmethod
    def from_config(cls, config: Mapping[str, Any]) -> Architecture | None:
        """Read config.json, or the configuration that transformers made of it.

        Returns None where the packed pass would compute something else, or where a field without a default is missing.
        """

    def layer_weights(self) -> set[str]:
        """The names of all weights of the layers."""
        return {
            f"{self.NAMES.layer.format(number)}{part}.{kind}"
            for number in range(self.layers)
            for part in self.NAMES.all()
            for kind in ("weight", "bias")
        }

    @classmethod
    def names_of(cls, stored: str) -> tuple[str, ...]:
        """transformers' name for a weight that is stored under another, or the names of its equal parts, by rows."""
        *path, last = stored.removeprefix(f"{cls.BASE}.").split(".")
        return (".".join([*path, _LEGACY.get(last, last)]),)

    @classmethod
    def unread_field(cls, config: Mapping[str, Any]) -> str | None:
        """A field of config.json that only the encoder's own code reads, and by which it computes something else."""
        return None

    def trial_lengths(self) -> Sequence[int]:
        """The lengths of sequences that, in one batch, show all that the packed pass computes for the architecture."""
        return (7, 7, 3)

    def matches(self, model: Any) -> bool:
        """Whether what neither weights nor a short trial show of transformers' model is as here."""
        return True

    @abc.abstractmethod
    def build(
        self,
        weights: Mapping[str, torch.Tensor],
        features: Sequence[Feature],
        *,
        dtype: torch.dtype,
        batch_tokens: int,
        kernels: Kernels = CPU,
    ) -> PackedForward:
        """Lay out the weights that the features need for batches of about ``batch_tokens`` tokens.

        ``weights`` are float32, by the names of transformers' ``state_dict()``, on the device of the ``kernels``; a
        KeyError where one is missing. Products run in ``dtype``, sums and norms in float32.
        """


def find_architecture(config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a configuration; None where the packed pass cannot run it."""
    architecture = architecture_class(config)
    return None if architecture is None else architecture.from_config(config)


def architecture_class(config: Mapping[str, Any]) -> type[Architecture] | None:
    """The class of a configuration's ``model_type``, whether or not the packed pass can run it."""
    return _architectures().get(str(config.get("model_type")))


@functools.cache
def _architectures() -> dict[str, type[Architecture]]:
    """All architectures of this package, by ``model_type``. No name from a configuration is ever imported."""
    package = importlib.import_module(__name__.rpartition(".")[0])
    known: dict[str, type[Architecture]] = {}
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        known |= getattr(importlib.import_module(module.name), "ARCHITECTURES", {})
    return known
