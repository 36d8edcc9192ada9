"""Files of each released version of the format are read for ever: they open, verify, train and predict as they did."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import h5py
import headstart
import numpy as np
import pytest
from golden.make import CACHES, JOINED, KINDS, TEXTS, make, make_joined, make_kinds, read_plainly, settings
from headstart.cache.reader import open_cache
from headstart.stages.inspect import inspect_path
from headstart.stages.progress import Action, Event, Outcome
from headstart.stages.verify import verify

VERSION_1 = Path(__file__).parents[1] / "golden" / "v1"
OF_KINDS = VERSION_1.with_name("v1-kinds")
EXPECTED: dict[str, Any] = json.loads((VERSION_1 / "expected.json").read_text(encoding="utf-8"))

OF_SHARDS = VERSION_1.with_name("v1-joined")
EXPECTED |= {"outputs": (found := json.loads((OF_KINDS / "expected.json").read_text(encoding="utf-8")))["outputs"]}
EXPECTED["caches"] |= found["caches"]
EXPECTED["caches"] |= (joined := json.loads((OF_SHARDS / "expected.json").read_text(encoding="utf-8"))["caches"])
ALL = (*CACHES, *KINDS, *joined)


def folder_of(name: str) -> Path:
    return OF_KINDS if name in KINDS else OF_SHARDS if name in joined else VERSION_1


@pytest.fixture
def v1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folders, and the current folder: what the files record is relative to it."""
    folder = Path(shutil.copytree(VERSION_1, tmp_path / "v1"))
    for other in (OF_KINDS, OF_SHARDS):
        shutil.copytree(other, folder, dirs_exist_ok=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", ALL)
def test_a_cache_holds_the_recorded_values(name: str) -> None:
    path = folder_of(name) / f"{name}.h5"
    expected = EXPECTED["caches"][name]
    assert read_plainly(path) == expected
    cache = open_cache(path)
    cache.check()
    documents = {**expected["documents"], "label_names": expected["documents"].get("label_names")}
    assert (cache.plan, cache.record) == (documents["plan"], documents["record"])
    assert cache.label_names == (None if documents["label_names"] is None else tuple(documents["label_names"]))
    assert json.loads(cache.identity.to_json()) == documents["identity"]
    assert expected["rows"] == (None if cache.row_numbers is None else cache.row_numbers.tolist())
    with h5py.File(path) as file:
        columns = {"labels": cache.labels, "lengths": cache.lengths, "cut": cache.truncated}
        arrays = {**columns, "hashes/text": cache.text_hashes, "hashes/tokens": cache.token_hashes}
        arrays |= {f"features/{feature}": cache.features(feature) for feature in cache.identity.features}
        for dataset, array in arrays.items():
            assert (array is None) == (dataset not in file)
            assert array is None or np.array_equal(array, file[dataset][:])


@pytest.mark.parametrize("name", (*CACHES, *KINDS))
def test_a_cache_is_that_of_its_table_and_encoder(v1: Path, name: str) -> None:
    verified = verify(f"{name}.h5", encoder="encoder", settings=settings(name))
    assert not verified.findings and verified.encoded == verified.rows
    before, events = (v1 / f"{name}.h5").read_bytes(), list[Event]()
    headstart.extract(f"{name}.csv", f"{name}.h5", settings(name), report=events.append)
    assert isinstance(events[-1], Outcome) and events[-1].action is Action.CURRENT
    assert (v1 / f"{name}.h5").read_bytes() == before


def test_a_joined_cache_is_that_of_its_tables_and_encoder(v1: Path) -> None:
    """It is carried on: rows are appended, and its own are known."""
    cache = f"{JOINED}.h5"
    verified = verify(cache, encoder="encoder", table=JOINED, settings=settings(JOINED))
    assert not verified.findings and (verified.encoded, verified.rows) == (64, 65)
    events = list[Event]()
    headstart.extract(f"{JOINED}/2.csv", cache, append=True, skip_bad_rows=True, report=events.append)
    assert isinstance(events[-1], Outcome) and events[-1].action is Action.CURRENT
    headstart.extract("float16.csv", cache, append=True)
    assert open_cache(cache).rows == 85
    headstart.train_head(cache, v1 / "joined-run", headstart.TrainSettings(solver="sgd", epochs=2))


def test_an_update_encodes_the_new_row_alone(v1: Path) -> None:
    with (v1 / "features.csv").open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(["a film of today", "class0"])
    before = open_cache("features.h5")
    cache = open_cache(headstart.extract("features.csv", "features.h5", settings("features"), update=True))
    assert cache.record["sequences_encoded"] == 1 and cache.record["reused_rows"] == before.rows == cache.rows - 1
    for feature in before.identity.features:
        assert np.array_equal(cache.features(feature)[:-1], before.features(feature))


def test_heads_are_trained_on_it(v1: Path) -> None:
    chosen = headstart.TrainSettings(solver="sgd", feature="model", epochs=2)
    out = headstart.train_head("features.h5", v1 / "new", chosen)
    assert inspect_path(out)["identity"] == inspect_path("run")["identity"]
    assert inspect_path(out)["rows"] == inspect_path("run")["rows"]
    for name in ("float16", "chunks", "left_out"):
        headstart.train_head(f"{name}.h5", v1 / f"{name}-run", headstart.TrainSettings(solver="sgd", epochs=2))


@pytest.mark.parametrize("run", EXPECTED["predictions"])
def test_a_run_predicts_as_it_did(v1: Path, run: str) -> None:
    probabilities = headstart.load(run).predict_proba(TEXTS)
    np.testing.assert_allclose(probabilities, EXPECTED["predictions"][run], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", KINDS)
def test_a_run_of_another_kind_says_what_it_did(v1: Path, name: str) -> None:
    head = headstart.load(f"{name}-run").head
    task = {"number": "regression", "multi_label": "multi-label", "ordinal": "ordinal"}[name]
    assert inspect_path(f"{name}-run")["task"] == head.task == task
    outputs = head.outputs(open_cache(f"{name}.h5").features()[:3])
    np.testing.assert_allclose(outputs, EXPECTED["outputs"][name], atol=1e-5, rtol=1e-5)
    predicted = headstart.load(f"{name}-run").predict(TEXTS)
    assert predicted.shape == (3,) and (predicted.dtype == np.float64) == (name == "number")


def test_each_is_inspected() -> None:
    kinds = {"run": "run", "sweep": "sweep", "sweep/winner": "run", **{f"{name}.h5": "cache" for name in CACHES}}
    assert {path: inspect_path(VERSION_1 / path)["kind"] for path in kinds} == kinds
    assert {name: inspect_path(OF_KINDS / f"{name}.h5")["label_kind"] for name in KINDS} == {
        "number": "number",
        "multi_label": "multi-label",
        "ordinal": "ordinal",
    }


def test_what_is_written_today_is_of_the_same_structure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the structure needs another version, or FORMAT.md allows it: then it gets golden files of its own."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "made")
    make_kinds(tmp_path / "made-kinds")
    make_joined(tmp_path / "made-joined")

    def structure(folder: Path, name: str) -> Any:
        found = read_plainly(folder / f"{name}.h5")
        shapes = {dataset: described[:2] for dataset, described in found["datasets"].items()}
        return shapes, found["attributes"], found["rows"], sorted(found["documents"]["identity"])

    for name in ALL:
        made = tmp_path / ("made-kinds" if name in KINDS else "made-joined" if name in joined else "made")
        assert structure(made, name) == structure(folder_of(name), name)
