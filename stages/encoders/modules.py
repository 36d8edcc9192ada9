"""The feature `model`: what an encoder's own modules make of pooled states, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import safetensors.torch
import torch
from torch.nn import functional

from ...cache.errors import EncoderError
from ..types import TokenIds
from .backend import Forward
from .encoder import EncoderSettings
from .files import EncoderFiles
from .pooling import Pooling
from .recipe import Activation, Dense, LayerNorm, Normalize, Truncate

Tensor = torch.Tensor
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.IDENTITY: lambda values: values,
    Activation.TANH: torch.tanh,
    Activation.RELU: torch.relu,
    Activation.GELU: functional.gelu,
    Activation.SIGMOID: torch.sigmoid,
    Activation.SILU: functional.silu,
}
_WEIGHTS = (".safetensors", ".bin")
_NAMES = {Dense: "linear", LayerNorm: "norm"}  # of the weights


def with_modules(forward: Forward, files: EncoderFiles, settings: EncoderSettings, *, width: int) -> Forward:
    """A pass that also gives the feature ``model``, where it is among the features; else the pass itself.

    ``width`` is the numbers in each state of the encoder.

    Raises:
        EncoderError: the modules' weights are missing, damaged, or do not fit.
    """
    recipe = settings.recipe
    if recipe is None:
        return forward
    if recipe.states != width:
        problem = f"its Pooling is for states of {recipe.states:,} numbers; its model has {width:,}"
        raise EncoderError(f"encoder {files.name}: {problem}; choose `features` yourself, such as mean or cls")
    return _ModelForward(forward, settings, [_operation(files, module, settings) for module in recipe.modules])


class _ModelForward:
    """A pass, and the encoder's own modules after it."""

    def __init__(
        self, forward: Forward, settings: EncoderSettings, operations: Sequence[Callable[[Tensor], Tensor]]
    ) -> None:
        self.mode, self._forward, self._operations = forward.mode, forward, operations
        self._kept = [feature.name for feature in settings.features if feature.pooling is not Pooling.MODEL]
        self._parts = [feature.name for feature in settings.model_parts]

    def __call__(self, sequences: Sequence[TokenIds]) -> dict[str, Tensor]:
        pooled = self._forward(sequences)
        vectors = torch.cat([pooled[name].float() for name in self._parts], dim=1)
        for operation in self._operations:
            vectors = operation(vectors)
        return {**{name: pooled[name] for name in self._kept}, Pooling.MODEL.value: vectors}


def _operation(
    files: EncoderFiles, module: Dense | LayerNorm | Normalize | Truncate, settings: EncoderSettings
) -> Callable[[Tensor], Tensor]:
    """(sequences, inputs) float32 to (sequences, width) float32."""
    if isinstance(module, Normalize):
        return functional.normalize
    if isinstance(module, Truncate):
        return lambda values: values[:, : module.width]
    weight, bias = (part if part is None else part.to(settings.device) for part in module_weights(files, module))
    if isinstance(module, LayerNorm):
        return lambda values: functional.layer_norm(values, (module.width,), weight, bias)
    assert weight is not None
    return lambda values: ACTIVATIONS[module.activation](functional.linear(values, weight, bias))


def module_weights(files: EncoderFiles, module: Dense | LayerNorm) -> tuple[Tensor, Tensor | None]:
    """Read a module's weight and bias, float32; None for a dense layer that has no bias.

    Raises:
        EncoderError: the weights are missing, damaged, or do not fit.
    """
    biased = not isinstance(module, Dense) or module.bias
    shapes = {"weight": (module.width, module.inputs) if isinstance(module, Dense) else (module.width,)}
    shapes |= {"bias": (module.width,)} if biased else {}
    expected = {f"{_NAMES[type(module)]}.{name}": shape for name, shape in shapes.items()}
    weights = _weights(files, module.path)
    if {name: tuple(weight.shape) for name, weight in weights.items()} != expected:
        raise EncoderError(f"encoder {files.name}: the weights of {module.path} do not fit its config.json")
    if not all(weight.isfinite().all() for weight in weights.values()):
        raise EncoderError(f"encoder {files.name}: the weights of {module.path} hold values that are no numbers")
    weight, bias = [*(weights[name].float() for name in expected), None][:2]
    return weight, bias


def _weights(files: EncoderFiles, path: str) -> dict[str, Any]:
    inside = (file for file in files.modules if file.parent == files.folder / path)
    file = next((file for file in inside if file.suffix in _WEIGHTS), None)
    if file is None:
        raise EncoderError(f"encoder {files.name}: {files.folder / path} holds no weights (model.safetensors)")
    try:
        if file.suffix == ".safetensors":
            return dict(safetensors.torch.load_file(file))
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # of many kinds, by what is wrong with the file
        raise EncoderError(f"encoder {files.name}: {file} cannot be read: {str(error)[:160]}") from None
