"""Prediction that goes on where it was stopped, and takes features from a cache: the same predictions, less work."""

from __future__ import annotations

import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pyarrow.parquet
import pytest
from extracting import interrupted_after, run
from headstart.cache.errors import IdentityError, OutputExistsError, SettingsError
from headstart.cache.siblings import partial_path
from headstart.stages.inspect import inspect_path
from headstart.stages.predict import predict_table
from headstart.stages.progress import Event, Note, Outcome
from headstart.stages.settings import TrainSettings
from headstart.stages.train_head import train_head
from processes import finish, kill_at_batch, windows_of
from tiny import tiny_rows

WINDOW = 32


@pytest.fixture(scope="module")
def made(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table of 200 rows, a cache of its first half, two runs trained on that, and the predictions of an
    unbroken run in each format."""
    folder = tmp_path_factory.mktemp("resumed")
    rows = [{"id": number, "text": text, "label": label} for number, (text, label) in enumerate(tiny_rows(200))]
    write(folder / "table.jsonl", rows)
    write(folder / "half.jsonl", rows[:100])
    run(folder / "half.jsonl", folder / "half.h5", tiny)
    for name, seed in (("run", 0), ("other", 1)):
        train_head(folder / "half.h5", folder / name, TrainSettings(solver="sgd", epochs=2, seed=seed))
    for suffix in ("csv", "jsonl", "parquet"):
        predict_table(folder / "run", folder / "table.jsonl", folder / f"whole.{suffix}", window_rows=WINDOW)
    return folder


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stop(made: Path, out: Path, *, after: int = 3, **options: Any) -> None:
    """Press Ctrl-C in the window after so many."""
    arguments = {"window_rows": WINDOW, **options}
    table = arguments.pop("table", made / "table.jsonl")
    with interrupted_after(after), pytest.raises(KeyboardInterrupt):
        predict_table(made / "run", table, out, **arguments)
    assert not out.exists() and [path.name for path in out.parent.glob("*.headstart-*")] == [partial_path(out).name]


def carry_on(made: Path, out: Path, **options: Any) -> tuple[Any, list[str]]:
    """Run to the end; return the counts, and the notes."""
    events: list[Event] = []
    arguments = {"table": made / "table.jsonl", "window_rows": WINDOW, "run": made / "run", **options}
    predict_table(out=out, report=events.append, **arguments)
    assert not partial_path(out).exists()
    assert isinstance(events[-1], Outcome)
    return events[-1].counts, [event.text for event in events if isinstance(event, Note)]


def test_a_killed_run_is_carried_on_to_the_same_bytes(made: Path, tmp_path: Path) -> None:
    out, log = tmp_path / "out.csv", tmp_path / "log"
    arguments = ["predict", made / "run", "--input", made / "table.jsonl", "--out", out]
    code, _ = finish(arguments, log, partial(windows_of, WINDOW), partial(kill_at_batch, 4))
    assert code == -signal.SIGKILL and partial_path(out).is_file() and not out.exists()
    code, said = finish(arguments, log, partial(windows_of, WINDOW), partial(kill_at_batch, 5))  # 4 to 7 are left
    assert code == 0, said
    assert f"carrying on with {partial_path(out)}: 96 rows are done" in said
    assert out.read_bytes() == (made / "whole.csv").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out.csv", "log"}


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_a_stopped_run_encodes_what_is_left(made: Path, tmp_path: Path, suffix: str, encoded: list[list[int]]) -> None:
    out = tmp_path / f"out.{suffix}"
    predict_table(made / "run", made / "table.jsonl", tmp_path / "all.csv", window_rows=WINDOW)
    all_sequences = len(encoded)
    stop(made, out)
    encoded.clear()
    counts, notes = carry_on(made, out)
    assert out.read_bytes() == (made / f"whole.{suffix}").read_bytes()
    assert counts["kept_rows"] == 96 and 0 < counts["sequences_encoded"] == len(encoded) < all_sequences
    assert notes == [f"carrying on with {partial_path(out)}: 96 rows are done"]


def test_an_entry_that_was_cut_short_is_made_again(made: Path, tmp_path: Path) -> None:
    for lost in (1, 40, 100_000):
        out = tmp_path / f"{lost}.jsonl"
        stop(made, out)
        content = partial_path(out).read_bytes()
        partial_path(out).write_bytes(content[: max(len(content) - lost, 40)])
        counts, _ = carry_on(made, out)
        assert counts["kept_rows"] == (64 if lost < 100_000 else 0)
        assert out.read_bytes() == (made / "whole.jsonl").read_bytes()
    out = tmp_path / "flipped.jsonl"
    stop(made, out)
    content = bytearray(partial_path(out).read_bytes())
    content[-1] ^= 1
    partial_path(out).write_bytes(content)
    assert carry_on(made, out)[0]["kept_rows"] == 64
    assert out.read_bytes() == (made / "whole.jsonl").read_bytes()


def test_another_work_begins_again_and_says_so(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for options in ({"run": made / "other"}, {"cache": made / "half.h5"}, {"skip_bad_rows": True}):
        stop(made, out)
        counts, notes = carry_on(made, out, overwrite=True, **options)
        assert counts["kept_rows"] == 0
        assert f"{partial_path(out)} is of another run, encoder, cache or settings: beginning again" in notes
        carry_on(made, tmp_path / "fresh.jsonl", overwrite=True, **options)
        assert out.read_bytes() == (tmp_path / "fresh.jsonl").read_bytes()
        out.unlink()


def test_texts_that_changed_meanwhile_are_predicted_anew(made: Path, tmp_path: Path) -> None:
    rows = rows_of(made / "table.jsonl")
    for number, kept in ((70, 64), (3, 0)):
        out = tmp_path / f"{number}.jsonl"
        table = write(tmp_path / f"t{number}.jsonl", rows)
        stop(made, out, table=table)
        changed = [{**row, "text": "another film", "id": 0} if row["id"] == number else row for row in rows]
        write(table, [{**row, "label": "x"} for row in changed])  # a column that is not read may change as well
        counts, notes = carry_on(made, out, table=table)
        assert counts["kept_rows"] == kept
        assert any(("are others, and are encoded anew" if kept else "is of another table") in note for note in notes)
        fresh = predict_table(made / "run", table, tmp_path / "fresh.jsonl", window_rows=WINDOW, overwrite=True)
        assert out.read_bytes() == fresh.read_bytes()


def test_a_file_of_somebody_elses_stays(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    for content in ("my thesis", ""):
        partial_path(out).write_text(content)
        with pytest.raises(OutputExistsError, match="is in the way, and headstart did not make it"):
            predict_table(made / "run", made / "table.jsonl", out)
        assert partial_path(out).read_text() == content and not out.exists()


def test_texts_that_a_cache_holds_are_not_encoded(made: Path, tmp_path: Path, encoded: list[list[int]]) -> None:
    out = tmp_path / "out.parquet"
    counts, _ = carry_on(made, out, cache=made / "half.h5")
    held = set(headstart.open_cache(made / "half.h5").text_hashes.view("V16").ravel().tolist())
    texts = [row["text"] for row in rows_of(made / "table.jsonl")]
    from headstart.cache.hashing import hash_texts

    known = sum(value in held for value in hash_texts(texts).view("V16").ravel().tolist())
    assert 100 <= counts["cached_rows"] == known < 200 and counts["sequences_encoded"] == len(encoded) <= 200 - known
    found, whole = (pyarrow.parquet.read_table(path).to_pandas() for path in (out, made / "whole.parquet"))
    assert found["prediction"].tolist() == whole["prediction"].tolist() and found["id"].tolist() == list(range(200))
    np.testing.assert_allclose(found.filter(like="probability"), whole.filter(like="probability"), atol=1e-5)
    encoded.clear()
    counts, _ = carry_on(made, tmp_path / "half.csv", table=made / "half.jsonl", cache=made / "half.h5")
    assert (counts["cached_rows"], len(encoded)) == (100, 0)


def test_a_cache_of_another_identity_is_refused(made: Path, tiny: Path, tmp_path: Path) -> None:
    run(made / "half.jsonl", tmp_path / "mean.h5", tiny, features=("mean",))
    with pytest.raises(IdentityError, match=r"cannot be reused here: they differ in features .* lacks cls"):
        predict_table(made / "run", made / "table.jsonl", tmp_path / "o.csv", cache=tmp_path / "mean.h5")
    run(made / "half.jsonl", tmp_path / "short.h5", tiny, max_length=8)
    with pytest.raises(IdentityError, match="max_length"):
        predict_table(made / "run", made / "table.jsonl", tmp_path / "o.csv", cache=tmp_path / "short.h5")


def test_features_are_kept_in_a_folder_when_that_is_asked_for(
    made: Path, tiny: Path, tmp_path: Path, encoded: list[list[int]]
) -> None:
    folder, out = tmp_path / "kept", tmp_path / "out.jsonl"
    counts, _ = carry_on(made, out, cache=folder, keep=True)
    assert out.read_bytes() == (made / "whole.jsonl").read_bytes()
    texts = {row["text"] for row in rows_of(made / "table.jsonl")}
    assert counts["kept_texts"] == len(texts) and counts["cached_rows"] == 0 < counts["sequences_encoded"]
    opened = [headstart.open_cache(path) for path in folder.glob("*/*.h5")]
    for cache in opened:
        cache.check()
        assert inspect_path(cache.path)["record"]["rows"] == cache.rows
    assert sum(cache.rows for cache in opened) == len(texts) and len(opened) <= 3
    encoded.clear()
    again = tmp_path / "again.parquet"
    counts, _ = carry_on(made, again, cache=folder)
    assert (counts["cached_rows"], counts["kept_texts"], len(encoded)) == (200, 0, 0)
    found, whole = (pyarrow.parquet.read_table(path).to_pandas() for path in (again, made / "whole.parquet"))
    assert found["prediction"].tolist() == whole["prediction"].tolist()
    np.testing.assert_allclose(found.filter(like="probability"), whole.filter(like="probability"), atol=1e-6)
    features = headstart.CachedEncoder(tiny, cache=folder, precision="float32").fit_transform(sorted(texts))
    assert len(encoded) == 0
    with_cache, _ = run(sorted(texts), tmp_path / "plain.h5", tiny, label_column=None)
    np.testing.assert_allclose(features, with_cache.features("cls"), atol=1e-5)


def test_what_a_stopped_run_kept_is_not_encoded_again(made: Path, tmp_path: Path, encoded: list[list[int]]) -> None:
    folder, out = tmp_path / "kept", tmp_path / "out.parquet"
    stop(made, out, cache=folder, keep=True)
    before = len(encoded)
    counts, notes = carry_on(made, out, cache=folder, keep=True)
    assert counts["kept_rows"] == 96 and notes == [f"carrying on with {partial_path(out)}: 96 rows are done"]
    texts = [row["text"] for row in rows_of(made / "table.jsonl")]
    windows = [set(texts[start : start + WINDOW]) - set(texts[:96]) for start in range(96, 200, WINDOW)]
    assert len(encoded) - before <= sum(map(len, windows))
    found, whole = (pyarrow.parquet.read_table(path).to_pandas() for path in (out, made / "whole.parquet"))
    assert found["prediction"].tolist() == whole["prediction"].tolist()
    np.testing.assert_allclose(found.filter(like="probability"), whole.filter(like="probability"), atol=1e-6)
    assert sum(headstart.open_cache(path).rows for path in folder.glob("*/*.h5")) == len(set(texts))


@pytest.mark.parametrize("given", ["no cache", "the cache of a table"])
def test_without_a_folder_nothing_can_be_kept(made: Path, tmp_path: Path, given: str) -> None:
    cache = None if given == "no cache" else made / "half.h5"
    with pytest.raises(SettingsError, match="`keep` needs a folder as `cache`"):
        predict_table(made / "run", made / "table.jsonl", tmp_path / "o.csv", cache=cache, keep=True)
    assert not list(tmp_path.iterdir())
