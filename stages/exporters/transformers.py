"""The format ``transformers``: a folder for ``pipeline("text-classification")``, of a stock class.

Stock classes put a dense layer and a function between the first token's state and the weights of the classes. Of a head
without hidden layer, that layer is made to do nothing, or to cancel out; see `_through`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..encoders.pooling import Pooling
from ..encoders.recipe import Activation
from ..settings import Task
from .exporter import Exporter, of_decisions, of_first_token, of_prefix
from .source import Answers, Labels, Linear, Texts

_SCALE = 2.0**-14
"""tanh(u) = u - u^3 / 3 + ...: of a state of 10, times this number, the error is 1e-7 of it. A power of two rounds
nothing."""
_ROBERTA = ("classifier.dense", Activation.TANH, "classifier.out_proj")
_STOCK = {
    "bert": ("bert.pooler.dense", Activation.TANH, "classifier"),
    "albert": ("albert.pooler", Activation.TANH, "classifier"),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), _ROBERTA),
    "electra": ("classifier.dense", Activation.GELU, "classifier.out_proj"),
    "distilbert": ("pre_classifier", Activation.RELU, "classifier"),
}
"""By kind of model: the names of the dense layer and of the last one, and the function between them."""
_POSITIONS = "position_embeddings.weight"
_LOGITS = {"function_to_apply": "none"}


class TransformersExporter(Exporter):
    """See the module."""

    library = "transformers"

    def problems(self) -> list[str]:
        source = self.source
        problems = [*super().problems(), *of_prefix(source), *of_decisions(source)]
        if source.kind not in _STOCK:
            problems.append(f"the class of {source.kind} for classification has other layers than a head")
        problems += of_first_token(source)
        if problems:
            return problems
        layers, function = source.layers(), _STOCK[source.kind][1]
        if source.poolings == (Pooling.POOLER,):
            if len(layers) > 1 or function is not Activation.TANH:
                return [f"its feature is the pooler's, and the class of {source.kind} has no place for its layers"]
        elif len(layers) > 1 and function is not Activation.RELU:
            return [f"it has a hidden layer with a ReLU, and the class of {source.kind} one with another function"]
        elif function is not Activation.TANH and self._needed() > self._width():
            return [f"its layers are too wide for those of a {source.kind} of {self._width():,} numbers"]
        return []

    def write(self, folder: Path) -> None:
        import transformers

        from ..encoders.hf import quiet_transformers

        source, model = self.source, self.source.model
        dense_name, function, last_name = _STOCK[source.kind]
        config = type(model.config).from_dict(model.config.to_dict())
        config.update(source.label_config())
        if source.head.task is Task.MULTI_LABEL:
            config.update({"thresholds": source.least_probabilities()})
        if source.pooled[0].layer is not None:
            config.num_hidden_layers = source.pooled[0].layer
        # A text that is longer than those of training then fails, where a caller forgets `truncation=True`.
        before = model.config.max_position_embeddings - self._positions()
        config.max_position_embeddings = before + source.given.max_length
        made = transformers.AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        classifier = made.eval()
        weights, base = model.state_dict(), classifier.base_model
        kept = {name: weights[name] for name in base.state_dict() if name in weights}
        kept = {n: w[: config.max_position_embeddings] if n.endswith(_POSITIONS) else w for n, w in kept.items()}
        absent = base.load_state_dict(kept, strict=False).missing_keys
        assert all(name.startswith("pooler.") for name in absent), absent
        dense, last = classifier.get_submodule(dense_name), classifier.get_submodule(last_name)
        layers = [step for step in source.steps() if isinstance(step, Linear)]
        if source.poolings == (Pooling.POOLER,):
            pooler = getattr(model.pooler, "dense", model.pooler)
            first, second = Linear(pooler.weight, pooler.bias), layers[0]
        else:
            first, second = _through(layers, function, dense.in_features)
        _fill(dense, first)
        _fill(last, second)
        with quiet_transformers():
            classifier.save_pretrained(folder)
            source.tokenizer.save_pretrained(folder)

    def answers(self, folder: Path, texts: Texts) -> Answers:
        import transformers

        from ..encoders.hf import quiet_transformers

        with quiet_transformers():
            pipe: Any = transformers.pipeline(
                "text-classification", model=str(folder), truncation=True, device="cpu", batch_size=8
            )
        inputs: list[Any] = list(texts.texts)
        if texts.pairs is not None:
            inputs = [{"text": a, "text_pair": b} for a, b in zip(texts.texts, texts.pairs, strict=True)]
        names = list(pipe.model.config.id2label.values())
        scores = [{one["label"]: one["score"] for one in row} for row in pipe(inputs, top_k=None, **_LOGITS)]
        logits = np.array([[row[name] for name in names] for row in scores], np.float32)
        match self.source.head.task:
            case Task.REGRESSION:
                labels: Labels = logits[:, 0].tolist()
            case Task.MULTI_LABEL:
                least = pipe.model.config.thresholds
                said = [{one["label"]: one["score"] for one in row} for row in pipe(inputs, top_k=None)]
                labels = [[name for name in names if row[name] >= least[name]] for row in said]
            case _:
                labels = [one["label"] for one in pipe(inputs)]
        return Answers(logits=logits, labels=labels)

    def usage(self) -> str:
        lines = ["import transformers", "", 'folder = "."  # this folder, or its name on the hub']
        lines.append('classify = transformers.pipeline("text-classification", model=folder, truncation=True)')
        inputs = "texts"
        if self.source.given.pairs:
            inputs = '[{"text": first, "text_pair": second} for first, second in zip(texts, pairs)]'
        match self.source.head.task:
            case Task.REGRESSION:
                lines.append(f'numbers = [found["score"] for found in classify({inputs})]')
            case Task.MULTI_LABEL:
                lines.append("least = classify.model.config.thresholds  # the probability from which on a label counts")
                lines.append(f"scores = classify({inputs}, top_k=None)")
                lines.append(
                    'labels = [[s["label"] for s in row if s["score"] >= least[s["label"]]] for row in scores]'
                )
            case _:
                lines.append(f'labels = [found["label"] for found in classify({inputs})]')
        return "\n".join(lines)

    def _width(self) -> int:
        return int(self.source.head.width)

    def _needed(self) -> int:
        """Numbers that the dense layer must give."""
        layers = self.source.layers()
        return len(layers[0][1]) if len(layers) > 1 else 2 * len(layers[0][1])

    def _positions(self) -> int:
        """Tokens of a text that the encoder has positions for."""
        from ..encoders.hf import most_positions

        return most_positions(self.source.model)


def _through(layers: list[Linear], function: Activation, width: int) -> tuple[Linear, Linear]:
    """Return the dense layer (width, width) and the last layer that give the logits of a head, with a function between.

    A tanh of states that are scaled down is nearly linear: the dense layer is a scaled identity. ReLU and GELU have
    f(z) - f(-z) = z: the dense layer gives each logit and its negative.
    """
    weight, bias = layers[-1].weight, layers[-1].bias
    assert bias is not None
    if function is Activation.TANH:
        return Linear(_SCALE * torch.eye(width), torch.zeros(width)), Linear(weight / _SCALE, bias)
    if len(layers) > 1:
        hidden, shift = layers[0].weight, layers[0].bias
        assert shift is not None
        rows = width - len(shift)
        wide = nn.functional.pad(hidden, (0, 0, 0, rows)), nn.functional.pad(shift, (0, rows))
        return Linear(*wide), Linear(nn.functional.pad(weight, (0, rows)), bias)
    rows, unit = width - 2 * len(bias), torch.eye(len(bias))
    both = torch.cat([weight, -weight]), torch.cat([bias, -bias])
    wide = nn.functional.pad(both[0], (0, 0, 0, rows)), nn.functional.pad(both[1], (0, rows))
    return Linear(*wide), Linear(nn.functional.pad(torch.cat([unit, -unit], 1), (0, rows)), torch.zeros(len(bias)))


def _fill(layer: Any, weights: Linear) -> None:
    """Set the weights of a layer; they must have its shape."""
    with torch.no_grad():
        layer.weight.copy_(weights.weight)
        layer.bias.copy_(weights.bias)
