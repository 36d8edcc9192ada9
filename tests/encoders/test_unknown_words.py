"""Texts whose words the encoder's vocabulary lacks: said, or refused where they are most of a table."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from extracting import noting, run
from headstart.cache.errors import EncoderError
from headstart.cache.siblings import partial_path
from headstart.stages.encoders.tokenizer import Tokenizer
from headstart.stages.model import load
from headstart.stages.predict import predict_table
from headstart.stages.settings import TrainSettings
from headstart.stages.train_head import train_head
from tiny import tiny_rows
from tokenizers import models

UNKNOWN = [f"\u2603 \u2604 {chr(0x2600 + number)} a" for number in range(120)]
"""Three words of four are not in the vocabulary."""


def test_most_of_a_table_is_refused_and_a_part_of_it_is_said(tiny: Path, tmp_path: Path) -> None:
    known = [text for text, _ in tiny_rows(100)]
    with pytest.raises(EncoderError, match="vocabulary lacks 75% of the tokens of 120 rows"):
        run(UNKNOWN, tmp_path / "c.h5", tiny)
    assert not partial_path(tmp_path / "c.h5").exists()
    for texts, said in ((known, False), ([*known, *UNKNOWN[:60]], True), (UNKNOWN[:20], True)):
        _, notes = run(texts, tmp_path / f"{len(texts)}.h5", tiny)
        assert [("not in the encoder's vocabulary" in note) for note in notes] == [True] * said
    _, notes = run([*known, *UNKNOWN], tmp_path / "100.h5", tiny, update=True)  # which known rows prove
    assert any("75% of the texts' tokens" in note for note in notes)


def test_predictions_from_unknown_words_are_said(tiny: Path, tmp_path: Path) -> None:
    texts, labels = zip(*tiny_rows(60), strict=True)
    run({"text": texts, "label": labels}, tmp_path / "c.h5", tiny)
    trained = train_head(tmp_path / "c.h5", tmp_path / "run", TrainSettings(epochs=1))
    notes: list[str] = []
    classifier = load(trained, report=noting(notes))
    classifier.predict(texts)
    assert not notes
    classifier.predict(UNKNOWN)
    predict_table(trained, {"text": UNKNOWN}, tmp_path / "p.csv", report=noting(notes))
    assert len(notes) == 2 and all("75% of the texts' tokens" in note for note in notes)


def test_a_text_that_the_tokenizer_fails_on_is_named() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.WordPiece({"a": 0}, unk_token="[UNK]")))
    with pytest.raises(EncoderError, match=r"fails on 'b', and says: WordPiece error: Missing \[UNK\]"):
        tokenizer.encode(["a", "b", "c"])
    with pytest.raises(EncoderError, match=r"fails on \('a', 'b'\)"):
        tokenizer.encode_pairs([("a", "a"), ("a", "b")])
