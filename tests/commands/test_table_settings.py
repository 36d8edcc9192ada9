"""Every command that reads a table can be told how: its delimiter, its quotation marks, its encoding, its header."""

from __future__ import annotations

from pathlib import Path

from extracting import flip_a_byte, noting, settings
from headstart.cache.reader import open_cache
from headstart.stages.extract import extract
from headstart.stages.predict import predict_table
from headstart.stages.repair import repair
from headstart.stages.settings import Labels, TableSettings, TrainSettings
from headstart.stages.tables.table import open_table
from headstart.stages.train_head import train_head
from headstart.stages.verify import verify
from processes import command_here
from tiny import tiny_rows

DIALECT = {"delimiter": ";", "quotes": False, "encoding": "gbk", "header": False}
OPTIONS = ("--delimiter", ";", "--no-quotes", "--encoding", "gbk", "--no-header", "--text-column", "1")


def test_every_command_reads_the_same_rows(tiny: Path, tmp_path: Path) -> None:
    rows = [(f'"中 {text}', label) for text, label in tiny_rows(40)]
    table, out, run = tmp_path / "t.csv", tmp_path / "c.h5", tmp_path / "run"
    table.write_text("".join(";".join(row) + "\n" for row in rows), encoding="gbk")
    columns = {"text_column": "1", "label_column": "2"}
    chosen = settings(tiny, block_rows=8, window_rows=16, **columns, **DIALECT)
    cache = open_cache(extract(table, out, chosen))
    assert cache.rows == len(rows)
    notes: list[str] = []
    train_head(
        out,
        run,
        TrainSettings(solver="sgd", epochs=2),
        labels=Labels(table, **columns, **DIALECT),
        report=noting(notes),
    )
    assert not [note for note in notes if "left out" in note]
    predict_table(run, table, tmp_path / "p.csv", text_column="1", table_settings=TableSettings(**DIALECT))
    predicted = open_table(tmp_path / "p.csv", text_column="1", label_column="prediction")
    assert [text for batch in predicted.batches() for text in batch.texts] == [text for text, _ in rows]
    flip_a_byte(out, "features/cls", 3)
    repair(out, table, settings=chosen)
    assert not verify(out, encoder=str(tiny), table=table, settings=chosen).findings


def test_the_options_reach_the_reader(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"中文;good film\n', encoding="gbk")
    done = command_here(
        "extract", tmp_path / "t.csv", "--encoder", tiny, "--out", tmp_path / "c.h5", *OPTIONS, "--no-labels"
    )
    assert done.returncode == 0, done.stderr
    assert open_cache(tmp_path / "c.h5").rows == 1
