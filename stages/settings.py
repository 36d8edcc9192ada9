"""The settings of every command: names, defaults, limits and help texts. They stand in this one place.

The command line makes its options from these classes. The module loads no library, so that ``--help`` is quick.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import enum
import inspect
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

from ..cache.documents import is_text
from ..cache.errors import SettingsError
from ..cache.label_kind import LabelKind

AUTO = "auto"
OTHER_MAX_LENGTH = 128
"""Most tokens of a text, where neither the user nor the encoder's files say a number."""
VERIFY_SAMPLE = 64
"""How many rows `verify` encodes again, at most."""
_Value = TypeVar("_Value")
_Class = TypeVar("_Class", bound=type)
_Function = TypeVar("_Function", bound=Callable[..., Any])
_AnySettings = TypeVar("_AnySettings", bound="_Settings")
_BYTES = {"": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_SECONDS = {"": 1, "s": 1, "min": 60, "h": 3600}


class _Limit(NamedTuple):
    """What a value must be: in words, and as a test."""

    words: str
    holds: Callable[[Any], bool]


_FRACTION = _Limit("between 0 and 1", lambda value: 0 < value < 1)
_RATE = _Limit("at least 0 and below 1", lambda value: 0 <= value < 1)
_COUNT = _Limit("at least 1", lambda value: value >= 1)
_COUNT_OR_ZERO = _Limit("at least 0", lambda value: value >= 0)
_POSITIVE = _Limit("above 0", lambda value: 0 < value < float("inf"))
_SEED = _Limit("at least 0 and below 2^63", lambda value: 0 <= value < 2**63)
_FOLDS = _Limit("0, or at least 2", lambda value: value == 0 or value >= 2)
_SOME_FOLDS = _Limit("at least 2", lambda value: value >= 2)
_SIMILARITY = _Limit("above 0 and at most 0.999", lambda value: 0 < value <= 0.999)
_LEARNING_RATE = _Limit("above 0 and at most 1000", lambda value: 0 < value <= 1000)
_WEIGHT_DECAY = _Limit("at least 0 and at most 1000", lambda value: 0 <= value <= 1000)
_MEMORY = _Limit("at least 16 MiB", lambda value: value >= 1 << 24)
_DELIMITER = _Limit(
    "one character, and no quotation mark or line end", lambda value: len(value) == 1 and value not in '"\r\n'
)
_TEXT = _Limit("at least one character", lambda value: len(value) > 0)
_PREFIX = _Limit("UTF-8, and at most 1024 characters long", lambda value: is_text(value) and len(value) <= 1024)
_REPOSITORY = _Limit("ORG/NAME", lambda value: re.fullmatch(r"[\w.-]+/[\w.-]+", value) is not None)
_SEEDS = _Limit(
    "distinct numbers of at least 0",
    lambda values: 0 < len(values) == len(set(values)) and 0 <= min(values) <= max(values) < 2**63,
)


def setting(
    default: _Value,
    help: str,
    limit: _Limit | None = None,
    *,
    parse: Callable[[str], Any] | None = None,
    shown: str | None = None,
) -> _Value:
    """Declare a field of a dataclass as a setting.

    Args:
        help: The help text. It names other settings in backticks.
        limit: What a value must be, unless it is None.
        parse: How to read the value from a text, if a text is more convenient.
        shown: How to show the default, if that is not its own text.
    """
    metadata = {"help": help, "limit": limit, "parse": parse, "shown": shown}
    field: Any = dataclasses.field(default=default, metadata=metadata)
    return field  # type: ignore[no-any-return]


def _documented(settings: _Class) -> _Class:
    """Add the help texts of the fields to the docstring of a class of settings."""
    helps = [f"        {field.name}: {field.metadata['help']}" for field in dataclasses.fields(settings)]
    settings.__doc__ = "\n".join([f"{settings.__doc__}\n\n    Attributes:", *helps])
    return settings


class _Settings:
    """Base of the settings: checks the limits of all fields.

    It accepts the text of a `StrEnum` for its member, a list for a tuple, and one text for a tuple of it.
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            name, value, limit = field.name, getattr(self, field.name), field.metadata.get("limit")
            if isinstance(value, list) or (isinstance(value, str) and isinstance(field.default, tuple)):
                value = (value,) if isinstance(value, str) else tuple(value)
                object.__setattr__(self, name, value)
            if isinstance(value, str) and field.metadata.get("parse") in (parse_memory, parse_duration):
                value = field.metadata["parse"](value)
                object.__setattr__(self, name, value)
            if isinstance(field.default, enum.StrEnum):
                kind = type(field.default)
                try:
                    object.__setattr__(self, name, kind(value))
                except ValueError:
                    raise SettingsError(f"`{name}` is {value!r}; choose one of {', '.join(kind)}") from None
            if limit is not None and value is not None:
                try:
                    holds = limit.holds(value)
                except TypeError:  # a text where a number belongs, say
                    holds = False
                _require(holds, name, value, limit.words)


def takes(settings: type[_Settings], *more: type[_Settings]) -> Callable[[_Function], _Function]:
    """Mark a function whose ``options`` are fields of settings: `help` and completion show them as its arguments."""

    def mark(function: _Function) -> _Function:
        signature = inspect.signature(function)
        own = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
        fields = {field.name: field for kind in (settings, *more) for field in dataclasses.fields(kind)}
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for name, field in fields.items()
        ]
        function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        return function

    return mark


def settings_from(kind: type[_AnySettings], settings: _AnySettings | None, options: Mapping[str, Any]) -> _AnySettings:
    """Return the settings of a command, which come as one object or as keyword arguments.

    Raises:
        SettingsError: they come as both; no setting has such a name; or one is out of range.
    """
    if settings is None:
        _require_known(options, [field.name for field in dataclasses.fields(kind)], kind)
        return kind(**options)
    if options:
        raise SettingsError(f"`{next(iter(options))}` is given beside an object of settings; write it into that object")
    if not isinstance(settings, kind):
        raise SettingsError(f"the settings are of the type {type(settings).__name__}; give {kind.__name__}")
    return settings


def _require_known(names: Iterable[str], known: Collection[str], kind: type) -> None:
    for name in names:
        if name not in known:
            near = [one for one in known if name in one.split("_")] or difflib.get_close_matches(name, known)
            advice = " or ".join(f"`{one}`" for one in near) or f"one of the attributes of {kind.__name__}"
            raise SettingsError(f"there is no option {name!r}; perhaps you mean {advice}")


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        text = ascii(value)[:80] if type(value) is str else text  # it may be long, or no valid UTF-8
        raise SettingsError(f"`{name}` is {text}; it must be {wanted}")


def parse_memory(text: str) -> int:
    """Read a number of bytes: ``2GiB``, ``500MB``, ``1073741824``; a SettingsError where the text is none."""
    return int(_parse_quantity(text, _BYTES, "memory", "2GiB or 500MB"))


def parse_duration(text: str) -> float:
    """Read a number of seconds: ``120s``, ``10min``, ``1.5h``, ``90``; a SettingsError where the text is none."""
    return _parse_quantity(text, _SECONDS, "budget", "120s or 10min")


def parse_deadline(text: str) -> float:
    """Read a number of seconds above 0, as `parse_duration` does; a SettingsError where the text is none."""
    seconds = _parse_quantity(text, _SECONDS, "deadline", "30min or 2h")
    _require(seconds > 0, "deadline", text, _POSITIVE.words)
    return seconds


def _parse_quantity(text: str, units: Mapping[str, int], name: str, examples: str) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise SettingsError(f"`{name}` is {text!r}; write it as {examples}")
    return float(match[1]) * units[match[2]]


def _is_encoding(name: str) -> bool:
    """Return whether Python knows an encoding of text by this name."""
    try:
        return "".encode(name) is not None
    except (LookupError, ValueError):
        return False


_ENCODING = _Limit("an encoding that Python knows, such as gb18030", _is_encoding)


def parse_delimiter(text: str) -> str:
    r"""Read a character that may be written as ``tab`` or ``\t``."""
    return "\t" if text in ("tab", r"\t") else text


def parse_names(text: str) -> tuple[str, ...]:
    """Read names with commas between; a name that holds a comma stands in quotation marks, as in CSV."""
    names = next(csv.reader([text], skipinitialspace=True), [])
    return tuple(name.strip() for name in names) or (text,)


def parse_shares(text: str) -> dict[str, float]:
    """Read the shares of labels: ``spam=0.01,ham=0.99``; a SettingsError where the text is none, or they are not above
    0 and at most 1."""
    shares = _parse_numbers(text)
    if shares is None or not all(name and 0 < share <= 1 for name, share in shares.items()):
        raise SettingsError(f"`prior` is {text!r}; write a share of each class, such as a=0.9,b=0.1; they sum to 1")
    return shares


def parse_floors(text: str) -> dict[str | None, float]:
    """Read labels and the least precision of each: ``spam=0.9``; or ``0.9``, of all labels, whose key is None. A
    SettingsError where the text is none."""
    floors = _parse_numbers(text)
    if floors is None or not all(0 < floor <= 1 for floor in floors.values()) or ("" in floors and len(floors) > 1):
        raise SettingsError(f"`precision_floor` is {text!r}; write a class and a precision, such as spam=0.9")
    return {name or None: floor for name, floor in floors.items()}


def _parse_numbers(text: str) -> dict[str, float] | None:
    """Read ``a=1,b=2``; a number without a name has an empty one. None if the text is none."""
    parts = [part.rpartition("=") for part in parse_names(text)]
    try:
        numbers = {name: float(number) for name, _, number in parts}
    except ValueError:
        return None
    return numbers if len(numbers) == len(parts) else None


def parse_columns(text: str) -> str | tuple[str, ...]:
    """Read the name of one column, or the names of several, as `parse_names` does."""
    names = parse_names(text)
    return names[0] if len(names) == 1 else names


class Task(enum.StrEnum):
    """What a head is trained for: what its labels are."""

    AUTO = "auto"
    """What the labels say: lists are several labels; numbers with a fraction, or more than 50 distinct whole numbers,
    are numbers; all others are classes."""
    CLASSES = "classes"
    """Each row has one of several classes."""
    MULTI_LABEL = "multi-label"
    """Each row has any number of labels."""
    REGRESSION = "regression"
    """Each row has a number."""
    ORDINAL = "ordinal"
    """Each row has one of several classes that have an order: as their numbers have, or as is said."""


TASKS = {
    LabelKind.CLASS: Task.CLASSES,
    LabelKind.MULTI_LABEL: Task.MULTI_LABEL,
    LabelKind.ORDINAL: Task.ORDINAL,
    LabelKind.NUMBER: Task.REGRESSION,
}
"""The task that each kind of labels is for."""


def require_label_settings(
    task: Task, order: tuple[str, ...] | None, delimiter: str | None, column: str | tuple[str, ...] | None
) -> None:
    """Check that what the user says of the labels does not contradict itself.

    Args:
        task: What they are for.
        order: The names from the least to the greatest.
        delimiter: The text between several labels in a cell.
        column: Their column, or columns.

    Raises:
        SettingsError: it does.
    """
    if order is not None:
        _require(len(set(order)) == len(order) > 1, "order", order, "distinct names, at least two")
        if task is not Task.ORDINAL:
            raise SettingsError("`order` has no effect without `task=ordinal`")
    several = isinstance(column, tuple)
    if several and delimiter is not None:
        raise SettingsError("`label_delimiter` is for one column of labels, and `label_column` names several")
    if (several or delimiter is not None) and task not in (Task.AUTO, Task.MULTI_LABEL):
        what = "several columns with `label_column`" if several else "`label_delimiter`"
        raise SettingsError(f"{what} gives a row several labels, and `task={task}` needs one; leave out one of them")
    if delimiter is not None and column is None:
        raise SettingsError("`label_delimiter` has no effect without labels")


class Precision(enum.StrEnum):
    """Number format that the encoder computes in. It is part of a cache's identity, because it changes features."""

    AUTO = "auto"
    """bfloat16 or float16 if the hardware has units for it, else float32."""
    FLOAT32 = "float32"
    """Single precision in every operation, without autocast: the reference."""
    BFLOAT16 = "bfloat16"
    """Autocast to bfloat16: the range of float32, with 8 bits of precision."""
    FLOAT16 = "float16"
    """Autocast to float16: more precision than bfloat16, less range."""
    INT8 = "int8"
    """Products of 8-bit integers, on a CPU: quicker than float32, less exact than bfloat16. Never chosen by itself."""


class Storage(enum.StrEnum):
    """Number format of the features in the cache. It does not depend on the format that they were computed in."""

    FLOAT32 = "float32"
    """Four bytes for each number."""
    FLOAT16 = "float16"
    """Two bytes for each number: half the file, with 11 bits of precision."""


class Long(enum.StrEnum):
    """What is done with a text of more tokens than `max_length`."""

    CUT = "cut"
    """Its beginning is encoded; its end where the encoder's tokenizer cuts on the left."""
    HEAD_TAIL = "head-tail"
    """The first and the last tokens that fit are encoded, half of each (Sun et al. 2019, arXiv 1905.05583)."""
    CHUNKS = "chunks"
    """All of it is encoded, in chunks of `max_length` tokens, and the chunks' vectors are pooled."""


class ChunkPooling(enum.StrEnum):
    """How the vectors of a text's chunks become one."""

    MEAN = "mean"
    """Their mean, weighted by the tokens of the text in each chunk."""
    MAX = "max"
    """The largest value of each number."""


class ForwardMode(enum.StrEnum):
    """How the encoder processes a batch. The architecture and the device decide it; the cache records it."""

    PACKED = "packed"
    """Sequences one after the other, without padding: the BERT family on a CPU."""
    PADDED = "padded"
    """The model's own forward pass over padded sequences of similar length: everything else."""
    SAME_LENGTH = "same_length"
    """The same over sequences of one length, without padding: where padding would change the features."""


_TASK = (
    "What the labels are. auto: lists are several labels a row; numbers with a fraction, or more than 50 distinct "
    "whole numbers, are numbers; others are classes."
)
_ORDER = "Names of the classes from the least to the greatest, for `task` ordinal."
_LABEL_COLUMN = "Column of the labels; or several columns of 0 and 1, such as a,b,c, each a label."
_LABEL_DELIMITER = "Text between several labels in a cell, such as a semicolon."
_BOUND = (
    "Most memory for features, and of classes for what the solver keeps and for logits, for example 2GiB. The rest is "
    "read from files. On top come about 150 MiB for Python and torch; a large head needs about ten times its bytes."
)
_DEVICE = "Device to compute on: auto, cpu, cuda, cuda:1 or mps."
_ENCODER = "Hub id of the encoder, or folder of its files."
_REVISION = "Branch, tag or commit of a hub id."
_SKIP_BAD_ROWS = (
    "Leave out bad rows (without text or label, not UTF-8, with too many or too few cells), and count them, instead of "
    "stopping at the first one."
)
_PICKLED = "Read pytorch_model.bin if there is no safetensors file. Only for a trusted author: it can run code."


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSettings(_Settings):
    """How to read CSV, TSV and text files, where the name of a file does not tell it."""

    delimiter: str | None = setting(
        None,
        "Character between the cells of a table; tab for a tab.",
        _DELIMITER,
        parse=parse_delimiter,
        shown="comma in .csv, tab in .tsv, none in .txt",
    )
    quotes: bool | None = setting(
        None,
        "Whether quotation marks enclose cells, or are part of the text.",
        shown="they enclose cells in .csv; also in .tsv, if every mark of the file stands where CSV has it",
    )
    encoding: str | None = setting(None, "Encoding of text files, such as gb18030 or cp1252.", _ENCODING, shown="utf-8")
    header: bool | None = setting(
        None,
        "Whether the first row names the columns. Without names, columns are called 1, 2, 3 and so on.",
        shown="the first row does, but not in .txt",
    )
    sheet: str | None = setting(None, "Name of the sheet of an .xlsx file.", shown="the first sheet")


BY_NAME = TableSettings()
"""Every file is read as its name says."""


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractSettings(TableSettings):
    """Settings of `extract`."""

    encoder: str | None = setting(None, _ENCODER, shown="none: it must be given")
    revision: str | None = setting(None, _REVISION)
    text_column: str = setting("text", "Column of the texts.")
    text_pair_column: str | None = setting(None, "Column of the second texts, if rows are pairs of texts.")
    label_column: str | tuple[str, ...] | None = setting("label", _LABEL_COLUMN, parse=parse_columns, shown="label")
    label_delimiter: str | None = setting(None, _LABEL_DELIMITER, _TEXT, parse=parse_delimiter, shown="none")
    task: Task = setting(Task.AUTO, _TASK)
    order: tuple[str, ...] | None = setting(None, _ORDER, parse=parse_names, shown="that of their numbers")
    features: tuple[str, ...] = setting(
        (AUTO,),
        "Features to store: model (the encoder's own vector, as its files say), cls, mean, max, last, pooler, "
        "layer6.cls, layer*.cls. auto: model, or cls where the files do not say it.",
    )
    prompt: str | None = setting(
        None,
        "Name of one of the encoder's own prompts, to put before every text.",
        shown="its default prompt if it has one and model is stored",
    )
    prefix: str | None = setting(None, "Text to put before every text, instead of a `prompt`.", _PREFIX, shown="none")
    max_length: int | None = setting(
        None,
        "Maximum number of tokens, special ones included. What is done with longer texts, `long` says.",
        _COUNT,
        shown=f"as the encoder's files say, else {OTHER_MAX_LENGTH}",
    )
    long: Long = setting(
        Long.CUT,
        "What is done with a text of more tokens. cut: it is truncated. head-tail: its first and its last tokens are "
        "encoded. chunks: all of it is encoded, in chunks, and their vectors are pooled.",
    )
    overlap: int | None = setting(
        None,
        "Tokens that one chunk of a text shares with the next.",
        _COUNT_OR_ZERO,
        shown="an eighth of `max_length`",
    )
    chunk_pooling: ChunkPooling = setting(
        ChunkPooling.MEAN, "How the vectors of chunks become one. mean: weighted by the text's tokens in each."
    )
    precision: Precision = setting(
        Precision.AUTO,
        "Number format that the encoder computes in. auto: half precision where the hardware has units for it. int8 is "
        "for CPUs without them, and never chosen by itself.",
    )
    storage: Storage = setting(Storage.FLOAT32, "Number format of the stored features.")
    batch_tokens: int | None = setting(None, "Tokens in a batch, with padding.", _COUNT, shown="chosen for the device")
    device: str = setting("auto", _DEVICE)
    skip_bad_rows: bool = setting(False, _SKIP_BAD_ROWS)
    allow_pickled_weights: bool = setting(False, _PICKLED)
    block_rows: int = setting(1024, "Number of rows that share a checksum.", _COUNT)
    window_rows: int = setting(4096, "Rows that are batched together by length: a multiple of `block_rows`.", _COUNT)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_label_settings(self.task, self.order, self.label_delimiter, self.label_column)
        if self.prompt is not None and self.prefix is not None:
            raise SettingsError("`prompt` and `prefix` both put a text before every text; choose one of them")
        if self.long is not Long.CHUNKS:
            for name, given in (("overlap", self.overlap is not None), ("chunk_pooling", self.chunk_pooling != "mean")):
                if given:
                    raise SettingsError(f"`{name}` has no effect without `long=chunks`")
        if self.long is not Long.CUT and self.text_pair_column is not None:
            raise SettingsError(
                f"`long={self.long}` is for single texts; leave out `text_pair_column`, or choose `long=cut`, which "
                "shortens the longer of two texts"
            )
        whole_blocks = self.window_rows % self.block_rows == 0
        _require(whole_blocks, "window_rows", self.window_rows, f"a multiple of {self.block_rows} (`block_rows`)")


class LineFormat(enum.StrEnum):
    """What a line of a stream of texts is."""

    TEXT = "text"
    """A text."""
    JSON = "json"
    """A JSON object, with the text in one of its columns."""


class HeadKind(enum.StrEnum):
    """Kind of classifier head."""

    LINEAR = "linear"
    """One weight for each class and column, and one bias for each class."""
    MLP = "mlp"
    """The same after one hidden layer with a rectifier."""


class Solver(enum.StrEnum):
    """How a head is trained."""

    AUTO = "auto"
    """The exact solver with the feature, scaling and penalty that folds of the training rows choose; then on all of
    these rows."""
    SGD = "sgd"
    """AdamW over batches, with dropout. The validation rows choose the epoch."""
    EXACT = "exact"
    """Multinomial logistic regression, solved to its optimum: linear, without dropout, the same for every seed.

    It minimises the sum over the rows of cross-entropy times class weight, plus l2 / 2 times the sum of the squared
    weights. The biases are not penalised.
    """


class Scaling(enum.StrEnum):
    """What is done with the vectors before the weights of a linear head."""

    NONE = "none"
    """Nothing: as the cache holds them."""
    STANDARDIZED = "standardized"
    """Each column is divided by its standard deviation over the training rows."""
    NORMALIZED = "normalized"
    """Each vector is divided by its length."""


class Metric(enum.StrEnum):
    """Measure by which a head is chosen, on rows that it was not trained on."""

    LOG_LOSS = "log-loss"
    """Mean cross-entropy; of numbers, that of a normal distribution. The lowest is the best."""
    ACCURACY = "accuracy"
    """Fraction of rows that are classified correctly."""
    MACRO_F1 = "macro-f1"
    """Mean of the F1 scores of the classes: for rare classes that matter."""
    AVERAGE_PRECISION = "average-precision"
    """Mean over the classes of the area under precision and recall: for rare classes whose order matters."""
    R2 = "r2"
    """Of numbers: the share of their variance that is predicted."""
    MAE = "mae"
    """Of numbers: the mean absolute error; the lowest is the best."""
    RMSE = "rmse"
    """Of numbers: the root of the mean squared error; the lowest is the best."""
    SPEARMAN = "spearman"
    """Of numbers: the correlation of the ranks of numbers and predictions."""

    @property
    def lower_is_better(self) -> bool:
        return self in (Metric.LOG_LOSS, Metric.MAE, Metric.RMSE)


class Calibration(enum.StrEnum):
    """How logits are mapped so that probabilities match how often a head is right."""

    NONE = "none"
    """Not at all."""
    TEMPERATURE = "temperature"
    """All are divided by one number."""
    PER_CLASS = "per-class"
    """Each class's are multiplied by a number, and another is added. Predictions may change."""
    AUTO = "auto"
    """The one with the lowest log loss on rows that it was not fitted to."""

    @classmethod
    def _missing_(cls, value: object) -> Calibration | None:
        """`True` and `False` have been its values."""
        return {True: cls.TEMPERATURE, False: cls.NONE}[value] if isinstance(value, bool) else None


class Decision(enum.StrEnum):
    """What chooses the probability from which a label is predicted: one of two classes, or each of several labels of a
    row."""

    AUTO = "auto"
    """Of several labels macro F1, of classes nothing."""
    NONE = "none"
    """Nothing: the more probable class is predicted, or each label from one half on."""
    ACCURACY = "accuracy"
    """The accuracy on rows that were not trained on; of several labels that of each."""
    MACRO_F1 = "macro-f1"
    """The mean of both classes' F1 scores on them, or of all labels' F1 scores, each of which is the highest then."""


class Schedule(enum.StrEnum):
    """Course of the learning rate after the warm-up."""

    CONSTANT = "constant"
    """It stays the same."""
    COSINE = "cosine"
    """It falls to zero along half a cosine."""


class ClassWeight(enum.StrEnum):
    """Weight of a row in the loss."""

    NONE = "none"
    """Every row has the same weight."""
    BALANCED = "balanced"
    """A row has the weight rows / (classes x rows of its class), as in scikit-learn."""


_ONLY_SGD = (
    *("epochs", "batch_size", "learning_rate", "schedule", "warmup", "weight_decay", "dropout", "center"),
    *("label_smoothing", "patience"),
)
UNUSED = {
    Solver.AUTO: (*_ONLY_SGD, "hidden", "standardize", "l2"),
    Solver.SGD: ("metric", "l2"),
    Solver.EXACT: (*_ONLY_SGD, "hidden", "metric"),
}
"""Settings of a head that each solver does not use."""


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(_Settings):
    """Settings of `train_head`. Those of sgd were chosen on validation rows, but for dropout: see bench/README.md."""

    feature: str = setting(
        AUTO,
        "Feature to train on. auto: the solver auto chooses among all that the cache holds; others take the only one, "
        "or model, and of several others, name one.",
    )
    task: Task = setting(Task.AUTO, "What to train for, if not for what the labels are; see extract.")
    order: tuple[str, ...] | None = setting(None, _ORDER, parse=parse_names, shown="that of their numbers")
    dims: int | None = setting(
        None,
        "Numbers of each vector to train on, its first ones, for an encoder that was trained for it (Matryoshka). "
        "Where the encoder's vectors have the length 1, these get it again.",
        _COUNT,
        shown="all",
    )
    test_fraction: float = setting(0.2, "Fraction of the rows to hold out for testing.", _FRACTION)
    validation_fraction: float = setting(0.1, "Fraction of the remaining rows to hold out for validation.", _FRACTION)
    folds: int = setting(
        0,
        "Divide the remaining rows into folds. The solver auto chooses by all of them; others hold out one for "
        "validation. 0: auto takes 5, or one for each of few texts; others hold out a fraction.",
        _FOLDS,
    )
    fold: int = setting(1, "Number of the fold to hold out, from 1.")
    split_seed: int = setting(0, "Seed of the choice of held-out rows.", _SEED)
    head: HeadKind = setting(HeadKind.LINEAR, "Kind of head: linear, or an MLP with one hidden layer.")
    hidden: int = setting(128, "Width of the hidden layer of an MLP.", _COUNT)
    solver: Solver = setting(
        Solver.AUTO,
        "auto: exact, with the feature, scaling and penalty that folds choose. sgd: AdamW with dropout. exact: "
        "logistic regression, solved to its optimum.",
    )
    metric: Metric = setting(
        Metric.LOG_LOSS,
        "Measure that the solver auto chooses by, on rows that were not trained on; r2, mae, rmse and spearman are of "
        "numbers.",
    )
    l2: float = setting(1.0, "L2 penalty of the exact solver: 1 / C in scikit-learn.", _POSITIVE)
    epochs: int = setting(100, "Number of passes over the training rows.", _COUNT)
    batch_size: int = setting(4096, "Number of rows in a batch.", _COUNT)
    learning_rate: float = setting(0.01, "Learning rate of AdamW.", _LEARNING_RATE)
    schedule: Schedule = setting(
        Schedule.CONSTANT, "Learning rate after the warm-up: constant, or falling to 0 along a cosine."
    )
    warmup: float = setting(0.0, "Fraction of all steps in which the learning rate rises to its full value.", _RATE)
    weight_decay: float = setting(0.01, "Weight decay of AdamW. It does not apply to biases.", _WEIGHT_DECAY)
    dropout: float = setting(0.3, "Probability that a feature value is dropped during training.", _RATE)
    center: bool = setting(True, "Subtract column means before dropout: a dropped value becomes the mean, not zero.")
    standardize: bool = setting(False, "Divide each column by its standard deviation over the training rows.")
    class_weight: ClassWeight = setting(
        ClassWeight.NONE, "Weight of a row in the loss. balanced: all classes count the same."
    )
    label_smoothing: float = setting(0.0, "Fraction of each target that is divided among all classes.", _RATE)
    patience: int = setting(0, "Stop after this many epochs without a lower validation loss; 0: never.", _COUNT_OR_ZERO)
    calibrate: Calibration = setting(
        Calibration.NONE,
        "Fit a temperature, or two numbers for each class or label, on the validation rows or those of all folds. "
        "auto: what has the lowest log loss on rows that it was not fitted to.",
    )
    prior: str | None = setting(
        None,
        "Share of each class where the head is used, such as spam=0.01,ham=0.99: each logit is moved by the logarithm "
        "of its ratio to the share among the training rows. Of several labels each one's own share.",
        shown="as among the training rows",
    )
    decide_by: Decision = setting(
        Decision.AUTO,
        "Choose on the validation rows from which probability on one of two classes, or each of several labels, "
        "is predicted: by accuracy or macro-f1. none: from one half on. auto: macro-f1 of several labels, else none.",
    )
    precision_floor: str | None = setting(
        None,
        "Predict one of two classes only from the lowest probability on that has this precision on the validation "
        "rows, such as spam=0.9; of several labels these, or with 0.9 alone all.",
        shown="none",
    )
    seed: int = setting(0, "Seed of the row order, the dropout masks and the first weights of an MLP.", _SEED)
    device: str = setting("auto", _DEVICE)
    memory: int | None = setting(
        None,
        _BOUND,
        _MEMORY,
        parse=parse_memory,
        shown="no limit",
    )
    keep_shared: bool = setting(False, "Keep training rows whose texts are also in the `test` or `validation` cache.")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_label_settings(self.task, self.order, None, None)
        _require(1 <= self.fold <= max(self.folds, 1), "fold", self.fold, f"between 1 and {max(self.folds, 1)}")
        if isinstance(self.prior, Mapping):
            quoted = ((name.replace('"', '""'), share) for name, share in self.prior.items())
            object.__setattr__(self, "prior", ",".join(f'"{name}={share!r}"' for name, share in quoted))
        if self.prior is not None:
            parse_shares(self.prior)
        if self.precision_floor is not None:
            object.__setattr__(self, "precision_floor", str(self.precision_floor))
            parse_floors(self.precision_floor)
            _require(self.decide_by is Decision.AUTO, "decide_by", self.decide_by, "auto with `precision_floor`")
        if self.solver is not Solver.SGD:
            _require(self.head is HeadKind.LINEAR, "head", self.head, f"linear for the {self.solver} solver")
            smoothing = self.label_smoothing
            _require(smoothing == 0, "label_smoothing", smoothing, f"0 for the {self.solver} solver")
        if self.solver is Solver.AUTO:
            for field in dataclasses.fields(self):
                if field.name in UNUSED[Solver.AUTO] and getattr(self, field.name) != field.default:
                    solver = Solver.EXACT if field.name == "l2" else Solver.SGD
                    raise SettingsError(f"`{field.name}` has no effect without `solver={solver}`")

    @property
    def chooses_feature(self) -> bool:
        """Whether a search chooses among all features of a cache."""
        return self.solver is Solver.AUTO and self.feature == AUTO

    @property
    def needs_validation(self) -> bool:
        """Whether training reads validation rows: to choose the epoch, to calibrate, or for a threshold."""
        return self.solver is Solver.SGD or self.calibrate is not Calibration.NONE or self.decides

    @property
    def decides(self) -> bool:
        """Whether a threshold is chosen by validation rows."""
        return self.decide_by in (Decision.ACCURACY, Decision.MACRO_F1) or self.precision_floor is not None


@_documented
@dataclasses.dataclass(frozen=True)
class Labels(TableSettings):
    """A table whose labels replace the labels of the caches. Rows are matched by their texts."""

    table: str | os.PathLike[str] = dataclasses.field(metadata={"help": "The table, with texts and labels."})
    text_column: str = setting("text", "Column of the texts in the `labels` table.")
    text_pair_column: str | None = setting(None, "Column of the second texts in the `labels` table.")
    label_column: str | tuple[str, ...] = setting(
        "label",
        "Column of the labels in the `labels` table; or several columns of 0 and 1, each a label.",
        parse=parse_columns,
        shown="label",
    )
    label_delimiter: str | None = setting(
        None, "Text between several labels in a cell of the `labels` table.", _TEXT, parse=parse_delimiter, shown="none"
    )
    skip_bad_rows: bool = setting(False, "Leave out bad rows of the `labels` table, instead of stopping at the first.")


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainSettings)}
_VARIED_ALWAYS = ("solver", "feature", "dims", "class_weight")
VARIED = {
    Solver.AUTO: _VARIED_ALWAYS,
    Solver.SGD: (
        *(*_VARIED_ALWAYS, "head", "hidden", "epochs", "batch_size", "learning_rate", "weight_decay", "dropout"),
        "label_smoothing",
    ),
    Solver.EXACT: (*_VARIED_ALWAYS, "l2"),
}
"""What a sweep may vary with each solver, besides seeds and folds."""


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepSettings(_Settings):
    """Settings of `sweep`: all combinations of the values, each with all seeds and folds.

    Where solvers are compared, each is combined with the values that it uses, and only SGD has several seeds.
    """

    base: TrainSettings = setting(TrainSettings(), "Settings of all heads. The sweep sets `seed` and `fold` itself.")
    values: Mapping[str, tuple[Any, ...]] = dataclasses.field(
        default_factory=dict,
        metadata={"help": "Values to compare, by field of `TrainSettings` (see `VARIED`).", "limit": None},
    )
    seeds: tuple[int, ...] = setting((0,), "Seeds. Every combination is trained once with each of them.")
    rank_by: Metric = setting(Metric.LOG_LOSS, "Measure on the validation rows that ranks the combinations.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, values in (*self.values.items(), ("seeds", self.seeds)):
            _require(len(set(values)) == len(values) > 0, name, values, "distinct values")
        allowed = {name for solver in self.solvers for name in VARIED[solver]}
        if unknown := [name for name in self.values if name not in allowed]:
            solvers = " and ".join(self.solvers)
            raise SettingsError(f"`{unknown[0]}` cannot be varied with the {solvers} solver; leave it out")
        if Solver.SGD not in self.solvers and len(self.seeds) > 1:
            solver = self.solvers[0]
            raise SettingsError(f"the {solver} solver gives the same head for every seed; give one value for `seeds`")
        self.settings()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> SweepSettings:
        """Return the settings of a sweep from fields of this class and of `TrainSettings`. Of the latter, those that a
        sweep may vary are compared where they are lists.

        Raises:
            SettingsError: no setting has such a name, or one is out of range.
        """
        own = [field.name for field in dataclasses.fields(cls)]
        of_heads = [field.name for field in dataclasses.fields(TrainSettings) if field.name not in ("seed", "fold")]
        _require_known(options, [*own, *of_heads], cls)
        varied = {name for names in VARIED.values() for name in names}
        values = {name: tuple(v) for name, v in options.items() if name in varied and isinstance(v, list | tuple)}
        common = {name: value for name, value in options.items() if name in of_heads and name not in values}
        if solvers := values.get("solver"):  # the base takes the options of them all
            common["solver"] = Solver.SGD if Solver.SGD in solvers else solvers[0]
        if features := values.get("feature"):
            common["feature"] = features[0]
        given = {name: value for name, value in options.items() if name in own}
        base = dataclasses.replace(given.get("base", cls.base), **common)
        return cls(**{**given, "base": base, "values": {**given.get("values", {}), **values}})

    @property
    def solvers(self) -> tuple[Solver, ...]:
        """The solvers that are compared."""
        return tuple(map(Solver, self.values.get("solver", (self.base.solver,))))

    def settings(self) -> list[TrainSettings]:
        """Return the combinations to compare, without seeds and folds."""
        found: dict[TrainSettings, None] = {}
        for combination in itertools.product(*self.values.values()):
            values = dict(zip(self.values, combination, strict=True))
            solver = Solver(values.get("solver", self.base.solver))
            head = HeadKind(values.get("head", self.base.head))
            if len(self.solvers) > 1:
                if solver is not Solver.SGD and head is HeadKind.MLP:
                    continue
                values |= {name: _DEFAULTS[name] for name in UNUSED[solver]}
            if head is HeadKind.LINEAR and "hidden" in self.values:
                values["hidden"] = _DEFAULTS["hidden"]
            found[dataclasses.replace(self.base, **values)] = None
        _require(bool(found), "head", "mlp", "linear for these solvers")
        return list(found)

    def cells(self) -> list[tuple[int, TrainSettings]]:
        """Return every head to train: the number of its combination, and its settings with seed and fold."""
        folds = range(1, max(self.base.folds, 1) + 1)
        return [
            (number, dataclasses.replace(settings, seed=seed, fold=fold))
            for seed, fold in itertools.product(self.seeds, folds)
            for number, settings in enumerate(self.settings())
            if seed == self.seeds[0] or settings.solver is Solver.SGD
        ]


class Tracker(enum.StrEnum):
    """A tracker of experiments; each is an extra of the same name."""

    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
    TRACKIO = "trackio"


class Pruning(enum.StrEnum):
    """Which rows `audit` finds as label errors: as many as the confident joint says, chosen in one of these ways."""

    NOISE_RATE = "noise-rate"
    """For each label and each other class, those with the largest margin of the class over the label."""
    CLASS = "class"
    """For each label, those with the lowest probability of it."""
    BOTH = "both"
    """Those that both ways choose."""


class LabelScore(enum.StrEnum):
    """What ranks label errors; the lowest is the first."""

    SELF_CONFIDENCE = "self-confidence"
    """Probability of the label."""
    NORMALIZED_MARGIN = "normalized-margin"
    """Probability of the label less that of the most probable other class, mapped from -1..1 to 0..1."""


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class AuditSettings(_Settings):
    """Settings of `audit`."""

    feature: str = setting(
        "auto", "Feature to read. auto: the only one that the cache holds, or model; of several others, name one."
    )
    dims: int | None = setting(
        None, "Numbers of each vector to read, its first ones, as in `train_head`.", _COUNT, shown="all"
    )
    folds: int = setting(5, "Each fold's labels are judged by a head that is trained on the others.", _SOME_FOLDS)
    split_seed: int = setting(0, "Seed of the division into folds.", _SEED)
    l2: float | None = setting(
        None,
        "L2 penalty of the heads, on standardized columns: 1 / C in scikit-learn.",
        _POSITIVE,
        shown="the one with the best log loss over the folds",
    )
    prune: Pruning = setting(
        Pruning.NOISE_RATE,
        "Which rows are label errors. noise-rate: for each label and other class, those with the largest margin. "
        "class: those with the lowest probability of their label. both: those that both ways choose.",
    )
    score: LabelScore = setting(LabelScore.SELF_CONFIDENCE, "What ranks label errors.")
    similarity: float = setting(
        0.95,
        "Rows of different labels are near-duplicates from this cosine on, of their vectors less the mean vector.",
        _SIMILARITY,
    )
    fence: float = setting(
        3.0,
        "A row is an outlier if its distance from the nearest class is this many interquartile ranges above the third "
        "quartile.",
        _POSITIVE,
    )
    next: int = setting(
        0,
        "Number of rows of the `pool` to choose for labelling: uncertain ones that differ from each other. On two "
        "tables that were measured, such rows were not reliably better than any rows.",
        _COUNT_OR_ZERO,
    )
    memory: int | None = setting(
        None,
        _BOUND,
        _MEMORY,
        parse=parse_memory,
        shown="no limit",
    )


class ExportFormat(enum.StrEnum):
    """What `export` writes."""

    TRANSFORMERS = "transformers"
    """A folder for transformers' pipeline("text-classification"), of a stock class."""
    SENTENCE_TRANSFORMERS = "sentence-transformers"
    """Modules of sentence-transformers; the last one gives logits."""
    ONNX = "onnx"
    """One graph, from token ids to predictions."""
    TORCH = "torch"
    """The weights of the usual program of a frozen BERT, under its names."""
    NUMPY = "numpy"
    """The head alone, and a file that reads features."""


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSettings(_Settings):
    """Settings of `export`."""

    to: ExportFormat | None = setting(None, f"Format: {', '.join(ExportFormat)}.", shown="none: it must be given")
    int8: bool = setting(False, "With `to=onnx`: 8-bit integers as the weights of matrix products.")
    sample: int = setting(256, "Number of rows of the `texts` table to compare, at most: its first ones.", _COUNT)
    push: str | None = setting(
        None, "Repository on the hub, ORG/NAME, to upload the folder to; it is private if it is new.", _REPOSITORY
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to is None or self.to not in tuple(ExportFormat):
            given = "not given" if self.to is None else repr(self.to)
            raise SettingsError(f"`to` is {given}; choose one of {', '.join(ExportFormat)}")
        object.__setattr__(self, "to", ExportFormat(self.to))
        if self.int8 and self.to is not ExportFormat.ONNX:
            raise SettingsError("`int8` has no effect without `to=onnx`")


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSettings(_Settings):
    """Settings of `report`."""

    worst: int = setting(20, "Number of texts in each list of those that a head was wrong or unsure about.", _COUNT)
    points: int = setting(
        2000, "Number of rows on the map of the features, chosen in proportion to the labels.", _COUNT
    )


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSettings(_Settings):
    """Settings of `evaluate`."""

    worst: int = setting(10, "Number of rows to show that the head got most wrong.", _COUNT_OR_ZERO)
    leave_out_seen: bool = setting(False, "Leave out rows whose texts the head was trained on or chosen by.")
    skip_unknown_labels: bool = setting(
        False, "Leave out rows with a label that the run does not know, instead of stopping at the first."
    )
    drift_sample: int = setting(
        2000, "Number of new texts, and of texts of training, to compare for drift. 0: none.", _COUNT_OR_ZERO
    )
    split_seed: int = setting(0, "Seed of the choice of texts that are compared, and of their folds.", _SEED)


@_documented
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeedupSettings(TableSettings):
    """Settings of `speedup`."""

    encoder: str | None = setting(None, _ENCODER, shown="none: it must be given")
    revision: str | None = setting(None, _REVISION)
    text_column: str = setting("text", "Column of the texts.")
    label_column: str = setting("label", "Column of the labels.")
    max_length: int = setting(128, "Maximum number of tokens. The program pads every text to it.", _COUNT)
    epochs: int = setting(5, "Number of epochs in an experiment.", _COUNT)
    experiments: int = setting(10, "Number of experiments. Each one is a training run.", _COUNT)
    budget: float = setting(
        120.0, "Time for all measurements, for example 120s or 10min.", _POSITIVE, parse=parse_duration, shown="120s"
    )
    repeats: int = setting(3, "How often each rung is measured, if the budget allows it.", _COUNT)
    quality: bool = setting(
        True, "Compare accuracy too. Without this comparison, the rungs get its part of the budget."
    )
    quality_train: int = setting(1000, "Number of training rows for the comparison of accuracy.", _COUNT)
    quality_test: int = setting(2000, "Number of test rows for the comparison of accuracy.", _COUNT)
    quality_length: int = setting(64, "Maximum number of tokens in the comparison of accuracy. The program pads to it.")
    seeds: tuple[int, ...] = setting((0, 1, 2), "Seeds of the heads whose accuracy is compared.", _SEEDS)
    sample: int = setting(0, "Seed of the choice of rows.")
    device: str = setting("auto", _DEVICE)
    skip_bad_rows: bool = setting(False, _SKIP_BAD_ROWS)
    allow_pickled_weights: bool = setting(False, _PICKLED)
