"""The benchmarks' own arithmetic: what they draw, what work they count, what they say; and dry runs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import architectures
import contenders
import gpu
import h5py
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from same_bytes import compare_caches, compare_values
from samples import as_they_stand, counted_flop, draw_pieces
from speed_report import Measurement, Row, markdown, times_as_fast
from torch.utils.flop_counter import FlopCounterMode
from update import COPIES, NEW, add_rows


@given(st.lists(st.integers(3, 128), min_size=40, max_size=300), st.integers(1, 4), st.integers(0, 99))
def test_a_piece_is_a_run_of_neighbours_in_length_within_its_budget(lengths: list[int], pieces: int, seed: int) -> None:
    drawn = draw_pieces(lengths, tokens=256, pieces=pieces, seed=seed)
    assert len(drawn) == pieces
    everything = np.concatenate(drawn)
    assert len(set(everything.tolist())) == len(everything)
    shorter = 0
    for piece in drawn:
        found = [lengths[i] for i in piece]
        assert len(piece) * max(found) <= 256
        between = [length for length in lengths if min(found) < length < max(found)]
        assert sorted(between) == sorted(length for length in found if min(found) < length < max(found))
        assert min(found) >= shorter
        shorter = max(found)
    again = draw_pieces(lengths, tokens=256, pieces=pieces, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, again, strict=True))


def test_every_run_can_be_drawn_and_too_many_are_refused() -> None:
    lengths = [8] * 64
    seen = {int(i) for seed in range(60) for i in draw_pieces(lengths, tokens=64, pieces=1, seed=seed)[0]}
    assert seen == set(range(64))
    with pytest.raises(ValueError, match="too few"):
        draw_pieces(lengths, tokens=64, pieces=9, seed=0)


def test_as_it_stands_keeps_every_copy_of_what_was_drawn() -> None:
    copies = Counter({"one": 1, "two": 2, "many": 5, "not drawn": 3})
    assert Counter(as_they_stand(["one", "two", "many"], copies, seed=0)) == {"one": 1, "two": 2, "many": 5}


def test_the_counted_work_is_what_torch_counts_of_a_full_model() -> None:
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 4}
    config = transformers.BertConfig(vocab_size=50, attn_implementation="eager", **sizes)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    lengths, counted = [3, 17, 64], 0
    for length in lengths:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(input_ids=torch.ones(1, length, dtype=torch.int64))
        counted += counter.get_total_flops()
    assert counted_flop(lengths, layers=3, width=32, ffn=80) == counted


def measured(contender: str, seconds: list[float], **changes: Any) -> list[Measurement]:
    figures = {"tokens": 100, "flop": 5e9, "matrix_rate": 1e10, "own_rate": 4e10} | changes
    return [Measurement(contender=contender, round=n, seconds=s, **figures) for n, s in enumerate(seconds)]


def test_ratios_are_taken_within_a_round() -> None:
    ours, other = measured("headstart", [1, 2, 4]), measured("other", [3, 4, 4])
    assert times_as_fast(ours, other[::-1]).tolist() == [3, 2, 1]
    assert [m.share for m in ours] == [0.5, 0.25, 0.125]
    assert [m.own_share for m in ours] == [0.125, 0.0625, 0.03125]


@pytest.mark.parametrize(
    ("precision", "difference", "wrong"),
    [("float32", 1e-6, False), ("float32", 2e-4, True), ("float32", float("inf"), True), ("bfloat16", 1e-2, False)],
)
def test_a_fast_wrong_answer_is_shown_as_wrong(precision: str, difference: float, wrong: bool) -> None:
    rows = [
        Row(key="headstart", name="headstart", precision="float32", way="", difference=0, cosine=1),
        Row(key="other", name="other", precision=precision, way="", difference=difference, cosine=0.998),
    ]
    table = markdown(rows, measured("headstart", [1, 1]) + measured("other", [0.5, 0.5]))
    (line,) = (line for line in table.splitlines() if line.startswith("| other"))
    assert ("WRONG" in line) == wrong
    assert ("lowest cosine 0.9980" in line) == (precision != "float32")
    assert "0.50 (0.50 to 0.50) | 0.50" in line
    assert ("Not in float32" in table) == (precision != "float32")
    assert ("| 1.00 (1.00 to 1.00) | 0.25 (0.25 to 0.25) |" in line) == (precision != "float32")  # of both rates


def test_the_update_adds_new_texts_and_copies_among_the_old_rows(vader: list[dict[str, str]]) -> None:
    old = [[row["text"], row["label"]] for row in vader[:2000]]
    grown, places = add_rows(old, seed=0)
    assert [grown[place] for place in places] == old
    added = [row for place, row in enumerate(grown) if place not in set(places)]
    known = {text for text, _ in old}
    assert sum(text in known for text, _ in added) == COPIES
    assert len({text for text, _ in added} - known) == NEW


def test_the_gpu_benchmark_runs_without_a_gpu_and_without_an_installation(tmp_path: Path) -> None:
    script, out = Path(gpu.__file__), tmp_path / "gpu.json"
    command = [sys.executable, script, "--device", "cpu", "--tiny", "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert "no GPU was used" in document["header"]["device"]
    rows = [gpu.Row(**row) for row in document["rows"]]
    assert [row.markdown() for row in rows] == done.stdout.splitlines()[-len(rows) :]
    assert {row.part for row in rows} == set(gpu.PARTS)
    missing = [row for row in rows if row.value is None and "sentence-transformers" not in row.what]
    assert all(row.part in ("demo", "rungs") for row in missing), missing
    assert {row.what.split(": ")[1] for row in rows if row.part == "encoder"} == set(gpu.CONTENDERS)
    ways = [row.what.split(", ")[-1].split(":")[0] for row in rows if row.part == "agreement"]
    assert ways == ["packed"] * len(gpu.FEW)
    assert all(row.value < 1e-5 for row in rows if row.value is not None and "largest difference" in row.what)


def test_a_part_of_the_gpu_benchmark_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(bench: gpu.Bench) -> Any:
        yield gpu.attempt("one", "absent", "s", lambda: float(len(__import__("no_such_library"))))
        yield gpu.Row("one", "measured", 1.0, "s")
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(gpu, "PARTS", {"one": fails, "two": fails})
    rows = list(gpu.run(None, ["one"], minutes=1))  # type: ignore[arg-type]
    assert [row.note for row in rows] == [
        "absent: No module named 'no_such_library'",
        "",
        "failed: RuntimeError: no kernel image",
    ]
    (late,) = gpu.run(None, ["two"], minutes=-1)  # type: ignore[arg-type]
    assert "left out" in late.note


def test_two_documents_differ_where_anything_but_a_time_does() -> None:
    old = {"created": "now", "seconds": 1.0, "rows": 3, "list": [{"fit_seconds": 2.0, "loss": 0.5}]}
    assert not list(compare_values(old, old | {"created": "later", "list": [{"fit_seconds": 3.0, "loss": 0.5}]}))
    assert list(compare_values(old, old | {"list": [{"fit_seconds": 2.0, "loss": 0.25}]})) == [
        "list[0].loss: 0.5, and 0.25"
    ]
    assert list(compare_values(old, old | {"seconds": None}))
    assert list(compare_values(old, old | {"rows": 3.0}))
    assert list(compare_values(old, dict(reversed(old.items()))))
    assert list(compare_values(old, old | {"more": 1}))


def test_two_caches_differ_where_a_byte_does(tmp_path: Path) -> None:
    def made(name: str, features: list[float], record: str) -> Path:
        with h5py.File(tmp_path / name, "w") as file:
            file["features/cls"] = np.array(features)
            file["record"] = np.bytes_(record.ljust(64, "\0"))
        return tmp_path / name

    one = made("one.h5", [1.0, 0.0], '{"seconds": 1}')
    assert not list(compare_caches(one, made("two.h5", [1.0, 0.0], '{"seconds": 2}')))
    assert list(compare_caches(one, made("three.h5", [1.0, -0.0], '{"seconds": 1}'))) == ["features/cls differs"]
    assert list(compare_caches(one, made("four.h5", [1.0], '{"seconds": 1}')))
    assert list(compare_caches(one, made("five.h5", [1.0, 0.0], '{"rows": 1}')))


class Here:
    """A contender as `contenders.Alone` is, in this process; headstart's vectors are off by ``error``."""

    error = 0.0

    def __init__(self, key: str, folder: Path, scratch: Path) -> None:
        made = contenders.load(key, folder, scratch)
        (self.way, self._encode), self._ours = next(iter(made.ways.items())), made.name == "headstart"

    def encode(self, texts: list[str]) -> contenders.Array:
        return self._encode(texts) + self.error * self._ours

    def seconds(self, texts: list[str]) -> float:
        return 1.0 if self._ours else 3.0

    def end(self) -> None:
        pass


@pytest.mark.parametrize(("shape", "error"), [("gemma3-300m", 0.0), ("modernbert-base", 1e-3)])
def test_an_architecture_is_saved_and_a_fast_wrong_vector_is_shown(
    shape: str, error: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sentence_transformers")
    monkeypatch.setattr(architectures, "Alone", Here)
    monkeypatch.setattr(Here, "error", error)
    monkeypatch.setattr(contenders, "freed_memory_kept", contextlib.nullcontext)
    options = ["--shapes", shape, "--tiny", "--cores", "1", "--rounds", "2", "--tokens", "300"]
    monkeypatch.setattr(sys, "argv", ["architectures.py", *options])
    architectures.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"| {shape}")]
    assert [line.split(" | ")[2] for line in lines] == list(architectures.PIECES)
    assert all("3.00 (3.00 to 3.00)" in line and ("WRONG" in line) == bool(error) for line in lines)


def test_long_texts_are_about_as_long_as_said() -> None:
    tokenizer = architectures.vocabulary()
    for texts, tokens in architectures.draw("long", 300):
        lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(texts)]
        assert sum(lengths) == tokens and all(length >= architectures.LONG for length in lengths)
