"""Texts to tokens: of a text that is far longer than what is kept of it, no more than its beginning is tokenized.

A tokenizer splits all of a text before it cuts its tokens at their largest number. Of a text of a thousand words that
takes as long as a small encoder takes for the 128 tokens that are kept. A beginning has the same first tokens if it
ends where the tokenizer parts the text in any case; and if its tokens had to be cut, no more of the text is needed.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

import tokenizers

CHARACTERS_PER_TOKEN = 12
"""A first beginning has so many for each token that is kept; a word and its space have five or six."""
_GROWTH = 8
_LOCAL = {"Lowercase", "NFC", "NFD", "NFKC", "NFKD"}
"""Normalizers to which what comes after a space or a stop changes nothing before it."""
_DELETING = {"BertNormalizer", "StripAccents"}
"""Such, too; but a character that they take out may have stood between two spaces."""


class Tokenizer:
    """A tokenizer and what it is known to part texts at."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        """Take a tokenizer that is set up to run."""
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Encode texts: ids, types and whether there was overflow are those of the whole texts; offsets there are none.

        What overflows is not all in the encodings.
        """
        longest = CHARACTERS_PER_TOKEN * int((self._tokenizer.truncation or {}).get("max_length", 0))
        found: list[Any] = [None] * len(texts)
        left = list(range(len(texts)))
        while left:
            given = [self._beginning(texts[number], longest) for number in left]
            for number, encoding in zip(left, self._tokenizer.encode_batch_fast(given), strict=True):
                found[number] = encoding
            left = [
                number
                for number, text in zip(left, given, strict=True)
                if len(text) < len(texts[number]) and not found[number].overflowing
            ]
            longest *= _GROWTH
        return found

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tokenizers.Encoding]:
        """Encode pairs of texts, whole: which of the two is cut, and where, depends on the length of both."""
        return list(self._tokenizer.encode_batch(list(pairs)))  # the fast one may give both texts the same type

    def _beginning(self, text: str, longest: int) -> str:
        """A beginning of ``longest`` characters or so that is tokenized as it is in the whole text; or more of it."""
        while len(text) > 2 * longest and self._parting is not None:
            ends = [match.end() - 1 for match in self._parting.finditer(text, longest // 2, longest)]
            if ends:
                return text[: ends[-1]]
            longest *= _GROWTH
        return text

    @functools.cached_property
    def _parting(self) -> re.Pattern[str] | None:
        """Matches a character, and one before which the text is parted whatever follows; None where none is known."""
        parts = json.loads(self._tokenizer.to_str())
        truncation, splitter, normalizer = parts["truncation"], parts["pre_tokenizer"] or {}, parts["normalizer"]
        if truncation is None or truncation["direction"] != "Right" or truncation["stride"]:
            return None
        normalizers = {one["type"] for one in (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])}
        match splitter:
            case {"type": "BertPreTokenizer"} if normalizers <= _LOCAL | _DELETING:
                parting = " \t\n,.;:!?，。、；：！？"  # of punctuation, each character is a token of its own
            case {"type": "ByteLevel", "use_regex": True} if normalizers <= _LOCAL:
                parting = " "  # GPT-2's expression: a space is joined to what follows
            case _:
                return None
        for token in parts["added_tokens"]:  # one might be cut in two
            written = token["content"]
            if self._tokenizer.normalizer is not None:
                written += self._tokenizer.normalizer.normalize_str(token["content"])
            if re.search(rf"[\s{parting}]", written):
                return None
        return re.compile(rf"\S[{parting}]")
