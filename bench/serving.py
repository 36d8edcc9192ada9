"""Requests a second and their 99th percentile: the recipe of docs/serving.md, and the same with sentence-transformers.

    .venv/bin/python bench/serving.py [--seconds 10] [--rounds 3] [--clients 1 8 64]

Each contender is one uvicorn process with MiniLM and a head trained on VADER's texts: the page's code; the same code
with SentenceTransformer.encode and a pickled LogisticRegression in place of the model; and the plain way, a function
that encodes the text of its request. The clients are in a process of their own, each with one connection, on which it
sends a text when its last answer has come. Where there are cores enough, one is the clients' and the others are the
server's. Contenders take turns; the median of the rounds is shown.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import pickle
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from facts import cpu_name

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / ".data"
ASKED = 2000
OURS, SAME, PLAIN = "headstart, docs/serving.md", "sentence-transformers, batched so", "sentence-transformers, plain"
PLAIN_APP = """
import pickle
from fastapi import Body, FastAPI
from sentence_transformers import SentenceTransformer

app, encoder = FastAPI(), SentenceTransformer({encoder!r})
with open("head.pkl", "rb") as file:
    head = pickle.load(file)


@app.post("/predict")
def predict(text: str = Body(embed=True)):
    (row,) = head.predict_proba(encoder.encode([text]))
    return {{"label": head.classes_[row.argmax()], "probabilities": dict(zip(head.classes_, row.tolist()))}}
"""
SAME_MODEL = """
import pickle
from sentence_transformers import SentenceTransformer


class Model:
    def __init__(self):
        self.encoder = SentenceTransformer({encoder!r})
        with open("head.pkl", "rb") as file:
            self.head = pickle.load(file)
        self.classes_ = self.head.classes_

    def outputs(self, texts):
        return self.head.predict_proba(self.encoder.encode(texts))

    def predictions(self, outputs):
        return self.classes_[outputs.argmax(axis=1)]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--trained", type=int, default=2000, help="texts that the heads are trained on")
    parser.add_argument("--ask", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.ask:
        texts = json.loads(sys.stdin.read())
        print(json.dumps(asyncio.run(ask(arguments.ask, texts, arguments.clients[0], arguments.seconds))))
        return
    with tempfile.TemporaryDirectory() as name:
        texts = prepare(Path(name), arguments.trained)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        shared = f"{len(cores)} cores, one of them the clients'" if len(cores) > 1 else "the clients share its cores"
        print(f"{cpu_name()}; {shared}; MiniLM, VADER's texts\n")
        print("| clients | way | requests/s | 99th percentile, ms |\n|---|---|---|---|")
        with contextlib.ExitStack() as servers:
            ports = {
                way: servers.enter_context(server(Path(name), module, cores[1:]))
                for way, module in ((OURS, "ours"), (SAME, "same"), (PLAIN, "plain"))
            }
            for clients in arguments.clients:
                found: dict[str, list[list[float]]] = {way: [] for way in ports}
                for _ in range(arguments.rounds):
                    for way, port in ports.items():
                        found[way].append(asked(port, texts, clients, arguments.seconds, cores[:1]))
                for way, each in found.items():
                    rate, late = (statistics.median(values) for values in zip(*each, strict=True))
                    print(f"| {clients} | {way} | {rate:,.0f} | {late:.1f} |", flush=True)


def prepare(folder: Path, trained: int) -> list[str]:
    """Train both heads on the same texts, and write the apps; return other texts to ask for."""
    import headstart
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    encoder = str(DATA / "minilm")
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    order = np.random.default_rng(0).permutation(len(rows))
    chosen = [rows[number] for number in order[:trained]]
    table = {name: [row[name] for row in chosen] for name in ("text", "label")}
    cache = headstart.extract(table, folder / "c.h5", headstart.ExtractSettings(encoder=encoder))
    headstart.train_head(cache, folder / "run")
    head = LogisticRegression(max_iter=1000).fit(SentenceTransformer(encoder).encode(table["text"]), table["label"])
    (folder / "head.pkl").write_bytes(pickle.dumps(head))
    (recipe,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "serving.md").read_text("utf-8"), re.DOTALL)
    (folder / "ours.py").write_text(recipe)
    same = recipe.replace('headstart.load("run")', "Model()").replace("import headstart\n", "")
    same = re.sub(r"    try:\n.*?from None\n", "", same, flags=re.DOTALL)
    same = same.replace('{"tokens": tokens}', '{"tokens": text}')  # characters count for tokens here
    (folder / "same.py").write_text(SAME_MODEL.format(encoder=encoder) + same)
    (folder / "plain.py").write_text(PLAIN_APP.format(encoder=encoder))
    return [rows[number]["text"] for number in order[trained : trained + ASKED]]


@contextlib.contextmanager
def server(folder: Path, module: str, cores: list[int]) -> Iterator[int]:
    """Serve an app; yields its port once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-W", "ignore", "-m", "uvicorn", f"{module}:app", "--port", str(port)]
    process = subprocess.Popen([*command, "--log-level", "error"], cwd=folder)
    pin(process.pid, cores)
    try:
        while process.poll() is None:
            try:
                asked(port, ["ready"], 1, 0.5, [])
                yield port
                return
            except ConnectionError:
                time.sleep(0.1)
        sys.exit(f"the server of {module} ended with {process.returncode}")
    finally:
        process.terminate()
        process.wait()


def pin(process: int, cores: list[int]) -> None:
    if cores:
        os.sched_setaffinity(process, cores)


def asked(port: int, texts: list[str], clients: int, seconds: float, cores: list[int]) -> list[float]:
    """Ask in a process of its own; return the requests a second, and the 99th percentile in ms."""
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))):
        pass
    options = ["--ask", str(port), "--clients", str(clients), "--seconds", str(seconds)]
    command = [sys.executable, __file__, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        pin(process.pid, cores)
        said, _ = process.communicate(json.dumps(texts))
    if process.returncode:
        sys.exit(f"the clients ended with {process.returncode}")
    found: list[float] = json.loads(said)
    return found


async def ask(port: int, texts: list[str], clients: int, seconds: float) -> list[float]:
    """Let some clients ask for so long, after a tenth of it as warm-up."""
    took: list[float] = []
    started = time.perf_counter() + seconds / 10
    end = started + seconds

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        place = number * 37
        while (begun := time.perf_counter()) < end:
            body = json.dumps({"text": texts[place % len(texts)]}).encode()
            place += 1
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
            writer.write(head.encode() + b"\r\n\r\n" + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)[1])  # type: ignore[index]
            said: dict[str, Any] = json.loads(await reader.readexactly(length))
            if "label" not in said:
                raise SystemExit(f"the server answered {said}")
            if begun >= started:
                took.append(time.perf_counter() - begun)
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return [len(took) / seconds, 1000 * float(np.percentile(took, 99))] if took else [0.0, 0.0]


if __name__ == "__main__":
    main()
