"""`--log`: what a tracker gets is what the run says; each library reads it back (`make test-report`)."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from headstart.cache.errors import SettingsError, StorageError
from headstart.stages.progress import Action, Event, Outcome
from headstart.stages.runs.folders import first_foreign
from headstart.stages.runs.sweep_folder import SWEEP
from headstart.stages.trackers import log_to


def of(folder: Path, name: str) -> Outcome:
    return Outcome(command="sweep" if name == "sweep" else "train-head", output=folder / name, action=Action.MADE)


class Fake:
    """A tracker that keeps what it gets."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def init(self, **given: Any) -> None:
        self.entries.append({**given, "logged": []})

    def log(self, values: dict[str, float], step: int) -> None:
        self.entries[-1]["logged"].append((step, values))

    def finish(self) -> None:
        self.entries[-1]["finished"] = True


def test_a_run_is_logged_with_settings_metrics_intervals_and_tags(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, seen = Fake(), list[Event]()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    log_to("trackio", report=seen.append)(of(folder, "classes"))
    assert seen == [of(folder, "classes")]
    (entry,) = fake.entries
    run = json.loads((folder / "classes" / "run.json").read_text())
    assert entry["name"] == "classes" and entry["finished"]
    assert entry["config"]["l2"] == run["search"]["choice"]["l2"] and entry["config"]["prior"] == "none"
    assert entry["config"]["weights_sha256"] == run["identity"]["weights_sha256"]
    ((_, metrics),) = entry["logged"]
    test = run["metrics"]["test"]
    assert metrics["test_accuracy"] == test["accuracy"]
    assert [metrics["test_accuracy_low"], metrics["test_accuracy_high"]] == test["accuracy_interval"]
    assert str(folder) not in json.dumps(entry)


def test_a_sweep_is_its_winner_and_each_head_with_its_epochs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    log_to("trackio")(of(folder, "sweep"))
    assert len(fake.entries) == 1 + 8
    lines = pq.read_table(folder / "sweep" / "sweep.parquet").to_pylist()
    logged = [
        (entry["config"]["setting"], entry["config"]["seed"], step, values["validation_loss"])
        for entry in fake.entries[1:]
        for step, values in entry["logged"][:-1]
    ]
    assert sorted(logged) == sorted((x["setting"], x["seed"], x["epoch"], x["validation_loss"]) for x in lines)
    assert fake.entries[1]["config"].keys() >= {"learning_rate", "dropout", "seed", "fold"}


def test_other_events_are_passed_on_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, seen = Fake(), list[Event]()
    monkeypatch.setitem(sys.modules, "trackio", fake)
    log_to("trackio", report=seen.append)(Outcome(command="audit", output=folder / "audit", action=Action.MADE))
    assert len(seen) == 1 and not fake.entries


@pytest.mark.parametrize("tracker", ["tensorboard", "mlflow", "trackio"])
def test_an_absent_library_is_named_with_its_extra(tracker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)
    with pytest.raises(SettingsError, match=re.escape(f"headstart[{tracker}]")):
        log_to(tracker)
    with pytest.raises(SettingsError, match="choose one of tensorboard, mlflow, trackio"):
        log_to("wandb")


def test_a_tracker_that_fails_says_that_the_run_is_complete(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("no\nserver")

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=fail))
    with pytest.raises(StorageError, match="classes is complete, but trackio could not log it: no server"):
        log_to("trackio")(of(folder, "classes"))


@pytest.mark.apart
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["classes", "sweep"])
def test_tensorboard_reads_it_back(folder: Path, name: str, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_to("tensorboard")(of(folder, name))
    if name == "sweep":
        assert first_foreign(folder / "sweep", SWEEP.contents) is None, "the sweep may be overwritten all the same"
        lines = pq.read_table(folder / "sweep" / "sweep.parquet").to_pylist()
        found = EventAccumulator(str(folder / "sweep" / "tensorboard" / "0001")).Reload()
        read = [(each.step, each.value) for each in found.Scalars("validation_loss")]
        ours = [(x["epoch"], x["validation_loss"]) for x in lines[:3]]
        assert [step for step, _ in read] == [step for step, _ in ours]
        assert [value for _, value in read] == pytest.approx([value for _, value in ours])
        return
    found = EventAccumulator(str(folder / "classes" / "tensorboard")).Reload()
    test = json.loads((folder / "classes" / "run.json").read_text())["metrics"]["test"]
    for key, value in (("", test["accuracy"]), ("_low", test["accuracy_interval"][0])):
        assert found.Scalars(f"test_accuracy{key}")[0].value == pytest.approx(value)


@pytest.mark.apart
@pytest.mark.filterwarnings("ignore")
def test_mlflow_reads_it_back(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log_to("mlflow", log_dir=tmp_path)(of(folder, "sweep"))
    client = MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("headstart")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 9
    winner, head = runs["sweep"], runs["sweep-0001"]
    record = json.loads((folder / "sweep" / "winner" / "run.json").read_text())
    assert winner.data.metrics["test_accuracy"] == record["metrics"]["test"]["accuracy"]
    assert winner.data.metrics["test_accuracy_high"] == record["metrics"]["test"]["accuracy_interval"][1]
    assert winner.data.params["dropout"] == str(record["settings"]["dropout"])
    assert head.data.tags["mlflow.parentRunId"] == winner.info.run_id
    steps = [each.step for each in client.get_metric_history(head.info.run_id, "validation_loss")]
    assert sorted(steps) == [1, 2, 3]


@pytest.mark.apart
@pytest.mark.filterwarnings("ignore")
def test_trackio_reads_it_back(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    log_to("trackio")(of(folder, "classes"))
    import trackio

    found = {run.name: run for run in trackio.Api().runs("headstart")}
    assert "classes" in found
