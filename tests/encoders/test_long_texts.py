"""Long texts: cut, or the first and last tokens, or all of them in chunks whose vectors become the text's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from extracting import datasets, flip_a_byte, holding, interrupted_after, run
from extracting import run_small_blocks as run_small
from headstart import terminal
from headstart.cache.errors import OutputExistsError, SettingsError
from headstart.cache.reader import Cache, open_cache
from headstart.stages.encoders import hf
from headstart.stages.encoders.encoder import Encoder
from headstart.stages.encoders.long_texts import LongTexts, LongTextSettings
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.encoders.tokenizer import Tokenizer
from headstart.stages.extract import extract
from headstart.stages.inspect import inspect_path
from headstart.stages.model import load
from headstart.stages.progress import Action, Outcome, Step
from headstart.stages.repair import repair
from headstart.stages.runs.run import load_head
from headstart.stages.runs.savings import passes_of_extraction
from headstart.stages.settings import ChunkPooling, ExtractSettings, Long, TrainSettings
from headstart.stages.train_head import train_head
from headstart.stages.verify import verify
from recipes import with_recipe
from tiny import WORDS, save_tiny_encoder

RNG = np.random.default_rng(0)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
SHORT = ["a good film", "the phone", "not very good"]
TEXTS = [*SHORT, *(" ".join(RNG.choice(WORDS, size)) for size in (7, 8, 9, 13, 14, 25, 60, 41)), "the phone"]
CHUNKS: dict[str, Any] = {"long": "chunks", "max_length": 10, "overlap": 3}


def plan(long: Long, *, template: str = "[CLS] $A [SEP]", prefix: str = "", overlap: int = 0) -> tuple[Any, Any]:
    """A tokenizer of single letters, and the long texts of an encoder with it that reads 8 tokens."""
    known = {name: number for number, name in enumerate(["[UNK]", "[CLS]", "[SEP]", *LETTERS])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(known, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = [(name, known[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=template, special_tokens=special)
    tokenizer.add_special_tokens(["[CLS]", "[SEP]"])
    settings = LongTextSettings(long=long, overlap=overlap, pooling=ChunkPooling.MEAN if long == "chunks" else None)
    long_texts = LongTexts(settings, Tokenizer(tokenizer), max_length=8, prefix=prefix, normalized=())

    def tokens(text: str) -> tuple[list[str], bool]:
        (encoding,) = Tokenizer(tokenizer).encode_whole([prefix + text])
        ids, cut = long_texts.row(encoding)
        parts, counts = long_texts.split([ids])
        assert len(parts) == counts[0]
        return [" ".join(tokenizer.id_to_token(number) for number in part) for part in parts], cut

    return tokens, long_texts


@pytest.mark.parametrize(
    ("template", "prefix", "text", "expected"),
    [
        ("[CLS] $A [SEP]", "", "a b c d e f", "[CLS] a b c d e f [SEP]"),  # it fits
        ("[CLS] $A [SEP]", "", "a b c d e f g", "[CLS] a b c e f g [SEP]"),
        ("[CLS] $A [SEP]", "x ", "a b c d e f g h i", "[CLS] x a b c h i [SEP]"),
        ("$A [SEP]", "", "a b c d e f g h i", "a b c d g h i [SEP]"),
        ("$A", "x y ", "a b c d e f g h i", "x y a b c g h i"),
    ],
)
def test_head_and_tail_are_half_each_of_what_fits(template: str, prefix: str, text: str, expected: str) -> None:
    tokens, _ = plan(Long.HEAD_TAIL, template=template, prefix=prefix)
    assert tokens(text) == ([expected], len(text.split()) + expected.count("[") + len(prefix.split()) > 8)


@pytest.mark.parametrize(
    ("template", "prefix", "overlap", "text", "expected"),
    [
        ("[CLS] $A [SEP]", "", 2, "a b c d e f", ["[CLS] a b c d e f [SEP]"]),
        ("[CLS] $A [SEP]", "", 2, "a b c d e f g", ["[CLS] a b c d e f [SEP]", "[CLS] e f g [SEP]"]),
        ("[CLS] $A [SEP]", "", 0, "a b c d e f g h i j k l", ["[CLS] a b c d e f [SEP]", "[CLS] g h i j k l [SEP]"]),
        ("[CLS] $A [SEP]", "x ", 1, "a b c d e f g", ["[CLS] x a b c d e [SEP]", "[CLS] x e f g [SEP]"]),
        ("$A [SEP]", "", 6, "a b c d e f g h", ["a b c d e f g [SEP]", "b c d e f g h [SEP]"]),
        ("$A", "x y ", 2, "a b c d e f g h i j", ["x y a b c d e f", "x y e f g h i j"]),
        # A special token that is written in a text, at its very beginning, is the text's.
        ("[CLS] $A [SEP]", "", 1, "[CLS] b c d e f g", ["[CLS] [CLS] b c d e f [SEP]", "[CLS] f g [SEP]"]),
    ],
)
def test_chunks_hold_special_tokens_prefix_and_a_window(
    template: str, prefix: str, overlap: int, text: str, expected: list[str]
) -> None:
    tokens, _ = plan(Long.CHUNKS, template=template, prefix=prefix, overlap=overlap)
    assert tokens(text) == (expected, False)


def test_every_token_is_in_a_chunk_and_only_the_overlap_is_in_two() -> None:
    for size, overlap in itertools.product(range(1, 26), range(6)):
        tokens, _ = plan(Long.CHUNKS, overlap=overlap)
        parts = [part.split()[1:-1] for part in tokens(" ".join(LETTERS[:size]))[0]]
        joined = [*parts[0], *(token for part in parts[1:] for token in part[overlap:])]
        assert "".join(joined) == LETTERS[:size] and all(len(part) > overlap for part in parts[1:])


@pytest.mark.parametrize(
    ("long", "prefix", "overlap", "says"),
    [
        (Long.CHUNKS, "", 6, "special tokens and the prefix take 2 tokens, `overlap` 6, which leaves no room"),
        (Long.CHUNKS, "a b c d e f", 0, "take 8 tokens, which leaves no room"),
        (Long.HEAD_TAIL, "a b c d e", 0, "take 7 tokens, which leaves no room"),
    ],
)
def test_no_room_for_a_text_is_refused(long: Long, prefix: str, overlap: int, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        plan(long, prefix=prefix, overlap=overlap)


def test_special_tokens_inside_of_a_text_are_refused() -> None:
    tokens, _ = plan(Long.CHUNKS, template="[CLS] $A [SEP] $A [SEP]")
    with pytest.raises(Exception, match="special tokens inside of a text"):
        tokens("a b c d e f g")


def parts_of(encoder: Encoder, text: str) -> list[Any]:
    return encoder.long_texts.split(encoder.tokenize([text])[0])[0]


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_long_text_has_the_pooled_vector_of_its_chunks(tiny: Path, tmp_path: Path, pooling: str) -> None:
    folder = with_recipe(tiny, tmp_path / "model", "Normalize")
    options = {**CHUNKS, "features": ("model", "cls"), "prefix": "the ", "chunk_pooling": pooling}
    cache, _ = run(TEXTS, tmp_path / "c.h5", folder, label_column=None, **options)
    identity = cache.identity
    assert (identity.long, identity.overlap, identity.chunk_pooling) == ("chunks", 3, pooling)
    encoder = EncoderSession.from_identity(identity, cache.record["encoder"], where=cache.path).encoder
    for row, text in enumerate(TEXTS):
        parts = parts_of(encoder, text)
        vectors = encoder.backend.encode(parts)
        assert cache.lengths[row] == sum(map(len, parts)) and not cache.truncated[row]
        for name, values in vectors.items():
            weights = [len(part) - 3 for part in parts]  # the two special tokens, and the prefix
            expected = values.max(0) if pooling == "max" else np.average(values.astype(float), 0, weights)
            expected /= np.linalg.norm(expected) if name == "model" and len(parts) > 1 else 1
            np.testing.assert_allclose(cache.features(name)[row], expected, atol=1e-6)
    assert len(parts_of(encoder, TEXTS[9])) == 15  # of 60 words: windows of 7 that share 3
    counts = [len(parts_of(encoder, text)) for text in TEXTS]
    assert cache.record["split_rows"] == sum(count > 1 for count in counts)
    assert cache.record["sequences"] == sum(counts) and cache.record["truncated_rows"] == 0


@pytest.mark.parametrize("long", ["chunks", "head-tail"])
def test_texts_that_fit_have_their_plain_vectors_bit_for_bit(tiny: Path, tmp_path: Path, long: str) -> None:
    texts = [text for text in TEXTS if len(text.split()) < 9]
    plain, _ = run(texts, tmp_path / "plain.h5", tiny, label_column=None, max_length=10, features=("cls", "mean"))
    cache, _ = run(
        texts, tmp_path / "c.h5", tiny, label_column=None, max_length=10, features=("cls", "mean"), long=long
    )
    ours, theirs = datasets(cache.path), datasets(plain.path)
    assert {name for name in ours if ours[name] != theirs[name]} == {"identity", "checksums/identity"}


def test_no_chunk_is_encoded_twice(tiny: Path, tmp_path: Path, encoded: list[list[int]]) -> None:
    words = "a b c d e f g h " * 3
    texts = [words, words + "i j k", words, "i j k", words + "l"]
    cache, _ = run(texts, tmp_path / "c.h5", tiny, label_column=None, long="chunks", max_length=10, overlap=0)
    rows = [tuple(row) for row in encoded]
    assert len(rows) == len(set(rows)) == 3  # a to h, i to k, l
    assert cache.record["sequences_encoded"] == 3 and cache.record["tokens_encoded"] == sum(map(len, rows))
    np.testing.assert_array_equal(cache.features()[0], cache.features()[2])


def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tiny: Path, tmp_path: Path) -> None:
    texts = [" ".join(RNG.choice(WORDS, RNG.integers(1, 40))) for _ in range(60)]
    whole, _ = run_small(texts, tmp_path / "whole.h5", tiny, label_column=None, **CHUNKS)
    with interrupted_after(12), pytest.raises(KeyboardInterrupt):
        run_small(texts, tmp_path / "c.h5", tiny, label_column=None, **CHUNKS)
    assert 0 < len(holding(tmp_path / "c.h5")) < whole.layout.blocks
    cache, notes = run_small(texts, tmp_path / "c.h5", tiny, label_column=None, **CHUNKS)
    assert datasets(cache.path) == datasets(whole.path) and any("carrying on" in note for note in notes)
    before = datasets(cache.path)
    flip_a_byte(cache.path, "features/cls", 20)
    repair(cache.path, texts, settings=ExtractSettings(label_column=None))
    assert datasets(cache.path) == before
    found = verify(cache.path, encoder=str(tiny), table=texts, settings=ExtractSettings(label_column=None))
    assert found.encoded == 60 and not found.findings


def fresh_and_updated(encoder: Path, folder: Path, old: list[str], new: list[str]) -> tuple[Cache, Cache]:
    run(old, folder / "c.h5", encoder, label_column=None, **CHUNKS)
    cache, _ = run(new, folder / "c.h5", encoder, label_column=None, update=True, **CHUNKS)
    return cache, run(new, folder / "fresh.h5", encoder, label_column=None, **CHUNKS)[0]


def test_an_update_encodes_new_texts_alone_without_transformers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    original = hf.load_encoder
    monkeypatch.setattr(hf, "load_encoder", lambda *given: loaded.append(given) or original(*given))
    updated, fresh = fresh_and_updated(tiny, tmp_path, TEXTS[:7], [*TEXTS[5:], "love " * 30])
    assert len(loaded) == 2 and updated.record["reused_rows"] == 3
    np.testing.assert_allclose(updated.features(), fresh.features(), atol=1e-6)
    for name in ("token_hashes", "lengths", "truncated"):
        np.testing.assert_array_equal(getattr(updated, name), getattr(fresh, name))


@pytest.mark.parametrize(
    "options", [CHUNKS, {**CHUNKS, "chunk_pooling": "max"}, {"long": "head-tail", "max_length": 10}]
)
def test_a_classifier_reads_long_texts_as_its_cache_does(
    tiny: Path, tmp_path: Path, write_csv: Callable[..., Path], options: dict[str, Any]
) -> None:
    texts = list(dict.fromkeys(" ".join(RNG.choice(WORDS, RNG.integers(1, 40))) for _ in range(60)))
    table = write_csv([(text, f"class{number % 2}") for number, text in enumerate(texts)])
    cache, _ = run(table, tmp_path / "c.h5", tiny, features=("mean",), prefix="the ", **options)
    out = train_head(cache.path, tmp_path / "run", TrainSettings(solver="sgd", epochs=3))
    expected = load_head(out).probabilities(cache.features("mean"))
    np.testing.assert_allclose(load(out).predict_proba(texts), expected, atol=1e-5)


def test_another_treatment_is_another_identity(tiny: Path, tmp_path: Path) -> None:
    run(TEXTS, tmp_path / "c.h5", tiny, label_column=None, **CHUNKS)
    changes: list[tuple[dict[str, Any], str]] = [
        ({"overlap": 2}, "overlap, of two chunks"),
        ({"chunk_pooling": "max"}, "chunk_pooling"),
        ({"long": "cut", "overlap": None}, "long, what is done"),
    ]
    for change, says in changes:
        with pytest.raises(OutputExistsError, match=says):
            run(TEXTS, tmp_path / "c.h5", tiny, label_column=None, **{**CHUNKS, **change})


def test_the_overlap_is_an_eighth_of_the_length(tiny: Path) -> None:
    settings = ExtractSettings(encoder=str(tiny), features=("cls",), long=Long.CHUNKS, max_length=40)
    assert EncoderSession(settings).identity.overlap == 5


def test_many_cut_texts_are_noted_with_the_way_out(tiny: Path, tmp_path: Path) -> None:
    _, notes = run(TEXTS, tmp_path / "c.h5", tiny, label_column=None, max_length=10)
    assert notes == [
        "50% of the texts have more than 10 tokens, and lost the rest: `long=chunks` encodes all of a text"
    ]
    _, notes = run([*SHORT, *SHORT], tmp_path / "s.h5", tiny, label_column=None, max_length=10)
    assert notes == []


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            CHUNKS,
            r"chunks +6 texts \(50.0%\) in 32 chunks of up to 10 tokens; two of a text share 3, mean",
        ),
        ({"long": "head-tail", "max_length": 10}, r"head-tail +6 texts \(50.0%\) to their first and last, 10 tokens"),
        ({"max_length": 10}, r"truncated +6 texts \(50.0%\) at 10 tokens\n"),
    ],
)
def test_the_summary_says_what_was_done(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], line: str
) -> None:
    cache, _ = run(TEXTS, tmp_path / "c.h5", tiny, label_column=None, **options)
    terminal.show_cache(inspect_path(cache.path))
    assert re.search(line, capsys.readouterr().out)
    outcome = Outcome(command="extract", output=cache.path, action=Action.MADE, counts=cache.record)
    passes = passes_of_extraction([cache.record], [outcome])
    copies = 1 if options.get("long") != "chunks" else cache.record["sequences"] - cache.record["sequences_encoded"]
    assert passes.saved == copies >= 1


def test_progress_says_how_many_texts_are_split(tiny: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    settings = ExtractSettings(encoder=str(tiny), label_column=None, features=("cls",), **CHUNKS)
    extract(
        TEXTS, tmp_path / "c.h5", settings, report=lambda e: steps.append(e.detail) if isinstance(e, Step) else None
    )
    cache = open_cache(tmp_path / "c.h5")
    chunks = cache.record["sequences"] - cache.rows + cache.record["split_rows"]
    assert steps[-1] == f"{cache.record['split_rows']} texts in {chunks} chunks"


def test_a_whole_text_is_tokenized_as_transformers_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headstart.stages.encoders.tokenizer._WHOLE_CHARACTERS", 50)  # a few texts at a time
    folder = save_tiny_encoder(tmp_path / "r", kind="roberta", pad_token_id=1)
    chunked, plain = (
        EncoderSession(ExtractSettings(encoder=str(folder), features=("cls",), **options)).encoder
        for options in ({"long": "chunks", "max_length": 100}, {"max_length": 100})
    )
    for ours, theirs in zip(chunked.tokenize(TEXTS)[0], plain.tokenize(TEXTS)[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
