"""What `train_head` and `sweep` return, and what a notebook shows of it, of a sweep and of a cache."""

from __future__ import annotations

import inspect
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pandas as pd
import pytest
from extracting import flip_a_byte, run
from headstart.cache.errors import DamagedError, FormatError, SettingsError
from headstart.stages.inspect import inspect_path
from headstart.stages.progress import Note, Outcome, Step, in_notebooks
from tiny import tiny_rows

NASTY = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def cache(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts, labels = zip(*tiny_rows(90), strict=True)
    table = {"text": list(texts), "label": [label.replace("class1", NASTY) for label in labels]}
    return run(table, tmp_path_factory.mktemp("caches") / f"{NASTY[:8]}.h5", tiny, features=("cls", "mean"))[0].path


@pytest.fixture(scope="module")
def trained(cache: Path) -> headstart.Run:
    return headstart.train_head(cache, cache.parent / "run", solver="exact", feature="cls")


@pytest.fixture(scope="module")
def swept(cache: Path) -> headstart.Sweep:
    return headstart.sweep(cache, cache.parent / "runs", solver="exact", feature=["cls", "mean"], l2=[1, 10])


def test_a_run_is_the_path_of_its_folder(trained: headstart.Run, cache: Path) -> None:
    folder = cache.parent / "run"
    assert trained == folder and folder == trained and trained != str(folder)
    assert hash(trained) == hash(folder) and str(trained) == str(folder) and trained / "run.json" == folder / "run.json"
    assert headstart.open_run(trained) == trained == pickle.loads(pickle.dumps(trained))
    assert inspect_path(trained)["metrics"] == trained.metrics == headstart.open_run(folder).metrics
    assert headstart.load_head(trained).label_names == headstart.load_head(folder).label_names
    with pytest.raises(FormatError, match="is not a run"):
        headstart.open_run(cache.parent)


def test_what_a_run_says(trained: headstart.Run) -> None:
    accuracy, rows = trained.metrics["test"]["accuracy"], trained.record["rows"]["test"]
    assert repr(trained) == f"Run({str(trained.path)!r}, accuracy {accuracy:.4f} on {rows} test rows)"
    frame = trained.to_frame()
    test = frame[frame["part"] == "test"]
    assert (test["label"] == test["prediction"]).mean() == pytest.approx(accuracy)
    assert test["fold"].isna().all() and len(test) == rows


def test_what_a_sweep_says(swept: headstart.Sweep) -> None:
    assert repr(swept) == f"Sweep({str(swept.path)!r}, 4 heads, 4 settings)"
    frame = swept.to_frame()
    assert frame["rank"].tolist() == [1, 2, 3, 4]
    assert set(zip(frame["feature"], frame["l2"], strict=True)) == {(f, l2) for f in ("cls", "mean") for l2 in (1, 10)}
    assert frame["validation_loss"].is_monotonic_increasing
    assert swept.metrics == swept.winner.metrics == headstart.open_sweep(swept.path).metrics
    assert swept.winner.record["settings"]["feature"] == frame["feature"][0]


def test_what_a_cache_says(cache: Path, tmp_path: Path) -> None:
    opened = headstart.open_cache(cache)
    assert repr(opened) == f"Cache({str(cache)!r}, 90 rows, cls (32), mean (32))"
    assert opened.metrics["rows"] == 90 and opened.metrics["tokens"] == opened.lengths.sum()
    frame = opened.to_frame("mean")
    assert frame["row"].tolist() == list(range(1, 91)) and frame["tokens"].tolist() == opened.lengths.tolist()
    assert frame["text_hash"][3] == opened.text_hashes[3].tobytes().hex()
    assert frame["label"].value_counts().to_dict() == opened.label_counts()
    np.testing.assert_array_equal(frame.filter(regex="mean_").to_numpy(), opened.features("mean"))
    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(cache.read_bytes())
    flip_a_byte(damaged, "features/mean", 3)
    with pytest.raises(DamagedError):
        headstart.open_cache(damaged).to_frame()


def test_notebooks_show_names_as_text(trained: headstart.Run, swept: headstart.Sweep, cache: Path) -> None:
    for shown in (trained, swept, headstart.open_cache(cache)):
        page = shown._repr_html_()
        assert "<script" not in page and "<table>" in page
    assert "&lt;script" in headstart.open_cache(cache)._repr_html_()


def test_without_pandas_its_name_is_said(trained: headstart.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(SettingsError, match="pip install pandas"):
        trained.to_frame()


def test_options_stand_for_settings(cache: Path, tiny: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"body": ["good film", "bad film"] * 3, "label": ["a", "b"] * 3})
    path = headstart.extract(frame, tmp_path / "c.h5", encoder=str(tiny), text_column="body", features=["cls", "mean"])
    assert list(headstart.open_cache(path).layout.widths) == ["cls", "mean"]
    trained = headstart.train_head(cache, tmp_path / "a", feature="cls", solver="exact", l2=3)
    settings = headstart.TrainSettings(feature="cls", solver="exact", l2=3)
    same = headstart.train_head(cache, tmp_path / "b", settings)
    assert trained.record["settings"] == same.record["settings"] and trained.metrics == same.metrics
    assert headstart.ExtractSettings(features="mean").features == ("mean",)
    assert headstart.TrainSettings(memory="1GiB").memory == 1 << 30
    arguments = inspect.signature(headstart.extract).parameters
    assert arguments["max_length"].default is None and "options" not in arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_out": 0.1}, "no option 'drop_out'; perhaps you mean `dropout`"),
        ({"rate": 0.1}, "no option 'rate'; perhaps you mean `learning_rate`"),
        ({"xyzzy": 1}, "no option 'xyzzy'; perhaps you mean one of the attributes of TrainSettings"),
        ({"epochs": "3"}, "`epochs` is '3'; it must be at least 1"),
        ({"settings": headstart.TrainSettings(), "folds": 3}, "`folds` is given beside an object of settings"),
        ({"settings": headstart.ExtractSettings()}, "of the type ExtractSettings; give TrainSettings"),
    ],
)
def test_options_that_cannot_be_are_refused(cache: Path, tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        headstart.train_head(cache, tmp_path / "run", **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("command", [headstart.extract, headstart.sweep, headstart.audit, headstart.speedup])
def test_every_command_refuses_unknown_options(command: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no option 'memry'"):
        command(tmp_path / "a", tmp_path / "b", memry=3)


def test_a_sweep_compares_lists() -> None:
    options = {"solver": ["auto", "sgd"], "learning_rate": [0.1, 0.01], "epochs": 3, "seeds": [0, 1]}
    settings = headstart.SweepSettings.of(options)
    assert settings.values == {"solver": ("auto", "sgd"), "learning_rate": (0.1, 0.01)}
    assert (settings.base.epochs, settings.seeds, len(settings.cells())) == (3, (0, 1), 5)
    assert headstart.SweepSettings.of({}) == headstart.SweepSettings()


def test_progress_is_shown_in_notebooks_alone(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shown: list[str] = []

    class Handle:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown.append("updated " + content["text/plain"])

    def display(content: dict[str, str], *, raw: bool, display_id: bool = False) -> Handle:
        shown.append(content["text/plain"])
        return Handle()

    shell: Any = types.SimpleNamespace()
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display
    clock = iter([0, 0.5, 1.5, 3, 4])
    monkeypatch.setattr("headstart.stages.progress.time.monotonic", lambda: next(clock))
    events = [
        Step("reading", 1, 0, "rows"),
        Step("reading", 2, 0, "rows"),
        Step("reading", 3, 9, "rows"),
        Note("a \x1b[31mnote"),
        Outcome(command="extract", output=Path("c.h5"), action="made"),
    ]
    in_notebooks(events[0])  # IPython is not loaded
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    in_notebooks(events[0])  # a terminal of IPython
    assert not shown
    shell.kernel, shell.execution_count = object(), 1
    for event in events:
        in_notebooks(event)
    assert shown == ["reading: 3 of 9 rows", "a \\x1b[31mnote", "updated extract: made c.h5"]
    assert capsys.readouterr() == ("", "")
