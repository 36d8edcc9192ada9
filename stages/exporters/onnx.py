"""The format ``onnx``: encoder and head in one graph, from token ids to predictions; its tokenizer beside it."""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from ...cache.errors import ExportError, one_line
from ..encoders.modules import ACTIVATIONS
from ..encoders.padded import pool_output
from ..encoders.recipe import Normalize, Truncate
from ..settings import Task
from .exporter import Exporter
from .source import Answers, Linear, Norm, Source, Texts, batches

FILE = "model.onnx"
_OPSET = 17
_LARGEST = 1 << 31
"""Bytes of a file of the format; of a larger graph, the weights stand in a second file."""


class OnnxExporter(Exporter):
    """See the module. With ``int8``, the weights of matrix products are 8-bit integers."""

    library = "onnx"
    needs = ("onnx", "onnxruntime")
    install = "pip install 'headstart[onnx]'"

    def __init__(self, source: Source, *, int8: bool = False) -> None:
        super().__init__(source)
        self.int8 = int8

    def problems(self) -> list[str]:
        numbers = self.int8 and self.source.head.task is Task.REGRESSION
        return [*super().problems(), *(["it predicts numbers, which 8-bit weights would change"] if numbers else [])]

    def write(self, folder: Path) -> None:
        import onnx

        work = folder / "work"
        work.mkdir()
        self._trace(work / FILE)
        graph = onnx.load(work / FILE)
        if self.int8:
            graph = _with_8_bits(graph)
        large = _bytes(work) >= _LARGEST
        onnx.save_model(graph, folder / FILE, save_as_external_data=large, location=f"{FILE}.data")
        shutil.rmtree(work)
        tokenizer = self.source.tokenizer
        tokenizer.save_pretrained(folder)
        backend = tokenizer.backend_tokenizer
        backend.enable_padding(pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
        backend.save(str(folder / "tokenizer.json"))
        config = self.source.model.config
        config.update({**self.source.label_config(), "prefix": self.source.given.prefix})
        (folder / "config.json").write_text(config.to_json_string(use_diff=False), encoding="utf-8")

    def _trace(self, path: Path) -> None:
        graph = _Graph(self.source).eval()
        ids = torch.full((2, 8), 2)
        example = {"input_ids": ids, "attention_mask": ids.triu(diagonal=-6).sign(), "token_type_ids": 0 * ids}
        inputs = tuple(example[name] for name in graph.inputs)
        axes = {name: {0: "batch", 1: "tokens"} for name in graph.inputs}
        with warnings.catch_warnings(), torch.inference_mode(mode=False):
            warnings.simplefilter("ignore")  # of the exporter's own code, and of checks that a trace cannot record
            try:
                torch.onnx.export(
                    graph,
                    inputs,
                    str(path),
                    input_names=list(graph.inputs),
                    output_names=list(graph.outputs),
                    dynamic_axes={**axes, **{name: {0: "batch"} for name in graph.outputs}},
                    opset_version=_OPSET,
                    dynamo=False,  # which takes ten times as long for the same graph
                )
            except RuntimeError as error:  # as for EmbeddingGemma's masks
                raise ExportError(
                    f"torch cannot make a graph of an encoder of this kind, {self.source.kind} ({one_line(error)}); "
                    "choose `to=sentence-transformers` or `to=numpy`"
                ) from error

    def answers(self, folder: Path, texts: Texts) -> Answers:
        import onnxruntime
        import tokenizers

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        session = onnxruntime.InferenceSession(str(folder / FILE), options, providers=["CPUExecutionProvider"])
        tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        logits: list[Any] = []
        predictions: list[Any] = []
        for batch in batches(texts):
            first = [self.source.given.prefix + text for text in batch.texts]
            encodings = tokenizer.encode_batch(
                first if batch.pairs is None else list(zip(first, batch.pairs, strict=True))
            )
            arrays = {
                "input_ids": np.array([encoding.ids for encoding in encodings]),
                "attention_mask": np.array([encoding.attention_mask for encoding in encodings]),
                "token_type_ids": np.array([encoding.type_ids for encoding in encodings]),
            }
            wanted = {one.name: arrays[one.name] for one in session.get_inputs()}
            found = session.run(["logits", "prediction"], wanted)
            logits.append(found[0])
            predictions.append(found[1])
        return Answers(logits=np.concatenate(logits), labels=self.source.names(np.concatenate(predictions)))

    def usage(self) -> str:
        task, given = self.source.head.task, self.source.given
        rows = "[config['prefix'] + text for text in texts]" if given.prefix else "texts"
        of_input = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        inputs = [
            f"    {name!r}: numpy.array([row.{of_input[name]} for row in rows])," for name in _inputs(self.source)
        ]
        last = "labels = [config['id2label'][str(number)] for number in prediction]"
        if task is Task.REGRESSION:
            last = "numbers = prediction.tolist()"
        elif task is Task.MULTI_LABEL:
            last = "labels = [[config['id2label'][str(number)] for number in row.nonzero()[0]] for row in prediction]"
        return "\n".join(
            [
                "import json, numpy, onnxruntime, tokenizers",
                "",
                "config = json.load(open('config.json', encoding='utf-8'))",
                "tokenizer = tokenizers.Tokenizer.from_file('tokenizer.json')  # it cuts and pads",
                f"session = onnxruntime.InferenceSession('{FILE}')",
                f"rows = tokenizer.encode_batch({f'list(zip({rows}, pairs))' if given.pairs else rows})",
                "inputs = {",
                *inputs,
                "}",
                "(prediction,) = session.run(['prediction'], inputs)",
                last,
            ]
        )


class _Graph(nn.Module):
    """(batch, tokens) int64 ids and mask to logits, probabilities and predictions; see `outputs`."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.model, self._head = source.model, source.head
        self.model.set_attn_implementation("eager")
        self._features, self._steps = source.settings.pooled, source.steps()
        self.inputs = _inputs(source)
        self.outputs = ("logits", *(() if source.head.task is Task.REGRESSION else ("probabilities",)), "prediction")
        """``logits`` (batch, biases of the head) float32; ``probabilities`` (batch, classes) float32; ``prediction``:
        (batch,) int64, the numbers of classes, (batch, labels) bool, or (batch,) float32, numbers."""

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = dict(zip(self.inputs, inputs, strict=True))
        inside = any(feature.layer is not None for feature in self._features)
        output = self.model(**named, output_hidden_states=inside)
        pooled = [pool_output(output, named["attention_mask"], feature) for feature in self._features]
        values = torch.cat(pooled, dim=1)
        for step in self._steps:
            match step:
                case Linear():
                    values = ACTIVATIONS[step.activation](functional.linear(values, step.weight, step.bias))
                case Norm():
                    values = functional.layer_norm(values, step.weight.shape, step.weight, step.bias)
                case Normalize():
                    values = functional.normalize(values)
                case Truncate():
                    values = values[:, : step.width]
        return (values, *self._decide(values))

    def _decide(self, logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As `outputs_of` and `Head.predictions`."""
        task, thresholds = self._head.task, self._head.thresholds
        if task is Task.REGRESSION:
            return (logits[:, 0],)
        if task is Task.MULTI_LABEL:
            said = logits.sigmoid()
            return said, said >= torch.tensor(thresholds or [0.5] * len(self._head.label_names))
        if task is Task.ORDINAL:
            above = functional.pad(functional.pad(logits.sigmoid(), (1, 0), value=1.0), (0, 1), value=0.0)
            said = (above[:, :-1] - above[:, 1:]).clamp(min=0)
        else:
            said = logits.softmax(dim=1)
        return said, (said if thresholds is None else said / torch.tensor(thresholds)).argmax(dim=1)


def _with_8_bits(graph: Any) -> Any:
    """Return the graph with 8-bit integers as the weights of its matrix products, each block of 32 with a scale.

    Products are computed in float32. With 8-bit inputs as well, MiniLM gave 4% of the demo's texts other labels.
    """
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)  # without a handler, this import would set up logging for the whole process
    try:
        from onnxruntime.quantization import matmul_nbits_quantizer as quantizers
    finally:
        root.removeHandler(handler)
    config = quantizers.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=8)
    quantizer = quantizers.MatMulNBitsQuantizer(graph, algo_config=config)
    quantizer.process()
    return quantizer.model.model


def _inputs(source: Source) -> tuple[str, ...]:
    """The names of the graph's inputs."""
    segments = source.given.pairs and source.has_segments()
    return "input_ids", "attention_mask", *(["token_type_ids"] if segments else [])


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
