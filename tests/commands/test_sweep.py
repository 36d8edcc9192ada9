"""Sweeps: heads equal those of train-head, validation rows rank them, and finished groups are kept."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
from headstart.cache.errors import OutputExistsError, SettingsError, StorageError, UserError
from headstart.cache.reader import open_cache
from headstart.stages import sweep as sweeping
from headstart.stages.extract import extract
from headstart.stages.heads.fit import PER_HEAD
from headstart.stages.inspect import inspect_path
from headstart.stages.progress import Action, Event, Note, Outcome, Step, silent
from headstart.stages.runs import sweep_folder
from headstart.stages.runs.run import load_head
from headstart.stages.runs.sweep_folder import SweepFolder
from headstart.stages.settings import ExtractSettings, Labels, SweepSettings, TrainSettings
from headstart.stages.splits.divide import divide
from headstart.stages.sweep import sweep
from headstart.stages.sweeps import groups
from headstart.stages.sweeps.groups import group_cells
from headstart.stages.train_head import train_head
from tiny import tiny_rows

BASE = TrainSettings(solver="sgd", feature="cls", epochs=4, batch_size=64, patience=2)
SETTINGS = SweepSettings(
    base=BASE,
    values={
        "feature": ("cls", "mean"),
        "learning_rate": (0.1, 0.003),
        "dropout": (0.3, 0.0),
        "class_weight": ("none", "balanced"),
    },
    seeds=(0, 3),
)


@pytest.fixture(scope="module")
def cache(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = tiny_rows(300, classes=3)
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    settings = ExtractSettings(encoder=str(tiny), precision="float32", features=("cls", "mean"))
    return extract(table, tmp_path_factory.mktemp("sweep") / "c.h5", settings)


@pytest.fixture(scope="module")
def swept(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`SETTINGS` over three folds: 16 settings x 2 seeds x 3 folds."""
    settings = dataclasses.replace(SETTINGS, base=dataclasses.replace(BASE, folds=3))
    return sweep(cache, tmp_path_factory.mktemp("swept") / "runs", settings)


def table_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(folder / "sweep.parquet").to_pylist()
    return rows


def settings_of(row: dict[str, Any]) -> TrainSettings:
    return TrainSettings(**{field.name: row[field.name] for field in dataclasses.fields(TrainSettings)})


def test_every_setting_seed_and_fold_is_there_with_every_epoch(swept: Path) -> None:
    rows = table_of(swept)
    cells = {(settings_of(row), row["setting"]) for row in rows}
    assert len(cells) == 16 * 2 * 3
    wanted = {each for _, each in dataclasses.replace(SETTINGS, base=dataclasses.replace(BASE, folds=3)).cells()}
    assert {each for each, _ in cells} == wanted
    epochs: dict[Any, list[int]] = {}
    for row in rows:
        epochs.setdefault(settings_of(row), []).append(row["epoch"])
    assert all(each == list(range(1, len(each) + 1)) for each in epochs.values())
    assert any(len(each) < 4 for each in epochs.values()) and any(len(each) == 4 for each in epochs.values())


def test_saved_passes_count_every_epoch_of_every_head(swept: Path) -> None:
    found, winner = inspect_path(swept), inspect_path(swept / "winner")
    rest = winner["rows"]["train"] + winner["rows"]["validation"]
    assert winner["encoder_passes"]["saved"] == len(winner["history"]) * rest + winner["rows"]["test"]
    assert found["encoder_passes"]["done"] == 0
    assert found["encoder_passes"]["saved"] == len(table_of(swept)) * rest + winner["encoder_passes"]["saved"]


def test_at_every_epoch_a_head_of_a_sweep_equals_the_head_of_train_head(
    swept: Path, cache: Path, tmp_path: Path
) -> None:
    """The curve in the sweep's table equals the curve of a run with the same settings, for every tenth head."""
    curves: dict[TrainSettings, list[dict[str, Any]]] = {}
    for row in table_of(swept):
        curves.setdefault(settings_of(row), []).append(row)
    for number, (settings, curve) in enumerate(list(curves.items())[::10]):
        run = json.loads((train_head(cache, tmp_path / str(number), settings) / "run.json").read_text())
        assert run["best_epoch"] == next(row["epoch"] for row in curve if row["best"])
        assert len(run["history"]) == len(curve)
        for line, row in zip(run["history"], curve, strict=True):
            for name, value in line.items():
                assert row[name] == pytest.approx(value, abs=1e-4), (settings, name)


def test_the_ranking_is_the_mean_over_seeds_and_folds(swept: Path) -> None:
    found = inspect_path(swept)
    best: dict[int, list[dict[str, Any]]] = {}
    for row in table_of(swept):
        if row["best"]:
            best.setdefault(row["setting"], []).append(row)
    assert {len(rows) for rows in best.values()} == {6}
    means = {setting: np.mean([row["validation_loss"] for row in rows]) for setting, rows in best.items()}
    assert [line["setting"] for line in found["ranking"]] == sorted(means, key=lambda setting: means[setting])
    for line in found["ranking"]:
        for name in ("validation_loss", "validation_accuracy", "validation_macro_f1"):
            values = [row[name] for row in best[line["setting"]]]
            assert line[name]["mean"] == pytest.approx(np.mean(values), rel=1e-4)
            assert line[name]["spread"] == pytest.approx(np.std(values, ddof=1), rel=1e-3)
    first = best[found["ranking"][0]["setting"]][0]
    assert all(first[name] == value for name, value in found["ranking"][0]["values"].items())


def test_settings_can_be_ranked_by_accuracy(cache: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, seeds=(0,), rank_by="accuracy")
    ranking = inspect_path(sweep(cache, tmp_path / "runs", settings))["ranking"]
    accuracies = [line["validation_accuracy"]["mean"] for line in ranking]
    assert accuracies == sorted(accuracies, reverse=True)


def test_the_winner_is_a_run_that_was_tested(swept: Path, cache: Path, tmp_path: Path) -> None:
    found = inspect_path(swept)
    run = json.loads((swept / "winner" / "run.json").read_text())
    winner = TrainSettings(**found["winner"])
    assert run["settings"] == json.loads(json.dumps(dataclasses.asdict(winner)))
    assert (winner.folds, winner.seed) == (0, 0)
    alone = train_head(cache, tmp_path / "run", winner)
    assert (alone / "head.safetensors").read_bytes() == (swept / "winner" / "head.safetensors").read_bytes()
    assert load_head(swept / "winner").label_names == ("class0", "class1", "class2")
    assert sorted(path.name for path in Path(swept).iterdir()) == ["sweep.json", "sweep.parquet", "winner"]
    assert [path.name for path in Path(swept).parent.iterdir()] == ["runs"]


def test_no_test_row_is_trained_or_ranked_on(cache: Path) -> None:
    """For all seeds and folds the test rows are the same, and no other split holds them or copies of them."""
    opened = open_cache(cache)
    settings = dataclasses.replace(SETTINGS, base=dataclasses.replace(BASE, folds=3))
    tests, validated = set(), Counter[int]()
    for _, each in settings.cells():
        splits = divide(opened, validation=None, test=None, settings=each, report=silent)
        tests.add(splits.test.index.tobytes())
        hashes = [
            {opened.token_hashes[row].tobytes() for row in split.index}
            for split in (splits.train, splits.validation, splits.test)
        ]
        assert not (hashes[0] & hashes[1] or hashes[0] & hashes[2] or hashes[1] & hashes[2])
        assert len(splits.train) + len(splits.validation) + len(splits.test) == 300
        if each.seed == 0 and each == next(s for _, s in settings.cells() if s.fold == each.fold):
            validated.update(splits.validation.index.tolist())
    assert len(tests) == 1
    assert set(validated.values()) == {1} and len(validated) + len(splits.test) == 300


def test_an_interrupted_sweep_continues(
    cache: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = sweep(cache, tmp_path / "whole", SETTINGS)
    calls = []
    original = groups.fit_heads

    def stopping(*datasets: Any, **options: Any) -> Any:
        calls.append(options["settings"][0].feature)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*datasets, **options)

    monkeypatch.setattr(groups, "fit_heads", stopping)
    with pytest.raises(KeyboardInterrupt):
        sweep(cache, tmp_path / "runs", SETTINGS)
    assert not (tmp_path / "runs").exists() and (tmp_path / "runs.headstart-partial").is_dir()
    other = dataclasses.replace(SETTINGS, seeds=(0,))
    with pytest.raises(OutputExistsError, match="unfinished sweep of other settings"):
        sweep(cache, tmp_path / "runs", other)
    table = tmp_path / "labels.jsonl"
    rows = [{"text": text, "label": label.replace("0", "9")} for text, label in tiny_rows(300, classes=3)]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(OutputExistsError, match="unfinished sweep of other settings, rows or labels"):
        sweep(cache, tmp_path / "runs", SETTINGS, labels=Labels(table=table))
    moved = tmp_path / "moved.h5"
    rows[0], rows[1] = rows[1], rows[0]
    columns = {name: [row[name].replace("9", "0") for row in rows] for name in ("text", "label")}
    options = ExtractSettings(encoder=str(tiny), precision="float32", features=("cls", "mean"))
    with pytest.raises(OutputExistsError, match="unfinished sweep of other settings, rows or labels"):
        sweep(extract(columns, moved, options), tmp_path / "runs", SETTINGS)
    events: list[Event] = []
    sweep(cache, tmp_path / "runs", SETTINGS, report=events.append)
    assert len(calls) == 3 + 2  # two groups were finished, two were not
    assert Note("carried on: 16 of 32 heads were finished already") in events
    epochs = len(table_of(tmp_path / "runs"))
    counts = {"heads": 32, "diverged": 0, "kept_heads": 16, "epochs": epochs}
    assert [event for event in events if isinstance(event, Outcome)] == [events[-1]]
    assert events[-1] == Outcome(command="sweep", output=tmp_path / "runs", action=Action.MADE, counts=counts)
    assert table_of(tmp_path / "runs") == table_of(undisturbed)
    assert not (tmp_path / "runs.headstart-partial").exists()
    assert (tmp_path / "runs" / "winner" / "head.safetensors").read_bytes() == (
        undisturbed / "winner" / "head.safetensors"
    ).read_bytes()


def test_an_unfinished_folder_that_is_no_sweeps_is_refused(cache: Path, tmp_path: Path) -> None:
    for name, file, content in (
        ("foreign", "plan.json", '{"goal": "to be read by nobody"}'),
        ("others", "thesis.txt", "mine"),
        ("empty", "groups/00000.json", "[]"),
    ):
        path = tmp_path / f"{name}.headstart-partial" / file
        path.parent.mkdir(parents=True)
        path.write_text(content)
        with pytest.raises(OutputExistsError, match="is in the way, and headstart did not make it"):
            sweep(cache, tmp_path / name, SETTINGS, overwrite=True)
        assert path.read_text() == content


def test_a_full_disk_while_the_winner_is_written_keeps_the_groups(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    settings = SweepSettings(base=dataclasses.replace(BASE, epochs=1))
    with monkeypatch.context() as patch, pytest.raises(StorageError, match=r"cannot write .*winner: No space left"):
        patch.setattr(sweep_folder, "write_run", fail)
        sweep(cache, tmp_path / "runs", settings)
    assert [path.name for path in tmp_path.iterdir()] == ["runs.headstart-partial"]
    assert json.loads((sweep(cache, tmp_path / "runs", settings) / "sweep.json").read_text())["kept_heads"] == 1


def test_a_file_of_anothers_in_an_unfinished_sweep_stays(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sweeping, "train_run", stop)
        sweep(cache, tmp_path / "runs", SETTINGS)
    notes = tmp_path / "runs.headstart-partial" / "notes.txt"
    notes.write_text("mine")
    for settings in (SETTINGS, dataclasses.replace(SETTINGS, seeds=(0,))):
        with pytest.raises(OutputExistsError, match=r"notes\.txt is in the way"):
            sweep(cache, tmp_path / "runs", settings, overwrite=True)
    assert notes.read_text() == "mine"
    notes.rename(tmp_path / "notes.txt")
    assert Path(sweep(cache, tmp_path / "runs", SETTINGS)).is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "runs"]


def test_a_group_whose_file_is_empty_after_a_power_cut_is_trained_again(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, kept = SweepFolder.keep, []

    def keep(self: SweepFolder, group: int, results: Any) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        original(self, group, results)
        kept.append(group)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SweepFolder, "keep", keep)
        sweep(cache, tmp_path / "runs", SETTINGS)
    (tmp_path / "runs.headstart-partial" / "groups" / f"{kept[0]:05}.json").write_text("")
    found = table_of(sweep(cache, tmp_path / "runs", SETTINGS))
    assert found == table_of(sweep(cache, tmp_path / "undisturbed", SETTINGS))


def test_the_same_sweep_gives_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    folders = [sweep(cache, tmp_path / name, SETTINGS) for name in "ab"]
    for file in ("sweep.parquet", "winner/head.safetensors"):
        assert (folders[0] / file).read_bytes() == (folders[1] / file).read_bytes()


def test_progress_counts_heads_and_epochs(cache: Path, tmp_path: Path) -> None:
    steps: list[Step] = []
    sweep(cache, tmp_path / "runs", SETTINGS, report=lambda e: steps.append(e) if isinstance(e, Step) else None)
    seen = [step for step in steps if step.phase == "sweeping"]
    done = [step.done for step in seen]
    assert done == sorted(done) and done[-1] == seen[-1].total == 32 * 4
    assert seen[-1].detail == "0 of 32 heads left" and seen[0].unit == "epochs of heads"


def test_settings_that_diverge_come_last(cache: Path, tmp_path: Path) -> None:
    wild = SweepSettings(
        base=TrainSettings(solver="sgd", feature="cls", epochs=12, weight_decay=1000),
        values={"learning_rate": (1000.0, 1e-4)},
    )
    found = inspect_path(sweep(cache, tmp_path / "runs", wild))
    assert [line["values"]["learning_rate"] for line in found["ranking"]] == [0.0001, 1000.0]
    assert found["ranking"][1]["diverged"] == 1 and found["ranking"][1]["validation_loss"]["mean"] is None
    alone = dataclasses.replace(wild, values={"learning_rate": (1000.0,)})
    with pytest.raises(SettingsError, match="diverged with every one"):
        sweep(cache, tmp_path / "other", alone)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_penalties_of_the_exact_solver_are_swept(cache: Path, tmp_path: Path) -> None:
    settings = SweepSettings(
        base=TrainSettings(solver="exact", folds=3),
        values={"feature": ("cls", "mean"), "l2": (0.1, 10.0, 1.0)},
    )
    folder = sweep(cache, tmp_path / "runs", settings)
    rows = table_of(folder)
    assert len(rows) == 2 * 3 * 3 and all(row["converged"] and row["best"] for row in rows)
    for number, row in enumerate(rows[::4]):
        run = json.loads((train_head(cache, tmp_path / str(number), settings_of(row)) / "run.json").read_text())
        assert run["metrics"]["validation"]["log_loss"] == pytest.approx(row["validation_loss"], abs=1e-5)
        assert run["certificate"]["objective"] == pytest.approx(row["objective"], rel=1e-7)
    assert json.loads((folder / "winner" / "run.json").read_text())["certificate"]["converged"]


def test_each_solver_is_combined_with_the_values_that_it_uses() -> None:
    values = {"solver": ("auto", "sgd", "exact"), "head": ("linear", "mlp"), "hidden": (8, 16), "epochs": (2, 3)}
    settings = SweepSettings(base=BASE, values={**values, "l2": (1.0, 2.0)}, seeds=(0, 1))
    compared = Counter((each.solver, each.head, each.hidden, each.epochs, each.l2) for each in settings.settings())
    default = TrainSettings()
    solved = [("auto", "linear", 128, 100, 1.0), *(("exact", "linear", 128, 100, l2) for l2 in (1.0, 2.0))]
    sgd = [("sgd", "linear", default.hidden, epochs, 1.0) for epochs in (2, 3)]
    sgd += [("sgd", "mlp", hidden, epochs, 1.0) for hidden in (8, 16) for epochs in (2, 3)]
    assert compared == Counter([*solved, *sgd])
    assert Counter(each.solver for _, each in settings.cells()) == {"auto": 1, "exact": 2, "sgd": 12}


def test_a_search_is_compared_with_sgd_and_is_the_head_of_train_head(cache: Path, tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(90, seed=9, classes=3)
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    options = ExtractSettings(encoder=str(tiny), precision="float32", features=("cls", "mean"))
    other = extract(table, tmp_path / "v.h5", options)
    base = TrainSettings(solver="sgd", feature="cls")
    values = {"solver": ("auto", "sgd"), "epochs": (1, 2), "head": ("linear", "mlp"), "batch_size": (32, 64)}
    folder = sweep(cache, tmp_path / "runs", SweepSettings(base=base, values=values), validation=other)
    found = table_of(folder)
    assert Counter(row["solver"] for row in found) == {"auto": 1, "sgd": 2 * 2 * (1 + 2)}
    alone = json.loads(
        (train_head(cache, tmp_path / "a", TrainSettings(feature="cls"), validation=other) / "run.json").read_text()
    )
    (searched,) = (row for row in found if row["solver"] == "auto")
    assert searched["validation_loss"] == pytest.approx(alone["metrics"]["validation"]["log_loss"], abs=1e-5)
    folds = SweepSettings(
        base=TrainSettings(folds=2), values={"solver": ("auto", "exact"), "feature": ("auto", "mean")}
    )
    with pytest.raises(UserError, match="several features"):
        sweep(cache, tmp_path / "refused", folds)
    features = dataclasses.replace(folds, values={"solver": ("auto",), "feature": ("auto", "mean")})
    searches = inspect_path(sweep(cache, tmp_path / "searches", features))
    assert searches["heads"] == 2 * 2 and searches["winner"]["feature"] in ("cls", "mean")
    assert inspect_path(tmp_path / "searches" / "winner")["search"]["folds"] == 5


def test_the_tables_of_several_sweeps_combine(swept: Path, cache: Path, tmp_path: Path) -> None:
    """Types are those of the settings, not of their values: None, or whole numbers for fractions."""
    exact = SweepSettings(base=TrainSettings(solver="exact", memory=1 << 24), values={"dims": (8, None), "l2": (1, 10)})
    exact = dataclasses.replace(exact, base=dataclasses.replace(exact.base, feature="cls"))
    files = [swept / "sweep.parquet", sweep(cache, tmp_path / "runs", exact) / "sweep.parquet"]
    tables = [pyarrow.parquet.read_table(file) for file in files]
    assert tables[0].schema == tables[1].schema
    types = {field.name: str(field.type) for field in tables[0].schema}
    assert {types[name] for name in ("dims", "memory", "hidden", "seed", "epoch", "iterations")} == {"int64"}
    assert {types[name] for name in ("l2", "dropout", "validation_loss", "gap")} == {"double"}
    assert {types[name] for name in ("head", "solver", "calibrate", "prior", "reason")} == {"string"}
    assert {types[name] for name in ("keep_shared", "converged", "best")} == {"bool"}
    rows = pyarrow.concat_tables(tables).to_pylist()
    assert rows == table_of(swept) + table_of(tmp_path / "runs")
    assert {(row["dims"], row["l2"]) for row in rows if row["solver"] == "exact"} == {
        (8, 1),
        (8, 10),
        (None, 1),
        (None, 10),
    }
    both = pd.concat([pd.read_parquet(file) for file in files])
    assert both["l2"].dtype == float and both["solver"].value_counts()["exact"] == 4


def test_test_rows_do_not_choose_the_winner(cache: Path, tiny: Path, tmp_path: Path) -> None:
    """Two test caches with the same texts and different labels give the same table and winner."""
    rows = tiny_rows(60, seed=9, classes=3)
    folders = []
    for name, shift in (("a", 0), ("b", 1)):
        labels = [f"class{(int(label[-1]) + shift) % 3}" for _, label in rows]
        settings = ExtractSettings(encoder=str(tiny), precision="float32", features=("cls", "mean"))
        test = extract({"text": [text for text, _ in rows], "label": labels}, tmp_path / f"{name}.h5", settings)
        folders.append(sweep(cache, tmp_path / name, dataclasses.replace(SETTINGS, seeds=(0,)), test=test))
    assert table_of(folders[0]) == table_of(folders[1])
    runs = [json.loads((folder / "winner" / "run.json").read_text()) for folder in folders]
    assert runs[0]["settings"] == runs[1]["settings"]
    assert runs[0]["metrics"]["test"]["accuracy"] != runs[1]["metrics"]["test"]["accuracy"]
    assert runs[0]["rows"]["test"] == 60


@pytest.mark.parametrize("memory", [None, 1 << 24])
def test_groups_hold_every_head_once_and_only_heads_that_may_train_together(memory: int | None) -> None:
    values = {"learning_rate": tuple(10.0**-i for i in range(6)), "dropout": tuple(i / 100 for i in range(60))}
    settings = SweepSettings(
        base=TrainSettings(solver="sgd", memory=memory), values={"feature": ("a", "b"), **values}, seeds=(0, 1)
    )
    grouped = group_cells(settings.cells(), outputs=5, width=1000)
    assert Counter(cell for group in grouped for cell in group.cells) == Counter(settings.cells())
    for number, group in enumerate(grouped):
        assert group.number == number
        shared = {name: getattr(BASE, name) for name in PER_HEAD}
        common = {dataclasses.replace(each, **shared) for _, each in group.cells}
        assert len(common) == 1
        # Parameters, moments, gradients and the best epochs in float32 fit into a quarter of the memory bound.
        assert memory is None or len(group.cells) * 12 * 4 * 5 * 1000 <= memory // 4


def test_contradictions_are_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="`learning_rate` cannot be varied with the exact solver"):
        SweepSettings(base=TrainSettings(solver="exact"), values={"learning_rate": (0.1,)})
    with pytest.raises(SettingsError, match="the same head for every seed"):
        SweepSettings(base=TrainSettings(solver="exact"), seeds=(0, 1))
    with pytest.raises(SettingsError, match="distinct values"):
        SweepSettings(base=BASE, values={"dropout": (0.1, 0.1)})
    with pytest.raises(SettingsError, match=r"`dropout` is 1\.5"):
        SweepSettings(base=BASE, values={"dropout": (0.1, 1.5)})
    folds = SweepSettings(base=TrainSettings(folds=2))
    with pytest.raises(SettingsError, match="`folds` and `validation`"):
        sweep(cache, tmp_path / "runs", folds, validation=cache)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").touch()
    with pytest.raises(OutputExistsError, match="is not a sweep"):
        sweep(cache, tmp_path / "precious", SETTINGS, overwrite=True)
