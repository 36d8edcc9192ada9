"""The contenders: ways to turn texts into the CLS feature of an encoder's last layer, each loaded and ready.

A contender may be run in several ways (batch sizes, graphs); the benchmark tries them and keeps the fastest. Loading
takes place here, outside of what is timed; tokenizing takes place inside. `Alone` runs one in a process of its own, as
those who use it do: what another sets up for itself (threads, the allocator) neither helps nor hinders it there.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from headstart.stages.devices import choose_precision
from headstart.stages.encoders.batching import compose_batches
from headstart.stages.encoders.encoder import EncoderSettings, encode_sequences
from headstart.stages.encoders.files import find_encoder
from headstart.stages.encoders.hf import load_encoder
from headstart.stages.encoders.memory import freed_memory_kept
from headstart.stages.encoders.pooling import parse_features
from headstart.stages.encoders.session import EncoderSession
from headstart.stages.settings import ExtractSettings, Precision

Array = npt.NDArray[np.float32]
Encode = Callable[[list[str]], Array]
"""Texts to (texts, width) float32."""

MAX_LENGTH = 128
BATCH_TOKENS = 2048
BATCH_SIZES = (16, 32, 64)
"""Tried by sentence-transformers, whose own default is 32."""
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclasses.dataclass
class Contender:
    """One that takes part.

    Attributes:
        name: For the table.
        precision: What it computes in.
        ways: How it may be run, by a name for the table.
    """

    name: str
    precision: str
    ways: dict[str, Encode]

    def keep(self, way: str) -> None:
        """Decide for one way, and let go of what the others hold."""
        self.ways = {way: self.ways[way]}


class Alone:
    """A contender in a process of its own, which sleeps while others are timed.

    Attributes:
        name: As of `Contender`.
        precision: As of `Contender`.
        ways: Their names; the first is the one that is run.
    """

    def __init__(self, key: str, folder: Path, scratch: Path) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._process = concurrent.futures.ProcessPoolExecutor(1, spawn, _begin, (key, folder, scratch))
        self.name, self.precision, self.ways = self._process.submit(_described).result()

    @property
    def way(self) -> str:
        return self.ways[0]

    def keep(self, way: str) -> None:
        """Decide for one way, and let go of what the others hold."""
        self.ways = [way]
        self._process.submit(_keep, way).result()

    def encode(self, texts: list[str]) -> Array:
        return self._process.submit(_encode, texts, self.way).result()[0]

    def seconds(self, texts: list[str], way: str | None = None) -> float:
        """What encoding takes there, without what the texts and features take to get there and back."""
        return self._process.submit(_encode, texts, way or self.way).result()[1]

    def end(self) -> None:
        self._process.shutdown()


_here: list[Contender] = []
"""In a contender's own process: the contender."""


def _begin(key: str, folder: Path, scratch: Path) -> None:
    warnings.filterwarnings("ignore")  # exporters warn of their own deprecations
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(CORES)
    _here.append(load(key, folder, scratch))


def _described() -> tuple[str, str, list[str]]:
    return _here[0].name, _here[0].precision, list(_here[0].ways)


def _keep(way: str) -> None:
    _here[0].keep(way)


def _encode(texts: list[str], way: str) -> tuple[Array, float]:
    encode = _here[0].ways[way]
    started = time.perf_counter()
    features = encode(texts)
    return features, time.perf_counter() - started


class Headstart:
    """Ours, as `headstart extract` runs it over a window: each distinct token sequence once, batched by length.

    As in a run, freed memory is kept: from here on for the whole process.
    """

    def __init__(self, folder: Path, precision: Precision, *, int8: bool = False) -> None:
        self._device = torch.device("cpu")
        self._kept = contextlib.ExitStack()
        self._kept.enter_context(freed_memory_kept())
        files = find_encoder(str(folder))
        settings = EncoderSettings(
            features=parse_features(("cls",), files.layers()),
            device=self._device,
            precision=precision,
            int8=int8,
            prefix="",
            max_length=MAX_LENGTH,
        )
        self._encoder = load_encoder(files, settings)

    def __call__(self, texts: list[str]) -> Array:
        return self.encode(texts, "cls")

    def encode(self, texts: list[str], feature: str) -> Array:
        sequences, _ = self._encoder.tokenize(texts)
        return encode_sequences(self._encoder, sequences)[feature]


class OwnVector(Headstart):
    """Ours, and the feature that `headstart extract` takes without an option: the encoder's own vector."""

    def __init__(self, folder: Path, precision: str) -> None:
        self._kept = contextlib.ExitStack()
        self._kept.enter_context(freed_memory_kept())
        settings = ExtractSettings(encoder=str(folder), precision=Precision(precision), features=("model",))
        self._encoder = EncoderSession(settings).encoder
        self.path = self._encoder.path.value

    def __call__(self, texts: list[str]) -> Array:
        return self.encode(texts, "model")


class Plain:
    """transformers as documented."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self.model = load_model(folder)

    def one_at_a_time(self, texts: list[str]) -> Array:
        """What every contender is held against: no padding, no batch."""
        return np.concatenate([self._forward([text], padding=False) for text in texts])

    def padded(self, texts: list[str]) -> Array:
        """The usual loop over a fixed length, in batches of 16, in the order given."""
        parts = [texts[start : start + 16] for start in range(0, len(texts), 16)]
        return np.concatenate([self._forward(part, padding="max_length") for part in parts])

    def sorted(self, texts: list[str]) -> Array:
        """Sorted by length; batches of a number of tokens, padding included."""
        ids = self.tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        features = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for batch in compose_batches(
            np.array([len(sequence) for sequence in ids], np.int64), BATCH_TOKENS, padded=True
        ):
            padded = self.tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt")
            with torch.no_grad():
                features[batch] = self.model(**padded).last_hidden_state[:, 0].numpy()
        return features

    def _forward(self, texts: list[str], *, padding: bool | str) -> Array:
        inputs = self.tokenizer(texts, truncation=True, max_length=MAX_LENGTH, padding=padding, return_tensors="pt")
        with torch.no_grad():
            return self.model(**inputs).last_hidden_state[:, 0].numpy()


class Runtime(torch.nn.Module):
    """Stands where sentence-transformers has its model, and lets another runtime do the work."""

    def __init__(self, config: Any, run: Callable[[dict[str, npt.NDArray[np.int64]]], Array]) -> None:
        super().__init__()
        self.config, self._run = config, run

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **others: Any) -> dict[str, torch.Tensor]:
        segments = others.get("token_type_ids")
        tensors = (input_ids, attention_mask, torch.zeros_like(input_ids) if segments is None else segments)
        states = self._run({name: tensor.numpy() for name, tensor in zip(INPUTS, tensors, strict=True)})
        return {"last_hidden_state": torch.from_numpy(states)}


class Traced(torch.nn.Module):
    """A model as exporters want it: tensors in, the last hidden state out."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = load_model(folder, attn_implementation="eager")  # ONNX Runtime's fusions look for its graph

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.model(**dict(zip(INPUTS, tensors, strict=True))).last_hidden_state
        return states


def load_model(folder: Path, **options: Any) -> Any:
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model.requires_grad_(False)


def example() -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 5 + 18).view(2, 9)
    return dict(zip(INPUTS, (ids, torch.ones_like(ids), torch.zeros_like(ids)), strict=True))


def sentence_transformer(folder: Path) -> Any:
    """CLS pooling and nothing after it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    first = Transformer(str(folder), max_seq_length=MAX_LENGTH)
    return SentenceTransformer(modules=[first, Pooling(first.get_embedding_dimension(), "cls")], device="cpu")


def batch_sizes(model: Any, prefix: str = "") -> dict[str, Encode]:
    def way(size: int) -> Encode:
        return lambda texts: model.encode(texts, batch_size=size, show_progress_bar=False)

    return {f"{prefix}batch {size}": way(size) for size in BATCH_SIZES}


def with_runtime(folder: Path, run: Callable[[dict[str, npt.NDArray[np.int64]]], Array]) -> Any:
    """sentence-transformers' own sorting, tokenizing, padding and pooling around another runtime."""
    outer = sentence_transformer(folder)
    outer[0].model = Runtime(outer[0].model.config, run)
    return outer


def onnx_ways(folder: Path, scratch: Path) -> dict[str, Encode]:
    """The plain graph, which ONNX Runtime optimizes as it loads, and the one that its own tool for BERT has fused."""
    import onnxruntime
    from onnxruntime.transformers import optimizer

    plain, fused = scratch / "plain.onnx", scratch / "fused.onnx"
    traced, axes = Traced(folder), {0: "batch", 1: "length"}
    torch.onnx.export(
        traced,
        tuple(example().values()),
        str(plain),
        input_names=list(INPUTS),
        output_names=["states"],
        dynamic_axes=dict.fromkeys((*INPUTS, "states"), axes),
        dynamo=False,
        opset_version=18,
    )
    config = traced.model.config
    sizes = {"num_heads": config.num_attention_heads, "hidden_size": config.hidden_size}
    found = optimizer.optimize_model(str(plain), model_type="bert", opt_level=1, **sizes)
    found.save_model_to_file(str(fused))
    ways = {}
    for graph in (fused, plain):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = CORES
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        outer = with_runtime(folder, lambda inputs, session=session: session.run(None, inputs)[0])
        ways |= batch_sizes(outer, f"{graph.stem} graph, ")
    return ways


def openvino_ways(folder: Path, calibration: Path | None = None) -> dict[str, Encode]:
    """In float32, or in int8, calibrated by the texts of a file."""
    import openvino

    model = openvino.convert_model(Traced(folder), example_input=tuple(example().values()))
    for tensor, name in zip(model.inputs, INPUTS, strict=True):
        tensor.get_tensor().set_names({name})
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # it takes bfloat16 of itself where the CPU has units for it
        "PERFORMANCE_HINT": "LATENCY",  # what optimum-intel asks for
        "INFERENCE_NUM_THREADS": CORES,
    }
    if calibration is not None:
        model = rounded(model, folder, calibration)
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    return batch_sizes(with_runtime(folder, lambda inputs: np.array(request.infer(inputs, share_inputs=True)[0])))


def rounded(model: Any, folder: Path, calibration: Path) -> Any:
    """A model of OpenVINO in int8, by its own tool, as optimum-intel calls it (`OVStaticQuantizationConfig`)."""
    import nncf

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = json.loads(calibration.read_text(encoding="utf-8"))
    inputs = [dict(tokenizer(text, truncation=True, max_length=MAX_LENGTH, return_tensors="np")) for text in texts]
    for given in inputs:
        given.setdefault("token_type_ids", np.zeros_like(given["input_ids"]))
    dataset = nncf.Dataset([{name: given[name] for name in INPUTS} for given in inputs])
    return nncf.quantize(model, dataset, subset_size=len(texts), model_type=nncf.ModelType.TRANSFORMER)


def load(key: str, folder: Path, scratch: Path) -> Contender:
    """Load a contender.

    Args:
        key: One of `CONTENDERS`; or "own-headstart-" or "own-st-" and a precision: the encoder's own vector, as both
            give it without an option.
        folder: The encoder's files.
        scratch: For what it exports.
    """
    own, _, precision = key.rpartition("-")
    if own == "own-headstart":
        ours = OwnVector(folder, precision)
        return Contender("headstart", precision, {ours.path: ours})
    if own == "own-st":
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": getattr(torch, precision)})
        encode = functools.partial(model.encode, show_progress_bar=False)
        return Contender("sentence-transformers, torch", precision, {"batch 32": encode})
    if key == "baseline":
        return Contender("padded loop", "float32", {f"padded to {MAX_LENGTH}, batch 16": Plain(folder).padded})
    if key == "transformers":
        return Contender("transformers, sorted", "float32", {f"{BATCH_TOKENS:,} padded tokens": Plain(folder).sorted})
    if key == "st-torch":
        return Contender("sentence-transformers, torch", "float32", batch_sizes(sentence_transformer(folder)))
    if key == "st-onnx":
        return Contender("sentence-transformers, ONNX", "float32", onnx_ways(folder, scratch))
    if key == "st-openvino":
        return Contender("sentence-transformers, OpenVINO", "float32", openvino_ways(folder))
    if key == "st-openvino-int8":
        ways = openvino_ways(folder, scratch / CALIBRATION)
        return Contender("sentence-transformers, OpenVINO", "int8", ways)
    if key == "st-bfloat16":
        model = sentence_transformer(folder).to(torch.bfloat16)
        return Contender("sentence-transformers, torch", "bfloat16", batch_sizes(model))
    if key == "headstart-int8":
        ours = Headstart(folder, Precision.FLOAT32, int8=True)
        return Contender("headstart", "int8", {"each sequence once, by length": ours})
    precision = Precision.FLOAT32
    if key == "headstart-auto":
        precision, _ = choose_precision(Precision.AUTO, torch.device("cpu"))
    return Contender("headstart", precision.value, {"each sequence once, by length": Headstart(folder, precision)})


CONTENDERS = (
    *("headstart", "baseline", "transformers", "st-torch", "st-onnx", "st-openvino"),
    *("headstart-auto", "st-bfloat16", "headstart-int8", "st-openvino-int8"),
)
"""Ours in float32, the others in float32, and ours in the precision that it chooses of itself; then others that compute
in less, and ours in int8."""
CALIBRATION = "calibration.json"
"""In the folder for what is exported: texts of the table, by which OpenVINO chooses ranges for int8."""
