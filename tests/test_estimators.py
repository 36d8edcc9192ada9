"""scikit-learn's estimators: the cached encoder, and the default head on arrays."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pytest
from extracting import flip_a_byte, run
from headstart.cache.errors import EncoderError, IdentityError, SettingsError, TableError
from headstart.cache.hashing import digest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator, parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data
from tiny import save_tiny_encoder, tiny_rows

Encoded = list[list[int]]


@pytest.fixture
def texts() -> list[str]:
    return [text for text, _ in tiny_rows(40)]


@pytest.fixture
def make(tiny: Path, tmp_path: Path) -> Callable[..., headstart.CachedEncoder]:
    def encoder(**options: Any) -> headstart.CachedEncoder:
        chosen = {"encoder": tiny, "cache": tmp_path / "cache", "precision": "float32", **options}
        return headstart.CachedEncoder(**chosen)

    return encoder


def test_features_are_those_of_extract(make: Any, texts: list[str], tiny: Path, tmp_path: Path) -> None:
    cache, _ = run(texts, tmp_path / "c.h5", tiny, features=("mean",), label_column=None)
    np.testing.assert_allclose(make(feature="mean").fit_transform(texts), cache.features("mean"), atol=1e-5)


def test_a_text_is_encoded_once(make: Any, texts: list[str], encoded: Encoded) -> None:
    first = make().fit(texts[:30])
    assert len(encoded) == len(set(texts[:30]))
    features = first.transform(texts[::-1])
    np.testing.assert_array_equal(make().fit_transform(texts), features[::-1])
    np.testing.assert_array_equal(make(storage="float16").fit(texts).transform(texts[:3]).dtype, np.float16)
    del encoded[2 * len(set(texts)) :]  # those in float16 are features of their own
    assert len(encoded) == 2 * len(set(texts))


def test_a_search_over_folds_encodes_a_text_once(make: Any, texts: list[str], encoded: Encoded) -> None:
    labels = [number % 2 for number in range(len(texts))]
    search = GridSearchCV(make_pipeline(make(), LogisticRegression()), {"logisticregression__C": [0.1, 1]}, cv=3)
    search.fit(pd.Series(texts), labels)
    assert search.predict(texts[:3]).shape == (3,)
    assert len(encoded) == len(set(texts))


def test_small_additions_are_merged(make: Any, texts: list[str], encoded: Encoded, tmp_path: Path) -> None:
    distinct = list(dict.fromkeys(texts))
    encoder = make().fit(distinct[:1])
    one_by_one = np.concatenate([encoder.transform([text]) for text in distinct])
    assert len(encoded) == len(distinct)
    files = sorted((tmp_path / "cache").glob("*/*.h5"))
    assert len(files) <= 3
    opened = [headstart.open_cache(file) for file in files]
    for cache in opened:
        cache.check()
    assert sum(cache.rows for cache in opened) == len(distinct)
    assert sum(cache.record["sequences_encoded"] for cache in opened) == len(distinct)
    np.testing.assert_array_equal(encoder.transform(distinct), one_by_one)
    assert not list((tmp_path / "cache").glob("*/.*lock*"))


def test_damage_is_encoded_again(make: Any, texts: list[str], encoded: Encoded, tmp_path: Path) -> None:
    features = make().fit_transform(texts)
    (file,) = (tmp_path / "cache").glob("*/*.h5")
    before = len(encoded)
    flip_a_byte(file, "features/cls", 3)
    np.testing.assert_allclose(make().fit_transform(texts), features, atol=1e-5)
    assert len(encoded) == 2 * before  # all are in the damaged block
    make().fit_transform(texts)
    assert len(encoded) == 2 * before


def test_a_changed_encoder_reads_no_old_features(make: Any, texts: list[str], tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    encoder = make(encoder=folder).fit(texts)
    before = encoder.transform(texts)
    save_tiny_encoder(folder, seed=1)
    with pytest.raises(IdentityError, match="not the one of `fit`: they differ in weights"):
        encoder.transform(texts)
    assert np.abs(clone(encoder).fit_transform(texts) - before).max() > 0.1


def test_processes_share_a_folder(make: Any, tmp_path: Path, texts: list[str]) -> None:
    labels = [number % 2 for number in range(len(texts))]
    search = GridSearchCV(
        make_pipeline(make(), LogisticRegression()), {"logisticregression__C": [0.1, 1]}, cv=2, n_jobs=2
    )
    search.fit(texts, labels)
    opened = [headstart.open_cache(file) for file in (tmp_path / "cache").glob("*/*.h5")]
    assert sum(cache.rows for cache in opened) == len(set(texts))
    assert sum(cache.record["sequences_encoded"] for cache in opened) == len(set(texts))


def test_it_works_with_the_rest_of_scikit_learn(make: Any, texts: list[str]) -> None:
    frame = pd.DataFrame({"text": texts, "length": range(len(texts))})
    for column in ("text", ["text"]):
        both = ColumnTransformer([("features", make(), column)], remainder="passthrough").set_output(transform="pandas")
        out = both.fit_transform(frame)
        assert out.shape == (40, 33) and out.columns[0] == "features__cachedencoder0"
    encoder = make().fit(texts)
    assert encoder.get_feature_names_out().tolist() == [f"cachedencoder{number}" for number in range(32)]
    for table in (frame[["text"]], pl.DataFrame({"text": texts}), np.array(texts)[:, None], np.array(texts, object)):
        np.testing.assert_array_equal(encoder.transform(table), encoder.transform(texts))
    kept = pickle.dumps(encoder)
    assert len(kept) < 2000  # without the encoder
    np.testing.assert_array_equal(pickle.loads(kept).transform(texts), encoder.transform(texts))


@pytest.mark.parametrize(
    ("options", "given", "error", "message"),
    [
        ({}, ["good", " "], TableError, "text 2 is blank"),
        ({}, [["good", "film"]], TableError, "text 1 is .* not a str"),
        ({}, np.array([["good", "film"]]), SettingsError, "X has 2 columns"),
        ({"cache": None}, ["good"], SettingsError, "`cache` is None"),
        ({"feature": "model"}, ["good"], SettingsError, "has no feature 'model'"),
        ({"encoder": None}, ["good"], EncoderError, "`encoder`"),
    ],
)
def test_what_cannot_be_encoded_is_refused(make: Any, options: Any, given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make(**options).fit(given)


class NumbersAsTexts(headstart.CachedEncoder):
    """A cached encoder that takes numbers for words, so that scikit-learn's own checks can call it."""

    def __init__(self, encoder: Any = None, *, cache: Any = None) -> None:
        super().__init__(encoder, cache=cache, precision="float32")

    def fit(self, X: Any, y: Any = None) -> NumbersAsTexts:  # noqa: N803
        super().fit(self._words(X))
        return self

    def fit_transform(self, X: Any, y: Any = None) -> Any:  # noqa: N803
        return super().fit_transform(self._words(X))

    def transform(self, X: Any) -> Any:  # noqa: N803
        check_is_fitted(self)
        return super().transform(self._words(X, reset=False))

    def _words(self, X: Any, reset: bool = True) -> list[str]:  # noqa: N803
        return [f"good {digest(row).hex()[:8]}" for row in validate_data(self, X, dtype=np.float64, reset=reset)]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        return {"encoder": self.encoder, "cache": self.cache}

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = True, False, False
        return tags


def test_the_encoder_passes_scikit_learns_checks(tiny: Path, tmp_path: Path) -> None:
    """All of them, with numbers for words: nothing is expected to fail."""
    results = check_estimator(NumbersAsTexts(str(tiny), cache=str(tmp_path)), on_skip=None)
    assert len(results) > 30
    assert {result["status"] for result in results} <= {"passed", "skipped"}


def head_data(rows: int = 120) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.str_]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=rows)
    return (np.eye(3)[labels] + rng.normal(size=(rows, 3))).astype(np.float32), np.array(["b", "a", "c"])[labels]


def test_the_head_is_that_of_train_head(tiny: Path, tmp_path: Path) -> None:
    texts, labels = zip(*tiny_rows(150, classes=3), strict=True)
    cache, _ = run({"text": list(texts), "label": list(labels)}, tmp_path / "c.h5", tiny, features=("cls",))
    for options in ({}, {"solver": "exact", "l2": 3.0}):
        trained = headstart.load_head(headstart.train_head(cache.path, tmp_path / f"run{len(options)}", **options))
        head = headstart.HeadClassifier(**{name: value for name, value in options.items() if name == "l2"})
        frame = headstart.open_run(tmp_path / f"run{len(options)}").to_frame()
        held = frame["part"].isin(["test", "validation"] if options else ["test"]).to_numpy()
        rows = np.setdiff1d(np.arange(150), frame["row"].to_numpy()[held] - 1)
        head.fit(cache.features("cls")[rows], np.array(labels)[rows])
        probabilities = head.predict_proba(cache.features("cls"))
        if options:  # the same rows, the same penalty: the same optimum
            np.testing.assert_allclose(probabilities, trained.probabilities(cache.features("cls")), atol=1e-4)
        assert (probabilities.argmax(axis=1) == trained.predict(cache.features("cls"))).mean() > 0.9


NOT_PASSED = {"check_class_weight_classifiers": "a weight of each class is not taken: None or balanced"}


def test_the_head_predicts_labels_of_any_kind() -> None:
    rows, labels = head_data()
    head = headstart.HeadClassifier().fit(rows, labels)
    assert head.classes_.tolist() == ["a", "b", "c"] and head.score(rows, labels) > 0.6
    assert headstart.HeadClassifier().fit(rows, labels == "a").predict(rows).dtype == bool
    with pytest.raises(ValueError, match="one class only"):
        headstart.HeadClassifier().fit(rows, np.zeros(len(rows)))
    with pytest.raises(SettingsError, match="`metric` is 'loss'"):
        headstart.HeadClassifier(metric="loss").fit(rows, labels)


@parametrize_with_checks([headstart.HeadClassifier(l2=1.0)], expected_failed_checks=lambda _: NOT_PASSED)
def test_the_head_passes_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_importing_headstart_loads_no_scikit_learn() -> None:
    code = "import headstart, sys; headstart.extract; assert 'sklearn' not in sys.modules\n"
    code += "sys.modules['sklearn'] = None\n"
    code += "try: headstart.CachedEncoder\nexcept headstart.UserError as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'headstart[scikit-learn]'" in done.stdout


def test_texts_that_lose_their_end_are_warned_of(make: Any) -> None:
    with pytest.warns(UserWarning, match="100% of the texts have more than 8 tokens, and lost the rest"):
        make(max_length=8).fit(["the good film " * 9])
