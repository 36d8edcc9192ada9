"""An encoder opened again without transformers, which takes longer to load than the texts of an update to encode.

The features of a cache that the packed pass made are the model's own: the pass was tried beside the model's when the
encoder was loaded by transformers. So an encoder that gives a sample of its rows again is the same one, however it was
loaded. Whatever stands in the way of that, transformers loads it after all.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import tokenizers
import torch

from ...cache.hashing import hash_sequences
from ...cache.reader import Cache
from ..devices import DTYPES
from ..extraction.row_index import RowIndex
from ..extraction.tolerance import relative_difference, tolerance_of
from ..settings import ForwardMode, Precision
from ..tables.scan import TableScan
from ..tables.table import TableRows
from ..types import Indices
from .config import PackedShape, Recipe, fits, tokenizer_sha256
from .encoder import VERSIONS, Encoder, EncoderSettings
from .files import CONFIG, EncoderFiles
from .packed.bert import PackedEncoder

FIRST_ROWS = 4096
"""Rows at the top of the table, and of the cache, that are looked at for such as both have."""
SAMPLE_ROWS = 16
"""Rows that are encoded again before the encoder is trusted."""
_TOKENIZER, _TOKENIZER_SETTINGS = "tokenizer.json", "tokenizer_config.json"
_BASES = {"xlm-roberta": "roberta"}
"""What a larger model calls the encoder in it, where that is not its kind."""
_LEGACY = {"gamma": "weight", "beta": "bias"}
_HEADS, _LAYERS = ("num_attention_heads", "n_heads"), ("num_hidden_layers", "n_layers")
_EPSILON = 1e-12
"""Of the norms, where a configuration does not say; DistilBERT's is never said."""
_ROBERTA_PADDING = 1
_ALIKE = {Precision.FLOAT32: 1e-3, Precision.BFLOAT16: 0.1, Precision.FLOAT16: 0.1}
"""How far a row may be off, of its distance from the sample's mean: what sets texts apart has to be right, and not
the few large numbers alone that are much the same in all of them."""
_STORED_HALF_ALIKE = 0.02
"""The same where features are stored as float16, whose rounding is of the large numbers' size."""


def reopen(
    files: EncoderFiles,
    settings: EncoderSettings,
    caches: Sequence[Cache],
    scan: TableScan,
) -> Encoder | None:
    """Open an encoder as a cache that it made says, and prove it on rows that the table shares with that cache.

    Args:
        files: The encoder's; the caches have their hashes.
        settings: How it is to run; the caches' identities say the same.
        caches: Finished ones.
        survey: What the table's first reading found. A sample is taken of the first rows that both have.

    Returns:
        The encoder; None where it takes transformers.
    """
    if settings.device.type != "cpu" or files.pickled or files.folder / _TOKENIZER not in files.tokenizer:
        return None
    found = next(((cache, recipe) for cache in caches if (recipe := _recipe_of(cache)) is not None), None)
    if found is None:
        return None
    cache, recipe = found
    lookup = RowIndex(cache.text_hashes)
    lookup.add(np.arange(min(cache.rows, FIRST_ROWS)))
    rows = scan.top[:FIRST_ROWS]
    places = lookup.find(scan.text_hashes[: len(rows)])  # of the table's rows, in the cache; -1 for none
    sample = _sample(cache, places, settings.chosen_batch_tokens(ForwardMode.PACKED))
    if not len(sample):
        return None
    try:
        return _opened(files, settings, recipe, rows=rows, sample=sample, cache=cache, places=places[sample])
    except Exception:  # of any kind, according to what is odd where; what is wrong indeed, transformers says
        return None


def _sample(cache: Cache, places: Indices, most_tokens: int) -> Indices:
    """Rows of all lengths that a cache has, in blocks whose checksums hold, as many as one batch takes."""
    shared = np.flatnonzero(places >= 0)
    shared = shared[np.argsort(cache.lengths[places[shared]], kind="stable")]
    sample = shared[np.unique(np.linspace(0, len(shared) - 1, SAMPLE_ROWS).astype(int))] if len(shared) else shared
    blocks = places[sample] // cache.layout.block_rows
    holding = [block for block in np.unique(blocks) if cache.block_holds(int(block))]
    sample = sample[np.isin(blocks, holding)]
    return sample[np.cumsum(cache.lengths[places[sample]], dtype=np.int64) <= most_tokens]


def _recipe_of(cache: Cache) -> Recipe | None:
    """How to build the encoder of a finished cache again; None where it was made by other means than ours."""
    made = cache.plan["device"], cache.plan["path"], cache.record.get("headstart"), cache.record.get("versions")
    if made != ("cpu", ForwardMode.PACKED, version("headstart"), VERSIONS):
        return None
    return Recipe.from_record(cache.record)


def _opened(
    files: EncoderFiles,
    settings: EncoderSettings,
    recipe: Recipe,
    *,
    rows: TableRows,
    sample: Indices,
    cache: Cache,
    places: Indices,
) -> Encoder | None:
    """Load it, and encode a sample again.

    Args:
        files: As for `reopen`.
        settings: As for `reopen`.
        recipe: How to build it.
        rows: Some rows of the table.
        sample: (n,) which of them to encode.
        cache: The cache that has them.
        places: (n,) their rows there.
    """
    tokenizer = tokenizers.Tokenizer.from_file(str(files.folder / _TOKENIZER))
    tokenizer.enable_truncation(settings.max_length, direction=_truncation_side(files))
    tokenizer.no_padding()
    if tokenizer_sha256(tokenizer) != recipe.tokenizer_sha256 or not _is_of(recipe.shape, files.folder / CONFIG):
        return None
    packed = PackedEncoder(
        _Weights(files, recipe.shape.model_type),
        recipe.shape,
        settings.features,
        dtype=DTYPES[settings.precision],
        batch_tokens=settings.chosen_batch_tokens(ForwardMode.PACKED),
    )
    encoder = Encoder(
        settings, tokenizer=tokenizer, run=packed, width=recipe.width, segments=recipe.segments, recipe=recipe
    )
    pairs = None if rows.pairs is None else [rows.pairs[row] for row in sample]
    sequences, _ = encoder.tokenize([rows.texts[row] for row in sample], pairs)
    if not np.array_equal(hash_sequences(sequences), cache.token_hashes[places]):
        return None
    with torch.inference_mode():
        found = {name: values.float().numpy() for name, values in packed(sequences).items()}
    if any(values.shape != (len(sample), recipe.width) for values in found.values()):
        return None
    alike = max(_ALIKE[settings.precision], _STORED_HALF_ALIKE if cache.layout.storage == "float16" else 0.0)
    for name, values in found.items():
        stored = np.asarray(cache.features(name)[places], np.float64)
        apart = np.linalg.norm(stored - stored.mean(axis=0), axis=1)
        off = np.linalg.norm((values - values.mean(axis=0)) - (stored - stored.mean(axis=0)), axis=1)
        if not (off <= alike * apart).all() or not apart.all():  # NaN is not, nor one row alone
            return None
    distances = [
        relative_difference({name: values[number] for name, values in found.items()}, cache, int(row))
        for number, row in enumerate(places)
    ]
    return encoder if all(each <= tolerance_of(cache) for each in distances) else None


def _truncation_side(files: EncoderFiles) -> str:
    """Where its tokenizer cuts a text that is too long, as its own files say."""
    settings = files.folder / _TOKENIZER_SETTINGS
    return str(json.loads(settings.read_bytes()).get("truncation_side", "right")) if settings.is_file() else "right"


def _is_of(shape: PackedShape, config: Path) -> bool:
    """Whether a shape from a cache's record is what the encoder's own configuration says: nothing else vouches for it
    in texts unlike the sample."""
    said = json.loads(config.read_bytes())
    kind = said.get("model_type")
    numbers: list[Any] = [next((said[name] for name in names if name in said), None) for names in (_HEADS, _LAYERS)]
    roberta = kind in ("roberta", "xlm-roberta")
    expected = PackedShape(
        model_type=kind,
        heads=numbers[0],
        layers=numbers[1],
        epsilon=said.get("layer_norm_eps", _EPSILON),
        position_padding=said.get("pad_token_id", _ROBERTA_PADDING) if roberta else None,
    )
    return fits(said) and shape == expected


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
