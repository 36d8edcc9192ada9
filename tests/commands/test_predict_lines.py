"""Prediction of lines as they come: each gets its answer at once, in its place, also where it is bad."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import headstart
import numpy as np
import pytest
from extracting import run
from headstart.cache.errors import SettingsError, TableError
from headstart.stages.predict import predict_lines
from headstart.stages.settings import LineFormat, TrainSettings
from headstart.stages.train_head import train_head
from processes import PATIENCE_SECONDS
from tiny import tiny_rows


@pytest.fixture(scope="module")
def head(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    texts, labels = zip(*tiny_rows(40), strict=True)
    run({"text": list(texts), "label": list(labels)}, folder / "c.h5", tiny)
    return train_head(folder / "c.h5", folder / "run", TrainSettings(solver="sgd", epochs=2))


def answers(head: Path, content: bytes, **options: Any) -> list[dict[str, Any]]:
    said: list[str] = []
    source = io.BufferedReader(io.BytesIO(content))  # type: ignore[arg-type]
    count = predict_lines(head, source, said.append, **options)
    lines = "".join(said).split("\n")[:-1]
    assert count == len(lines)
    return [json.loads(line) for line in lines]


def test_lines_get_the_predictions_of_their_texts(head: Path) -> None:
    texts = ["good film", "bad phone", "caf\u00e9 \u2028 film", " good film"]
    found = answers(head, b"\xef\xbb\xbf" + "\n".join(texts).encode(), window_rows=3)
    assert [row["text"] for row in found] == texts
    expected = headstart.load(head).predict_proba(texts)
    probabilities = [[row["probability_class0"], row["probability_class1"]] for row in found]
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert [row["prediction"] for row in found] == headstart.load(head).predict(texts).tolist()


def test_objects_keep_their_columns_and_bad_lines_say_why(head: Path) -> None:
    lines = [
        '{"id": 9007199254740993, "body": "good film", "nested": {"a": [1, 2.5, null]}}',
        '{"body": "bad',
        "[1]",
        "",
        '{"text": "good film"}',
        '{"body": 3}',
        '{"body": " "}',
        '{"body": "a \\ud800"}',
        '{"body": "a", "body": "b"}',
        '{"body": "good", "x": NaN}',
        '{"body": "good film", "other": "\\ud800"}',
    ]
    found = answers(head, "\r\n".join(lines).encode() + b"\n\xff", line_format=LineFormat.JSON, text_column="body")
    assert found[0] | json.loads(lines[0]) == found[0] and found[0]["prediction"] in ("class0", "class1")
    assert list(found[0]) == ["id", "body", "nested", "prediction", "probability_class0", "probability_class1"]
    problems = ["not JSON", "not a JSON object", "not JSON", "no text in 'body'", "no text in 'body'", "is blank"]
    problems += ["half of a surrogate", "'body' twice", "NaN is not a number"]
    for row, problem in zip(found[1:10], problems, strict=True):
        assert row["prediction"] is None and problem in row["prediction_problem"], row
    assert found[4]["text"] == "good film" and found[6]["body"] == " "
    assert found[10]["prediction"] == found[0]["prediction"] and found[10]["other"] == "\ud800"
    assert "byte 0xff at position 1 is not UTF-8" in found[11]["prediction_problem"]


def test_what_cannot_be_answered_is_refused(head: Path) -> None:
    taken = b'{"text": "good"}\n{"text": "good", "prediction": 1}\n'
    with pytest.raises(TableError, match="line 2 has a column 'prediction', as the predictions have; rename it"):
        answers(head, taken, line_format=LineFormat.JSON)
    with pytest.raises(SettingsError, match="was trained on single texts"):
        answers(head, b"good\n", text_pair_column="pair", line_format=LineFormat.JSON)


def test_a_line_that_is_typed_is_answered_before_the_next(head: Path) -> None:
    command = [sys.executable, "-m", "headstart", "predict", str(head), "--input", "-", "--quiet"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        for text in ("good film", "bad phone"):
            process.stdin.write(text.encode() + b"\n")
            process.stdin.flush()
            assert json.loads(process.stdout.readline())["text"] == text  # while its input is open
        process.send_signal(2)
        assert process.wait(PATIENCE_SECONDS) == 130
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")


def test_a_reader_that_leaves_ends_it_quietly(head: Path) -> None:
    command = f"{sys.executable} -m headstart predict {head} --input - | head -n 1"
    many = b"good film\n" * 30_000
    done = subprocess.run(
        ["bash", "-c", command], input=many, capture_output=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.stdout.count(b"\n") == 1 and done.stderr == b"", done.stderr
