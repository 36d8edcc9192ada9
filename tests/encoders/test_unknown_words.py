"""Texts whose words the encoder's vocabulary lacks: said, or refused where they are most of a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from extracting import noting, run, settings
from headstart.cache.errors import EncoderError
from headstart.cache.siblings import partial_path
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.encoders.tokenizer import Tokenizer
from headstart.stages.model import load
from headstart.stages.predict import predict_table
from headstart.stages.settings import TrainSettings
from headstart.stages.train_head import train_head
from tiny import WORDS, save_tiny_encoder, tiny_rows
from tokenizers import models

UNKNOWN = [f"\u2603 \u2604 {chr(0x2600 + number)} a" for number in range(120)]
"""Three words of four are not in the vocabulary."""


def test_most_of_a_table_is_refused_and_a_part_of_it_is_said(tiny: Path, tmp_path: Path) -> None:
    known = [text for text, _ in tiny_rows(100)]
    with pytest.raises(EncoderError, match="vocabulary lacks 75% of the tokens of 120 rows"):
        run(UNKNOWN, tmp_path / "c.h5", tiny)
    assert not partial_path(tmp_path / "c.h5").exists()
    told_apart = [f"\u2603 \u2604 {text} {number}" for number, text in enumerate(UNKNOWN)]
    _, notes = run(told_apart, tmp_path / "apart.h5", tiny)
    assert any("not in the encoder's vocabulary" in note for note in notes)
    for texts, said in ((known, False), ([*known, *UNKNOWN[:60]], True), (UNKNOWN[:20], True)):
        _, notes = run(texts, tmp_path / f"{len(texts)}.h5", tiny)
        assert [("not in the encoder's vocabulary" in note) for note in notes] == [True] * said
    _, notes = run([*known, *UNKNOWN], tmp_path / "100.h5", tiny, update=True)  # which known rows prove
    assert any("75% of the texts' tokens" in note for note in notes)


def test_pairs_are_told_apart_by_both_texts(tiny: Path, tmp_path: Path) -> None:
    known = [text for text, _ in tiny_rows(120)]
    options = {"text_pair_column": "second", "label_column": None}
    run({"text": ["a good film"] * 120, "second": known}, tmp_path / "known.h5", tiny, **options)
    with pytest.raises(EncoderError, match="120 rows, so 120 different texts become 1 sequences"):
        unknown = {"text": ["\u2603 \u2604"] * 120, "second": UNKNOWN}
        run(unknown, tmp_path / "unknown.h5", tiny, **options)


@pytest.mark.parametrize("spare", [1024, 1025])
def test_a_vocabulary_of_fewer_tokens_than_the_embeddings_is_said(spare: int, tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *(f"w{number}" for number in range(1500))]
    folder = save_tiny_encoder(tmp_path / "bert", vocab_size=len(words) + spare)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "vocab.txt").write_text("\n".join(words))
    _, notes = run(WORDS, tmp_path / "c.h5", folder)
    assert [("is its vocabulary cut short" in note) for note in notes] == [True] * (spare > 1024)


@pytest.mark.parametrize("kind", ["BertTokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer", "post_processor", None])
def test_a_tokenizer_file_that_its_class_does_not_follow_is_said(kind: str, part: str | None, tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path / "bert")
    described = json.loads((folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer.json").write_text(json.dumps(described | ({part: None} if part else {})))
    given = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(given | {"tokenizer_class": kind, "do_lower_case": True}))
    notes: list[str] = []
    _ = EncoderSession(settings(folder, max_length=100), noting(notes)).encoder
    other = [f"its tokenizer.json describes other tokens than {kind} gives" in note for note in notes]
    assert other == [True] * (part is not None and kind == "BertTokenizer")


def test_predictions_from_unknown_words_are_said(tiny: Path, tmp_path: Path) -> None:
    texts, labels = zip(*tiny_rows(60), strict=True)
    run({"text": texts, "label": labels}, tmp_path / "c.h5", tiny)
    trained = train_head(tmp_path / "c.h5", tmp_path / "run", TrainSettings(solver="sgd", epochs=1))
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
