"""Labels of every kind, from the table to the cache, and through all that happens to a cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extracting import settings
from headstart.cache.label_kind import LabelKind
from headstart.cache.reader import Cache, open_cache
from headstart.cache.writer import CacheWriter
from headstart.stages.extract import extract
from headstart.stages.inspect import inspect_path
from headstart.stages.repair import repair
from headstart.stages.settings import ExtractSettings
from headstart.stages.verify import verify
from processes import command_here
from tiny import tiny_rows

TEXTS = [text for text, _ in tiny_rows(40)]
KINDS: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "number": ([number / 8 for number in range(40)], {}),
    "multi-label": ([["a", "b"][: number % 3] for number in range(40)], {}),
    "ordinal": (
        [("low", "mid", "high")[number % 3] for number in range(40)],
        {"task": "ordinal", "order": "low mid high"},
    ),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def table(path: Path, labels: list[Any], texts: list[str] = TEXTS) -> Path:
    rows = zip(texts, labels, strict=True)
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


def chosen(tiny: Path, kind: str) -> ExtractSettings:
    given = dict(KINDS[kind][1])
    if "order" in given:
        given["order"] = tuple(given["order"].split())
    return settings(tiny, block_rows=16, window_rows=32, **given)


def labels_of(cache: Cache) -> list[Any]:
    assert cache.labels is not None
    if cache.label_names is None:
        return list(cache.labels.tolist())
    names = np.array(cache.label_names)
    return [names[np.flatnonzero(row)].tolist() if cache.labels.ndim == 2 else str(names[row]) for row in cache.labels]


def test_they_are_kept_through_all_that_happens_to_a_cache(tiny: Path, tmp_path: Path, kind: str) -> None:
    labels, given = KINDS[kind][0], chosen(tiny, kind)
    source, out = table(tmp_path / "t.jsonl", labels), tmp_path / "c.h5"
    cache = open_cache(extract(source, out, given))
    assert cache.label_kind == kind and labels_of(cache) == labels
    before = out.read_bytes()
    extract(source, out, given)
    assert out.read_bytes() == before  # current
    table(source, labels[1:] + labels[:1])
    cache = open_cache(extract(source, out, given))
    assert labels_of(cache) == labels[1:] + labels[:1] and cache.record["tokens_encoded"] > 0  # relabelled
    table(source, labels, [*TEXTS[:-1], "a text of today"])
    cache = open_cache(extract(source, out, given, update=True))
    assert labels_of(cache) == labels and cache.record["sequences_encoded"] == 1
    with CacheWriter(out) as writer:
        writer._write("labels", 3, np.ones((2, *np.shape(cache.labels)[1:]), np.asarray(cache.labels).dtype))
    assert "labels" in verify(out).findings[0].what
    repair(out, source, settings=ExtractSettings())
    assert not verify(out, encoder=str(tiny)).findings and labels_of(open_cache(out)) == labels
    found = inspect_path(out)
    assert found["label_kind"] == kind and (found["label_range"] is not None) == (kind == "number")
    extract(table(source, ["x", "y"] * 20, [*TEXTS[:-1], "a text of today"]), out, settings(tiny, block_rows=16))
    assert open_cache(out).label_kind is LabelKind.CLASS and json.dumps(inspect_path(out))


def test_columns_and_delimiters_are_options(tiny: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "t.csv", tmp_path / "c.h5"
    rows = [f'{text},"{("x", "x; y")[number % 2]}",{number % 2},1' for number, text in enumerate(TEXTS)]
    source.write_text("\n".join(['text,tags,b,"a, a"', *rows]))

    def made(*options: str) -> tuple[list[Any], str]:
        common = ("--out", out, "--encoder", tiny, "--precision", "float32", "--overwrite")
        done = command_here("extract", source, *common, *options)
        assert done.returncode == 0, done.stderr
        return labels_of(open_cache(out))[:2], done.stdout

    labels, shown = made("--label-column", "tags", "--label-delimiter", ";")
    assert labels == [["x"], ["x", "y"]] and "any number a row: x 40, y 20" in shown
    assert made("--label-column", 'b,"a, a"')[0] == [["a, a"], ["b", "a, a"]]
    labels, shown = made("--label-column", "b", "--task", "regression")
    assert labels == [0.0, 1.0] and "numbers from 0 to 1, on average 0.5" in shown
