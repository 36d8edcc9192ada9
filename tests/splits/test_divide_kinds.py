"""Training, validation and test rows with labels of every kind: shares of one cache, other caches, other tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extracting import run
from headstart.cache.errors import TableError
from headstart.cache.reader import Cache
from headstart.stages.heads.dataset import Splits
from headstart.stages.progress import Event, Note, silent
from headstart.stages.settings import Labels, Task, TrainSettings
from headstart.stages.splits.divide import divide, open_caches
from headstart.stages.splits.relabel import is_labelled, relabel
from tiny import tiny_rows

TEXTS = [text for text, _ in tiny_rows(120)]
OTHERS = [f"{text} indeed" for text in TEXTS[:30]]
KINDS: dict[str, Any] = {
    "regression": [float(number) / 4 for number in range(120)],
    "multi-label": [[name for place, name in enumerate("abc") if number % (place + 2) == 0] for number in range(120)],
    "ordinal": [str(number % 3) for number in range(120)],
}


@pytest.fixture(scope="module")
def caches(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    made = {name: made_of(labels, folder / f"{name}.h5", tiny) for name, labels in KINDS.items()}
    tested = {
        "regression-test": [3] * 15 + [4] * 15,  # whole numbers: classes, read by themselves
        "multi-label-test": [["c"], ["a", "c"], []] * 10,
        "ordinal-test": ["2", "0"] * 15,
        "unknown-test": [["c"], ["d"]] * 15,
    }
    return made | {name: made_of(labels, folder / f"{name}.h5", tiny, OTHERS) for name, labels in tested.items()}


def made_of(labels: list[Any], out: Path, tiny: Path, texts: list[str] = TEXTS) -> Path:
    return run({"text": texts, "label": labels}, out, tiny)[0].path


def divided(path: Path, test: Path | None = None, **options: Any) -> tuple[Splits, Cache]:
    settings = TrainSettings(**options)
    opened = open_caches(path, validation=None, test=test, settings=settings, labels=None, report=silent)
    return divide(*opened, settings=settings, report=silent), opened[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"solver": "sgd", "folds": 3}, {"solver": "exact"}])
def test_no_text_is_on_two_sides_and_labels_stay_with_their_rows(
    caches: dict[str, Path], kind: str, options: dict[str, Any]
) -> None:
    splits, cache = divided(caches[kind], task=kind, **options)
    parts = [splits.train, splits.validation, splits.test]
    hashes = [{row.tobytes() for row in cache.token_hashes[part.index]} for part in parts]
    assert not (hashes[0] & hashes[1] or hashes[0] & hashes[2] or hashes[1] & hashes[2])
    assert sum(map(len, parts)) == 120 and 15 <= len(splits.test) <= 35
    for part in parts:
        for row, value in zip(part.index, part.targets, strict=True):
            label = KINDS[kind][row]
            if kind == "multi-label":
                assert [name for name, has in zip("abc", value, strict=True) if has] == label
            else:
                assert float(value) == float(label)


@pytest.mark.parametrize("kind", KINDS)
def test_a_test_cache_is_read_for_the_same_task(caches: dict[str, Path], kind: str) -> None:
    task = Task.ORDINAL if kind == "ordinal" else Task.AUTO
    splits, _ = divided(caches[kind], caches[f"{kind}-test"], task=task)
    expected: Any = {
        "regression": [3.0] * 15 + [4.0] * 15,
        "multi-label": [[0, 0, 1], [1, 0, 1], [0, 0, 0]] * 10,  # no row has b there
        "ordinal": [2, 0] * 15,
    }[kind]
    assert splits.test.targets.tolist() == expected and splits.test.targets.dtype == splits.train.targets.dtype


def test_a_test_cache_of_other_labels_is_refused(caches: dict[str, Path]) -> None:
    with pytest.raises(TableError, match="has the label 'd', which the training rows have not"):
        divided(caches["multi-label"], caches["unknown-test"])
    with pytest.raises(TableError, match="a row has any number of labels, which is not for `task=regression`"):
        divided(caches["regression"], caches["unknown-test"])
    with pytest.raises(TableError, match="a row has one label, which is not for `task=multi-label`"):
        divided(caches["multi-label"], caches["regression-test"])
    with pytest.raises(TableError, match=r"which are no classes|has the label"):
        divided(caches["ordinal"], caches["regression"])


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_a_table_are_of_every_kind(caches: dict[str, Path], tmp_path: Path, kind: str) -> None:
    _, cache = divided(caches[kind])
    kept = [number for number in range(120) if number % 4]
    labels = KINDS[kind][::-1]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps({"text": TEXTS[n], "label": labels[n]}) + "\n" for n in kept))
    notes: list[Event] = []
    given: Any = {"task": Task.ORDINAL if kind == "ordinal" else Task.AUTO, "order": None}
    found = relabel(cache, Labels(path), notes.append, **given)
    assert found.labels is not None and any(isinstance(e, Note) and "are left out" in e.text for e in notes)
    labelled = is_labelled(found.labels)
    by_text: dict[str, list[Any]] = {}
    for number in kept:
        by_text.setdefault(TEXTS[number], []).append(labels[number])
    for row, text in enumerate(TEXTS):
        assert labelled[row] == (text in by_text)
        if labelled[row]:
            value = found.labels[row]
            names = found.label_names
            label = [n for n, has in zip(names or (), value, strict=True) if has] if kind == "multi-label" else value
            said = names[value] if kind == "ordinal" and names else label
            assert said in by_text[text]


def test_a_label_that_no_cached_row_has_is_left_out(caches: dict[str, Path], tmp_path: Path) -> None:
    _, cache = divided(caches["multi-label"])
    path = tmp_path / "t.jsonl"
    rows = [*((text, ["x"]) for text in TEXTS), ("another text", ["y"])]
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    found = relabel(cache, Labels(path), silent, task=Task.AUTO, order=None)
    assert found.label_names == ("x",) and np.asarray(found.labels).shape == (120, 1)
