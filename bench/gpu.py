"""What headstart does on a GPU: one command, one table on stdout, and the same as JSON.

    python bench/gpu.py --out gpu.json
    python bench/gpu.py --device cpu --tiny      # a dry run, in seconds

It runs the checkout that it lies in, installed or not, with torch 2.10 or newer, and without a network. It makes its
input: encoders of the shapes of BERT-base, MiniLM and others with random weights, a tokenizer, and texts of random
characters. So it measures agreement and speed, and no accuracy.

To add a measurement, write a function that yields `Row` for a `Bench`, and put it into `PARTS`. What fails or is absent
becomes a line of the table.
"""

from __future__ import annotations

import argparse
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

ROOT = Path(__file__).resolve().parent.parent
MAX_LENGTH = 128
BATCH_TOKENS = 32768
"""Of the contenders; headstart chooses its own."""
SHAPES: dict[str, dict[str, Any]] = {
    "BERT-base's shape": {},
    "MiniLM's shape": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    "MPNet-base's shape": {"model_type": "mpnet", "max_position_embeddings": 514},
    "ModernBERT-base's shape": {
        "model_type": "modernbert",
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    },
}
TINY = {"tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}}
"""Fields of config.json, BERT's where no ``model_type`` is named, by the name that the table shows."""
Features = npt.NDArray[np.float32]
Encode = Callable[[list[str]], Any]


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
        shapes: Encoders to make, by name.
        texts: Texts to encode.
        labels: A label for each.
        seconds: How long each speed is measured.
        epochs: Epochs of a head.
    """

    device: str
    scratch: Path
    shapes: dict[str, dict[str, Any]]
    texts: list[str]
    labels: list[str]
    seconds: float
    epochs: int

    @functools.cached_property
    def encoders(self) -> dict[str, Path]:
        """Folders of encoders with random weights."""
        from shape import save_bert

        folders = {name: self.scratch / f"encoder{number}" for number, name in enumerate(self.shapes)}
        return {name: save_bert(folders[name], self.texts, **sizes) for name, sizes in self.shapes.items()}

    @functools.cached_property
    def precisions(self) -> list[str]:
        """float32, and what headstart chooses on this device."""
        from headstart.stages.devices import choose_device, choose_precision
        from headstart.stages.settings import Precision

        chosen, _ = choose_precision(Precision.AUTO, choose_device(self.device))
        return list(dict.fromkeys(["float32", chosen.value]))

    @functools.cached_property
    def cache(self) -> Path:
        """A cache of all texts by the first encoder."""
        import headstart

        table = {"text": self.texts, "label": self.labels}
        settings = headstart.ExtractSettings(encoder=str(next(iter(self.encoders.values()))), device=self.device)
        return headstart.extract(table, self.scratch / "cache.h5", settings)


def agreement(bench: Bench) -> Iterator[Row]:
    """The features of headstart beside the features of transformers, which runs alone in float32 on the same device."""
    texts = bench.texts[:300]
    for name, folder in bench.encoders.items():
        expected = Transformers(folder, bench.device, "float32", features=("cls", "mean"), batch_tokens=2048)(texts)
        for precision in bench.precisions:
            encode = Headstart(folder, bench.device, precision, features=("cls", "mean"))
            ours = encode(texts)
            for feature, values in expected.items():
                what = f"{name}, {precision}, {encode.path}: {feature}"
                yield Row("agreement", f"{what}, largest difference", float(np.abs(ours[feature] - values).max()))
                yield Row("agreement", f"{what}, smallest cosine", smallest_cosine(ours[feature], values))


def encoder_speed(bench: Bench) -> Iterator[Row]:
    """Tokens a second from texts to features, tokenizing included."""
    for name, folder in bench.encoders.items():
        for precision in bench.precisions:
            for contender in CONTENDERS:
                what = f"{name}, {precision}: {contender}"
                yield attempt("encoder", what, "tokens/s", measure_encoder, bench, contender, folder, precision)


def extract_speed(bench: Bench) -> Iterator[Row]:
    """The whole of `extract`, from table to cache."""
    import headstart

    record = headstart.open_cache(bench.cache).record
    what = f"{next(iter(bench.shapes))}, {len(bench.texts):,} texts"
    yield Row("extract", f"{what}: from table to cache", record["seconds"], "s")
    yield Row("extract", f"{what}: waited for the encoder", record["encode_seconds"], "s")


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
    "extract": extract_speed,
    "train-head": train_head_speed,
    "sweep": sweep_speed,
}


class Headstart:
    """Texts to features as `headstart extract` makes them: each distinct token sequence once, by length."""

    def __init__(self, folder: Path, device: str, precision: str, features: tuple[str, ...] = ("cls",)) -> None:
        import headstart
        from headstart.stages.encoders.session import EncoderSession

        settings = headstart.ExtractSettings(
            encoder=str(folder), device=device, precision=precision, features=features, max_length=MAX_LENGTH
        )
        self._encoder = EncoderSession(settings).encoder
        self.path = self._encoder.path.value

    def __call__(self, texts: list[str]) -> dict[str, Features]:
        from headstart.stages.encoders.encoder import encode_sequences

        sequences, _ = self._encoder.tokenize(texts)
        return encode_sequences(self._encoder, sequences)


class Transformers:
    """Texts to features by transformers alone: sorted by length, under autocast in half precision."""

    def __init__(
        self,
        folder: Path,
        device: str,
        precision: str,
        features: tuple[str, ...] = ("cls",),
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        import torch
        import transformers

        self._device, self._features, self._batch_tokens = torch.device(device), features, batch_tokens
        self._dtype = getattr(torch, precision)
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        self._model = transformers.AutoModel.from_pretrained(folder).eval().to(self._device)

    def __call__(self, texts: list[str]) -> dict[str, Features]:
        import torch

        ids = self._tokenizer(texts, truncation=True, max_length=MAX_LENGTH)["input_ids"]
        width = self._model.config.hidden_size
        features = {name: np.empty((len(texts), width), np.float32) for name in self._features}
        order = sorted(range(len(ids)), key=lambda row: -len(ids[row]))
        while order:
            count = max(1, self._batch_tokens // len(ids[order[0]]))
            batch, order = order[:count], order[count:]
            inputs = self._tokenizer.pad({"input_ids": [ids[row] for row in batch]}, return_tensors="pt")
            inputs = inputs.to(self._device)
            half = self._dtype != torch.float32
            with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=half):
                hidden = self._model(**inputs).last_hidden_state.float()
            mask = inputs["attention_mask"][..., None]
            pooled = {"cls": hidden[:, 0], "mean": (hidden * mask).sum(1) / mask.sum(1)}
            for name, values in features.items():
                values[batch] = pooled[name].cpu().numpy()
        return features


def sentence_transformers(folder: Path, device: str, precision: str) -> Encode:
    """sentence-transformers' `encode`, with the weights in the precision."""
    import torch
    from sentence_transformers import SentenceTransformer

    options = {"torch_dtype": getattr(torch, precision)}
    model = SentenceTransformer(str(folder), device=device, model_kwargs=options)
    model.max_seq_length = MAX_LENGTH
    return lambda texts: model.encode(texts, batch_size=256, show_progress_bar=False)


CONTENDERS: dict[str, Callable[[Path, str, str], Encode]] = {
    "headstart": Headstart,
    "transformers, sorted by length": Transformers,
    "sentence-transformers, batch 256": sentence_transformers,
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


def smallest_cosine(ours: Features, theirs: Features) -> float:
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
            texts=texts,
            labels=labels,
            seconds=0 if arguments.tiny else 8,
            epochs=2 if arguments.tiny else 50,
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
