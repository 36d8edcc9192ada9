"""The folder of an export: what another library loads, README.md, and ``headstart.json``, which says what it is."""

from __future__ import annotations

from typing import Any, TypedDict

from .folders import FolderKind


class _Compared(TypedDict):
    """How the export compares with headstart."""

    texts: int
    difference: float
    equal: int | None


class _ExportRecord(TypedDict):
    """Fields that every ``headstart.json`` holds; it MAY hold more."""

    to: str
    int8: bool
    encoder: str
    task: str
    label_names: list[Any]
    compared: _Compared


EXPORT = FolderKind(
    name="export",
    file="headstart.json",
    format="headstart-export",
    version=1,
    command="headstart export",
    others=r"README\.md|(config|tokenizer|tokenizer_config|special_tokens_map|modules|head)\.json"
    r"|sentence_bert_config\.json|config_sentence_transformers\.json|best_bert_sentiment_model\.pth"
    r"|(model|head)\.py|head\.npz|model\.onnx(\.data)?|__pycache__/.*"
    r"|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?|chat_template\.jinja"
    r"|\d+_(Pooling|Dense|Normalize|LayerNorm)/(config\.json|model\.safetensors)?",
    record=_ExportRecord,
)
