"""Texts to tokens. Of a long text, only as much is tokenized as the encoder keeps.

To tokenize a text of a thousand words takes as long as a small encoder takes for the 128 tokens that are kept. A
beginning of the text has the same first tokens if it ends where the tokenizer splits the text in any case. If the
beginning has more tokens than are kept, the rest of the text is not needed.
"""

from __future__ import annotations

import functools
import json
import re
import reprlib
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import tokenizers
from tokenizers import normalizers

from ...cache.errors import EncoderError

CHARACTERS_PER_TOKEN = 12
"""The length of the first beginning that is tried, for each token that is kept; a word takes five or six."""
_GROWTH = 8
_WHOLE_CHARACTERS = 4 << 20  # that are tokenized together, where all tokens are needed
# Normalizers whose result before a space or a stop does not depend on the text after it.
_LOCAL = {"Lowercase", "NFC", "NFD", "NFKC", "NFKD"}
_DELETING = {"BertNormalizer", "StripAccents"}  # also such; a character that they delete may stand between two spaces
_Text = TypeVar("_Text", str, tuple[str, str])


def set_up(tokenizer: tokenizers.Tokenizer, *, max_length: int | None, direction: str, lower_case: bool) -> None:
    """Let a tokenizer cut texts at ``max_length``, and not pad; and lower-case them first, as sentence-transformers.

    None for a tokenizer that gives all tokens of a text.
    """
    if max_length is None:
        tokenizer.no_truncation()
    else:
        tokenizer.enable_truncation(max_length, direction=direction)
    tokenizer.no_padding()
    normalizer: Any = tokenizer.normalizer
    parts: list[Any] = [] if normalizer is None else [normalizer]
    if type(normalizer) is normalizers.Sequence:
        parts = list(normalizer)  # type: ignore[call-overload]
    if lower_case and not any(isinstance(part, normalizers.Lowercase) for part in parts):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *parts])


class Tokenizer:
    """A tokenizer with truncation and padding set, and where it is known to split texts."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Encode texts: their ids, types, and whether there was overflow. Offsets and the overflow are incomplete.

        Raises:
            EncoderError: the tokenizer fails on a text.
        """
        longest = CHARACTERS_PER_TOKEN * int((self._tokenizer.truncation or {}).get("max_length", 0))
        encodings: list[Any] = [None] * len(texts)
        left = list(range(len(texts)))
        while left:
            beginnings = [self._beginning(texts[number], longest) for number in left]
            for number, encoding in zip(left, _encode(self._tokenizer.encode_batch_fast, beginnings), strict=True):
                encodings[number] = encoding
            left = [
                number
                for number, beginning in zip(left, beginnings, strict=True)
                if len(beginning) < len(texts[number]) and not encodings[number].overflowing
            ]
            longest *= _GROWTH
        return encodings

    def encode_whole(self, texts: Sequence[str]) -> Iterator[tokenizers.Encoding]:
        """Encode texts with a tokenizer that does not cut: a few at a time, for an encoding takes 100 bytes a token.

        Raises:
            EncoderError: the tokenizer fails on a text.
        """
        start, characters = 0, 0
        for stop, text in enumerate(texts, 1):
            characters += len(text)
            if characters > _WHOLE_CHARACTERS or stop == len(texts):
                yield from _encode(self._tokenizer.encode_batch_fast, texts[start:stop])
                start, characters = stop, 0

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tokenizers.Encoding]:
        """Encode whole pairs of texts: which of the two is cut, and where, depends on the length of both.

        Raises:
            EncoderError: the tokenizer fails on a pair.
        """
        return _encode(self._tokenizer.encode_batch, pairs)  # encode_batch_fast may give both texts the same type

    def plain(self, text: str) -> list[int]:
        """The ids of all tokens of a short text, without special tokens."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @functools.cached_property
    def unknown(self) -> int | None:
        """The number of the token that stands for what the vocabulary lacks; None where there is no such token."""
        name = getattr(self._tokenizer.model, "unk_token", None)
        numbers = [self._tokenizer.token_to_id(known) for known in ([name] if name else ["<unk>", "[UNK]"])]
        return next((number for number in numbers if number is not None), None)

    def special(self, *, pairs: bool) -> int:
        """How many special tokens a text, or a pair of texts, is given."""
        return int(self._tokenizer.num_special_tokens_to_add(pairs))

    def _beginning(self, text: str, longest: int) -> str:
        """A beginning of at least about ``longest`` characters that is tokenized as it is in the whole text."""
        while len(text) > 2 * longest and self._boundary is not None:
            ends = [match.end() - 1 for match in self._boundary.finditer(text, longest // 2, longest)]
            if ends:
                return text[: ends[-1]]
            longest *= _GROWTH
        return text

    @functools.cached_property
    def _boundary(self) -> re.Pattern[str] | None:
        """Matches two characters between which the text is split whatever follows; None where no such are known."""
        parts = json.loads(self._tokenizer.to_str())
        truncation, splitter, normalizer = parts["truncation"], parts["pre_tokenizer"] or {}, parts["normalizer"]
        if truncation is None or truncation["direction"] != "Right" or truncation["stride"]:
            return None
        normalizers = {one["type"] for one in (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])}
        match splitter:
            case {"type": "BertPreTokenizer"} if normalizers <= _LOCAL | _DELETING:
                separators = " \t\n,.;:!?，。、；：！？"  # of punctuation, each character is a token of its own
            case {"type": "ByteLevel", "use_regex": True} if normalizers <= _LOCAL:
                separators = " "  # GPT-2's expression: a space is joined to the word after it
            case _:
                return None
        for token in parts["added_tokens"]:  # one might be cut in two
            written = token["content"]
            if self._tokenizer.normalizer is not None:
                written += self._tokenizer.normalizer.normalize_str(token["content"])
            if re.search(rf"[\s{separators}]", written):
                return None
        return re.compile(rf"\S[{separators}]")


def _encode(
    encode: Callable[[list[_Text]], Sequence[tokenizers.Encoding]], texts: Sequence[_Text]
) -> list[tokenizers.Encoding]:
    """Encode texts; where the tokenizer fails, an EncoderError names the first text that it fails on."""
    try:
        return list(encode(list(texts)))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # Rust's panics are no Exception
        if len(texts) > 1:
            for text in texts:
                _encode(encode, [text])
        reason = textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__
        raise EncoderError(f"the encoder's tokenizer fails on {reprlib.repr(texts[0])}, and says: {reason}") from error
