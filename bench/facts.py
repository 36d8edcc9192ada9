"""What a reader must know to judge a table of speeds: the machine, the versions, and how it was measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from samples import FORMULA

LIBRARIES = ("torch", "transformers", "sentence-transformers", "onnxruntime", "openvino", "headstart")
BACKENDS = (
    "sentence-transformers' own ONNX and OpenVINO backends need optimum-onnx and optimum-intel, whose releases "
    "(0.1.0 and 2.2.0) do not load with transformers 5.23. Here its own sorting, tokenizing, padding and pooling run "
    "around a session of ONNX Runtime (torch.onnx; with and without the fusions of onnxruntime.transformers) and a "
    "compiled model of OpenVINO (openvino.convert_model), both in float32. Batch sizes and graphs are the fastest of "
    "those that each tried on two of the pieces at the start of the run"
)


def facts(title: str, *, cores: int, max_length: int, table: str, drawn: str, rounds: int, checked: int) -> str:
    """A list in Markdown, with a formula for whatever is computed."""
    versions = [f"{name} {found}" for name in LIBRARIES if (found := version_of(name))]
    found = (
        f"Machine: {cpu_name()}, {cores} cores, all of them for every contender; OMP_WAIT_POLICY is "
        f"{os.environ.get('OMP_WAIT_POLICY', 'not set')}",
        f"Versions: Python {platform.python_version()}, {', '.join(versions)}",
        f"{title}. Feature: CLS of the last layer, at most {max_length} tokens a text",
        f"The table: {table}",
        f"Drawn: {drawn}, with every copy",
        f"Timed: texts in, array out, tokenizing included. {rounds} rounds, each contender once a round over the same "
        "piece, in rotating order; figures are medians over the rounds, with quartiles in brackets",
        "Matrix rate: (2048 x 768) by (768 x 3072) in float32 on all cores, right before and right after each piece: "
        f"{rounds} pairs for each contender",
        f"Counted work: {FORMULA}",
        f"Largest difference: of any number in the features of {checked} texts of all lengths from those of plain "
        "transformers, one text at a time, in float32",
        BACKENDS,
    )
    return "".join(f"- {fact}.\n" for fact in found)


def version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
