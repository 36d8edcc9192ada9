"""Folders of sentence-transformers around a tiny encoder, and by hand what each pooling makes of its states."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

PACKAGE = "sentence_transformers.models."
Array = npt.NDArray[np.float64]


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))


def with_recipe(encoder: Path, folder: Path, *modules: str, pooling: Any = "mean", **texts: Any) -> Path:
    """Copy an encoder, and add the files of sentence-transformers; ``pooling`` is its mode, or its whole document."""
    shutil.copytree(encoder, folder)
    kinds = ["Transformer", "Pooling", *modules]
    entries = [
        {"idx": n, "name": str(n), "path": f"{n}_{kind}" if n else "", "type": PACKAGE + kind}
        for n, kind in enumerate(kinds)
    ]
    write(folder / "modules.json", entries)
    write(folder / "sentence_bert_config.json", {"max_seq_length": 50, "do_lower_case": texts.get("lower", False)})
    prompts = {"query": "the good ", "document": "a "}
    default = {"default_prompt_name": texts.get("default")}
    write(folder / "config_sentence_transformers.json", {"prompts": prompts, **default, "similarity_fn_name": "cosine"})
    document = pooling if isinstance(pooling, dict) else {"pooling_mode": pooling}
    write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **document})
    return folder


def add_dense(
    folder: Path, *, inputs: int = 32, width: int = 8, function: str = "activation.Tanh", bias: bool = True
) -> dict[str, Any]:
    """Write the files of a dense layer, and return its weights."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    weights = {"linear.weight": torch.randn(width, inputs), "linear.bias": torch.randn(width)}
    if not bias:
        del weights["linear.bias"]
    fields = {"in_features": inputs, "out_features": width, "bias": bias}
    write(folder / "config.json", {**fields, "activation_function": f"torch.nn.modules.{function}"})
    save_file(weights, folder / "model.safetensors")
    return {name.removeprefix("linear."): weight.double().numpy() for name, weight in weights.items()}


def add_layer_norm(folder: Path, width: int = 8) -> dict[str, Any]:
    """Write the files of a layer norm, and return its weights."""
    import torch
    from safetensors.torch import save_file

    write(folder / "config.json", {"dimension": width})
    weights = {"norm.weight": torch.rand(width), "norm.bias": torch.rand(width)}
    save_file(weights, folder / "model.safetensors")
    return {name.removeprefix("norm."): weight.double().numpy() for name, weight in weights.items()}


def edit(path: Path, **fields: Any) -> None:
    """Change fields of a JSON file."""
    write(path, json.loads(path.read_text()) | fields)


def in_subfolder(folder: Path, part: str = "0_Transformer") -> Path:
    """Move what transformers reads into a folder inside, as old releases wrote it."""
    (folder / part).mkdir()
    for file in [*folder.iterdir()]:
        if file.is_file() and file.name not in ("modules.json", "config_sentence_transformers.json"):
            file.rename(folder / part / file.name)
    entries = json.loads((folder / "modules.json").read_text())
    entries[0]["path"] = part
    write(folder / "modules.json", entries)
    return folder


def states(encoder: Path, texts: list[str], max_length: int = 50) -> list[Array]:
    """Of each text alone, what transformers gives: (tokens, width)."""
    import torch
    import transformers

    tokenizer, model = (kind.from_pretrained(encoder) for kind in (transformers.AutoTokenizer, transformers.AutoModel))
    with torch.inference_mode():
        inputs = [tokenizer(text, truncation=True, max_length=max_length, return_tensors="pt") for text in texts]
        return [model.eval()(**each).last_hidden_state[0].double().numpy() for each in inputs]


def weighted(tokens: Array, first: int = 1) -> Array:
    """Their mean, weighted by their positions from ``first`` on."""
    weights = np.arange(first, len(tokens) + first)
    vector: Array = (tokens * weights[:, None]).sum(0) / weights.sum()
    return vector


BY_HAND: dict[str, Callable[[Array], Array]] = {
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(0),
    "mean": lambda tokens: tokens.mean(0),
    "mean_sqrt_len_tokens": lambda tokens: tokens.sum(0) / len(tokens) ** 0.5,
    "weightedmean": weighted,
    "lasttoken": lambda tokens: tokens[-1],
}
