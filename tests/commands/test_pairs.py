"""Pairs of texts: read as transformers reads them, told apart by both texts, and never mixed with single texts."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
import transformers
from extracting import datasets, interrupted_after
from extracting import run_small_blocks as run
from headstart.cache.errors import IdentityError, OutputExistsError, SettingsError, TableError
from headstart.cache.hashing import hash_texts
from headstart.stages.encoders import hf
from hypothesis import given
from hypothesis import strategies as st
from processes import command_here
from tiny import SEGMENTED, WORDS, require_kind, save_tiny_encoder

KINDS = ("bert", "electra", "roberta", "distilbert", "albert", "nomic_bert", "gte")


def pairs(count: int, *, seed: int = 0) -> dict[str, list[str]]:
    """Pairs of known words, of many lengths, with labels; a few of them copies of others."""
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(rng.choice(WORDS, rng.integers(1, 9)))

    columns = {
        "text": [text() for _ in range(count)],
        "hypothesis": [text() for _ in range(count)],
        "label": [f"class{number % 2}" for number in range(count)],
    }
    return {name: values + values[: count // 5] for name, values in columns.items()}


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A tiny random encoder of each architecture: its kind and its folder."""
    require_kind(request.param)
    return request.param, save_tiny_encoder(tmp_path_factory.mktemp(request.param), kind=request.param)


@pytest.mark.parametrize("path", ["packed", "padded"])
@pytest.mark.parametrize("max_length", [128, 12])
def test_a_pair_is_read_as_transformers_reads_it(
    family: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, max_length: int
) -> None:
    kind, folder = family
    table = pairs(20)
    if path == "padded":
        monkeypatch.setattr(hf, "find_architecture", lambda config: None)
    names = ("cls", "mean", "max", "layer1.mean", *(["pooler"] if kind in ("bert", "roberta") else []))
    cache, _ = run(
        table, tmp_path / "c.h5", folder, text_pair_column="hypothesis", max_length=max_length, features=names
    )
    assert cache.plan["path"] == path
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    truncated = 0
    for row, (text, pair) in enumerate(zip(table["text"], table["hypothesis"], strict=True)):
        inputs = tokenizer(text, pair, truncation=True, max_length=max_length, return_tensors="pt")
        assert ("token_type_ids" in inputs) == (kind in SEGMENTED)
        with torch.inference_mode():
            output = model(**inputs, output_hidden_states=True)
        last, first = output.last_hidden_state[0], output.hidden_states[1][0]
        expected = {"cls": last[0], "mean": last.mean(0), "max": last.amax(0), "layer1.mean": first.mean(0)}
        if "pooler" in names:
            expected["pooler"] = output.pooler_output[0]
        for name in names:
            np.testing.assert_allclose(cache.features(name)[row], expected[name].numpy(), atol=1e-5, rtol=0)
        whole = len(tokenizer(text, pair)["input_ids"])
        assert (cache.lengths[row], cache.truncated[row]) == (inputs["input_ids"].shape[1], whole > max_length)
        truncated += whole > max_length
    assert cache.record["truncated_rows"] == truncated and (truncated > 0) == (max_length == 12)
    assert cache.identity.pairs


def test_the_same_tokens_in_other_segments_are_another_sequence(
    family: tuple[str, Path], tmp_path: Path, encoded: list[list[int]]
) -> None:
    """Where the encoder tells segments apart, and only there; a text may hold the separator."""
    kind, folder = family
    table = {"text": ["good [SEP] film", "good"], "hypothesis": ["bad", "film [SEP] bad"], "label": ["a", "b"]}
    cache, _ = run(table, tmp_path / "c.h5", folder, text_pair_column="hypothesis")
    segmented = kind in SEGMENTED
    assert len(encoded) == cache.record["distinct_sequences"] == (2 if segmented else 1)
    assert (cache.token_hashes[0] == cache.token_hashes[1]).all() == (not segmented)
    assert (abs(cache.features()[0] - cache.features()[1]).max() > 1e-3) == segmented
    assert cache.record["distinct_texts"] == 2


@given(st.text(max_size=6), st.text(max_size=6), st.text(max_size=6), st.text(max_size=6))
def test_the_hash_of_a_pair_knows_where_the_first_text_ends(a: str, b: str, c: str, d: str) -> None:
    def digest(text: str, pair: str) -> bytes:
        return hash_texts([text], [pair]).tobytes()

    assert (digest(a, b) == digest(c, d)) == ((a, b) == (c, d))
    assert digest(a + b, c) != digest(a, b + c) or b == ""
    assert digest(a, b) != hash_texts([a + b]).tobytes()


def test_a_change_in_either_text_is_seen(tiny: Path, tmp_path: Path, encoded: list[list[int]]) -> None:
    table, out = pairs(30), tmp_path / "c.h5"
    options = {"text_pair_column": "hypothesis"}
    run(table, out, tiny, **options)
    assert "is current" in run(table, out, tiny, **options)[1][0]
    table["hypothesis"][7] = "the screen broke"
    table["text"][20], table["hypothesis"][20] = "good film", "bad plot"
    with pytest.raises(OutputExistsError, match="2 texts, the first in row 8"):
        run(table, out, tiny, **options)
    encoded.clear()
    cache, _ = run(table, out, tiny, update=True, **options)
    assert len(encoded) == 2
    fresh, _ = run(table, tmp_path / "fresh.h5", tiny, **options)
    np.testing.assert_allclose(cache.features(), fresh.features(), atol=1e-5, rtol=0)
    np.testing.assert_array_equal(cache.text_hashes, fresh.text_hashes)


def test_an_interrupted_run_over_pairs_is_carried_on_to_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    table, options = pairs(50), {"text_pair_column": "hypothesis"}
    run(table, tmp_path / "whole.h5", tiny, **options)
    with interrupted_after(7), pytest.raises(KeyboardInterrupt):
        run(table, tmp_path / "c.h5", tiny, **options)
    cache, _ = run(table, tmp_path / "c.h5", tiny, **options)
    assert cache.record["kept_blocks"] > 0
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "whole.h5")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
def test_pairs_are_read_from_every_kind_of_table(tiny: Path, tmp_path: Path, suffix: str) -> None:
    table, path = pairs(20), tmp_path / f"table.{suffix}"
    rows = list(zip(*table.values(), strict=True))
    if suffix == "parquet":
        pa.parquet.write_table(pa.table(table), path)
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(table, row, strict=True))) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter="\t" if suffix == "tsv" else ",").writerows([list(table), *rows])
    run(table, tmp_path / "memory.h5", tiny, text_pair_column="hypothesis")
    run(path, tmp_path / "c.h5", tiny, text_pair_column="hypothesis")
    assert datasets(tmp_path / "c.h5") == datasets(tmp_path / "memory.h5")


def test_a_blank_second_text_is_a_bad_row(tiny: Path, tmp_path: Path) -> None:
    table = pairs(10)
    table["hypothesis"][3] = " "
    with pytest.raises(TableError, match=r"row 4: its text \('hypothesis'\) is blank; .*`skip_bad_rows=True`"):
        run(table, tmp_path / "c.h5", tiny, text_pair_column="hypothesis")
    cache, _ = run(table, tmp_path / "c.h5", tiny, text_pair_column="hypothesis", skip_bad_rows=True)
    assert (cache.record["rows"], cache.record["skipped_rows"]) == (11, 1)
    good = [number for number in range(12) if number != 3]
    expected = hash_texts([table["text"][n] for n in good], [table["hypothesis"][n] for n in good])
    np.testing.assert_array_equal(cache.text_hashes, expected)


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        (pairs(5), {"text_pair_column": "premise"}, TableError, "has no column 'premise'.*choose with `text_pair_col"),
        (pairs(5), {"text_pair_column": "text"}, SettingsError, "the column 'text' is named for two things"),
        (pairs(5), {"text_pair_column": "label"}, SettingsError, "the column 'label' is named for two things"),
        (["good film"], {"text_pair_column": "hypothesis"}, SettingsError, "not with a sequence of texts"),
        (
            pairs(5),
            {"text_pair_column": "hypothesis", "max_length": 3},
            SettingsError,
            "special tokens take 3: no room",
        ),
    ],
)
def test_what_cannot_be_read_as_pairs_is_one_line(
    tiny: Path, tmp_path: Path, table: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(table, tmp_path / "c.h5", tiny, **options)
    assert list(tmp_path.glob("c.h5*")) == []


def test_pairs_and_single_texts_are_never_mixed(tiny: Path, tmp_path: Path) -> None:
    table = pairs(10)
    run(table, tmp_path / "pairs.h5", tiny, text_pair_column="hypothesis")
    with pytest.raises(OutputExistsError, match=r"pairs \(pairs.h5: True, this run: False\)"):
        run(table, tmp_path / "pairs.h5", tiny, update=True)
    with pytest.raises(IdentityError, match=r"pairs \(.*pairs.h5: True, this run: False\)"):
        run(table, tmp_path / "c.h5", tiny, reuse=[tmp_path / "pairs.h5"])


def test_the_prefix_stands_before_the_first_text(tiny: Path, tmp_path: Path) -> None:
    one, two = ({"text": [text], "hypothesis": ["bad"], "label": ["a"]} for text in ("film", "good film"))
    prefixed, _ = run(one, tmp_path / "a.h5", tiny, prefix="good ", text_pair_column="hypothesis")
    plain, _ = run(two, tmp_path / "b.h5", tiny, text_pair_column="hypothesis")
    np.testing.assert_array_equal(prefixed.features(), plain.features())


def test_the_command_reads_pairs(tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> None:
    table = write_csv(list(zip(*pairs(20).values(), strict=True)), header=("text", "hypothesis", "label"))
    extract = ["extract", table, "--encoder", tiny, "--precision", "float32", "--text-pair-column", "hypothesis"]
    done = command_here(*extract, "--out", tmp_path / "c.h5")
    assert done.returncode == 0 and headstart.open_cache(tmp_path / "c.h5").identity.pairs
