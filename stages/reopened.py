"""An encoder opened again without transformers, which takes longer to load than the texts of an update to encode.

The features of a cache that the packed pass made are the model's own: the pass was tried beside the model's when the
encoder was loaded by transformers. So an encoder that gives a sample of its rows again is the same one, however it was
loaded. Whatever stands in the way of that, transformers loads it after all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import tokenizers
import torch

from ..cache.hashing import hash_sequences
from ..cache.reader import Cache
from .agreement import bound_of, distance
from .devices import DTYPES
from .donors import Donors
from .encoder import VERSIONS, Encoder, EncoderSettings
from .encoder_files import CONFIG, EncoderFiles
from .lookup import Indices
from .packed import PackedEncoder
from .recipe import PackedShape, Recipe, tokenizer_sha256
from .settings import EncoderPath
from .survey import Survey, windows
from .table import Rows, Table

SAMPLE_ROWS = 16
"""Rows that are encoded again before the encoder is trusted."""
_TOKENIZER = "tokenizer.json"
_BASES = {"xlm-roberta": "roberta"}
"""What a larger model calls the encoder in it, where that is not its kind."""
_LEGACY = {"gamma": "weight", "beta": "bias"}
_IN_CONFIG = {
    "model_type": ("model_type",),
    "heads": ("num_attention_heads", "n_heads"),
    "layers": ("num_hidden_layers", "n_layers"),
    "epsilon": ("layer_norm_eps",),
}


def reopen(
    files: EncoderFiles, settings: EncoderSettings, donors: Donors, *, table: Table, survey: Survey, window_rows: int
) -> Encoder | None:
    """Open an encoder as a cache that it made says, and prove it on rows that the table shares with that cache.

    Args:
        files: The encoder's; the caches have their hashes.
        settings: How it is to run; the caches' identities say the same.
        donors: The caches.
        table: The rows.
        survey: What the table's first reading found.
        window_rows: How many rows from the top are looked at for such as a cache has.

    Returns:
        The encoder; None where it takes transformers.

    Raises:
        TableError: the table changed since it was surveyed.
    """
    if settings.device.type != "cpu" or files.pickled or files.folder / _TOKENIZER not in files.tokenizer:
        return None
    recipes = [_recipe_of(cache) for cache in donors.caches]
    number, recipe = next(((n, recipe) for n, recipe in enumerate(recipes) if recipe is not None), (-1, None))
    if recipe is None:
        return None
    place, rows = next(windows(table, survey, window_rows))
    given = donors.by_text(survey.text_hashes[place])  # in blocks whose checksums hold
    shared, donor = np.flatnonzero(given.donors == number), donors.caches[number]
    if not len(shared):
        return None
    shared = shared[np.argsort(donor.lengths[given.rows[shared]], kind="stable")]
    sample = shared[np.unique(np.linspace(0, len(shared) - 1, SAMPLE_ROWS).astype(int))]  # of all lengths
    try:
        return _opened(files, settings, recipe, rows=rows, sample=sample, donor=donor, places=given.rows[sample])
    except Exception:  # of any kind, according to what is odd where; what is wrong indeed, transformers says
        return None


def _recipe_of(cache: Cache) -> Recipe | None:
    """How to build the encoder of a finished cache again; None where it was made by other means than ours."""
    made = cache.plan["device"], cache.plan["path"], cache.record.get("headstart"), cache.record.get("versions")
    if made != ("cpu", EncoderPath.PACKED, version("headstart"), VERSIONS):
        return None
    return Recipe.from_record(cache.record)


def _opened(
    files: EncoderFiles,
    settings: EncoderSettings,
    recipe: Recipe,
    *,
    rows: Rows,
    sample: Indices,
    donor: Cache,
    places: Indices,
) -> Encoder | None:
    """Load it, and encode a sample again.

    Args:
        files: As for `reopen`.
        settings: As for `reopen`.
        recipe: How to build it.
        rows: Some rows of the table.
        sample: (n,) which of them to encode.
        donor: The cache that has them.
        places: (n,) their rows there.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(files.folder / _TOKENIZER))
    tokenizer.enable_truncation(settings.max_length, direction=recipe.truncation_side)
    tokenizer.no_padding()
    if tokenizer_sha256(tokenizer) != recipe.tokenizer_sha256 or not _is_of(recipe.shape, files.folder / CONFIG):
        return None
    packed = PackedEncoder(
        _Weights(files, recipe.shape.model_type),
        recipe.shape,
        settings.features,
        dtype=DTYPES[settings.precision],
        batch_tokens=settings.chosen_batch_tokens,
    )
    encoder = Encoder(
        settings, tokenizer=tokenizer, run=packed, width=recipe.width, segments=recipe.segments, recipe=recipe
    )
    pairs = None if rows.pairs is None else [rows.pairs[row] for row in sample]
    sequences, _ = encoder.tokenize([rows.texts[row] for row in sample], pairs)
    if not np.array_equal(hash_sequences(sequences), donor.token_hashes[places]):
        return None
    with torch.inference_mode():
        found = {name: values.float().numpy() for name, values in packed(sequences).items()}
    if any(values.shape != (len(sample), recipe.width) for values in found.values()):
        return None
    distances = [
        distance({name: values[number] for name, values in found.items()}, donor, int(row))
        for number, row in enumerate(places)
    ]
    return encoder if all(each <= bound_of(donor) for each in distances) else None  # NaN is not


def _is_of(shape: PackedShape, config: Path) -> bool:
    """Whether a shape from a cache's record is what the encoder's own configuration says, as far as it does."""
    said = json.loads(config.read_bytes())
    named = [(field, said[name]) for field, names in _IN_CONFIG.items() for name in names if name in said]
    return "model_type" in said and all(getattr(shape, field) == value for field, value in named)


class _Weights(Mapping[str, torch.Tensor]):
    """Weights by the names of transformers' ``state_dict()``, float32, each taken from its file when asked for."""

    def __init__(self, files: EncoderFiles, model_type: str) -> None:
        """List them.

        Raises:
            ValueError: two have the same name.
        """
        base = _BASES.get(model_type, model_type) + "."
        self._homes: dict[str, tuple[Any, str]] = {}
        for file in files.weights:
            if file.suffix != ".safetensors":  # the index of several
                continue
            opened: Any = safetensors.safe_open(file, "pt")
            for stored in opened.keys():  # noqa: SIM118 - it is no mapping
                *path, last = stored.removeprefix(base).split(".")
                name = ".".join([*path, _LEGACY.get(last, last)])
                if name in self._homes:
                    raise ValueError(f"two weights are called {name}")
                self._homes[name] = opened, stored

    def __getitem__(self, name: str) -> torch.Tensor:
        """One of them, mapped as transformers maps it.

        That it is finite was checked when the features were made that the encoder is held against.

        Raises:
            KeyError: there is none of this name.
        """
        file, stored = self._homes[name]
        weight: torch.Tensor = file.get_tensor(stored)
        return weight.to(torch.float32)

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)
