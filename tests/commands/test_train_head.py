"""Stage two: no text is trained and tested on, runs are complete and safe, and a seed fixes every byte."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from headstart.cache import workspace
from headstart.cache.errors import (
    DamagedError,
    FormatError,
    IdentityError,
    OutputExistsError,
    SettingsError,
    TableError,
    UserError,
)
from headstart.cache.layout import read_layout
from headstart.cache.reader import open_cache
from headstart.stages.extract import extract
from headstart.stages.heads.dataset import Dataset
from headstart.stages.heads.fit import fit_head
from headstart.stages.heads.targets import ClassTarget
from headstart.stages.inspect import inspect_path
from headstart.stages.predict import predict
from headstart.stages.progress import Action, Event, Note, Outcome
from headstart.stages.runs.run import load_head
from headstart.stages.settings import ExtractSettings, Solver, SweepSettings, TrainSettings
from headstart.stages.sweep import sweep
from headstart.stages.train_head import train_head
from safetensors.numpy import load_file, save_file
from tiny import tiny_rows

CPU = torch.device("cpu")


def problem(rows: int = 300, width: int = 12, classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Features of classes that overlap a little."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=rows)
    centres = rng.normal(size=(classes, width))
    return (centres[labels] + rng.normal(size=(rows, width))).astype(np.float32), labels


def datasets(rows: int = 300, **options: Any) -> tuple[Dataset, Dataset]:
    features, labels = problem(rows, **options)
    index = np.arange(rows)
    return (
        Dataset(features=features, labels=labels, index=index[: rows * 3 // 4]),
        Dataset(features=features, labels=labels, index=index[rows * 3 // 4 :]),
    )


def test_float16_features_train_the_same_head_as_their_values_in_float32() -> None:
    train, validation = datasets()
    half = train.features.astype(np.float16)
    settings = TrainSettings(solver="sgd", epochs=3)
    fits = [
        fit_head(
            Dataset(features=features, labels=train.labels, index=train.index),
            Dataset(features=features, labels=train.labels, index=validation.index),
            target=ClassTarget(("0", "1", "2")),
            settings=settings,
            device=CPU,
        )
        for features in (half, half.astype(np.float32))
    ]
    np.testing.assert_array_equal(fits[0].parameters["weight"], fits[1].parameters["weight"])


@pytest.fixture(scope="module")
def cache(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of 300 rows of three classes, from the tiny encoder."""
    return make_cache(tiny, tmp_path_factory.mktemp("cache") / "c.h5", tiny_rows(300, classes=3))


def make_cache(encoder: Path, out: Path, rows: list[tuple[str, str]], **options: Any) -> Path:
    table = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    return extract(table, out, ExtractSettings(**{"encoder": str(encoder), "precision": "float32", **options}))


QUICK = TrainSettings(solver="sgd", epochs=4)


def run_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def test_a_run_holds_the_head_and_records_its_training(cache: Path, tmp_path: Path) -> None:
    run = train_head(cache, tmp_path / "run", QUICK)
    head, fields = load_file(run / "head.safetensors"), run_of(run)
    assert head["weight"].shape == (3, 32) and head["bias"].shape == (3,)
    assert set(head) == {"weight", "bias"}
    assert fields["label_names"] == ["class0", "class1", "class2"]
    assert len(fields["history"]) == 4
    assert 0 <= fields["metrics"]["test"]["accuracy"] <= 1
    low, high = fields["metrics"]["test"]["accuracy_interval"]
    assert low <= fields["metrics"]["test"]["accuracy"] <= high
    assert np.sum(fields["metrics"]["test"]["confusion_matrix"]) == fields["rows"]["test"]
    assert fields["rows"]["train"] + fields["rows"]["validation"] + fields["rows"]["test"] == 300
    assert fields["fit_seconds"] > 0 and fields["seed"] == 0
    assert fields["identity"]["features"] == ["cls"]
    assert fields["settings"]["epochs"] == 4
    passes = fields["encoder_passes"]
    assert (passes["done"], passes["saved"]) == (0, 4 * (300 - fields["rows"]["test"]) + fields["rows"]["test"])


def test_the_last_event_says_what_was_made(cache: Path, tmp_path: Path) -> None:
    events: list[Event] = []
    run = train_head(cache, tmp_path / "run", QUICK, report=events.append)
    rows = run_of(run)["rows"]
    counts = {f"{split}_rows": rows[split] for split in ("train", "validation", "test")} | {"epochs": 4}
    assert events[-1] == Outcome(command="train-head", output=run, action=Action.MADE, counts=counts)
    assert sum(isinstance(event, Outcome) for event in events) == 1


def test_a_seed_fixes_every_byte_of_the_head(cache: Path, tmp_path: Path) -> None:
    first, second = (train_head(cache, tmp_path / name, QUICK) for name in "ab")
    assert (first / "head.safetensors").read_bytes() == (second / "head.safetensors").read_bytes()
    other = train_head(cache, tmp_path / "c", TrainSettings(solver="sgd", epochs=4, seed=1))
    assert (other / "head.safetensors").read_bytes() != (first / "head.safetensors").read_bytes()


def test_a_saved_head_predicts_as_torch_does(cache: Path, tmp_path: Path) -> None:
    head = load_head(train_head(cache, tmp_path / "run", QUICK))
    features = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    expected = torch.from_numpy(features) @ torch.from_numpy(head.weight).T + torch.from_numpy(head.bias)
    np.testing.assert_allclose(head.logits(features), expected, atol=1e-5)
    np.testing.assert_allclose(head.probabilities(features), expected.softmax(1), atol=1e-6)
    np.testing.assert_array_equal(head.predict(features), expected.argmax(1))
    with pytest.raises(UserError, match=r"this head reads \(rows, 32\)"):
        head.logits(features[:, :5])


def test_a_saved_mlp_predicts_as_torch_does(cache: Path, tmp_path: Path) -> None:
    settings = TrainSettings(solver="sgd", epochs=4, head="mlp", hidden=9, standardize=True)
    head = load_head(train_head(cache, tmp_path / "run", settings))
    assert head.hidden_weight is not None and head.hidden_bias is not None
    assert (head.weight.shape, head.hidden_weight.shape) == ((3, 9), (9, 32))
    features = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    first = torch.nn.functional.linear(*map(torch.from_numpy, (features, head.hidden_weight, head.hidden_bias)))
    expected = torch.nn.functional.linear(first.relu(), *map(torch.from_numpy, (head.weight, head.bias)))
    np.testing.assert_allclose(head.logits(features), expected, atol=1e-5)


def test_a_temperature_is_saved_and_divides_the_logits(cache: Path, tmp_path: Path) -> None:
    """Which temperature it is, and what the validation rows are scored with: `test_adjustment.py`."""
    settings = TrainSettings(solver="sgd", epochs=100, learning_rate=0.3, dropout=0.0)
    plain, scaled = (
        train_head(cache, tmp_path / str(calibrate), dataclasses.replace(settings, calibrate=calibrate))
        for calibrate in (False, True)
    )
    heads = load_head(plain), load_head(scaled)
    temperature = float(load_file(scaled / "head.safetensors")["temperature"][0])
    assert heads[0].temperature == 1 and heads[1].temperature == temperature != 1
    assert run_of(scaled)["temperature"] == pytest.approx(temperature)
    features = np.random.default_rng(0).normal(size=(50, 32)).astype(np.float32)
    expected = (torch.from_numpy(heads[0].logits(features)) / temperature).softmax(1)
    np.testing.assert_allclose(heads[1].probabilities(features), expected, atol=1e-6)


def test_no_text_is_trained_on_and_tested(tiny: Path, tmp_path: Path) -> None:
    """Every text is in the table three times, so each split has a multiple of three rows."""
    rows = [row for row in tiny_rows(80, classes=2) for _ in range(3)]
    fields = run_of(train_head(make_cache(tiny, tmp_path / "c.h5", rows), tmp_path / "run", QUICK))
    assert all(count % 3 == 0 for count in (fields["rows"][split] for split in ("train", "validation", "test")))


def test_test_and_validation_come_from_other_caches(tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(300, classes=3)
    train = make_cache(tiny, tmp_path / "train.h5", rows[:200])
    test = make_cache(tiny, tmp_path / "test.h5", [*rows[200:], *rows[:10]])
    notes: list[str] = []
    run = train_head(
        train,
        tmp_path / "run",
        QUICK,
        test=test,
        validation=make_cache(tiny, tmp_path / "validation.h5", tiny_rows(50, seed=7, classes=3)),
        report=lambda e: notes.append(e.text) if isinstance(e, Note) else None,
    )
    fields = run_of(run)
    tested = {text for text, _ in [*rows[200:], *rows[:10]]}
    shared = sum(text in tested for text, _ in rows[:200])
    assert shared >= 10
    assert fields["rows"] == {"train": 200 - shared, "validation": 50, "test": 110, "shared": shared}
    assert f"{shared} training rows" in notes[0] and "left out" in notes[0]
    kept = train_head(
        train,
        tmp_path / "kept",
        TrainSettings(solver="sgd", epochs=4, keep_shared=True, validation_fraction=0.2),
        test=test,
    )
    assert run_of(kept)["rows"]["train"] + run_of(kept)["rows"]["validation"] == 200


def test_classes_are_matched_by_name(tiny: Path, tmp_path: Path) -> None:
    """In the test table 'class2' is number 0 and 'class1' is missing; numbers alone would score it wrongly."""
    rows = tiny_rows(200, classes=3)
    train = make_cache(tiny, tmp_path / "train.h5", rows)
    part = [(text, label) for text, label in tiny_rows(60, seed=5, classes=3) if label != "class0"]
    test = make_cache(tiny, tmp_path / "test.h5", part)
    run = train_head(train, tmp_path / "run", QUICK, test=test)
    matrix = np.array(run_of(run)["metrics"]["test"]["confusion_matrix"])
    counts = [sum(label == f"class{i}" for _, label in part) for i in range(3)]
    assert matrix.sum(axis=1).tolist() == counts and counts[0] == 0
    strange = make_cache(tiny, tmp_path / "strange.h5", [*part, ("good film", "class9")])
    with pytest.raises(TableError, match=r"strange.h5 has the label 'class9', which the training rows have not"):
        train_head(train, tmp_path / "other", QUICK, test=strange)
    assert not (tmp_path / "other").exists()


def test_caches_of_another_identity_are_refused(tiny: Path, cache: Path, tmp_path: Path) -> None:
    for number, options in enumerate(({"max_length": 100}, {"precision": "bfloat16"}, {"prefix": "the "})):
        other = make_cache(tiny, tmp_path / f"{number}.h5", tiny_rows(30, seed=1, classes=3), **options)
        with pytest.raises(IdentityError, match=f"they differ in {next(iter(options))}"):
            train_head(cache, tmp_path / "run", QUICK, test=other)
    half = make_cache(tiny, tmp_path / "half.h5", tiny_rows(30, seed=1, classes=3), storage="float16")
    train_head(cache, tmp_path / "run", QUICK, test=half)


def test_a_damaged_cache_trains_no_head(cache: Path, tmp_path: Path) -> None:
    content = bytearray(cache.read_bytes())
    content[read_layout(cache)[1]["features/cls"].offset + 17] ^= 1
    (tmp_path / "c.h5").write_bytes(content)
    with pytest.raises(DamagedError, match="1 of 1 blocks are damaged"):
        train_head(tmp_path / "c.h5", tmp_path / "run", QUICK)


def test_labels_that_cannot_be_trained_on_are_refused(tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(40)
    for number, (changed, message) in enumerate(
        [
            ([(text, "all") for text, _ in rows], "one class only"),
            ([*rows, ("bad plot", "rare")], "the label 'rare' has one distinct text only"),
            ([*rows, ("bad plot", "rare"), ("Bad PLOT", "rare")], "the label 'rare' has one distinct text only"),
        ]
    ):
        cache = make_cache(tiny, tmp_path / f"{number}.h5", changed)
        with pytest.raises(TableError, match=message):
            train_head(cache, tmp_path / "run", QUICK)
    unlabelled = extract([text for text, _ in rows], tmp_path / "u.h5", ExtractSettings(encoder=str(tiny)))
    with pytest.raises(TableError, match="has no labels"):
        train_head(unlabelled, tmp_path / "run", QUICK)


def few_rows(classes: int, *more: tuple[str, str], texts: int = 2) -> list[tuple[str, str]]:
    """Rows of so many classes with two distinct texts each, or more, and others."""
    return [*((f"good {i} film {j}", f"class{i}") for i in range(classes) for j in range(texts)), *more]


def test_two_texts_a_class_suffice_where_nothing_is_chosen_by_validation_rows(tiny: Path, tmp_path: Path) -> None:
    cache, notes = make_cache(tiny, tmp_path / "c.h5", few_rows(8)), []
    exact = TrainSettings(solver=Solver.EXACT)
    run = run_of(train_head(cache, tmp_path / "run", exact, report=notes.append))
    assert run["rows"] == {"train": 8, "validation": 0, "test": 8, "shared": 0}
    assert run["metrics"]["validation"] is None and run["metrics"]["test"]["rows"] == 8
    assert any(isinstance(note, Note) and "leaves no rows for `validation`" in note.text for note in notes)
    load_head(tmp_path / "run")
    inspect_path(tmp_path / "run")
    for settings in (QUICK, dataclasses.replace(exact, calibrate=True)):
        with pytest.raises(TableError, match="no rows for `validation`: a label needs three distinct texts"):
            train_head(cache, tmp_path / "refused", settings)
    with pytest.raises(TableError, match="no rows for `validation`"):  # a sweep ranks by them
        sweep(cache, tmp_path / "sweep", SweepSettings(base=exact, values={"l2": (1.0, 2.0)}))


@pytest.mark.parametrize("rare", [1, 3])
def test_a_rare_label_is_trained_on_in_every_fold_and_named(rare: int, tiny: Path, tmp_path: Path) -> None:
    """One text of it is tested on; what is left does not suffice for five folds."""
    rows = few_rows(2, *((f"bad {i} plot", "rare") for i in range(rare + 1)), texts=30)
    cache, validated = make_cache(tiny, tmp_path / "c.h5", rows), 0
    for fold in range(1, 6):
        notes: list[Event] = []
        run = train_head(cache, tmp_path / f"run{fold}", replace(QUICK, folds=5, fold=fold), report=notes.append)
        validated += run_of(run)["metrics"]["validation"]["per_class"]["rare"]["rows"]
        (note,) = (event.text for event in notes if isinstance(event, Note))
        assert f"{cache}: labels with too few texts" in note and f"'rare' ({0 if rare == 1 else 3} of 5)" in note
    assert validated == (0 if rare == 1 else 3)
    notes = []
    sweep(cache, tmp_path / "sweep", SweepSettings(base=replace(QUICK, folds=5), seeds=(0, 1)), report=notes.append)
    assert sum(isinstance(event, Note) for event in notes) == 1


def test_an_existing_run_is_replaced_only_with_overwrite(cache: Path, tmp_path: Path) -> None:
    run = train_head(cache, tmp_path / "run", QUICK)
    before = (run / "run.json").read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        train_head(cache, run, QUICK)
    assert (run / "run.json").read_bytes() == before
    train_head(cache, run, TrainSettings(solver="sgd", epochs=5), overwrite=True)
    assert len(run_of(run)["history"]) == 5
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").touch()
    with pytest.raises(OutputExistsError, match="is not a run, so it is not overwritten"):
        train_head(cache, precious, QUICK, overwrite=True)
    (precious / "run.json").write_text('{"of": "somebody else"}')
    with pytest.raises(OutputExistsError, match="is not a run, so it is not overwritten"):
        train_head(cache, precious, QUICK, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["precious", "run"]


def test_ctrl_c_between_the_old_run_and_the_new_leaves_the_old(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_head(cache, tmp_path / "run", QUICK)
    before, rename = (run / "run.json").read_bytes(), Path.rename

    def stopped(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    monkeypatch.setattr(workspace, "exchange", lambda *_: False)  # as where two names cannot be exchanged
    with pytest.raises(KeyboardInterrupt):
        train_head(cache, run, TrainSettings(solver="sgd", epochs=5), overwrite=True)
    assert (run / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_head_trains_on_the_feature_that_is_named(tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(60)
    both = make_cache(tiny, tmp_path / "both.h5", rows, features=("cls", "mean"))
    alone = make_cache(tiny, tmp_path / "mean.h5", rows, features=("mean",))
    settings = TrainSettings(solver="sgd", epochs=4, feature="mean")
    runs = [train_head(cache, tmp_path / cache.stem, settings) for cache in (both, alone)]
    heads = [load_head(run) for run in runs]
    assert heads[0].identity == heads[1].identity and heads[0].identity.features == ("mean",)
    np.testing.assert_allclose(heads[0].weight, heads[1].weight, atol=1e-4)
    # A test cache must hold the feature, and may hold others.
    other = make_cache(tiny, tmp_path / "other.h5", tiny_rows(30, seed=1), features=("cls", "mean"))
    train_head(alone, tmp_path / "tested", settings, test=other)
    texts = [text for text, _ in rows[:20]]
    expected = heads[0].probabilities(open_cache(both).features("mean")[:20])
    np.testing.assert_allclose(predict(runs[0], texts).probabilities, expected, atol=1e-5)


def test_the_only_feature_needs_no_name(tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(60)
    mean = make_cache(tiny, tmp_path / "mean.h5", rows, features=("mean",))
    assert run_of(train_head(mean, tmp_path / "run", QUICK))["settings"]["feature"] == "mean"
    sweep(mean, tmp_path / "sweep", SweepSettings(base=QUICK, values={"feature": ("auto",)}))
    assert run_of(tmp_path / "sweep" / "winner")["settings"]["feature"] == "mean"
    assert run_of(tmp_path / "sweep" / "winner")["identity"]["features"] == ["mean"]


def test_of_several_features_one_must_be_named(tiny: Path, tmp_path: Path) -> None:
    """None of them is the encoder's own vector; cls is not preferred to others."""
    several = make_cache(tiny, tmp_path / "several.h5", tiny_rows(60), features=("mean", "cls"))
    asks = "several features, none of them the encoder's own; it holds: cls, mean; choose with `feature`"
    with pytest.raises(UserError, match=asks):
        train_head(several, tmp_path / "refused", QUICK)
    with pytest.raises(UserError, match=asks):
        sweep(several, tmp_path / "refused", SweepSettings(base=QUICK))
    sweep(several, tmp_path / "sweep", SweepSettings(base=QUICK, values={"feature": ("mean", "cls")}))
    assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text())["settings"]["values"]["feature"]) == 2


def test_without_options_folds_choose_and_all_other_rows_train(tiny: Path, tmp_path: Path) -> None:
    """Among all features that the caches hold. The validation scores are those of the folds, and predict reads the run
    as it says."""
    rows = tiny_rows(200, classes=3)
    both = make_cache(tiny, tmp_path / "both.h5", rows, features=("cls", "mean"))
    fields = run_of(run := train_head(both, tmp_path / "run"))
    found, choice = fields["search"], fields["search"]["choice"]
    assert {candidate["feature"] for candidate in found["candidates"]} == {"cls", "mean"}
    assert choice in found["candidates"] and choice["feature"] == fields["settings"]["feature"]
    assert choice["scaling"] == fields["scaling"] and choice["l2"] == fields["certificate"]["l2"]
    assert fields["rows"]["validation"] == 0 and fields["rows"]["train"] + fields["rows"]["test"] == 200
    assert fields["metrics"]["validation"]["rows"] == found["rows"] <= fields["rows"]["train"]
    assert fields["metrics"]["validation"]["log_loss"] == pytest.approx(choice["mean"])
    sgd = run_of(train_head(both, tmp_path / "sgd", TrainSettings(solver="sgd", feature="cls", epochs=1)))
    assert sgd["rows"]["test"] == fields["rows"]["test"]
    head, cache = load_head(run), open_cache(both)
    features = np.asarray(cache.features(choice["feature"]))
    assert head.normalize == (choice["scaling"] == "normalized")
    scaled = features / np.linalg.norm(features, axis=1, keepdims=True) if head.normalize else features
    np.testing.assert_allclose(head.logits(features), scaled @ head.weight.T + head.bias, atol=1e-5)
    notes: list[Event] = []
    mean = make_cache(tiny, tmp_path / "mean.h5", tiny_rows(60, seed=5, classes=3), features=("mean",))
    tested = run_of(train_head(both, tmp_path / "tested", test=mean, report=notes.append))
    assert {candidate["feature"] for candidate in tested["search"]["candidates"]} == {"mean"}
    assert any("only mean can be chosen" in note.text for note in notes if isinstance(note, Note))


def test_two_rows_of_each_class_are_enough(tiny: Path, tmp_path: Path) -> None:
    notes: list[Event] = []
    rows = [(f"{word} {number}", f"class{number}") for number in range(5) for word in ("good", "bad")]
    fields = run_of(train_head(make_cache(tiny, tmp_path / "c.h5", rows), tmp_path / "run", report=notes.append))
    assert (fields["rows"]["train"], fields["rows"]["test"], fields["metrics"]["validation"]) == (5, 5, None)
    low, high = fields["metrics"]["test"]["accuracy_interval"]
    assert high - low > 0.4
    rows = [*((f"{word} film", "a") for word in ("good", "bad", "fine")), ("it broke", "b"), ("the phone is bad", "b")]
    cache = make_cache(tiny, tmp_path / "few.h5", [*rows, ("a plot", "rare")])
    fields = run_of(train_head(cache, tmp_path / "few", report=notes.append))
    assert fields["search"]["folds"] == 2 and fields["label_names"] == [
        "a",
        "b",
        "rare",
    ]  # two of a, each left out once
    assert any("none to choose a head by: 'b', 'rare'" in note.text for note in notes if isinstance(note, Note))


def test_a_run_of_another_scaling_is_refused(cache: Path, tmp_path: Path) -> None:
    run = train_head(cache, tmp_path / "run", QUICK)
    (run / "run.json").write_text(json.dumps({**run_of(run), "scaling": "whitened"}))
    with pytest.raises(FormatError, match="its scaling is 'whitened', which this headstart does not know"):
        load_head(run)


def test_a_missing_feature_and_bad_settings_are_refused(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no feature 'mean'; it holds: cls"):
        train_head(cache, tmp_path / "run", TrainSettings(feature="mean"))
    for options in ({"epochs": 0}, {"dropout": 1.0}, {"test_fraction": 0.0}, {"learning_rate": 0.0}, {"seed": -1}):
        with pytest.raises(SettingsError, match=next(iter(options))):
            TrainSettings(**options)


def test_a_run_that_was_tampered_with_is_refused(cache: Path, tmp_path: Path) -> None:
    run = train_head(cache, tmp_path / "run", QUICK)
    good = run_of(run)
    for harm, kind in [
        ({"label_names": ["a"]}, DamagedError),
        ({"label_names": "abc"}, DamagedError),
        ({"identity": {"max_length": 5}}, DamagedError),
        ({"version": 3}, FormatError),
        ({"format": "zip"}, FormatError),
    ]:
        (run / "run.json").write_text(json.dumps({**good, **harm}))
        with pytest.raises(kind):
            load_head(run)
    (run / "run.json").write_text(json.dumps(good))
    for tensors in (
        {"weight": np.zeros((3, 32), np.float32)},
        {"weight": np.full((3, 2), np.nan), "bias": np.zeros(3)},
    ):
        save_file(tensors, run / "head.safetensors")
        with pytest.raises(DamagedError, match="does not hold a weight and a bias, finite"):
            load_head(run)
    good_head = {"weight": np.zeros((3, 4), np.float32), "bias": np.zeros(3, np.float32)}
    for more, message in [
        ({"hidden.weight": np.zeros((4, 32), np.float32)}, "its hidden layer does not fit"),
        ({"hidden.weight": np.zeros((5, 32), np.float32), "hidden.bias": np.zeros(5, np.float32)}, "does not fit"),
        ({"temperature": np.zeros(1, np.float32)}, "its temperature is 0.0, not a number above 0"),
    ]:
        save_file(good_head | more, run / "head.safetensors")
        with pytest.raises(DamagedError, match=message):
            load_head(run)
    (run / "head.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(DamagedError, match="cannot be read"):
        load_head(run)
    with pytest.raises(FormatError, match="is not a run"):
        load_head(tmp_path)


def test_rows_that_choose_the_epoch_do_not_test_it(tiny: Path, tmp_path: Path) -> None:
    rows = tiny_rows(200, classes=2)
    train = make_cache(tiny, tmp_path / "train.h5", rows)
    test = make_cache(tiny, tmp_path / "test.h5", tiny_rows(60, seed=8))
    with pytest.raises(TableError, match="leaves no rows for `validation`"):
        train_head(train, tmp_path / "run", QUICK, test=test, validation=test)
    validation = make_cache(tiny, tmp_path / "v.h5", [*tiny_rows(60, seed=8)[:20], *tiny_rows(50, seed=9)])
    notes: list[str] = []
    run = train_head(
        train,
        tmp_path / "run",
        QUICK,
        test=test,
        validation=validation,
        report=lambda e: notes.append(e.text) if isinstance(e, Note) else None,
    )
    assert run_of(run)["rows"]["validation"] == 50
    assert any("20 validation rows have texts that are also tested on" in note for note in notes)


def test_training_that_diverges_leaves_no_run(cache: Path, tmp_path: Path) -> None:
    wild = TrainSettings(solver="sgd", learning_rate=1000, weight_decay=1000)
    with pytest.raises(SettingsError, match=r"training diverged in epoch .* lower the learning rate"):
        train_head(cache, tmp_path / "run", wild)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SettingsError, match="learning_rate"):
        TrainSettings(solver="sgd", learning_rate=1e20)


def test_one_class_is_refused_with_other_caches_too(tiny: Path, cache: Path, tmp_path: Path) -> None:
    alone = make_cache(tiny, tmp_path / "alone.h5", [(text, "class0") for text, _ in tiny_rows(30)])
    with pytest.raises(TableError, match="one class only"):
        train_head(alone, tmp_path / "run", QUICK, test=cache, validation=cache)


def test_a_run_touches_nothing_beside_it(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("poetry's")
    for name in ("run.partial", "run.replaced"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").touch()
    run = train_head(cache, tmp_path / "run", QUICK)
    link = tmp_path / "link"
    link.symlink_to(run)
    train_head(cache, link, TrainSettings(solver="sgd", epochs=5), overwrite=True)
    assert link.is_symlink() and len(run_of(run)["history"]) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "run", "run.lock", "run.partial", "run.replaced"]
    assert (tmp_path / "run.replaced" / "thesis.txt").exists()
    (run / "notes.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"notes\.txt was not made by headstart, and would be lost"):
        train_head(cache, run, QUICK, overwrite=True)
    assert (run / "notes.txt").read_text() == "mine" and len(run_of(run)["history"]) == 5
    with pytest.raises(OutputExistsError, match="is no name for a run"):
        train_head(cache, ".", QUICK)
