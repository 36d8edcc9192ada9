"""Loads a packed encoder without transformers, which takes longer to load than the texts of an update to encode.

The result is unproven: `extraction.reopen` encodes rows of a finished cache again before the encoder is used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import safetensors
import tokenizers
import torch

from ..devices import DTYPES
from ..settings import ForwardMode
from .config import EncoderConfig
from .encoder import Encoder, EncoderSettings, leave_out_prompt
from .files import CONFIG, TOKENIZER, EncoderFiles
from .int8 import to_int8
from .modules import with_modules
from .packed.architecture import Architecture, find_architecture
from .packed.backend import packed_backend
from .packed.cpu import CPU
from .packed.kernels import Kernels, UnfitError
from .packed.varlen import cuda_kernels, find_fused
from .tokenizer import set_up
from .weights import unused_weights


def load_packed(files: EncoderFiles, settings: EncoderSettings, packed: Any) -> Encoder | None:
    """Load an encoder as a record says, where the encoder's own files agree with the record.

    Returns None where only transformers can load it. ``packed`` is that field of the record's ``encoder``, which may
    come from anyone. Where the files are odd, this raises exceptions of any kind.
    """
    if settings.device.type not in ("cpu", "cuda") or files.pickled or files.model / TOKENIZER not in files.tokenizer:
        return None
    tokenizer = tokenizers.Tokenizer.from_file(str(files.model / TOKENIZER))
    set_up(
        tokenizer,
        max_length=settings.cut_at,
        direction=settings.truncation_side,
        lower_case=settings.lower_case,
    )
    settings = leave_out_prompt(settings, tokenizer, name=files.name)
    architecture = find_architecture(json.loads((files.model / CONFIG).read_bytes()))
    if architecture is None or (config := EncoderConfig.from_record(packed, architecture, tokenizer)) is None:
        return None
    dtype = DTYPES[settings.precision]
    kernels = _kernels(architecture, settings.device, dtype)
    if kernels is None:
        return None
    weights = _Weights(files, architecture, kernels)
    batch_tokens = settings.chosen_batch_tokens(ForwardMode.PACKED, config.width)
    forward = architecture.build(weights, settings.pooled, dtype=dtype, batch_tokens=batch_tokens, kernels=kernels)
    if weights.unused():
        return None  # transformers says which
    if settings.int8:
        to_int8(forward, settings, tokenizer)
    width, segments = config.width, config.segments
    backend = packed_backend(with_modules(forward, files, settings, width=width), settings.device)
    return Encoder(settings, tokenizer=tokenizer, backend=backend, width=width, segments=segments, config=config)


def _kernels(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """The kernels of a device; None where the pass would run there in another way than at its best."""
    if device.type == "cpu":
        return CPU
    try:
        kernels = cuda_kernels(device, dtype, biased_scores=architecture.BIASED_SCORES)
    except UnfitError:
        return None
    kernels.fused = find_fused()
    return None if kernels.fused is None else kernels


class _Weights(Mapping[str, torch.Tensor]):
    """float32 weights on a device, by the names of transformers' ``state_dict()``.

    Each is read from its file when it is asked for."""

    def __init__(self, files: EncoderFiles, architecture: Architecture, kernels: Kernels) -> None:
        """List them. Raises ValueError where two have the same name."""
        self._architecture, self._kernels = architecture, kernels
        self._homes: dict[str, tuple[Any, str, int, int]] = {}  # file, name there, which part of how many
        self._used: set[str] = set()
        for file in files.weights:
            if file.suffix != ".safetensors":  # the index of several files
                continue
            opened: Any = safetensors.safe_open(file, "pt")
            for stored in opened.keys():  # noqa: SIM118 - it is no mapping
                names = architecture.names_of(stored)
                for part, name in enumerate(names):
                    if name in self._homes:
                        raise ValueError(f"two weights are called {name}")
                    self._homes[name] = opened, stored, part, len(names)

    def __getitem__(self, name: str) -> torch.Tensor:
        file, stored, part, parts = self._homes[name]
        self._used.add(name)
        weight: torch.Tensor = file.get_tensor(stored)  # mapped, as transformers maps it
        if not weight.is_floating_point():
            raise ValueError(f"the weights {stored} are quantised")
        return self._kernels.load((weight if parts == 1 else weight.chunk(parts)[part]).to(torch.float32))

    def unused(self) -> list[str]:
        """The weights that were not asked for, and belong neither to a layer of the architecture nor to a head."""
        others = self._homes.keys() - self._used - self._architecture.layer_weights()
        return unused_weights(others, self._architecture.BASE)

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)
