"""`headstart.load`: a run with its encoder kept loaded, and what counts as texts."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import headstart
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from extracting import run
from headstart.cache.errors import EncoderError, FormatError, IdentityError, SettingsError, StorageError, TableError
from headstart.stages.encoders.backend import Backend
from headstart.stages.encoders.cuda import CudaBackend
from headstart.stages.encoders.encoder import Encoder
from headstart.stages.model import TextClassifier, load
from headstart.stages.settings import TrainSettings
from headstart.stages.train_head import train_head
from tiny import WORDS, save_tiny_encoder, tiny_rows

TEXTS = ["good film", "bad phone", "a fine day", "good film"]
PAIRS = ["bad", "good", "fine", "bad"]


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run trained on single texts of three classes, and one trained on pairs."""
    folder = tmp_path_factory.mktemp("runs")
    texts, labels = (list(column) for column in zip(*tiny_rows(90, classes=3), strict=True))
    run({"text": texts, "label": labels}, folder / "single.h5", tiny)
    both = {"text": texts, "second": texts[::-1], "label": labels}
    run(both, folder / "pairs.h5", tiny, text_pair_column="second")
    for name in ("single", "pairs"):
        train_head(folder / f"{name}.h5", folder / name, TrainSettings(solver="sgd", epochs=3))
    return folder


@pytest.fixture(scope="module")
def model(runs: Path) -> TextClassifier:
    return load(runs / "single")


def test_a_model_classifies_as_predict_does(runs: Path, model: TextClassifier) -> None:
    assert isinstance(headstart.load(runs / "single"), headstart.TextClassifier)
    expected = headstart.predict(runs / "single", TEXTS)
    assert model.classes_.tolist() == list(expected.label_names) == ["class0", "class1", "class2"]
    probabilities, labels = model.predict_proba(TEXTS), model.predict(TEXTS)
    np.testing.assert_array_equal(probabilities, expected.probabilities)
    assert (probabilities.shape, probabilities.dtype) == ((4, 3), np.float32)
    assert isinstance(labels, np.ndarray) and labels.shape == (4,) and labels.tolist() == expected.labels
    np.testing.assert_array_equal(model.classes_[probabilities.argmax(axis=1)], labels)


def test_one_str_gives_one_label(model: TextClassifier) -> None:
    for text in ("good film", np.str_("good film")):
        label, probabilities = model.predict(text), model.predict_proba(text)
        assert type(label) is str and label == model.predict([text])[0]
        assert probabilities.shape == (3,)
        np.testing.assert_array_equal(probabilities, model.predict_proba([text])[0])


def test_an_empty_list_gives_empty_arrays(model: TextClassifier) -> None:
    for nothing in ([], (), np.array([], str), pd.Series([], dtype=str)):
        assert model.predict(nothing).shape == (0,)
        assert model.predict_proba(nothing).shape == (0, 3)


class PolarsSeries:
    """What polars' Series has: no ``ndim``, no ``tolist``."""

    def __init__(self, values: list[str]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_list(self) -> list[str]:
        return self.values


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        deque,
        np.array,
        lambda texts: np.array(texts, object),
        pd.Series,
        pd.Index,
        lambda texts: pd.Series(texts, dtype="category"),
        lambda texts: pd.Series(texts, index=[3, 1, 2, 0], dtype="string"),
        lambda texts: pd.DataFrame({"body": texts, "x": 1})["body"],
        PolarsSeries,
        pa.array,
        lambda texts: pa.chunked_array([texts[:1], texts[1:]]),
        lambda texts: pa.table({"body": texts})["body"],
    ],
)
def test_texts_come_in_many_kinds(model: TextClassifier, make: Callable[[list[str]], Any]) -> None:
    np.testing.assert_array_equal(model.predict_proba(make(TEXTS)), model.predict_proba(TEXTS))


def used_up() -> Any:
    texts = (text for text in TEXTS)
    list(texts)
    return texts


FRAME = pd.DataFrame({"text": TEXTS})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (FRAME, "got DataFrame, not a list of texts; give one of its columns"),
        (pa.table(FRAME), "got Table, not a list of texts; give one of its columns"),
        (FRAME.to_numpy(), r"got ndarray, not a list of texts; it has the shape \(4, 1\)"),
        (np.array("good film"), r"it has the shape \(\)"),
        ({"text": TEXTS}, "got dict, not a list of texts; give one of its values"),
        (set(TEXTS), "got set, not a list of texts; it has no order"),
        ({"a": "b"}.keys(), "got dict_keys, not a list of texts"),
        ({"a": "b"}.values(), "got dict_values, not a list of texts"),
        (b"good film", "got bytes, not a list of texts; decode it"),
        (bytearray(b"good"), "got bytearray, not a list of texts; decode it"),
        (used_up(), "got generator, not a list of texts; it can be read only once"),
        (iter(TEXTS), "got list_iterator, not a list of texts; it can be read only once"),
        (map(str, TEXTS), "got map, not a list of texts; it can be read only once"),
        (5, "got int, not a list of texts"),
        (None, "got NoneType, not a list of texts"),
        (Path("texts.csv"), "got PosixPath, not a list of texts"),
        (["good", None], "text 2 is None, not a str"),
        (["good", float("nan")], "text 2 is nan, not a str"),
        (pd.Series(["good", None]), "text 2 is nan, not a str"),
        (pd.Series(["good", None], dtype="string"), "text 2 is <NA>, not a str"),
        (pa.array(["good", None]), "text 2 is None, not a str"),
        ([5], "text 1 is 5, not a str"),
        (np.arange(3), "text 1 is 0, not a str"),
        (range(3), "text 1 is 0, not a str"),
        ([b"good"], "text 1 is b'good', not a str"),
        ([["good", "film"]], r"text 1 is \['good', 'film'\], not a str; .*second texts go into `pairs`"),
        ([TEXTS * 100], r"text 1 is \['good film', .{,200}\.\.\.\], not a str"),
        ("", "text 1 is blank"),
        (["good", " \t"], "text 2 is blank"),
        (["good", "\ud800"], "text 2 is not UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_by_name(runs: Path, given: Any, message: str, monkeypatch: Any) -> None:
    """By both, and before the encoder is loaded."""
    monkeypatch.setattr(TextClassifier, "load_encoder", lambda _: pytest.fail("the encoder was loaded"))
    with pytest.raises(TableError, match=message):
        TextClassifier(runs / "single").predict(given)
    with pytest.raises(TableError, match=message):
        headstart.predict(runs / "single", given)


def test_pairs_of_texts_are_classified(runs: Path, model: TextClassifier) -> None:
    pairs = load(runs / "pairs")
    many = pairs.predict_proba(TEXTS, pairs=PAIRS)
    expected = headstart.predict(runs / "pairs", TEXTS, pairs=PAIRS).probabilities
    np.testing.assert_array_equal(many, expected)
    assert pairs.predict("good film", pairs="bad") == pairs.predict(pd.Series(TEXTS), pairs=np.array(PAIRS))[0]
    np.testing.assert_allclose(pairs.predict_proba("good film", "bad"), many[0], atol=1e-6)
    for given, message in [
        ((TEXTS, PAIRS[:3]), "4 texts and 3 second texts"),
        (("good film", ["bad"]), "one text goes with one second text"),
        ((["good film"], "bad"), "one text goes with one second text"),
        ((TEXTS, None), "was trained on pairs"),
    ]:
        with pytest.raises(SettingsError, match=message):
            pairs.predict(*given)
    with pytest.raises(TableError, match="second texts: got dict, not a list of second texts"):
        pairs.predict(TEXTS, {"second": PAIRS})
    with pytest.raises(TableError, match="second text 2 is None"):
        pairs.predict(["good", "bad"], ["film", None])
    with pytest.raises(SettingsError, match="was trained on single texts"):
        model.predict("good film", pairs="bad")


def test_threads_share_a_model_that_is_loaded_once(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headstart.stages.encoders import hf

    loads, original = [], hf.load_encoder

    def load_encoder(*arguments: Any) -> Encoder:
        loads.append(threading.get_ident())
        return original(*arguments)

    monkeypatch.setattr(hf, "load_encoder", load_encoder)
    rng = np.random.default_rng(0)
    calls = [[" ".join(rng.choice(WORDS, rng.integers(1, 20))) for _ in range(50)] for _ in range(16)]
    shared = TextClassifier(runs / "single")  # nothing is loaded yet: the threads meet at the first use
    together = threading.Barrier(8)

    def classify(texts: list[str]) -> Any:
        together.wait(60)
        return shared.predict_proba(texts)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(classify, calls))
    assert len(loads) == 1
    for texts, probabilities in zip(calls, found, strict=True):
        np.testing.assert_array_equal(probabilities, shared.predict_proba(texts))
    assert len(loads) == 1


def test_many_texts_are_encoded_a_window_at_a_time(
    runs: Path, model: TextClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text for text, _ in tiny_rows(50)]
    sizes, original = [], Encoder.tokenize

    def tokenize(self: Encoder, texts: Any, pairs: Any = None) -> Any:
        sizes.append(len(texts))
        return original(self, texts, pairs)

    monkeypatch.setattr(Encoder, "tokenize", tokenize)
    in_windows = TextClassifier(runs / "single", window_rows=20).predict_proba(texts)
    assert sizes == [20, 20, 10]
    np.testing.assert_allclose(in_windows, model.predict_proba(texts), atol=1e-6)


def test_what_cannot_be_loaded_is_refused_at_once(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="is not a run"):
        load(tmp_path)
    with pytest.raises(IdentityError, match="they differ in weights_sha256"):
        load(runs / "single", encoder=str(save_tiny_encoder(tmp_path / "other", seed=1)))
    with pytest.raises(EncoderError, match="is not a folder"):
        load(runs / "single", encoder=str(tmp_path / "none"))


def test_a_feature_that_is_not_finite_is_refused_with_its_text(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Backend.encode

    def encode(self: Backend, sequences: Any) -> Any:
        features = original(self, sequences)
        for row, sequence in enumerate(sequences):
            features["cls"][row][0] = np.nan if len(sequence) > 6 else 0
        return features

    model = load(runs / "single")
    monkeypatch.setattr(Backend, "encode", encode)
    with pytest.raises(EncoderError, match="text 2: the encoder's feature of this text is not finite"):
        model.predict(["good", "good film good film good", "bad"])


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Texts as a window of a table."""

    number: int
    sequences: list[Any]

    def place(self, index: int) -> str:
        return f"window {self.number}, text {index}"


class Queue:
    """Copies from a device, whose part the CPU plays: notes when a batch is begun."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_device(self) -> Any:
        return contextlib.nullcontext()

    def to_host(self, tensors: dict[str, Any]) -> Any:
        self.events.append("begun")
        return lambda: {name: values.float().numpy() for name, values in tensors.items()}


def test_the_encoder_works_on_the_next_window_while_one_is_classified(runs: Path) -> None:
    model, queue = load(runs / "single"), Queue()
    encoder = model.load_encoder()
    sequences = [encoder.tokenize(texts)[0] for texts in (TEXTS, [], TEXTS[::-1], TEXTS[:2])]
    alone = [model.features(rows) for rows in sequences]
    copies: Any = queue
    encoder.backend = CudaBackend(encoder.backend.forward, copies)
    windows = [Numbered(number, rows) for number, rows in enumerate(sequences)]
    for (window, features), expected in zip(model.features_in_turn(windows), alone, strict=True):
        queue.events.append(f"given {window.number}")
        np.testing.assert_allclose(features, expected, atol=1e-6)
    assert queue.events == ["begun"] * 3 + ["given 0", "given 1", "given 2", "given 3"]


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda tensors: {n: v * np.nan for n, v in tensors.items()}, EncoderError, "of this text is not finite"),
        (MemoryError(), StorageError, "the memory is full with this text alone, of 5 tokens"),
    ],
)
def test_what_fails_is_named_in_its_own_window(runs: Path, spoil: Any, error: type[Exception], message: str) -> None:
    model, queue = load(runs / "single"), Queue()
    encoder = model.load_encoder()
    forward = encoder.backend.forward

    def fails(sequences: Any) -> Any:
        if any(len(sequence) == 5 for sequence in sequences):
            if isinstance(spoil, Exception):
                raise spoil
            return spoil(forward(sequences))
        return forward(sequences)

    failing, queued = cast(Any, fails), cast(Any, queue)
    failing.mode = forward.mode
    encoder.backend = CudaBackend(failing, queued)
    short, long = encoder.tokenize(["good", "a fine day"])[0]
    assert (len(short), len(long)) == (3, 5)
    windows, given = [Numbered(0, [short]), Numbered(1, [short, long]), Numbered(2, [short])], []
    with pytest.raises(error, match=f"^window 1, text [01]: .*{message}"):
        for window, _ in model.features_in_turn(windows):
            given.append(window.number)
    assert given == [0]
    assert len(list(model.features_in_turn(windows[:1]))) == 1  # it can be used again
