"""How the files of an encoder say that its vectors are made: those of sentence-transformers.

The files come from strangers. What they ask for is computed exactly, or refused by name. Light: it loads no library.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from ...cache.documents import checked, is_text, read_json_file
from ...cache.errors import DamagedError, EncoderError
from .files import CONFIG, MODULES, PROMPTS, TOKENIZER, TOKENIZER_CONFIG, TRANSFORMER, EncoderFiles
from .pooling import Pooling

_MOST_MODULES, _MOST_NUMBERS = 16, 1 << 16
_LONGEST = 1 << 20  # a larger number of tokens means that there is no limit
_FROM_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text")
"""Kinds of model whose first position has the number after the padding token's."""
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Fields of older files, in the order in which their vectors are joined."""
_POOLINGS = {
    "cls": (Pooling.CLS, "the first token"),
    "max": (Pooling.MAX, "maximum over tokens"),
    "mean": (Pooling.MEAN, "mean over tokens"),
    "mean_sqrt_len_tokens": (Pooling.MEAN_SQRT_LEN, "sum over tokens by the root of their number"),
    "weightedmean": (Pooling.WEIGHTED_MEAN, "mean over tokens weighted by position"),
    "lasttoken": (Pooling.LAST, "the last token"),
}
LEGACY_POOLINGS = {field: _POOLINGS[mode][0] for field, mode in _LEGACY.items()}
"""What the fields of older files mean, in the same order. All releases of sentence-transformers read them."""
_DIRECTION = re.compile(rb'"truncation"\s*:\s*\{[^{}]*"direction"\s*:\s*"(\w+)"')  # in tokenizer.json
_WORDS = dict(_POOLINGS.values())
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
# Fields of each file that change nothing with these values; None for any value.
_HARMLESS: dict[str, dict[str, Any]] = {
    "Transformer": {
        "transformer_task": "feature-extraction",
        "modality_config": _TEXT,
        "module_output_name": "token_embeddings",
        "unpad_inputs": None,  # another way to the same numbers
        "query_length": None,  # of texts that are encoded as queries or documents, which `encode` does not do
        "document_length": None,
        "model_args": {"add_pooling_layer": False},  # whose output no module reads
    },
    "Pooling": {},
    "Dense": {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
    "Normalize": {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
    "LayerNorm": {},
    "Dropout": {"dropout": None},  # which does nothing outside training
}
_READ = {
    "Transformer": {"max_seq_length", "do_lower_case"},
    "Pooling": {"embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt", *_LEGACY},
    "Dense": {"in_features", "out_features", "bias", "activation_function"},
    "Normalize": set[str](),
    "LayerNorm": {"dimension"},
    "Dropout": set[str](),
}
_ARGUMENTS = ("model_args", "tokenizer_args", "config_args", "model_kwargs", "processor_kwargs", "config_kwargs")
_ACTIVATIONS = "torch.nn."
_PROMPT_NAMES = ("query", "document")  # which are empty where a model does not have them
_Document = TypeVar("_Document")


class Activation(enum.StrEnum):
    """The function after a dense layer, as torch names its class."""

    IDENTITY = "Identity"
    TANH = "Tanh"
    RELU = "ReLU"
    GELU = "GELU"
    SIGMOID = "Sigmoid"
    SILU = "SiLU"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense:
    """A dense layer over vectors of ``inputs`` numbers, and its activation."""

    path: str  # of its folder, inside the encoder's
    inputs: int
    width: int
    bias: bool
    activation: Activation


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerNorm:
    """A layer norm with weights."""

    path: str
    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalize:
    """Each vector divided by its length."""

    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truncate:
    """The first numbers of each vector."""

    width: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the feature ``model`` is made of the last layer's states: they are pooled, then each module follows."""

    states: int  # numbers in each state
    poolings: tuple[Pooling, ...]
    modules: tuple[Dense | LayerNorm | Normalize | Truncate, ...]
    includes_prompt: bool  # whether the tokens of a prompt are pooled

    @property
    def width(self) -> int:
        """Numbers in each vector."""
        return self.modules[-1].width if self.modules else len(self.poolings) * self.states

    @property
    def normalized(self) -> bool:
        """Whether each vector is divided by its length, at the end."""
        return bool(self.modules) and isinstance(self.modules[-1], Normalize)

    @property
    def words(self) -> str:
        """The recipe in the words of a cache's identity, such as ``mean | dense 384 256 tanh | normalize``."""
        parts = ["+".join(self.poolings)]
        for module in self.modules:
            match module:
                case Dense():
                    parts.append(f"dense {module.inputs} {module.width} {module.activation.name.lower()}")
                case LayerNorm() | Normalize():
                    parts.append(type(module).__name__.lower())
                case Truncate():
                    parts.append(f"truncate {module.width}")
        return " | ".join(parts)

    def __str__(self) -> str:
        words = [" and ".join(_WORDS[pooling] for pooling in self.poolings)]
        for module in self.modules:
            match module:
                case Dense():
                    function = module.activation.name.lower()
                    words.append(f"dense to {module.width}" + ("" if function == "identity" else f" with {function}"))
                case LayerNorm():
                    words.append("layer norm")
                case Normalize():
                    words.append("normalised")
                case Truncate():
                    words.append(f"its first {module.width} numbers")
        return ", ".join(words)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSettings:
    """What the files say of texts. Where there is no ``modules.json``, they say nothing."""

    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_prompt: str | None = None  # a name


class _ModuleEntry(TypedDict):
    path: str
    type: str


class _TransformerFields(TypedDict):
    max_seq_length: int | None
    do_lower_case: bool


class _PoolingFields(TypedDict):
    word_embedding_dimension: int
    pooling_mode: str | list[Any]
    include_prompt: bool


class _DenseFields(TypedDict):
    in_features: int
    out_features: int
    bias: bool
    activation_function: str


class _LayerNormFields(TypedDict):
    dimension: int


class _PromptFields(TypedDict):
    prompts: dict[str, Any]
    default_prompt_name: str | None


def has_recipe(files: EncoderFiles) -> bool:
    """Whether the encoder's folder says how its vectors are made."""
    return (files.folder / MODULES).is_file()


def read_text_settings(files: EncoderFiles) -> TextSettings:
    """Read what the folder says of texts.

    Raises:
        EncoderError: a file is not as sentence-transformers writes it.
    """
    if not has_recipe(files):
        return TextSettings()
    given = {"max_seq_length": None, "do_lower_case": False, **_transformer_fields(files)}
    fields = _checked(files, given, _TransformerFields, "its Transformer")
    length = fields["max_seq_length"]
    if length is not None and not 0 < length < _LONGEST:
        raise EncoderError(
            f"encoder {files.name}: its max_seq_length is {length}, which is no number of tokens; correct it in a copy "
            f"of {files.folder}"
        )
    config = _read(files, CONFIG, files.model)
    positions, padding = config.get("max_position_embeddings"), config.get("pad_token_id", 1)
    known = isinstance(positions, int) and isinstance(padding, int) and positions > padding + 1
    if known and config.get("model_type") in _FROM_PADDING:
        positions -= padding + 1
        length = length and min(length, positions)  # some files give the number of the positions that are stored
    if length is None:  # the tokenizer's, at most the positions that there are
        numbers = [_read(files, TOKENIZER_CONFIG, files.model).get("model_max_length"), positions]
        length = min((n for n in numbers if isinstance(n, int) and 0 < n < _LONGEST), default=None)
    document = _read(files, PROMPTS)
    document = {"prompts": {}, "default_prompt_name": None, **{k: v for k, v in document.items() if v is not None}}
    said = _checked(files, document, _PromptFields, PROMPTS)
    prompts = {name: "" if prompt is None else prompt for name, prompt in said["prompts"].items()}
    default = said["default_prompt_name"]
    if not all(is_text(name) and is_text(prompt) for name, prompt in prompts.items()):
        raise EncoderError(f"encoder {files.name}: {PROMPTS} has a prompt that is no text")
    if default in _PROMPT_NAMES and default not in prompts:
        default = None
    if default is not None and default not in prompts:
        raise EncoderError(f"encoder {files.name}: {PROMPTS} names a default prompt that it lacks, {default[:80]!r}")
    return TextSettings(max_length=length, lower_case=fields["do_lower_case"], prompts=prompts, default_prompt=default)


def read_truncation_side(files: EncoderFiles) -> str:
    """The end at which transformers cuts sequences of this encoder: ``right`` or ``left``.

    Raises:
        EncoderError: a file is not as it should be, or says something else.
    """
    side = _read(files, TOKENIZER_CONFIG, files.model).get("truncation_side")
    if side is None and (files.model / TOKENIZER).is_file():  # parsing it may take a second
        found = _DIRECTION.search((files.model / TOKENIZER).read_bytes())
        side = found[1].decode().lower() if found else None
    if side not in ("right", "left", None):
        raise EncoderError(f"encoder {files.name}: its 'truncation_side' is {str(side)[:80]!r}, not right or left")
    return side or "right"


def read_recipe(files: EncoderFiles) -> Recipe:
    """Read how the encoder's own vectors are made.

    Raises:
        EncoderError: a file is not as sentence-transformers writes it, or asks for what headstart does not compute.
    """
    entries = _read_json(files, files.folder / MODULES)
    if not isinstance(entries, list) or len(entries) > _MOST_MODULES:
        raise _refused(files, f"{MODULES} is no list of at most {_MOST_MODULES} modules")
    modules = [_module(files, entry, first=not place) for place, entry in enumerate(entries)]
    if [kind for kind, _ in modules[:2]] != ["Transformer", "Pooling"]:
        raise _refused(files, f"{MODULES} does not begin with a Transformer and a Pooling")
    settings = _read(files, PROMPTS)
    kind = settings.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise _refused(files, f"{PROMPTS} says it is a {str(kind)[:80]!r}, no SentenceTransformer")
    _refuse_unknown(files, _transformer_fields(files), "Transformer")
    recipe = _pooling(files, modules[1][1])
    for kind, path in modules[2:]:
        document = _read(files, f"{path}/{CONFIG}")
        _refuse_unknown(files, document, kind)
        match kind:
            case "Dropout":
                continue
            case "Normalize":
                made: Dense | LayerNorm | Normalize = Normalize(width=recipe.width)
            case "LayerNorm":
                made = LayerNorm(path=path, width=_checked(files, document, _LayerNormFields, path)["dimension"])
            case "Dense":
                made = _dense(files, path, document)
            case _:
                raise _refused(files, f"{MODULES} has a {kind} after the Pooling")
        inputs = made.inputs if isinstance(made, Dense) else made.width
        if inputs != recipe.width or not 0 < made.width < _MOST_NUMBERS:
            raise _refused(files, f"{path} does not fit the vectors of {recipe.width:,} numbers before it")
        recipe = dataclasses.replace(recipe, modules=(*recipe.modules, made))
    most = settings.get("truncate_dim")
    if most is not None and (type(most) is not int or most < 1):
        raise _refused(files, f"{PROMPTS} cuts vectors at {str(most)[:80]!r} numbers ('truncate_dim')")
    if most is None or most >= recipe.width:
        return recipe
    return dataclasses.replace(recipe, modules=(*recipe.modules, Truncate(width=most)))


def _pooling(files: EncoderFiles, path: str) -> Recipe:
    document = _read(files, f"{path}/{CONFIG}")
    _refuse_unknown(files, document, "Pooling")
    modes = [mode for field, mode in _LEGACY.items() if document.get(field) is True]
    if wrong := next((field for field in _LEGACY if type(document.get(field, False)) is not bool), None):
        raise _refused(files, f"{path}/{CONFIG}: its {wrong!r} is neither true nor false")
    states = document.get("embedding_dimension", document.get("word_embedding_dimension"))
    defaults = {"pooling_mode": modes or ["mean"], "include_prompt": True}
    document = {**defaults, **document, "word_embedding_dimension": states}
    fields = _checked(files, document, _PoolingFields, f"{path}/{CONFIG}")
    mode = fields["pooling_mode"]
    modes = [mode] if isinstance(mode, str) else mode
    if unknown := next((mode for mode in modes if not isinstance(mode, str) or mode not in _POOLINGS), None):
        raise _refused(files, f"{path}/{CONFIG} asks for the pooling {str(unknown)[:80]!r}")
    if not 0 < len(set(modes)) == len(modes) or not 0 < fields["word_embedding_dimension"] < _MOST_NUMBERS:
        raise _refused(files, f"{path}/{CONFIG} gives no poolings, one twice, or no possible width")
    return Recipe(
        states=fields["word_embedding_dimension"],
        poolings=tuple(_POOLINGS[mode][0] for mode in modes),
        modules=(),
        includes_prompt=fields["include_prompt"],
    )


def _dense(files: EncoderFiles, path: str, document: Mapping[str, Any]) -> Dense:
    defaults = {"bias": True, "activation_function": f"{_ACTIVATIONS}{Activation.TANH}"}
    fields = _checked(files, {**defaults, **document}, _DenseFields, f"{path}/{CONFIG}")
    name = fields["activation_function"]
    kind = name.rpartition(".")[2]
    if not name.startswith(_ACTIVATIONS) or kind not in list(Activation):
        raise _refused(files, f"{path}/{CONFIG} asks for the activation {name[:80]!r}")
    inputs, width = fields["in_features"], fields["out_features"]
    return Dense(path=path, inputs=inputs, width=width, bias=fields["bias"], activation=Activation(kind))


def _module(files: EncoderFiles, entry: Any, *, first: bool) -> tuple[str, str]:
    """The kind of a module, and the path of its folder."""
    fields = _checked(files, entry, _ModuleEntry, MODULES)
    if first and not fields["type"].endswith(".Transformer"):  # such as StaticEmbedding: then no feature can be given
        raise EncoderError(
            f"encoder {files.name}: {MODULES} begins with the module {fields['type'][:80]!r}, and headstart runs only "
            "encoders that begin with a Transformer; choose another encoder"
        )
    package, _, kind = fields["type"].rpartition(".")
    if package.partition(".")[0] != "sentence_transformers" or kind not in _READ:
        raise _refused(files, f"{MODULES} asks for the module {fields['type'][:80]!r}")
    path = fields["path"]
    if path.startswith("/") or "\\" in path or ".." in path.split("/") or not is_text(path) or "\0" in path:
        raise _refused(files, f"{MODULES} names a folder outside the encoder's: {path[:80]!r}")
    return kind, path


def _refuse_unknown(files: EncoderFiles, document: Mapping[str, Any], kind: str) -> None:
    """Refuse a field that is not read, unless its value says that it does nothing."""
    for field, value in document.items():
        harmless = _HARMLESS[kind].get(field, False)
        if field not in _READ[kind] and harmless is not None and value not in (None, False, {}, [], harmless):
            raise _refused(files, f"its {kind} has the setting {field[:80]!r}")


def _transformer_fields(files: EncoderFiles) -> dict[str, Any]:
    """The settings of its Transformer, without those that would let code run: sentence-transformers drops them, too."""
    found = next((name for name in TRANSFORMER if (files.model / name).is_file()), TRANSFORMER[0])
    fields = _read(files, found, files.model)
    for name in _ARGUMENTS:
        if isinstance(arguments := fields.get(name), dict):
            fields[name] = {field: value for field, value in arguments.items() if field != "trust_remote_code"}
    if isinstance(kinds := fields.get("modality_config"), dict) and "text" in kinds:
        fields["modality_config"] = {kind: how for kind, how in kinds.items() if kind != "message"}  # of chats
    return fields


def _refused(files: EncoderFiles, problem: str) -> EncoderError:
    return EncoderError(
        f"encoder {files.name}: {problem}, which headstart does not compute, so it cannot give the encoder's own "
        "vector; choose `features` yourself, such as mean or cls"
    )


def _read(files: EncoderFiles, name: str, folder: Path | None = None) -> dict[str, Any]:
    """The object in a JSON file of the encoder's folder, or of another; an empty one where there is no file."""
    path = (folder or files.folder) / name
    document = _read_json(files, path) if path.exists() else {}
    if not isinstance(document, dict):
        raise EncoderError(f"encoder {files.name}: {path} is not a JSON object")
    return document


def _read_json(files: EncoderFiles, path: Path) -> Any:
    try:
        return read_json_file(path)
    except DamagedError as error:
        raise EncoderError(f"encoder {files.name}: {error}") from None
    except OSError as error:
        raise EncoderError(f"encoder {files.name}: cannot read {path}: {error.strerror}") from None


def _checked(files: EncoderFiles, document: Any, kind: type[_Document], where: str) -> _Document:
    try:
        return checked(document, kind, f"encoder {files.name}: {where}")
    except DamagedError as error:
        raise EncoderError(f"{error}; correct it in a copy of {files.folder}") from None
