"""A tiny random encoder and tables of the few words that it knows, for tests of shape and plumbing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = "the a good bad film phone very not is was it works broke love hate fine plot screen day".split()  # noqa: SIM905
SEGMENTED = ("bert", "electra", "albert", "nomic_bert")
"""The kinds that tell the two texts of a pair apart."""


def save_tiny_encoder(folder: Path, *, seed: int = 0, kind: str = "bert", **changes: Any) -> Path:
    """Save a tiny random encoder with a tokenizer that knows a few words, letters and digits."""
    import tokenizers
    import torch
    import transformers as hf
    from tokenizers import models, normalizers, pre_tokenizers, processors

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(d) for d in range(10)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *letters, *(f"##{c}" for c in letters)]
    vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="[CLS]",
        sep_token="[SEP]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask", *(["token_type_ids"] if kind in SEGMENTED else [])],
    ).save_pretrained(folder)
    sizes: dict[str, Any] = {"vocab_size": len(vocabulary), "max_position_embeddings": 128, "pad_token_id": 0}
    sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, **changes}
    robertas = {"max_position_embeddings": 129, "type_vocab_size": 1}
    distilled = {"vocab_size": len(vocabulary), "max_position_embeddings": 128, "dim": 32, "n_layers": 2, "n_heads": 2}
    disentangled = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}
    disentangled |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
    made: dict[str, Callable[[], Any]] = {
        "bert": lambda: hf.BertModel(hf.BertConfig(**sizes)),
        "electra": lambda: hf.ElectraModel(hf.ElectraConfig(**sizes, embedding_size=16)),
        "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**{**sizes, **robertas})),
        "xlm-roberta": lambda: hf.XLMRobertaModel(hf.XLMRobertaConfig(**{**sizes, **robertas})),
        "distilbert": lambda: hf.DistilBertModel(hf.DistilBertConfig(**distilled, hidden_dim=64)),
        "mpnet": lambda: hf.MPNetModel(hf.MPNetConfig(**{**sizes, "max_position_embeddings": 130, "pad_token_id": 1})),
        "modernbert": lambda: hf.ModernBertModel(hf.ModernBertConfig(**{"local_attention": 8, **sizes})),
        "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**sizes, embedding_size=16)),
        "deberta-v2": lambda: hf.DebertaV2Model(hf.DebertaV2Config(**sizes, **disentangled)),
        "nomic_bert": lambda: hf.NomicBertModel(hf.NomicBertConfig(**sizes)),
        "gte": lambda: hf.GteModel(hf.GteConfig(**sizes)),  # transformers 5.17 does not have it
        "jina_embeddings_v3": lambda: hf.JinaEmbeddingsV3Model(hf.JinaEmbeddingsV3Config(**sizes)),
        "rembert": lambda: hf.RemBertModel(hf.RemBertConfig(**sizes, input_embedding_size=16)),
        "convbert": lambda: hf.ConvBertModel(hf.ConvBertConfig(**sizes, embedding_size=16, head_ratio=2)),
        "nystromformer": lambda: hf.NystromformerModel(hf.NystromformerConfig(**sizes)),
        "vit": lambda: hf.ViTModel(
            hf.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
        ),
        "gpt2": lambda: hf.GPT2Model(
            hf.GPT2Config(vocab_size=len(vocabulary), n_positions=128, n_embd=32, n_layer=1, n_head=2)
        ),
    }
    torch.manual_seed(seed)
    made[kind]().save_pretrained(folder)
    return folder


def require_kind(kind: str) -> None:
    """Skip a test of an architecture that this release of transformers does not have."""
    import pytest
    import transformers

    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {kind}")


def tiny_rows(count: int, *, seed: int = 0, classes: int = 2) -> list[tuple[str, str]]:
    """Texts of known words with labels, a third of them copies of others."""
    import numpy as np

    rng = np.random.default_rng(seed)
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 1 / 3:
            texts.append(texts[rng.integers(len(texts))])
        else:
            texts.append(" ".join(rng.choice(WORDS, rng.integers(1, 12))) + f" {rng.integers(10**6)}")
    numbers = {text: int(rng.integers(classes)) for text in dict.fromkeys(texts)}
    return [(text, f"class{numbers[text]}") for text in texts]
