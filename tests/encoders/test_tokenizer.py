"""Of a long text only a beginning is tokenized: its tokens are those of the whole text, whatever it holds."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from headstart.stages.encoders.tokenizer import CHARACTERS_PER_TOKEN, Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_rows
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors, trainers

LONGEST = 6
"""Tokens that are kept, special ones included."""
WORD = "g" * 50
"""One token."""


def bert() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return trained(tokenizer, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"]))


def byte_level(*, normalizer: Any = None) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    mask = AddedToken("<mask>", lstrip=True)  # as RoBERTa has it
    return trained(
        tokenizer,
        trainers.BpeTrainer(vocab_size=400, special_tokens=["[CLS]", "[SEP]", mask], initial_alphabet=alphabet),
    )


def trained(tokenizer: tokenizers.Tokenizer, trainer: Any) -> tokenizers.Tokenizer:
    tokenizer.train_from_iterator([*(text for text, _ in tiny_rows(200)), *[f"{WORD} {WORD}"] * 999], trainer)
    special = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    tokenizer.enable_truncation(LONGEST)
    return tokenizer


class Watched:
    """A tokenizer that notes the characters that it is given."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer, self.characters = tokenizer, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def encode_batch_fast(self, texts: list[str]) -> Any:
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(texts)


KINDS = {
    "BERT": bert(),
    "byte-level": byte_level(),
    "byte-level, NFC": byte_level(normalizer=normalizers.NFC()),
}
PIECES = [
    "good",
    "film",
    "a",
    "not",
    "naïve",
    "e\u0301",
    "\u0301",
    "酒店",
    "很好",
    WORD,
    "3.14",
    "it's",
    "''ll",
    "\u0600",
]
PIECES += [" ", " ", "  ", "\n", "\t", "\x1c", "\u00a0", "\u200b", "\0", ".", ",", "，", "。", "、", "…", "-"]
PIECES += ["[SEP]", "[UNK]", "<mask>", " <mask>", "<ma", "👩\u200d💻", "\u202e", "Σ", "ﬁ"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300)
@given(st.lists(st.lists(st.sampled_from(PIECES), max_size=80).map("".join), min_size=1, max_size=4), st.integers(1, 9))
def test_the_tokens_of_a_long_text_are_those_of_all_of_it(kind: str, texts: list[str], times: int) -> None:
    texts = [text * times for text in texts]
    expected = KINDS[kind].encode_batch(texts)
    found = Tokenizer(KINDS[kind]).encode(texts)
    assert [encoding.ids for encoding in found] == [encoding.ids for encoding in expected]
    assert [bool(encoding.overflowing) for encoding in found] == [bool(encoding.overflowing) for encoding in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_of_a_long_text_is_tokenized_than_is_needed(kind: str) -> None:
    watched = Watched(KINDS[kind])
    texts = [("good film " * 100_000), "good film", "g" * 10_000, f"{WORD} " * 3 + WORD, f"{WORD} " * 400]
    Tokenizer(watched).encode(texts[:1])  # type: ignore[arg-type]
    assert watched.characters <= CHARACTERS_PER_TOKEN * LONGEST
    found = Tokenizer(watched).encode(texts)  # type: ignore[arg-type]
    assert [encoding.ids for encoding in found] == [encoding.ids for encoding in KINDS[kind].encode_batch(texts)]


def left(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.enable_truncation(LONGEST, direction="left")


def with_spaces(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("good film")])


def with_what_becomes_a_space(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("good\u00a8film", normalized=True)])


def with_what_vanishes(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.normalizer = normalizers.StripAccents()  # an accent between two spaces parts them no more


def with_a_rule(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Replace(" film", "film")


def without_words(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(use_regex=False)


def without_an_end(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.no_truncation()


@pytest.mark.parametrize(
    "change",
    [
        left,
        with_spaces,
        with_what_becomes_a_space,
        with_what_vanishes,
        with_a_rule,
        without_words,
        without_an_end,
    ],
)
def test_all_of_a_text_is_tokenized_where_what_follows_may_matter(change: Any) -> None:
    tokenizer = byte_level()
    change(tokenizer)
    watched, texts = Watched(tokenizer), ["a good film " * 100 + "not"]
    found = Tokenizer(watched).encode(texts)  # type: ignore[arg-type]
    assert watched.characters == len(texts[0])
    assert found[0].ids == tokenizer.encode(texts[0]).ids
