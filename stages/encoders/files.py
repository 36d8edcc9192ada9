"""Finds an encoder's files, in a folder or on the hub, and hashes them."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...cache.errors import DamagedError, EncoderError, StorageError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_ELSEWHERE = {CONFIG: "transformers_weights", "tokenizer_config.json": "fast_tokenizer_files"}
"""The field of each JSON file that makes transformers read files which are not hashed."""
_ADAPTER = "adapter_config.json"
_PIECE_BYTES = 8 << 20
_PICKLE_ADVICE = "use `allow_pickled_weights=True` if you trust its author: reading a pickle can run code"


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFiles:
    """The files of one encoder, all in one local folder."""

    name: str  # as the user gave it
    folder: Path
    revision: str | None  # the commit that a hub id resolved to; None for a folder
    weights: tuple[Path, ...]  # safetensors, or one pickle where the user allowed it
    tokenizer: tuple[Path, ...]

    @property
    def pickled(self) -> bool:
        return self.weights[0].name == PICKLED_WEIGHTS

    def layers(self) -> int | None:
        """The number of layers in config.json; None where it does not say. An EncoderError where it is not JSON."""
        try:
            config = json.loads((self.folder / CONFIG).read_bytes())
            counts = [config[name] for name in ("num_hidden_layers", "n_layers", "num_layers") if name in config]
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise EncoderError(f"encoder {self.name}: its {CONFIG} cannot be read: {error}") from None
        return counts[0] if counts and isinstance(counts[0], int) else None

    def hashes(self) -> dict[str, str]:
        """The three hashes of an identity; errors are those of `hash_files`."""
        return {
            "weights_sha256": hash_files(self.weights),
            "config_sha256": hash_files([self.folder / CONFIG]),
            "tokenizer_sha256": hash_files(self.tokenizer),
        }


def find_encoder(name: str, *, revision: str | None = None, allow_pickled_weights: bool = False) -> EncoderFiles:
    """Find an encoder's files. Where ``name`` is a hub id whose files are not here yet, they are downloaded.

    Raises:
        EncoderError: there is no such encoder, a file is missing, or the weights are a pickle that is not allowed.
    """
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:  # there is no such home
        raise EncoderError(f"`encoder` {name} is not a folder: {error}") from None
    if folder.is_dir():
        if revision is not None:
            raise EncoderError(f"{name} is a folder, so it has no `revision`; leave that out")
        return _files(name, folder.resolve(), revision=None, allow_pickled_weights=allow_pickled_weights)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise EncoderError(f"`encoder` {name} is not a folder; give a folder that holds config.json, or a hub id")
    snapshot = _download(name, revision, allow_pickled_weights)
    return _files(name, snapshot, revision=snapshot.name, allow_pickled_weights=allow_pickled_weights)


def recorded_encoder(record_encoder: Mapping[str, Any], where: Path) -> tuple[str, str | None]:
    """The name and revision of a record's ``encoder`` for `find_encoder`: its folder, where that is still there.

    A DamagedError names the cache or run, ``where``, whose record does not say.
    """
    name, folder, revision = (record_encoder.get(field) for field in ("name", "folder", "revision"))
    if not (isinstance(name, str) and isinstance(folder, str) and isinstance(revision, str | None)):
        raise DamagedError(f"{where} does not say which encoder it is of; pass the encoder with `encoder`")
    return (folder, None) if Path(folder).is_dir() else (name, revision)


def hash_files(files: Sequence[Path]) -> str:
    """sha256 of one file; of several, the sha256 of what ``sha256sum`` prints for them, sorted by name (FORMAT.md).

    Raises:
        StorageError: a file cannot be read.
    """
    lines = []
    for file in sorted(files, key=lambda path: path.name):
        try:
            lines.append(f"{_sha256(file)}  {file.name}\n")
        except OSError as error:
            raise StorageError(f"cannot read {file}: {error.strerror}") from None
    if len(lines) == 1:
        return lines[0].split()[0]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sha256(file: Path) -> str:
    """sha256 of one file, read in large pieces, so that a thread seldom waits for its turn to run Python."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(piece):
            digest.update(piece[:size])
    return digest.hexdigest()


def _files(name: str, folder: Path, *, revision: str | None, allow_pickled_weights: bool) -> EncoderFiles:
    if not (folder / CONFIG).is_file():
        raise EncoderError(f"encoder {name}: {folder} holds no {CONFIG}; give the folder of a transformers model")
    _require_plain(name, folder)
    tokenizer = tuple(folder / file for file in TOKENIZER_FILES if (folder / file).is_file())
    if not tokenizer:
        raise EncoderError(f"encoder {name}: {folder} holds no tokenizer (such as tokenizer.json)")
    weights = _weights(name, folder, allow_pickled_weights)
    return EncoderFiles(name=name, folder=folder, revision=revision, weights=weights, tokenizer=tokenizer)


def _require_plain(name: str, folder: Path) -> None:
    """Refuse a folder that makes transformers read other files than those whose hashes identify the encoder."""
    if (folder / _ADAPTER).exists():
        raise EncoderError(f"encoder {name}: {folder} holds an adapter ({_ADAPTER}); merge it into the weights first")
    for file, field in _ELSEWHERE.items():
        with contextlib.suppress(OSError, ValueError, RecursionError):  # reported when the file is needed
            content = json.loads((folder / file).read_bytes())
            if isinstance(content, dict) and content.get(field):
                raise EncoderError(
                    f"encoder {name}: its {file} names other files to read ({field!r}), which is not followed; "
                    "take that out, and put the files under their usual names"
                )


def _weights(name: str, folder: Path, allow_pickled_weights: bool) -> tuple[Path, ...]:
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if (folder / WEIGHTS_INDEX).is_file():
        try:
            index = json.loads((folder / WEIGHTS_INDEX).read_bytes())
            shards = sorted({str(shard) for shard in index["weight_map"].values()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise EncoderError(f"encoder {name}: {folder / WEIGHTS_INDEX} is not an index of weights") from None
        for shard in shards:
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise EncoderError(
                    f"encoder {name}: {WEIGHTS_INDEX} names {shard!r}, which is no safetensors file beside it"
                )
        absent = [shard for shard in shards if not (folder / shard).is_file()]
        if absent or not shards:
            raise EncoderError(f"encoder {name}: {folder} lacks the weights {', '.join(absent) or 'of its index'}")
        return (folder / WEIGHTS_INDEX, *(folder / shard for shard in shards))
    if (folder / PICKLED_WEIGHTS).is_file():
        if allow_pickled_weights:
            return (folder / PICKLED_WEIGHTS,)
        raise EncoderError(f"encoder {name} has only pickled weights ({PICKLED_WEIGHTS}); {_PICKLE_ADVICE}")
    raise EncoderError(f"encoder {name}: {folder} holds no weights ({WEIGHTS})")


def _download(name: str, revision: str | None, allow_pickled_weights: bool) -> Path:
    import huggingface_hub  # slow to load, and not needed for a folder
    from huggingface_hub import errors

    instead = "or download it elsewhere and pass its folder: `encoder`"
    patterns = [CONFIG, WEIGHTS, WEIGHTS_INDEX, "model-*-of-*.safetensors", *TOKENIZER_FILES]
    patterns += [PICKLED_WEIGHTS] if allow_pickled_weights else []
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except errors.GatedRepoError:
        problem = f"is gated: ask for access on its page and log in with `hf auth login`, {instead}"
    except errors.RepositoryNotFoundError:
        problem = f"is not on the hub (or is private: `hf auth login`); check the name, {instead}"
    except errors.RevisionNotFoundError:
        problem = f"has no revision {revision!r} on the hub; check `revision`"
    except errors.HFValidationError:
        problem = "is neither a folder nor the form of a hub id (NAME or OWNER/NAME)"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        problem = f"is not on this machine, and the hub cannot be reached; connect to the network, {instead}"
    except Exception as error:  # the hub's client passes on many kinds of errors from its transport
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        problem = f"could not be fetched from the hub ({reason}); check the network, {instead}"
    raise EncoderError(f"encoder {name} {problem}")
