"""The first numbers of each vector: a head on them is the head on columns that are cut by hand."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extracting import run
from headstart import terminal
from headstart.cache.errors import DamagedError, SettingsError, UserError
from headstart.cache.reader import open_cache
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.fit import fit_head, scores_of
from headstart.stages.heads.head import Head
from headstart.stages.heads.targets import ClassTarget
from headstart.stages.inspect import inspect_path
from headstart.stages.model import load
from headstart.stages.progress import silent
from headstart.stages.runs.run import load_head
from headstart.stages.settings import SweepSettings, TrainSettings
from headstart.stages.splits.divide import divide
from headstart.stages.sweep import sweep
from headstart.stages.train_head import train_head
from recipes import with_recipe
from tiny import tiny_rows

ROWS = tiny_rows(120)
QUICK = TrainSettings(solver="sgd", feature="model", epochs=3)


@pytest.fixture(scope="module")
def cache(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of vectors of length 1, and of others."""
    folder = tmp_path_factory.mktemp("dims")
    table = {"text": [text for text, _ in ROWS], "label": [label for _, label in ROWS]}
    encoder = with_recipe(tiny, folder / "encoder", "Normalize")
    return run(table, folder / "c.h5", encoder, features=("model", "mean"))[0].path


def by_hand(cache: Path, feature: str) -> Any:
    cut = np.array(open_cache(cache).features(feature))[:, :8]
    return cut / np.linalg.norm(cut, axis=1, keepdims=True) if feature == "model" else cut


@pytest.mark.parametrize("feature", ["model", "mean"])
@pytest.mark.parametrize("change", [{}, {"solver": "exact"}, {"head": "mlp", "hidden": 4, "calibrate": True}])
def test_a_head_is_that_of_columns_cut_by_hand(cache: Path, tmp_path: Path, feature: str, change: Any) -> None:
    settings = dataclasses.replace(QUICK, feature=feature, **change)
    out = train_head(cache, tmp_path / "run", dataclasses.replace(settings, dims=8))
    opened, features = open_cache(cache), by_hand(cache, feature)
    splits = divide(opened, None, None, settings=settings, report=silent)
    train, validation, test = (
        Dataset(features=features, labels=part.labels, index=part.index)
        for part in (splits.train, splits.validation, splits.test)
    )
    target = ClassTarget(("0", "1"))
    fit = fit_head(train, validation, target=target, settings=settings, device=torch.device("cpu"), report=silent)
    head, record = load_head(out), inspect_path(out)
    identity = opened.identity.narrowed(feature)
    expected = Head(
        **fit.parameters,
        temperature=head.temperature,
        label_names=opened.label_names or (),
        identity=identity,
        dims=None,
    )
    for name, value in fit.parameters.items():
        np.testing.assert_array_equal(getattr(head, name), value)
    whole = opened.features(feature)
    np.testing.assert_array_equal(head.logits(whole), expected.logits(features))
    scored = target.evaluate(test.targets, scores_of(expected, test), splits.test_groups, temperature=head.temperature)
    for name in ("accuracy", "log_loss", "calibration_error"):
        assert record["metrics"]["test"][name] == pytest.approx(scored[name], abs=1e-6)
    assert record["dims"] == {"dims": 8, "of": 32, "normalized": feature == "model"} and head.identity == identity
    with pytest.raises(UserError, match=r"this head reads \(rows, 32\)"):
        head.logits(features)


def test_a_classifier_cuts_what_its_encoder_gives(cache: Path, tmp_path: Path) -> None:
    out = train_head(cache, tmp_path / "run", dataclasses.replace(QUICK, dims=8))
    expected = load_head(out).probabilities(open_cache(cache).features("model"))
    np.testing.assert_allclose(load(out).predict_proba([text for text, _ in ROWS]), expected, atol=1e-5)


def test_all_of_a_vector_is_not_cut(cache: Path, tmp_path: Path) -> None:
    whole = train_head(cache, tmp_path / "a", QUICK)
    all_of_it = train_head(cache, tmp_path / "b", dataclasses.replace(QUICK, dims=32))
    assert (whole / "head.safetensors").read_bytes() == (all_of_it / "head.safetensors").read_bytes()
    assert inspect_path(all_of_it)["dims"] is None


def test_more_than_there_are_is_refused_before_any_work(cache: Path, tmp_path: Path) -> None:
    says = "`dims` is 33; the feature 'model' of .* has 32 numbers"
    with pytest.raises(SettingsError, match=says):
        train_head(cache, tmp_path / "run", dataclasses.replace(QUICK, dims=33))
    with pytest.raises(SettingsError, match=says):
        sweep(cache, tmp_path / "runs", SweepSettings(base=QUICK, values={"dims": (8, 33)}))
    assert not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize("solver", ["sgd", "exact"])
def test_a_sweep_compares_dims(cache: Path, tmp_path: Path, solver: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = dataclasses.replace(QUICK, solver=solver)
    out = sweep(cache, tmp_path / "runs", SweepSettings(base=base, values={"dims": (4, 8, 32)}))
    result = inspect_path(out)
    assert sorted(line["values"]["dims"] for line in result["ranking"]) == [4, 8, 32]
    terminal.show_sweep(result)
    assert " dims" in capsys.readouterr().out
    winner = load_head(out / "winner")
    alone = load_head(train_head(cache, tmp_path / "alone", TrainSettings(**result["winner"])))
    np.testing.assert_array_equal(winner.weight, alone.weight)
    assert winner.dims == alone.dims


def test_the_summary_and_an_older_run(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = train_head(cache, tmp_path / "run", dataclasses.replace(QUICK, dims=8))
    terminal.show_run(inspect_path(out))
    assert "the first 8 of 32 numbers of each vector, divided by their length again" in capsys.readouterr().out
    file = out / "run.json"
    fields = json.loads(file.read_text())
    changes: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda dims: dims.update(dims=9), "do not fit"),
        (lambda dims: dims.update(of=8), "do not fit"),
        (lambda dims: dims.update(normalized="yes"), "'normalized'"),
    ]
    for change, says in changes:
        changed = json.loads(json.dumps(fields))
        change(changed["dims"])
        file.write_text(json.dumps(changed))
        with pytest.raises(DamagedError, match=says):
            load_head(out)
    del fields["dims"]
    file.write_text(json.dumps(fields))
    assert load_head(out).dims is None
