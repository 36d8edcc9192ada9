"""scikit-learn's estimators: an encoder that keeps its features in a folder, and the default head on arrays.

`headstart.CachedEncoder` and `headstart.HeadClassifier` load this module, and scikit-learn with it.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache.errors import IdentityError, SettingsError
from ..cache.hashing import hash_rows
from ..cache.identity import differences
from .extraction.store import TextStore
from .heads.dataset import Dataset, Splits
from .heads.dims import normalized
from .heads.fit import fit_head, head_device
from .heads.head import outputs_of
from .heads.search import search
from .heads.targets import ClassTarget
from .model import checked_texts
from .progress import Event, Note, in_notebooks
from .settings import ExtractSettings, Scaling, Solver, Task, TrainSettings
from .splits.stratify import choosing_folds, group_rows
from .types import Features, Float64Array, StoredFeatures

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise SettingsError(
        "CachedEncoder and HeadClassifier need scikit-learn: pip install 'headstart[scikit-learn]'"
    ) from None

_OWN = ("cache", "feature")
"""Parameters of `CachedEncoder` that are no settings of `extract`."""


class CachedEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns texts into features of a frozen encoder. A text is encoded once in its life.

    Features are kept in files under ``cache``, in one folder for each encoder and setting that decides them. So neither
    folds nor their order, neither clones nor other processes encode a text again, nor does the next run. An encoder
    whose files have changed finds no feature of the old one. Texts are given as a list, a one-dimensional array, a
    Series, or a table with one column.

    Args:
        encoder: Hub id of the encoder, or folder of its files.
        cache: Folder to keep features in; it is made where it is missing.
        feature: One feature, as in `ExtractSettings.features`: ``auto``, ``model``, ``cls``, ``mean``, ``layer6.cls``.
        others: As in `ExtractSettings`.

    Attributes:
        identity_: The identity of the features; see `Identity`.
    """

    def __init__(
        self,
        encoder: str | os.PathLike[str] | None = None,
        *,
        cache: str | os.PathLike[str] | None = None,
        feature: str = "auto",
        revision: str | None = None,
        prompt: str | None = None,
        prefix: str | None = None,
        max_length: int | None = None,
        long: str = "cut",
        overlap: int | None = None,
        chunk_pooling: str = "mean",
        precision: str = "auto",
        storage: str = "float32",
        batch_tokens: int | None = None,
        device: str = "auto",
        allow_pickled_weights: bool = False,
    ) -> None:
        self.encoder = encoder
        self.cache = cache
        self.feature = feature
        self.revision = revision
        self.prompt = prompt
        self.prefix = prefix
        self.max_length = max_length
        self.long = long
        self.overlap = overlap
        self.chunk_pooling = chunk_pooling
        self.precision = precision
        self.storage = storage
        self.batch_tokens = batch_tokens
        self.device = device
        self.allow_pickled_weights = allow_pickled_weights

    def fit(self, X: Any, y: Any = None) -> CachedEncoder:  # noqa: N803
        """Encode the texts that the folder lacks. Nothing else is learnt from them.

        Raises:
            HeadstartError: as for `extract`.
        """
        self._encode(X)
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> StoredFeatures:  # noqa: N803
        """Return the feature of each text, (texts, width), as `transform` does."""
        return self._encode(X)

    def transform(self, X: Any) -> StoredFeatures:  # noqa: N803
        """Return the feature of each text, (texts, width) float32, or float16 if ``storage`` is.

        Raises:
            TableError: they are not texts, or one is blank.
            IdentityError: the encoder is not the one that this was fitted with.
            HeadstartError: as for `extract`.
        """
        check_is_fitted(self)
        store = self._store()
        where = {"our_name": str(self.encoder), "their_name": "the fitted one"}
        if clauses := differences(store.identity, self.identity_, **where):
            raise IdentityError(f"encoder {self.encoder} is not the one of `fit`: they differ in {'; '.join(clauses)}")
        return store.features(_texts(X))

    def _encode(self, X: Any) -> StoredFeatures:  # noqa: N803
        texts, store = _texts(X), self._store()
        features = store.features(texts)
        self.identity_, self._n_features_out = store.identity, features.shape[1]
        return features

    def _store(self) -> TextStore:
        if self.cache is None:
            raise SettingsError("`cache` is None; give a folder to keep features in")
        names = [name for name in self.get_params(deep=False) if name not in _OWN]
        options = {**{name: getattr(self, name) for name in names}, "features": (self.feature,)}
        if self.encoder is not None:
            options["encoder"] = os.fspath(self.encoder)
        return TextStore(Path(self.cache), ExtractSettings(**options), _warn)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.transformer_tags.preserves_dtype = []
        return tags


def _warn(event: Event) -> None:
    """Make a note a warning, as scikit-learn does; show the progress in a notebook."""
    if isinstance(event, Note):
        warnings.warn(event.text, stacklevel=2)
    else:
        in_notebooks(event)


class HeadClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Logistic regression on features, with what `train_head` chooses by folds without options: scaling and penalty.

    Equal rows are in one fold.

    Args:
        l2: L2 penalty, 1 / C in scikit-learn, of features as they are; or ``auto``: folds choose it and the scaling.
        metric: Measure to choose by; see `TrainSettings.metric`.
        class_weight: None or ``balanced``.
        split_seed: Seed of the folds.

    Attributes:
        classes_: (classes,) the labels, sorted.
        coef_: (classes, width) float32 weights of features, divided by their lengths if ``normalized_``.
        intercept_: (classes,) float32.
        l2_: The penalty; where columns were standardized, of weights of standardized columns.
    """

    def __init__(
        self,
        l2: float | str = "auto",
        *,
        metric: str = "log-loss",
        class_weight: str | None = None,
        split_seed: int = 0,
    ) -> None:
        self.l2 = l2
        self.metric = metric
        self.class_weight = class_weight
        self.split_seed = split_seed

    def fit(self, X: Any, y: Any) -> HeadClassifier:  # noqa: N803
        """Choose and train a head.

        Args:
            X: (rows, width) features.
            y: (rows,) labels.

        Raises:
            ValueError: they are not such arrays, or there is one class only.
            SettingsError: a parameter is out of range.
        """
        options: dict[str, Any] = {"metric": self.metric, "class_weight": self.class_weight or "none"}
        options |= {"solver": Solver.AUTO} if self.l2 == "auto" else {"solver": Solver.EXACT, "l2": self.l2}
        settings = TrainSettings(split_seed=self.split_seed, **options)
        X, y = validate_data(self, X, y, dtype=np.float32, order="C")  # noqa: N806
        check_classification_targets(y)
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError("y has one class only; a head needs two")
        rows, labels = np.arange(len(X)), labels.astype(np.int64)
        names, groups = tuple(map(str, self.classes_.tolist())), group_rows(hash_rows(row.tobytes() for row in X))
        train = Dataset(features=X, labels=labels, index=rows)
        none, target = Dataset(features=X, labels=labels, index=rows[:0]), ClassTarget(names)
        if settings.solver is Solver.EXACT:
            fit = fit_head(train, none, target=target, settings=settings, device=head_device("cpu"))
            self.l2_, self.normalized_ = settings.l2, False
        else:
            fold = choosing_folds(rows, labels, groups, rng=np.random.default_rng(settings.split_seed))
            splits = Splits(
                train=train,
                validation=none,
                test=none,
                train_groups=groups,
                validation_groups=groups[:0],
                test_groups=groups[:0],
                fold=fold,
                shared_rows=0,
            )
            found = search({"X": splits}, target=target, settings=settings)
            fit, self.normalized_ = found.fit, found.scaling is Scaling.NORMALIZED
            self.l2_ = found.search.choice.l2 if found.search.choice else 1.0
        self.coef_, self.intercept_ = fit.parameters["weight"], fit.parameters["bias"]
        return self

    def decision_function(self, X: Any) -> Features:  # noqa: N803
        """Return the logits: (rows, classes) float32; of two classes (rows,), the second's less the first's."""
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> Float64Array:  # noqa: N803
        """Return the probability of each class: (rows, classes) float64; each row sums to 1."""
        logits = self._logits(X).astype(np.float64)
        return outputs_of(Task.CLASSES, logits)

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """Return the most probable class of each row: (rows,)."""
        logits = self._logits(X)
        predicted: npt.NDArray[Any] = self.classes_[logits.argmax(axis=1)]
        return predicted

    def _logits(self, X: Any) -> Features:  # noqa: N803
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float32, reset=False)  # noqa: N806
        rows = normalized(X) if self.normalized_ else X
        logits: Features = rows @ self.coef_.T + self.intercept_
        return logits


def _texts(X: Any) -> list[str]:  # noqa: N803
    """Return texts as a list; a table of one column, as ColumnTransformer gives it, is that column."""
    if getattr(X, "ndim", None) == 2 or hasattr(type(X), "columns"):
        columns = X.shape[1]
        if columns != 1:
            raise SettingsError(
                f"X has {columns} columns; give the column of the texts, for example by a ColumnTransformer"
            )
        X = X.iloc[:, 0] if hasattr(X, "iloc") else X[:, 0] if hasattr(X, "ndim") else X.to_series()  # noqa: N806
    return checked_texts(X, "text")
