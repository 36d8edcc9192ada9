"""Encoders for `bench/gpu.py`, with random weights, and the ways to run them that it compares.

A contender is made from a folder, a device and a precision, and turns texts into features by their names.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MAX_LENGTH = 128
BATCH_TOKENS = 32768
"""Of transformers alone; headstart chooses its own."""
BERT_BASE, MINILM = "BERT-base's shape", "MiniLM's shape"
_IDS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
SHAPES: dict[str, dict[str, Any]] = {
    BERT_BASE: {},
    MINILM: {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "ModernBERT-base's shape": {"model_type": "modernbert", **_IDS},
    "MPNet-base's shape": {"model_type": "mpnet", "max_position_embeddings": 514},
}
"""Encoders whose speed is measured: fields of config.json, BERT's where no ``model_type`` is named."""
TINY = {"tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}}
_SMALL: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
_SMALL |= {"intermediate_size": 512, "max_position_embeddings": 514, "pad_token_id": 0}
_DECODER = {**_SMALL, **_IDS, "num_key_value_heads": 2, "head_dim": 64}
_DISENTANGLED = {"relative_attention": True, "position_buckets": 32, "pos_att_type": ["p2c", "c2p"]}
_DISENTANGLED |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": _SMALL,
    "roberta": {**_SMALL, "pad_token_id": 1},
    "xlm-roberta": {**_SMALL, "pad_token_id": 1},
    "electra": {**_SMALL, "embedding_size": 128},
    "distilbert": {"dim": 256, "n_layers": 3, "n_heads": 4, "hidden_dim": 512, "pad_token_id": 0},
    "albert": {**_SMALL, "embedding_size": 128},
    "mpnet": {**_SMALL, "pad_token_id": 1},
    "modernbert": {**_SMALL, **_IDS, "local_attention": 32},
    "deberta-v2": {**_SMALL, **_DISENTANGLED},
    "nomic_bert": _SMALL,
    "gte": _SMALL,
    "jina_embeddings_v3": _SMALL,
    "llama": _DECODER,
    "mistral": {**_DECODER, "sliding_window": 32},
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "gemma3_text": {**_DECODER, "sliding_window": 32, "sliding_window_pattern": 2},
}
"""Small encoders of each architecture that runs packed on some device: of 3 layers, with windows that texts fill."""
Features = dict[str, npt.NDArray[np.float32]]
Encode = Callable[[list[str]], Any]


class Headstart:
    """Texts to features as `headstart extract` makes them: each distinct token sequence once, by length."""

    def __init__(self, folder: Path, device: str, precision: str, features: tuple[str, ...] = ("mean",)) -> None:
        import headstart
        from headstart.stages.encoders.session import EncoderSession

        settings = headstart.ExtractSettings(
            encoder=str(folder), device=device, precision=precision, features=features, max_length=MAX_LENGTH
        )
        self.encoder = EncoderSession(settings).encoder
        self.path = self.encoder.path.value

    def __call__(self, texts: list[str]) -> Features:
        from headstart.stages.encoders.encoder import encode_sequences

        sequences, _ = self.encoder.tokenize(texts)
        return encode_sequences(self.encoder, sequences)


def padded(folder: Path, device: str, precision: str) -> Headstart:
    """headstart with the model's own pass over padded batches."""
    with _no_architecture():
        return Headstart(folder, device, precision)


def unfused(folder: Path, device: str, precision: str) -> Headstart:
    """headstart without kernels of its own: each norm and sum is a pass of torch's over memory."""
    from headstart.stages.encoders import fast_load, hf

    kept = hf.find_fused, fast_load.find_fused
    hf.find_fused = fast_load.find_fused = lambda: None
    try:
        return Headstart(folder, device, precision)
    finally:
        hf.find_fused, fast_load.find_fused = kept


@contextlib.contextmanager
def _no_architecture() -> Iterator[None]:
    from headstart.stages.encoders import hf, session

    kept = hf.find_architecture, session.EncoderSession.load_packed
    hf.find_architecture = lambda config: None
    session.EncoderSession.load_packed = lambda self, packed: None
    try:
        yield
    finally:
        hf.find_architecture, session.EncoderSession.load_packed = kept


class Transformers:
    """Texts to features by transformers alone: sorted by length, under autocast in half precision."""

    def __init__(
        self,
        folder: Path,
        device: str,
        precision: str,
        features: tuple[str, ...] = ("mean",),
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        import torch
        import transformers

        self._device, self._features, self._batch_tokens = torch.device(device), features, batch_tokens
        self._dtype = getattr(torch, precision)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._model = transformers.AutoModel.from_pretrained(folder).eval().to(self._device)

    def __call__(self, texts: list[str]) -> Features:
        import torch

        ids = self._tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        width = self._model.config.hidden_size
        features = {name: np.empty((len(texts), width), np.float32) for name in self._features}
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        while order:
            count = max(1, self._batch_tokens // len(ids[order[0]]))
            batch, order = order[:count], order[count:]
            inputs = self._tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt")
            inputs = {name: inputs[name].to(self._device) for name in ("input_ids", "attention_mask")}
            half = self._dtype != torch.float32
            with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=half):
                hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"]
            last = hidden[torch.arange(len(batch), device=self._device), mask.sum(1) - 1]
            pooled = {"mean": (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), "last": last}
            for name, values in features.items():
                values[batch] = pooled[name].cpu().numpy()
        return features


def sentence_transformers(folder: Path, device: str, precision: str, *, attention: str) -> Encode:
    """sentence-transformers' `encode`, with the weights in the precision; half precision is float16."""
    import torch
    from sentence_transformers import SentenceTransformer

    dtype = torch.float32 if precision == "float32" else torch.float16
    options = {"torch_dtype": dtype, "attn_implementation": attention}
    model = SentenceTransformer(str(folder), device=device, model_kwargs=options)
    model.max_seq_length = MAX_LENGTH
    return lambda texts: model.encode(texts, batch_size=256, show_progress_bar=False)


def flash_attention(folder: Path, device: str, precision: str) -> Encode:
    """The same with the package flash-attn."""
    import flash_attn

    assert flash_attn.__version__
    return sentence_transformers(folder, device, precision, attention="flash_attention_2")


CONTENDERS: dict[str, Callable[[Path, str, str], Encode]] = {
    "headstart": Headstart,
    "headstart, not fused": unfused,
    "headstart, padded": padded,
    "transformers, sorted by length": Transformers,
    "sentence-transformers, SDPA": functools.partial(sentence_transformers, attention="sdpa"),
    "sentence-transformers, flash-attn": flash_attention,
}
