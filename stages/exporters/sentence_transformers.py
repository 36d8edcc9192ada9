"""The format ``sentence-transformers``: its modules, one after the other; the last one gives logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..encoders.files import MODULES, PROMPTS, TRANSFORMER
from ..encoders.recipe import LEGACY_POOLINGS, Normalize, Truncate
from ..heads.head import outputs_of
from ..settings import Task
from .exporter import Exporter, of_decisions, of_pairs
from .source import Answers, Linear, Norm, Texts, batches, save_tensors

_PROMPT = "classification"
"""The name of the prompt, which is the default one."""


class SentenceTransformersExporter(Exporter):
    """See the module."""

    library = "sentence-transformers"
    needs = ("sentence_transformers",)
    install = "pip install sentence-transformers"

    def problems(self) -> list[str]:
        source = self.source
        problems = [*super().problems(), *of_pairs(source), *of_decisions(source)]
        if not set(source.poolings) <= set(LEGACY_POOLINGS.values()):
            problems.append(f"its feature is {source.poolings[0]}, and no module pools so")
        if not source.cuts_layers:
            problems.append(f"its feature is of a layer inside, which a {source.kind} with fewer layers does not give")
        return problems

    def write(self, folder: Path) -> None:
        source = self.source
        least = {"thresholds": source.least_probabilities()} if source.head.task is Task.MULTI_LABEL else {}
        source.save_encoder(folder, **source.label_config(), **least)
        modules = [("Transformer", "")]
        _write(folder / TRANSFORMER[0], {"max_seq_length": source.given.max_length, "do_lower_case": False})
        for kind, config, tensors in self._modules():
            modules.append((kind, f"{len(modules)}_{kind}"))
            inside = folder / modules[-1][1]
            inside.mkdir()
            _write(inside / "config.json", config)
            if tensors:
                save_tensors(inside / "model.safetensors", tensors)
        entries = [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (kind, path) in enumerate(modules)
        ]
        _write(folder / MODULES, entries)
        prefix = source.given.prefix
        prompts = {"prompts": {_PROMPT: prefix}, "default_prompt_name": _PROMPT} if prefix else {}
        _write(folder / PROMPTS, {"model_type": "SentenceTransformer", **prompts})

    def _modules(self) -> list[tuple[str, dict[str, Any], dict[str, torch.Tensor | None]]]:
        """Return the modules after the Transformer: their kinds, configurations and weights."""
        source, width = self.source, int(self.source.model.config.hidden_size)
        includes = source.given.recipe is None or source.given.recipe.includes_prompt
        modes = {field: pooling in source.poolings for field, pooling in LEGACY_POOLINGS.items()}
        found: list[tuple[str, dict[str, Any], dict[str, torch.Tensor | None]]] = [
            ("Pooling", {"word_embedding_dimension": width, **modes, "include_prompt": includes}, {})
        ]
        width *= len(source.poolings)
        for step in source.steps():
            match step:
                case Normalize():
                    found.append(("Normalize", {}, {}))
                    continue
                case Norm():
                    found.append(
                        ("LayerNorm", {"dimension": width}, {"norm.weight": step.weight, "norm.bias": step.bias})
                    )
                    continue
                case Truncate():
                    step = Linear(torch.eye(step.width, width), None)  # noqa: PLW2901
            outputs, inputs = step.weight.shape
            function = f"torch.nn.{step.activation}"
            config = {"in_features": inputs, "out_features": outputs, "bias": step.bias is not None}
            found.append(
                (
                    "Dense",
                    {**config, "activation_function": function},
                    {"linear.weight": step.weight, "linear.bias": step.bias},
                )
            )
            width = outputs
        return found

    def answers(self, folder: Path, texts: Texts) -> Answers:
        from sentence_transformers import SentenceTransformer

        from ..encoders.hf import quiet_transformers

        with quiet_transformers():
            model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
        parts = [model.encode(batch.texts, show_progress_bar=False) for batch in batches(texts)]
        logits = np.concatenate(parts).astype(np.float32)
        outputs = outputs_of(self.source.head.task, logits.astype(np.float64)).astype(np.float32)
        return Answers(logits=logits, labels=self.source.names(self.source.head.predictions(outputs)))

    def usage(self) -> str:
        lines = ["from sentence_transformers import SentenceTransformer", ""]
        lines.append('folder = "."  # this folder, or its name on the hub')
        lines.append("model = SentenceTransformer(folder)")
        config = "model[0].auto_model.config"
        match self.source.head.task:
            case Task.REGRESSION:
                lines.append("numbers = model.encode(texts)[:, 0].tolist()")
            case Task.MULTI_LABEL:
                lines.append("scores = model.encode(texts, convert_to_tensor=True).sigmoid().tolist()")
                lines.append(f"least = {config}.thresholds.items()  # the probability from which on a label counts")
                lines.append("labels = [[name for (name, t), p in zip(least, row) if p >= t] for row in scores]")
            case _:
                lines.append("logits = model.encode(texts)  # the softmax of a row is its probabilities")
                lines.append(f"labels = [{config}.id2label[number] for number in logits.argmax(axis=1)]")
        return "\n".join(lines)


def _write(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
