"""Heads of every kind of label, trained by the commands, with the run that they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pyarrow.parquet
import pytest
from extracting import run
from headstart.cache.errors import SettingsError
from headstart.stages.inspect import inspect_path
from headstart.stages.runs.run import load_head
from headstart.stages.settings import SweepSettings, Task, TrainSettings
from headstart.stages.sweep import sweep
from headstart.stages.train_head import train_head
from headstart.terminal import show_run, show_sweep
from processes import command_here
from tiny import tiny_rows

ROWS = tiny_rows(120, classes=3)
TEXTS, CLASSES = [text for text, _ in ROWS], np.unique([label for _, label in ROWS], return_inverse=True)[1].tolist()


def labels_of(task: Task) -> list[Any]:
    noise = np.random.default_rng(0).random(len(ROWS)).round(3).tolist()
    if task is Task.REGRESSION:
        return [10 * label + more for label, more in zip(CLASSES, noise, strict=True)]
    if task is Task.ORDINAL:
        return CLASSES
    return [["abc"[label]] * (noise[row] < 0.8) + ["d"] * (label > 0) for row, label in enumerate(CLASSES)]


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    """A run of each task, in a folder beside its cache."""
    folder = tmp_path_factory.mktemp("kinds")
    found = {}
    for task in (Task.MULTI_LABEL, Task.REGRESSION, Task.ORDINAL):
        cache = folder / f"{task}.h5"
        run({"text": TEXTS, "label": labels_of(task)}, cache, tiny, task=task)
        found[task] = train_head(cache, folder / task).path
    return found


def test_the_default_head_of_each_kind_is_searched_scored_and_predicts(
    runs: dict[Task, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {Task.MULTI_LABEL: "micro_f1", Task.REGRESSION: "r2", Task.ORDINAL: "quadratic_kappa"}
    for task, folder in runs.items():
        fields = json.loads((folder / "run.json").read_text())
        assert fields["task"] == task and fields["search"]["choice"] and fields["certificate"]["converged"]
        for part in ("validation", "test"):
            low, high = fields["metrics"][part][f"{keys[task]}_interval"]
            assert low <= fields["metrics"][part][keys[task]] <= high
        table = pyarrow.parquet.read_table(folder / "predictions.parquet").to_pydict()
        assert set(table["part"]) == {"validation", "test"}
        ours = [row for row, part in enumerate(table["part"]) if part == "test"]
        said = headstart.load(folder, device="cpu").predict([TEXTS[table["row"][row] - 1] for row in ours])
        written = [table["prediction"][row] for row in ours]
        if task is Task.REGRESSION:
            np.testing.assert_allclose(said, written, atol=1e-3)
        else:
            assert [*said] == written
        show_run({**fields, "path": str(folder)})
        shown = capsys.readouterr().out
        first = "accuracy" if task is Task.ORDINAL else keys[task]
        assert f"{fields['metrics']['test'][first]:.4f} on the test rows" in shown


def test_thresholds_are_chosen_unless_told_and_for_rows_with_several_labels_alone(
    runs: dict[Task, Path], tmp_path: Path
) -> None:
    cache = runs[Task.MULTI_LABEL].parent / f"{Task.MULTI_LABEL}.h5"
    chosen, floor, half = (
        load_head(train_head(cache, tmp_path / str(number), TrainSettings(**options))).thresholds
        for number, options in enumerate(({}, {"precision_floor": 0.99}, {"decide_by": "none"}))
    )
    assert chosen is not None and floor is not None and half is None
    assert len(chosen) == 4 and chosen != floor
    for options in ({"precision_floor": 0.9}, {"decide_by": "accuracy"}, {"calibrate": "temperature"}):
        with pytest.raises(SettingsError, match="`task=regression`"):
            train_head(
                runs[Task.REGRESSION].parent / f"{Task.REGRESSION}.h5", tmp_path / "no", TrainSettings(**options)
            )


def test_the_table_of_predictions_adds_up_to_the_metrics(runs: dict[Task, Path]) -> None:
    """Also for validation rows, whose labels are predicted by thresholds that other folds chose."""
    metrics = json.loads((runs[Task.MULTI_LABEL] / "run.json").read_text())["metrics"]
    rows = pyarrow.parquet.read_table(runs[Task.MULTI_LABEL] / "predictions.parquet").to_pylist()
    for part in ("validation", "test"):
        pairs = [({*row["label"]}, {*row["prediction"]}) for row in rows if row["part"] == part]
        right, all_of_both = (
            sum(map(len, sets)) for sets in ([a & b for a, b in pairs], [s for p in pairs for s in p])
        )
        assert 2 * right / all_of_both == pytest.approx(metrics[part]["micro_f1"])
    numbers = json.loads((runs[Task.REGRESSION] / "run.json").read_text())["metrics"]["test"]
    rows = pyarrow.parquet.read_table(runs[Task.REGRESSION] / "predictions.parquet").to_pylist()
    errors = [row["label"] - row["prediction"] for row in rows if row["part"] == "test"]
    assert np.mean(np.abs(errors)) == pytest.approx(numbers["mean_absolute_error"])


def test_a_head_of_each_kind_is_made_at_the_command_line(runs: dict[Task, Path], tmp_path: Path) -> None:
    folder = next(iter(runs.values())).parent
    for task, cache, options in (
        ("regression", f"{Task.ORDINAL}.h5", ("--task", "regression")),
        ("ordinal", f"{Task.ORDINAL}.h5", ("--solver", "exact", "--l2", "10", "--order", "0,1,2", "--task", "ordinal")),
        ("classes", f"{Task.ORDINAL}.h5", ("--task", "classes")),
        ("multi-label", f"{Task.MULTI_LABEL}.h5", ("--solver", "exact", "--decide-by", "none")),
    ):
        done = command_here("train-head", folder / cache, "--out", tmp_path / task, *options)
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / task / "run.json").read_text())["task"] == task == load_head(tmp_path / task).task
        said = command_here("predict", tmp_path / task, "good film", "--quiet")
        assert said.returncode == 0 and said.stdout.rstrip().endswith("good film"), said.stderr


def test_sweeps_rank_heads_of_each_kind_by_what_it_has(
    runs: dict[Task, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A head in a sweep is that of train-head, with all three solvers."""
    values = {"solver": ("auto", "exact", "sgd"), "l2": (1.0, 10.0), "head": ("linear", "mlp")}
    for task, metric, name in (
        (Task.MULTI_LABEL, "average-precision", "validation_average_precision"),
        (Task.REGRESSION, "rmse", "validation_rmse"),
        (Task.ORDINAL, "macro-f1", "validation_macro_f1"),
    ):
        cache, folder = runs[task].parent / f"{task}.h5", tmp_path / task
        base = TrainSettings(solver="sgd", feature="cls", epochs=3, hidden=4)
        found = inspect_path(sweep(cache, folder, SweepSettings(base=base, values=values, rank_by=metric)))
        means = [line[name]["mean"] for line in found["ranking"]]
        assert len(means) == 5 and means == sorted(means, reverse=metric != "rmse")
        show_sweep(found)
        assert name.removeprefix("validation_")[:4] in capsys.readouterr().out.replace("root mean", "rmse").lower()
        assert load_head(folder / "winner").task is task
        for line in found["ranking"]:
            if line["values"]["solver"] != "auto":  # which has the validation rows to train on there
                settings = {**line["values"], "feature": "cls"}
                if line["values"]["solver"] == "sgd":
                    settings = {"epochs": 3, "hidden": 4, **settings, "l2": 1.0}
                run = train_head(cache, tmp_path / f"{task}{line['setting']}", TrainSettings(**settings))
                fields = json.loads((run / "run.json").read_text())
                show_run({**fields, "path": str(run)})
                loss = fields["metrics"]["validation"].get("log_loss")
                if loss is None:
                    loss = fields["metrics"]["validation"]["root_mean_squared_error"]
                    assert line["validation_rmse"]["mean"] == pytest.approx(loss, rel=1e-5)
                else:
                    assert line["validation_loss"]["mean"] == pytest.approx(loss, rel=1e-5)
    with pytest.raises(SettingsError, match="`rank_by=accuracy` does not go with `task=regression`"):
        sweep(runs[Task.REGRESSION].parent / "regression.h5", tmp_path / "no", SweepSettings(rank_by="accuracy"))
