"""A run put to work: its head, with its encoder kept loaded. `headstart.load` returns one."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import reprlib
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from ..cache.documents import is_text
from ..cache.errors import EncoderError, SettingsError, StorageError, TableError
from .encoders.session import EncoderSession
from .progress import Note, Report, Step, in_notebooks
from .runs.run import load_head, read_run
from .settings import ExtractSettings, Task
from .tables.memory import as_list
from .types import Features, TokenIds

if TYPE_CHECKING:
    from .encoders.encoder import BatchReport, Encoder, UnknownTokens

NO_TOKENS = "the encoder's tokenizer makes no tokens of this text"
Names = npt.NDArray[np.object_]
"""Class names, (n,) of str. Numpy's own strings would lose a NUL at the end of a name."""
Predicted = npt.NDArray[Any]
"""Of classes, their names, (n,) of str; of several labels a row, (n,) of lists of names; of numbers, (n,) float64."""
Probabilities = npt.NDArray[np.float32]
"""(n, classes) float32; each row sums to 1, unless a row may have several labels."""
Outputs = npt.NDArray[np.float32]
"""`Probabilities`; of numbers, (n, 1) float32, the numbers."""


def _text_number(index: int) -> str:
    return f"text {index + 1:,}"


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts that a caller gave, checked."""

    texts: list[str]
    pairs: list[str] | None  # the second text of each; None for single texts
    is_one: bool  # the caller gave one str, not a list of them


class TokenWindow(Protocol):
    """Token sequences that are encoded together."""

    @property
    def sequences(self) -> Sequence[TokenIds]: ...

    def place(self, index: int, /) -> str:
        """The name of a sequence's text in a message."""


_Window = TypeVar("_Window", bound=TokenWindow)


@dataclasses.dataclass(frozen=True)
class _Rows:
    sequences: Sequence[TokenIds]
    place: Callable[[int], str]


class TextClassifier:
    """Predicts the labels of texts with a run's head, through the encoder that the head's features came from.

    What `predict` returns is of the kind that the head was trained for, ``head.task``: the most probable class, also
    where classes have an order; the list of the labels whose probability reaches ``head.thresholds`` (maybe none); or a
    number.

    The encoder is loaded once, at the first use. Threads may share a classifier: they encode one after the other, for
    the encoder uses all cores by itself.

    Attributes:
        run: The run folder.
        head: The head.
        device: The device that the encoder was loaded to; "" before.
        classes_: (classes,) the class names, in the order of the columns of `predict_proba`; where classes have an
            order, from the least to the greatest; (0,) where the head predicts numbers.
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        encoder: str | None = None,
        device: str = "auto",
        allow_pickled_weights: bool = False,
        window_rows: int = ExtractSettings.window_rows,
        report: Report = in_notebooks,
    ) -> None:
        """Load the head; the encoder is found and loaded when it is first needed. Arguments and errors as for `load`.

        ``window_rows`` texts are batched together. More texts make fuller batches, and take more memory.
        """
        self.head = load_head(run)
        self.classes_: Names = np.array(self.head.label_names, object)
        self.window_rows = window_rows
        self.run, self._report = Path(run), report
        self._open_session = functools.partial(
            EncoderSession.from_identity,
            where=self.run,
            encoder=encoder,
            device=device,
            allow_pickled_weights=allow_pickled_weights,
            report=report,
        )
        self._session: EncoderSession | None = None
        self.device = ""
        self._loading, self._encoding = threading.Lock(), threading.Lock()

    @overload
    def predict(self, texts: str, pairs: str | None = None) -> Any: ...

    @overload
    def predict(self, texts: Any, pairs: Any = None) -> Predicted: ...

    def predict(self, texts: Any, pairs: Any = None) -> Any:
        """Return the prediction for each text: the most probable class, a list of labels, or a number.

        Args:
            texts: One text, or a list, a tuple, a one-dimensional array or a Series of texts.
            pairs: The second text of each, where the head was trained on pairs.

        Returns:
            (n,) class names (of str), lists of names, or numbers (float64); of one str, its own: a str, a list, or a
            float.

        Raises:
            TableError: ``texts`` or ``pairs`` are not texts, or one of them is blank.
            SettingsError: the head was trained on pairs and there are none, or the other way round.
            EncoderError: the encoder cannot be found or read, its tokenizer makes no tokens of a text, or it gives a
                feature that is not finite.
            IdentityError: the encoder is not the one that the head was trained on.
            StorageError: the memory is full with one text alone.
        """
        checked = self.read(texts, pairs)
        predicted = self.predictions(self.classify(checked))
        return predicted.tolist()[0] if checked.is_one else predicted

    def predict_proba(self, texts: Any, pairs: Any = None) -> Probabilities:
        """Return the probability of each class for each text. Arguments and errors as for `predict`.

        Returns:
            (n, classes) float32; of one str, (classes,). Each row sums to 1; where a row may have several labels, each
            is the probability of its label for itself.

        Raises:
            SettingsError: the head predicts numbers, which have no probabilities.
        """
        if self.head.task is Task.REGRESSION:
            raise SettingsError(f"{self.run} predicts numbers, which have no probabilities; call predict")
        checked = self.read(texts, pairs)
        probabilities = self.classify(checked)
        return probabilities[0] if checked.is_one else probabilities

    def predictions(self, outputs: Outputs) -> Predicted:
        """Return the prediction that each row of outputs says: (n,), see `predict`."""
        predicted = self.head.predictions(outputs)
        if self.head.task is Task.REGRESSION:
            return predicted
        if self.head.task is not Task.MULTI_LABEL:
            names: Names = self.classes_[predicted]
            return names
        lists = np.empty(len(outputs), object)
        for row, chosen in enumerate(predicted):
            lists[row] = self.classes_[chosen].tolist()
        return lists

    def read(self, texts: Any, pairs: Any = None) -> Texts:
        """Check texts without loading the encoder; arguments and errors as for `predict`."""
        self.require_pairs(pairs is not None)
        checked = checked_texts(texts, "text")
        if pairs is None:
            return Texts(checked, None, isinstance(texts, str))
        if isinstance(texts, str) != isinstance(pairs, str):
            raise SettingsError("one text goes with one second text, a list of texts with a list of `pairs`")
        seconds = checked_texts(pairs, "second text")
        if len(seconds) != len(checked):
            raise SettingsError(
                f"there are {len(checked):,} texts and {len(seconds):,} second texts; give one for each"
            )
        return Texts(checked, seconds, isinstance(texts, str))

    def require_pairs(self, pairs: bool) -> None:
        """Check that the head was trained on pairs, or on single texts.

        Raises:
            SettingsError: it was trained on the other.
        """
        if self.head.identity.pairs != pairs:
            wanted = "single texts" if pairs else "pairs of texts: give a table with `text_pair_column`"
            raise SettingsError(f"{self.run} was trained on {wanted}")

    @property
    def no_outputs(self) -> Outputs:
        """The outputs of no text."""
        return np.empty((0, max(len(self.classes_), 1)), np.float32)

    def classify(self, texts: Texts) -> Outputs:
        """Return the outputs of texts that `read` has checked; errors as for `predict`."""
        parts: list[Outputs] = [self.no_outputs]
        counted: UnknownTokens | None = None
        for start in range(0, len(texts.texts), self.window_rows):
            rows = slice(start, start + self.window_rows)

            def place(index: int, start: int = start) -> str:
                return f"text {start + index + 1}"

            pairs = None if texts.pairs is None else texts.pairs[rows]
            sequences = self.tokenize(texts.texts[rows], pairs, place)
            parts.append(self.outputs(sequences, place))
            unknown = self.load_encoder().count_unknown(sequences)
            counted = unknown if counted is None else counted + unknown
            self._report(Step("encoding", start + len(sequences), len(texts.texts), "texts"))
        if counted is not None and (note := counted.note()):
            self._report(Note(note))
        return np.concatenate(parts)

    def tokenize(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, place: Callable[[int], str] = _text_number
    ) -> list[TokenIds]:
        """Return the token sequence of each text. ``place`` gives the name of a text in a message, by its index.

        Raises:
            EncoderError: the tokenizer makes no tokens of a text.
        """
        sequences, _ = self.load_encoder().tokenize(texts, pairs)
        for index, sequence in enumerate(sequences):
            if not len(sequence):
                raise EncoderError(f"{place(index)}: {NO_TOKENS}; change it")
        return sequences

    def outputs(
        self,
        sequences: Sequence[TokenIds],
        place: Callable[[int], str] = _text_number,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> Outputs:
        """Return the outputs of some token sequences; arguments and errors as for `features`."""
        return self.head.outputs(self.features(sequences, place, on_batch)) if sequences else self.no_outputs

    def features(
        self,
        sequences: Sequence[TokenIds],
        place: Callable[[int], str] = _text_number,
        on_batch: Callable[[BatchReport], None] | None = None,
    ) -> Features:
        """Return the features of some token sequences, which are encoded together, equal ones once: (n, width) float32.

        ``place`` is as for `tokenize`, ``on_batch`` as for `encode_sequences`.

        Raises:
            EncoderError: a feature is not finite.
            StorageError: the memory is full with one sequence alone.
        """
        ((_, features),) = self.features_in_turn([_Rows(sequences, place)], on_batch)
        return features

    def features_in_turn(
        self, windows: Iterable[_Window], on_batch: Callable[[BatchReport], None] | None = None
    ) -> Generator[tuple[_Window, Features], None, None]:
        """Yield each window with the features of its sequences, while the encoder works on the next.

        Until the end, nothing else can be encoded: another call waits, and from the same thread for ever.

        ``on_batch`` is called, and errors are raised, as for `features`.
        """
        from .encoders.encoder import EncoderWork, encode_in_turn
        from .encoders.memory import MemoryFullError

        encoder, begun = self.load_encoder(), collections.deque[_Window]()

        def works() -> Iterator[EncoderWork]:
            for window in windows:
                begun.append(window)
                yield EncoderWork(encoder, window.sequences, on_batch=on_batch)

        with self._encoding, contextlib.closing(encode_in_turn(encoder, works())) as done:
            try:
                for work in done:
                    (features,) = work.result().values()
                    finite = np.isfinite(features).all(axis=1)
                    if not finite.all():
                        text = begun[0].place(int(np.argmin(finite)))
                        raise EncoderError(f"{text}: the encoder's feature of this text is not finite")
                    yield begun.popleft(), features
            except MemoryFullError as error:
                text, row = begun[0].place(error.sequence), begun[0].sequences[error.sequence]
                tokens = min(len(row), self.head.identity.max_length)  # of the longest chunk
                raise StorageError(
                    f"{text}: the memory is full with this text alone, of {tokens:,} tokens; free some"
                ) from error

    def load_encoder(self) -> Encoder:
        """Return the encoder; the first call finds, checks and loads it. Errors as for `predict`."""
        return self.session().encoder

    def session(self) -> EncoderSession:
        """Return the encoder with its settings, loaded as by `load_encoder`."""
        with self._loading:
            if self._session is None:
                session = self._open_session(self.head.identity, read_run(self.run)["encoder"])
                _ = session.encoder
                self._session, self.device = session, str(session.device)
            return self._session


def load(
    run: str | os.PathLike[str],
    *,
    encoder: str | None = None,
    device: str = "auto",
    allow_pickled_weights: bool = False,
    report: Report = in_notebooks,
) -> TextClassifier:
    """Load a run's head and its encoder, to classify texts again and again.

    Args:
        run: The run folder.
        encoder: A folder or hub id, where the encoder is no longer where the run says; it must be the same encoder.
        device: ``auto``, or a torch device.
        allow_pickled_weights: Read a ``pytorch_model.bin`` where the encoder has no safetensors.
        report: Receives progress.

    Raises:
        FormatError: the folder is not a run.
        DamagedError: the run cannot be read.
        EncoderError: the encoder cannot be found or read.
        IdentityError: the encoder is not the one that the head was trained on.
    """
    classifier = TextClassifier(
        run, encoder=encoder, device=device, allow_pickled_weights=allow_pickled_weights, report=report
    )
    classifier.load_encoder()
    return classifier


def checked_texts(values: Any, what: str) -> list[str]:
    """Return one str, or a sequence, an array or a Series of str, as a list; a message calls each ``what``.

    Raises:
        TableError: the values are not texts that can be read in order and again, or one of them is no text or blank.
    """
    if isinstance(values, str):
        texts: list[Any] = [values]
    else:
        _require_sequence(values, what)
        texts = list(as_list(values))
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str):
            advice = "; second texts go into `pairs`" if isinstance(text, list | tuple) else ""
            raise TableError(f"{what} {number} is {reprlib.repr(text)}, not a str; change it, or leave it out{advice}")
        if not text.strip():
            raise TableError(f"{what} {number} is blank; give it some words")
        if not is_text(text):
            raise TableError(f"{what} {number} is not UTF-8; correct it, or the terminal's encoding")
    return [str(text) for text in texts]


def _require_sequence(values: Any, what: str) -> None:
    kind, wanted = type(values).__name__, f"a list of {what}s"
    if isinstance(values, Mapping):
        problem = "give one of its values, such as data['text']"
    elif hasattr(type(values), "columns") or hasattr(type(values), "column_names"):
        problem = "give one of its columns, such as table['text'], or classify the table with predict_table"
    elif isinstance(values, Set):
        problem = "it has no order: give a list"
    elif isinstance(values, Iterator):
        problem = "it can be read only once, and may be used up: give list(...) of it"
    elif isinstance(values, bytes | bytearray | memoryview):
        problem = "decode it to a str"
    elif getattr(values, "ndim", 1) != 1:
        problem = f"it has the shape {tuple(values.shape)}: give one of its columns"
    elif isinstance(values, Sequence) or isinstance(as_list(values), list):
        return
    else:
        problem = f"give a str, or {wanted}"
    raise TableError(f"{what}s: got {kind}, not {wanted}; {problem}")
