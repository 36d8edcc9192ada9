"""Parts of a table: the right rows, and one reading for runs in order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from headstart.stages.tables import text_files
from headstart.stages.tables.part import RowReader, part_of
from headstart.stages.tables.table import Table, TableRows, open_table
from hypothesis import given
from hypothesis import strategies as st

TEXTS = [f"text {number}" for number in range(50)]


def texts(batches: Iterator[TableRows]) -> list[str]:
    return [text for rows in batches for text in rows.texts]


@given(st.data())
def test_parts_hold_their_rows_in_whatever_order_they_are_read(data: st.DataObject) -> None:
    bounds = sorted(data.draw(st.lists(st.integers(0, 50), min_size=2, max_size=6)))
    spans = data.draw(st.permutations(list(itertools.pairwise(bounds))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headstart.stages.tables.table.BATCH_ROWS", data.draw(st.integers(1, 20)))
        reader = RowReader(open_table(TEXTS, text_column="text", label_column=None))
        for start, stop in spans:
            assert texts(part_of(reader, start, stop).batches()) == TEXTS[start:stop]
        chosen = np.array(data.draw(st.lists(st.booleans(), min_size=30, max_size=30)))
        kept = [text for text, keep in zip(TEXTS[10:40], chosen, strict=True) if keep]
        assert texts(part_of(reader, 10, 40, chosen).batches()) == kept


def test_runs_in_order_take_one_reading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("\n".join(["text", *TEXTS]))
    readings = []
    original = Table.batches

    def batches(self: Table, *arguments: Any) -> Iterator[TableRows]:
        readings.append(self)
        return original(self, *arguments)

    monkeypatch.setattr(Table, "batches", batches)
    monkeypatch.setattr(text_files, "BATCH_ROWS", 7)
    reader = RowReader(open_table(tmp_path / "t.csv", text_column="text", label_column=None))
    for start, stop in ((3, 10), (10, 31), (40, 50)):
        assert texts(part_of(reader, start, stop).batches()) == TEXTS[start:stop]
    assert len(readings) == 1
    assert texts(part_of(reader, 3, 10).batches()) == TEXTS[3:10]
    assert len(readings) == 2
