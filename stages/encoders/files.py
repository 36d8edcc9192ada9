"""Finds an encoder's files, in a folder or on the hub, and hashes them."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import glob
import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ...cache.documents import is_lfs_pointer
from ...cache.errors import DamagedError, EncoderError, StorageError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PICKLED_WEIGHTS = "pytorch_model.bin"
INDEX = ".index.json"  # follows the name of weights that are in several files
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
# Files of sentence-transformers. What the last two say of texts stands in the identity, and not their hashes.
MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
_KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
TRANSFORMER = tuple(f"sentence_{kind}_config.json" for kind in _KINDS)  # the first that is there counts
UNREAD = (
    # hidden, documentation, code
    *(".*", "*/.*", "*.md", "*.rst", "*.html", "*.pdf", "*.ipynb", "*.py", "README*", "LICEN[CS]E*", "NOTICE*"),
    *("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp"),
    # weights, here and of other frameworks, and archives
    *("*.safetensors", "*.bin", "*.pt", "*.pth", f"*{INDEX}", "*.ckpt*", "*.h5*", "*.msgpack", "*.ot"),
    *("*.onnx*", "*.gguf", "*.tflite", "*.mlmodel", "*.pb", "*.npz", "*.xml", "*.zip", "*.tar", "*.gz", "*.tgz"),
    # tables, what training leaves, and work files of outputs that are made there
    *("*.csv", "*.tsv", "*.jsonl", "*.parquet", "*.log", "*_results.json", "trainer_state.json", "*.tfevents.*"),
    "*.headstart-*",
)
"""Patterns of files that no tokenizer and no model's configuration is read from. `*` also matches a slash."""
_TEMPLATES = "additional_chat_templates"  # transformers reads these too
# The fields of each JSON file that make transformers read files which are not hashed.
_ELSEWHERE = {
    CONFIG: ("transformers_weights",),
    TOKENIZER_CONFIG: ("fast_tokenizer_files", "gguf_file", "vocab", "merges"),
}
_CODE, _CODED = "auto_map", {"AutoConfig", "AutoModel", "AutoTokenizer"}  # who asks for code of its own, of what
_SAME_CODE = {"nomic_bert": {"NomicBertConfig"}, "gte": {"GteConfig", "NewConfig"}}
"""By ``model_type``, code that computes what transformers does: `hf` refuses fields that only the code reads."""
_WITHOUT_CODE = {
    "NewConfig": "on the hub, alibaba-nlp-community has Alibaba-NLP's encoders without; give that one",
    "XLMRobertaFlashConfig": "on the hub, jinaai/jina-embeddings-v3-hf is jina-embeddings-v3 without; give that one",
}
"""What to give in the place of an encoder with such code."""
_LFS = "is a Git LFS pointer, which stands for the file; run `git lfs pull` in its folder"
_ADAPTER = "adapter_config.json"
_DISTRIBUTED = "shard-*-model-*-of-*.safetensors"  # where one is, transformers reads no other weights
_SENTENCEPIECE = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # what to install: its module
_PIECE_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderFiles:
    """The files of one encoder, all in one local folder."""

    name: str  # as the user gave it
    folder: Path
    model: Path  # the folder of what transformers reads: the same one, or where modules.json says, one inside it
    revision: str | None  # the commit that a hub id resolved to; None for a folder
    weights: tuple[Path, ...]  # safetensors, or pickles where the user allowed them; before several, their index
    tokenizer: tuple[Path, ...]  # and every other file that may decide a feature but `model`
    modules: tuple[Path, ...] = ()  # all that decides `model` beside them: modules.json, and its modules' files

    @property
    def pickled(self) -> bool:
        return self.weights[-1].suffix == ".bin"

    def adapters(self) -> list[str]:
        """The folders inside that hold adapters, which are not applied: of tasks, as in jina-embeddings-v3-hf."""
        return sorted(file.parent.name for file in self.model.glob(f"*/{_ADAPTER}"))

    def layers(self) -> int | None:
        """The number of layers in config.json; None where it does not say. An EncoderError where it is not JSON."""
        config = _read_object(self.name, self.model / CONFIG)
        counts = [config[name] for name in ("num_hidden_layers", "n_layers", "num_layers") if name in config]
        return counts[0] if counts and isinstance(counts[0], int) else None

    @contextlib.contextmanager
    def folder_with_metadata(self) -> Iterator[Path]:
        """The folder, or one of links to its model, where the weights' index lacks what transformers cannot do without.

        Other loaders ask for no ``metadata`` in an index, and some tools write none.
        """
        index = _read_object(self.name, self.weights[0]) if len(self.weights) > 1 else {"metadata": {}}
        if isinstance(index.get("metadata"), dict):
            yield self.model
            return
        with tempfile.TemporaryDirectory() as scratch:
            for file in (self.model / CONFIG, *self.weights[1:]):
                (Path(scratch) / file.name).symlink_to(file)
            (Path(scratch) / self.weights[0].name).write_text(json.dumps(index | {"metadata": {}}))
            yield Path(scratch)

    def hashes(self) -> dict[str, str]:
        """The hashes of an identity but that of the modules; errors are those of `hash_files`."""
        return {
            "weights_sha256": hash_files(self.model, self.weights),
            "config_sha256": hash_files(self.model, [self.model / CONFIG]),
            "tokenizer_sha256": hash_files(self.model, self.tokenizer),
        }

    def modules_sha256(self) -> str:
        """The hash of the modules; errors are those of `hash_files`."""
        return hash_files(self.folder, self.modules)

    def advice(self, error: BaseException) -> str | None:
        """What is wrong and what to do about it, where transformers' own words mislead; None where they do not."""
        if self.pickled and "Weights only load failed" in str(error):
            problem = (
                f"{self.weights[-1].name} is no pickle of weights alone (a whole model?), so to read it could run code"
            )
            return f"{problem}; save its weights as {WEIGHTS}"
        if "trust_remote_code" in str(error):
            return "the installed release of transformers has no such model of its own; install a newer one"
        models = [file.name for file in self.tokenizer if file.suffix == ".model"]
        absent = [name for name, module in _SENTENCEPIECE.items() if not _is_installed(module)]
        if not models or not absent or not re.search("sentencepiece|tiktoken|protobuf", str(error), re.IGNORECASE):
            return None
        return f"{models[0]} is read by {' and '.join(_SENTENCEPIECE)}; run `pip install {' '.join(absent)}`"


def require_encoder_name(name: str | None) -> str:
    """Return the name of an encoder, or refuse that none is given."""
    if not name:
        examples = "such as sentence-transformers/all-MiniLM-L6-v2 or bert-base-chinese"
        given = "not given" if name is None else "empty"
        raise EncoderError(f"`encoder` is {given}; give a folder that holds config.json, or a hub id {examples}")
    return name


def find_encoder(name: str | None, *, revision: str | None = None, allow_pickled_weights: bool = False) -> EncoderFiles:
    """Find an encoder's files. Where ``name`` is a hub id whose files are not here yet, they are downloaded.

    Raises:
        EncoderError: there is no such encoder, a file is missing, or the weights are a pickle that is not allowed.
        StorageError: a file cannot be read.
    """
    name = require_encoder_name(name)
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


def hash_files(folder: Path, files: Sequence[Path]) -> str:
    """sha256 of one file; of several, the sha256 of what ``sha256sum`` prints for them, sorted by name (FORMAT.md).

    Raises:
        StorageError: a file cannot be read.
    """
    lines = []
    for name, file in sorted((os.fsencode(file.relative_to(folder)), file) for file in files):
        try:
            lines.append((_sha256(file).encode(), name))
        except OSError as error:
            raise StorageError(f"cannot read {file}: {error.strerror}") from None
    if len(lines) == 1:
        return lines[0][0].decode()
    return hashlib.sha256(b"".join(b"%b  %b\n" % line for line in lines)).hexdigest()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is its parent
        return False


def _sha256(file: Path) -> str:
    """sha256 of one file, read in large pieces, so that a thread seldom waits for its turn to run Python."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
    with file.open("rb", buffering=0) as stream:
        while size := stream.readinto(piece):
            digest.update(piece[:size])
    return digest.hexdigest()


def _files(name: str, folder: Path, *, revision: str | None, allow_pickled_weights: bool) -> EncoderFiles:
    try:
        model = folder / _model_part(folder)
        _require_encoder(name, model)
        tokenizer = _read_files(model)
        if not tokenizer:
            raise EncoderError(f"encoder {name}: {model} holds no tokenizer (such as tokenizer.json)")
        weights, modules = _weights(name, model, allow_pickled_weights), _modules(folder, allow_pickled_weights)
        if pointer := next((file for file in (*weights, *modules, *tokenizer) if is_lfs_pointer(file)), None):
            raise EncoderError(f"encoder {name}: {pointer} {_LFS}")
    except OSError as error:
        raise StorageError(f"encoder {name}: cannot read {error.filename or folder}: {error.strerror}") from None
    return EncoderFiles(
        name=name,
        folder=folder,
        model=model,
        revision=revision,
        weights=weights,
        tokenizer=tokenizer,
        modules=modules,
    )


def _require_encoder(name: str, folder: Path) -> None:
    """Refuse a folder that holds no encoder, and one that asks for code or files which would not be read."""
    if (folder / _ADAPTER).exists():
        raise EncoderError(f"encoder {name}: {folder} holds an adapter ({_ADAPTER}); merge it into the weights first")
    if not (folder / CONFIG).is_file():
        original = next(folder.glob("*bert_config*.json"), None)
        advice = f'rename its {original.name}, and add "model_type": "bert" (or what it is) to it' if original else None
        kinds = [str(module.get("type")).rpartition(".")[2][:80] for module in _listed(folder)[:1]]
        if kinds and advice is None and "Transformer" not in kinds:  # such as vectors of words, which are in no context
            advice = f"its vectors are made by {kinds[0]}, which headstart does not compute; choose another encoder"
        raise EncoderError(f"encoder {name}: {folder} holds no {CONFIG}; {advice or _inside(folder)}")
    config = _read_object(name, folder / CONFIG)
    if not isinstance(kind := config.get("model_type"), str) or not kind:
        advice = _inside(folder, 'add "model_type": "bert" (or what it is) to it')
        raise EncoderError(f"encoder {name}: its {CONFIG} has no 'model_type'; {advice}")
    if config.get("quantization_config"):
        raise EncoderError(
            f"encoder {name}: its {CONFIG} says that its weights are quantised ('quantization_config'), which are not "
            "read; choose the encoder that they were made from"
        )
    for file, fields in _ELSEWHERE.items():
        content = _read_object(name, folder / file) if (folder / file).is_file() else {}
        if elsewhere := next((field for field in fields if content.get(field)), None):
            raise EncoderError(
                f"encoder {name}: its {file} names other files to read ({elsewhere!r}), which is not followed; "
                "take that out, and put the files under their usual names"
            )
        code = content.get(_CODE)
        code_class = str(code.get("AutoConfig")).rpartition(".")[2] if isinstance(code, dict) else ""
        if (_CODED & code.keys() if isinstance(code, dict) else code) and code_class not in _SAME_CODE.get(kind, ()):
            problem = f"encoder {name}: its {file} asks for code of its own ({_CODE!r}), which is never run"
            if instead := _WITHOUT_CODE.get(code_class):
                raise EncoderError(f"{problem}; {instead}")
            raise EncoderError(
                f"{problem}, and the {kind!r} of transformers may compute something else; if it does not, copy "
                f"{folder} and take {_CODE!r} out of the copy's {file}"
            )


def _inside(folder: Path, otherwise: str = "give the folder of a transformers model") -> str:
    """Advice for a folder that is no encoder's: a folder inside it that is one, as in the hub's cache."""
    found = []
    for config in sorted((*folder.glob(f"*/{CONFIG}"), *folder.glob(f"snapshots/*/{CONFIG}"))):
        with contextlib.suppress(EncoderError):
            if config.is_file() and _read_object("", config).get("model_type"):
                found.append(config.parent)
    with contextlib.suppress(OSError, ValueError):  # the snapshot that the hub's cache calls main
        main = folder / "snapshots" / (folder / "refs" / "main").read_text().strip()
        found = [main] if main in found else found
    if not found:
        return otherwise
    return f"give the folder inside it: {found[0]}" + (f" (or another of {len(found)})" if len(found) > 1 else "")


def _read_object(name: str, file: Path) -> dict[str, Any]:
    """The object in a JSON file; an EncoderError where there is none."""
    try:
        if is_lfs_pointer(file):
            raise EncoderError(f"encoder {name}: {file} {_LFS}")
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"encoder {name}: its {file.name} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise EncoderError(f"encoder {name}: its {file.name} cannot be read: it is not a JSON object")
    return content


def _read_files(folder: Path) -> tuple[Path, ...]:
    """Every file that may decide a feature but ``model``, beside config.json and the weights.

    They are found by leaving out what is known to be something else: a file of an unknown name may be a vocabulary.
    """
    known = {CONFIG, MODULES, PROMPTS, *TRANSFORMER}
    files = (*folder.iterdir(), *(folder / _TEMPLATES).rglob("*"))
    return _unknown(folder, (file for file in files if file.name not in known or file.parent != folder))


def _unknown(folder: Path, candidates: Iterable[Path]) -> tuple[Path, ...]:
    """The files among these that match no pattern of `UNREAD`, in order."""
    files = {file.relative_to(folder).as_posix(): file for file in candidates if file.is_file()}
    return tuple(
        files[name] for name in sorted(files) if not any(fnmatch.fnmatchcase(name, pattern) for pattern in UNREAD)
    )


def _listed(folder: Path) -> list[dict[str, Any]]:
    """The modules that modules.json lists; none where it is no such list, which `recipe` refuses."""
    with contextlib.suppress(OSError, ValueError, RecursionError, TypeError):
        return [module for module in json.loads((folder / MODULES).read_bytes()) if isinstance(module, dict)]
    return []


def _part(module: Mapping[str, Any]) -> str:
    """The folder of a module, if it lies inside the encoder's; else nothing."""
    path = PurePosixPath(str(module.get("path", "")))
    return "" if ".." in path.parts or path.is_absolute() or not path.parts else str(path)


def _model_part(folder: Path) -> str:
    """The folder of what transformers reads, inside the encoder's; nothing where that is the encoder's own."""
    first = next(iter(_listed(folder)), {})
    package, _, kind = str(first.get("type")).rpartition(".")
    return _part(first) if (package.partition(".")[0], kind) == ("sentence_transformers", "Transformer") else ""


def _parts(folder: Path) -> list[str]:
    """The folders of sentence-transformers' modules inside an encoder's, but that of what transformers reads."""
    return sorted({_part(module) for module in _listed(folder)} - {"", _model_part(folder)})


def _weights(name: str, folder: Path, allow_pickled_weights: bool) -> tuple[Path, ...]:
    """The weights that transformers would read: safetensors before pickles, one file before several."""
    if distributed := next(folder.glob(_DISTRIBUTED), None):
        problem = f"holds a part of a distributed checkpoint ({distributed.name}), which is not read"
        raise EncoderError(f"encoder {name}: {folder} {problem}; take it out, and save the weights as {WEIGHTS}")
    names = (WEIGHTS, WEIGHTS + INDEX, PICKLED_WEIGHTS, PICKLED_WEIGHTS + INDEX)
    first = next((folder / file for file in names if (folder / file).is_file()), None)
    if first is None:
        raise EncoderError(f"encoder {name}: {folder} holds no weights ({WEIGHTS})")
    pickled = first.name.startswith(PICKLED_WEIGHTS)
    if pickled and not allow_pickled_weights:
        advice = "use `allow_pickled_weights=True` if you trust its author: reading a pickle can run code"
        raise EncoderError(f"encoder {name} has only pickled weights ({first.name}); {advice}")
    if not first.name.endswith(INDEX):
        return (first,)
    try:
        shards = sorted({str(shard) for shard in json.loads(first.read_bytes())["weight_map"].values()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise EncoderError(f"encoder {name}: {first} is not an index of weights") from None
    kind = "bin" if pickled else "safetensors"
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(f".{kind}"):
            raise EncoderError(f"encoder {name}: {first.name} names {shard!r}, which is no {kind} file beside it")
    absent = [shard for shard in shards if not (folder / shard).is_file()]
    if absent or not shards:
        raise EncoderError(f"encoder {name}: {folder} lacks the weights {', '.join(absent) or 'of its index'}")
    return (first, *(folder / shard for shard in shards))


def _modules(folder: Path, allow_pickled_weights: bool) -> tuple[Path, ...]:
    """modules.json, and the files of its modules. Of weights, safetensors come before a pickle."""
    names, parts = (WEIGHTS, PICKLED_WEIGHTS) if allow_pickled_weights else (WEIGHTS,), _parts(folder)
    candidates = ([folder / part / name for name in names] for part in parts)
    weights = (next((file for file in files if file.is_file()), None) for files in candidates)
    files = (folder / MODULES, *(file for part in parts for file in (folder / part).rglob("*")))
    return (*_unknown(folder, files), *(file for file in weights if file is not None))


def _download(name: str, revision: str | None, allow_pickled_weights: bool) -> Path:
    import huggingface_hub  # slow to load, and not needed for a folder
    from huggingface_hub import errors

    instead = "or download it elsewhere and pass its folder: `encoder`"
    weights = [WEIGHTS, WEIGHTS + INDEX, "model-*-of-*.safetensors"]
    weights += [PICKLED_WEIGHTS, PICKLED_WEIGHTS + INDEX, "pytorch_model-*-of-*.bin"] if allow_pickled_weights else []
    try:  # all that `_read_files` finds in a folder that was downloaded whole
        folder = huggingface_hub.snapshot_download(name, revision=revision, ignore_patterns=["*/*", *UNREAD])
        commit = Path(folder).name
        model = _model_part(Path(folder))
        parts = [glob.escape(part) for part in (*_parts(Path(folder)), *([model] if model else []))]
        inner = [*(f"{part}/*" for part in (*parts, _TEMPLATES)), f"*/{_ADAPTER}"]
        huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=inner, ignore_patterns=list(UNREAD))
        weights += [f"{part}/{pattern}" for part in parts for pattern in weights]
        return Path(huggingface_hub.snapshot_download(name, revision=commit, allow_patterns=weights))
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
