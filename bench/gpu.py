"""What headstart does on a GPU: one command, one table on stdout, and the same as JSON.

    python bench/gpu.py --out gpu.json           # begins no part after 7 minutes
    python bench/gpu.py --device cpu --tiny      # a dry run, in half a minute

It runs the checkout that it lies in, installed or not, with torch 2.12 or newer (an older one has no attention without
padding), and without a network. It makes its input: encoders with random weights (`gpu_contenders`), a tokenizer, and
texts of random characters. So it measures agreement and speed, and no accuracy. Where ``.data`` holds the demo's table
and encoder, it extracts these, too.

To add a measurement, write a function that yields `Row` for a `Bench`, and put it into `PARTS`. What fails or is absent
becomes a line of the table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import platform
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gpu_contenders import (
    ARCHITECTURES,
    BERT_BASE,
    CONTENDERS,
    MAX_LENGTH,
    SHAPES,
    TINY,
    Headstart,
    Transformers,
    padded,
    unfused,
)

ROOT = Path(__file__).resolve().parent.parent
FEW = ("bert", "modernbert", "qwen3")
"""Architectures of a dry run."""
MATRIX = 8192
"""Rows and columns of the matrices whose product shows what the card can do in half precision."""
Matrix = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        part: The measurement.
        what: What was measured.
        value: The figure; None where there is none.
        unit: The figure's unit.
        note: Why there is no figure, or what else should be known.
    """

    part: str
    what: str
    value: float | None = None
    unit: str = ""
    note: str = ""

    def markdown(self) -> str:
        """Return the row as a line of the table."""
        return f"| {self.part} | {self.what} | {self._figure()} | {self.note} |"

    def _figure(self) -> str:
        if self.value is None:
            return ""
        if self.unit:
            return f"{self.value:,.0f} {self.unit}" if self.value >= 1000 else f"{self.value:.3g} {self.unit}"
        return f"{self.value:.6f}" if self.value >= 0.001 else f"{self.value:.1e}"


@dataclasses.dataclass(frozen=True)
class Bench:
    """What the parts share.

    Attributes:
        device: The device's name for torch.
        scratch: A folder for encoders, caches and runs.
        shapes: Encoders whose speed is measured, by name.
        architectures: Encoders whose features are compared, by name.
        texts: Texts to encode.
        labels: A label for each.
        seconds: How long each speed is measured.
        epochs: Epochs of a head.
        budget: Seconds for the rungs.
        demo: A folder that may hold the demo's table and encoder; None for a dry run.
    """

    device: str
    scratch: Path
    shapes: dict[str, dict[str, Any]]
    architectures: dict[str, dict[str, Any]]
    texts: list[str]
    labels: list[str]
    seconds: float
    epochs: int
    budget: float
    demo: Path | None

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def make(self, name: str, sizes: dict[str, Any]) -> Path:
        """A folder with an encoder of random weights."""
        from shape import save_bert

        return save_bert(self.scratch / name.replace(" ", "-"), self.texts, **sizes)

    @functools.cached_property
    def encoders(self) -> dict[str, Path]:
        return {name: self.make(name, sizes) for name, sizes in self.shapes.items()}

    @functools.cached_property
    def half(self) -> str:
        """The precision that headstart chooses on this device."""
        from headstart.stages.devices import choose_device, choose_precision
        from headstart.stages.settings import Precision

        return choose_precision(Precision.AUTO, choose_device(self.device))[0].value

    @functools.cached_property
    def table(self) -> dict[str, list[str]]:
        return {"text": self.texts, "label": self.labels}

    @functools.cached_property
    def cache(self) -> Path:
        """A cache of all texts by the first encoder."""
        import headstart

        settings = headstart.ExtractSettings(encoder=str(next(iter(self.encoders.values()))), device=self.device)
        return headstart.extract(self.table, self.scratch / "cache.h5", settings)

    @functools.cached_property
    def matrix_rate(self) -> float:
        """Operations a second in the product of two large square matrices, in the precision that headstart chooses."""
        import torch

        size = MATRIX if self.on_gpu else MATRIX // 32
        one, other = (torch.randn(size, size, device=self.device).to(getattr(torch, self.half)) for _ in range(2))
        seconds: list[float] = []
        for _ in range(20):
            began = mark(self.device)
            one @ other
            seconds.append(elapsed(began, mark(self.device)))
        return 2 * size**3 / float(np.median(seconds))


def agreement(bench: Bench) -> Iterator[Row]:
    """The features of headstart beside the features of transformers, which runs alone in float32 on the same device."""
    texts, features = bench.texts[:200], ("mean", "last")
    for name, sizes in bench.architectures.items():
        try:
            folder = bench.make(name, {"model_type": name, **sizes})
        except (ValueError, KeyError) as error:  # transformers does not know it
            yield Row("agreement", name, note=reason(error))
            continue
        expected = Transformers(folder, bench.device, "float32", features=features, batch_tokens=2048)(texts)
        for precision in ("float32", "bfloat16", "float16") if bench.on_gpu else ("float32",):
            try:
                encode = Headstart(folder, bench.device, precision, features=features)
                ours = encode(texts)
            except Exception as error:
                yield Row("agreement", f"{name}, {precision}", note=reason(error))
                continue
            apart = max(float(np.abs(ours[feature] - expected[feature]).max()) for feature in features)
            cosine = min(smallest_cosine(ours[feature], expected[feature]) for feature in features)
            told = "; ".join([f"smallest cosine {cosine:.6f}", *encode.encoder.notes])
            yield Row("agreement", f"{name}, {precision}, {encode.path}: largest difference", apart, note=told)


def encoder_speed(bench: Bench) -> Iterator[Row]:
    """Tokens a second from texts to features, tokenizing included."""
    for name, folder in bench.encoders.items():
        for precision in dict.fromkeys(["float32", bench.half] if name == BERT_BASE else [bench.half]):
            for contender in CONTENDERS:
                what = f"{name}, {precision}: {contender}"
                yield attempt("encoder", what, "tokens/s", measure_encoder, bench, contender, folder, precision)


def stage_speed(bench: Bench) -> Iterator[Row]:
    """The tokenizer alone and the encoder alone, and what share of the card's rate the encoder reaches."""
    yield attempt("alone", f"{bench.half}: product of large matrices", "TFLOP/s", lambda: bench.matrix_rate / 1e12)
    for name in (name for name in bench.shapes if bench.shapes[name].get("model_type", "bert") == "bert"):
        for way, load in (("packed", Headstart), ("packed, not fused", unfused), ("padded", padded)):
            yield from measure_alone(bench, name, f"{name}, {bench.half}, {way}", load)


def idle_share(bench: Bench) -> Iterator[Row]:
    """How long the device waits for texts, while `extract` runs. What it waits within a pass counts as work."""
    for name, folder in bench.encoders.items():
        yield attempt("idle", f"{name}, {bench.half}: idle while texts are encoded", "%", measure_idle, bench, folder)


def demo_speed(bench: Bench) -> Iterator[Row]:
    """The demo's table and encoder, where `make data` has fetched them."""
    folder = bench.demo
    if folder is None:
        yield Row("demo", "the demo's table", note="left out of a dry run")
    elif not (folder / "vader.csv").is_file() or not (folder / "minilm" / "model.safetensors").is_file():
        yield Row("demo", "the demo's table", note=f"absent: {folder.name} holds no vader.csv and minilm (`make data`)")
    else:
        yield attempt("demo", "vader.csv by MiniLM: from table to cache", "s", measure_demo, bench, folder)


def rungs(bench: Bench) -> Iterator[Row]:
    """The program that `headstart speedup` measures against, rung by rung: an epoch over the texts."""
    import headstart
    import pyarrow
    import pyarrow.csv

    table = bench.scratch / "texts.csv"
    pyarrow.csv.write_csv(pyarrow.table(bench.table), table)
    chosen = {"encoder": str(next(iter(bench.encoders.values()))), "device": bench.device, "budget": bench.budget}
    settings = headstart.SpeedupSettings(**chosen, quality=False, repeats=1)
    folder = headstart.speedup(table, bench.scratch / "speedup", settings)
    measured = json.loads((folder / "speedup.json").read_text(encoding="utf-8"))
    for rung in measured["rungs"]:
        epoch, kept = rung["epoch"], "kept" if rung["kept"] else "taken back"
        value = None if epoch is None else epoch["median"]
        yield Row(
            "rungs", f"an epoch: {rung['rung']}", value, "s", kept if rung["not_run"] is None else rung["not_run"]
        )
    for stage in ("extract", "epoch", "experiment"):
        spread = measured["stages"][stage]
        value = None if spread is None else spread["median"]
        yield Row("rungs", f"headstart: {stage}", value, "s", measured["stages"]["not_run"] or "")


def extract_speed(bench: Bench) -> Iterator[Row]:
    """The whole of `extract`, from table to cache."""
    import headstart

    record = headstart.open_cache(bench.cache).record
    what = f"{next(iter(bench.shapes))}, {len(bench.texts):,} texts"
    yield Row("extract", f"{what}: from table to cache", record["seconds"], "s")
    yield Row("extract", f"{what}: batches were under way", record["encode_seconds"], "s")


def train_head_speed(bench: Bench) -> Iterator[Row]:
    """Heads on the cache, on the device and on the CPU, and how far their weights differ."""
    for solver in ("sgd", "exact"):
        for device in dict.fromkeys((bench.device, "cpu")):
            attempt("train-head", "", "s", measure_head, bench, solver, device)  # libraries load, caches fill
            yield attempt("train-head", f"{solver}, on {device}", "s", measure_head, bench, solver, device)
        if bench.device != "cpu":
            what = f"{solver}: largest difference of a weight from the CPU's"
            yield attempt("train-head", what, "", compare_heads, bench, solver)


def sweep_speed(bench: Bench) -> Iterator[Row]:
    """64 heads on the cache, on the device and on the CPU."""
    for device in dict.fromkeys((bench.device, "cpu")):
        what = f"64 heads x {bench.epochs} epochs, on {device}"
        yield attempt("sweep", what, "s", measure_sweep, bench, device)


PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "agreement": agreement,
    "encoder": encoder_speed,
    "alone": stage_speed,
    "idle": idle_share,
    "extract": extract_speed,
    "demo": demo_speed,
    "train-head": train_head_speed,
    "sweep": sweep_speed,
    "rungs": rungs,
}


def measure_encoder(bench: Bench, contender: str, folder: Path, precision: str) -> float:
    """The median speed over pieces of the texts, in tokens a second; the first piece is not timed."""
    from shape import count_tokens

    encode, count = CONTENDERS[contender](folder, bench.device, precision), count_tokens(folder, MAX_LENGTH)
    pieces = [bench.texts[start : start + 4096] for start in range(0, len(bench.texts), 4096)]
    encode(pieces[0])
    speeds: list[float] = []
    began = time.perf_counter()
    while not speeds or time.perf_counter() - began < bench.seconds:
        piece = pieces[len(speeds) % len(pieces)]
        started = time.perf_counter()
        encode(piece)
        speeds.append(count(piece) / (time.perf_counter() - started))
    return float(np.median(speeds))


def measure_alone(bench: Bench, name: str, what: str, load: Callable[[Path, str, str], Headstart]) -> Iterator[Row]:
    """One encoder's tokenizer, and its passes over token ids that are there already."""
    import torch
    from headstart.stages.encoders.encoder import encode_sequences
    from samples import counted_flop

    encoder = load(bench.encoders[name], bench.device, bench.half).encoder
    texts = bench.texts[: 1 << 14]
    sequences, _ = encoder.tokenize(texts)
    began = time.perf_counter()
    encoder.tokenize(texts)
    yield Row("alone", f"{what}: the tokenizer", len(texts) / (time.perf_counter() - began), "texts/s")
    encode_sequences(encoder, sequences)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if bench.on_gpu else 0
    began = time.perf_counter()
    encode_sequences(encoder, sequences)
    seconds = time.perf_counter() - began
    yield Row("alone", f"{what}: the encoder, from token ids", len(texts) / seconds, "texts/s")
    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, **bench.shapes[name]}
    layers, width, ffn = (sizes[field] for field in ("num_hidden_layers", "hidden_size", "intermediate_size"))
    flop = counted_flop([len(sequence) for sequence in sequences], layers=layers, width=width, ffn=ffn)
    yield Row("alone", f"{what}: work on real tokens", flop / seconds / 1e12, "TFLOP/s")
    yield Row("alone", f"{what}: share of the product's rate", 100 * flop / seconds / bench.matrix_rate, "%")
    if bench.on_gpu:
        taken = (torch.cuda.max_memory_allocated() - held) / encoder.batch_tokens / width
        told = f"batches of {encoder.batch_tokens:,} tokens"
        yield Row("alone", f"{what}: memory, for each token and number of a state", taken, "bytes", told)


def measure_idle(bench: Bench, folder: Path) -> float:
    """Percent of the time from the first pass to the last one's end, in which no pass ran."""
    import headstart
    from headstart.stages.progress import Step

    settings = headstart.ExtractSettings(encoder=str(folder), device=bench.device)
    began = False
    with timed_passes(bench.device) as passes:

        def listen(event: object) -> None:
            nonlocal began
            if isinstance(event, Step) and event.phase == "encoding" and not began:
                passes.clear()  # trials at loading
                began = True

        headstart.extract(bench.table, bench.scratch / "idle.h5", settings, overwrite=True, report=listen)
        busy = sum(elapsed(*each) for each in passes)
        return 100 * max(0.0, 1 - busy / elapsed(passes[0][0], passes[-1][1]))


@contextlib.contextmanager
def timed_passes(device: str) -> Iterator[list[tuple[Any, Any]]]:
    """Meanwhile, note when each pass of an encoder begins and ends on the device."""
    from headstart.stages.encoders.packed.forward import PackedForward
    from headstart.stages.encoders.padded import PaddedForward

    passes: list[tuple[Any, Any]] = []

    def timed(original: Any) -> Any:
        def call(self: Any, sequences: Any) -> Any:
            began = mark(device)
            features = original(self, sequences)
            passes.append((began, mark(device)))
            return features

        return call

    kept = {kind: kind.__call__ for kind in (PackedForward, PaddedForward)}
    for kind, original in kept.items():
        kind.__call__ = timed(original)  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        for kind, original in kept.items():
            kind.__call__ = original  # type: ignore[method-assign]


def mark(device: str) -> Any:
    """A point in the device's work; on a CPU, the time."""
    import torch

    if not device.startswith("cuda"):
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def elapsed(began: Any, ended: Any) -> float:
    """Seconds between two marks."""
    if isinstance(began, float):
        return float(ended - began)
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000


def measure_demo(bench: Bench, folder: Path) -> float:
    import headstart

    settings = headstart.ExtractSettings(encoder=str(folder / "minilm"), device=bench.device)
    out = headstart.extract(folder / "vader.csv", bench.scratch / "demo.h5", settings)
    return float(headstart.open_cache(out).record["seconds"])


def measure_head(bench: Bench, solver: str, device: str) -> float:
    """Seconds of the whole of `train_head`: opening and checking the cache, training, testing, saving."""
    import headstart

    settings = headstart.TrainSettings(device=device, solver=solver, epochs=bench.epochs)
    started = time.perf_counter()
    headstart.train_head(bench.cache, bench.scratch / f"run-{solver}-{device}", settings, overwrite=True)
    return time.perf_counter() - started


def compare_heads(bench: Bench, solver: str) -> float:
    from safetensors.numpy import load_file

    runs = [bench.scratch / f"run-{solver}-{device}" for device in (bench.device, "cpu")]
    ours, cpus = (load_file(run / "head.safetensors")["weight"] for run in runs)
    return float(np.abs(ours - cpus).max())


def measure_sweep(bench: Bench, device: str) -> float:
    """Seconds of the whole of `sweep`."""
    import headstart

    values = {
        "learning_rate": tuple(np.logspace(-4, -1, 8).tolist()),
        "weight_decay": (0.0, 0.01, 0.03, 0.1),
        "dropout": (0.0, 0.3),
    }
    base = headstart.TrainSettings(solver="sgd", device=device, epochs=bench.epochs)
    started = time.perf_counter()
    settings = headstart.SweepSettings(base=base, values=values)
    headstart.sweep(bench.cache, bench.scratch / f"sweep-{device}", settings)
    return time.perf_counter() - started


def smallest_cosine(ours: Matrix, theirs: Matrix) -> float:
    """Of the rows of two matrices (n, width), computed in float64."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def attempt(part: str, what: str, unit: str, measure: Callable[..., float], *arguments: Any) -> Row:
    """Measure; what cannot be measured is a row that says why."""
    try:
        return Row(part, what, measure(*arguments), unit)
    except Exception as error:
        return Row(part, what, note=reason(error))


def reason(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"absent: {error}"
    return f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def run(bench: Bench, parts: Iterable[str], *, minutes: float) -> Iterator[Row]:
    """Run the parts one after the other; no part begins after so many minutes."""
    began = time.perf_counter()
    for part in parts:
        if time.perf_counter() - began > 60 * minutes:
            yield Row(part, "", note=f"left out: {minutes:g} minutes are over")
            continue
        try:
            yield from PARTS[part](bench)
        except Exception as error:
            yield Row(part, "the rest of this part", note=reason(error))


def random_texts(count: int) -> tuple[list[str], list[str]]:
    """Return texts of random characters, and for each one of three labels, by its first character.

    Each character is a token. Half of the texts have at most 24 tokens, and one in twenty is cut at 128.
    """
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(22), 1.05, count), 1, 400).astype(int)
    texts = ["".join(map(chr, rng.integers(0x4E00, 0x4E00 + 3000, length))) for length in lengths]
    return texts, [f"class{ord(text[0]) % 3}" for text in texts]


def header(device: str, bench: Bench) -> dict[str, Any]:
    import torch

    on_cuda = torch.device(device).type == "cuda"
    made = f"encoders with random weights, {len(bench.texts):,} texts of random characters"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else "the CPU (a dry run: no GPU was used)",
        "cuda": torch.version.cuda if on_cuda else None,
        "torch": torch.__version__,
        "transformers": version_or_none("transformers"),
        "sentence-transformers": version_or_none("sentence-transformers"),
        "python": platform.python_version(),
        "headstart": version_or_none("headstart"),
        "cores": os.cpu_count(),
        "input": f"{made}; no accuracy is measured",
    }


def version_or_none(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def put_checkout_on_path(scratch: Path) -> None:
    """Let `import headstart` find this checkout, whatever its folder is called and whether or not it is installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (scratch / "headstart").symlink_to(ROOT, target_is_directory=True)
    metadata = scratch / f"headstart-{project['version']}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: headstart\nVersion: {project['version']}\n", encoding="utf-8")
    sys.path.insert(0, str(scratch))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda", help="a torch device (default: cuda)")
    parser.add_argument("--tiny", action="store_true", help="a tiny encoder and few texts: a dry run")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--minutes", type=float, default=7, help="begin no part after so many minutes")
    parser.add_argument("--out", type=Path, help="write the table as JSON, too")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        put_checkout_on_path(scratch)
        import torch
        import transformers

        transformers.logging.disable_progress_bar()
        if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
            sys.exit("bench/gpu.py: torch finds no CUDA device; --device cpu --tiny is a dry run")
        texts, labels = random_texts(400 if arguments.tiny else 20_000)
        bench = Bench(
            device=arguments.device,
            scratch=scratch,
            shapes=TINY if arguments.tiny else SHAPES,
            architectures={name: ARCHITECTURES[name] for name in FEW} if arguments.tiny else ARCHITECTURES,
            texts=texts,
            labels=labels,
            seconds=0 if arguments.tiny else 3,
            epochs=2 if arguments.tiny else 50,
            budget=8 if arguments.tiny else 60,
            demo=None if arguments.tiny else ROOT / ".data",
        )
        about, rows = header(arguments.device, bench), []
        for name, value in about.items():
            print(f"{name}: {value}")
        print("\n| part | what | figure | note |\n|---|---|---|---|", flush=True)
        for row in run(bench, arguments.parts, minutes=arguments.minutes):
            rows.append(row)
            print(row.markdown(), flush=True)
        if arguments.out:
            document = {"header": about, "rows": [dataclasses.asdict(row) for row in rows]}
            arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
