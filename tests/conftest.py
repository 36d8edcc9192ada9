"""What the tests share: the real MiniLM and the real texts, and a tiny random BERT where only shapes matter."""

from __future__ import annotations

import csv
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tiny import save_tiny_encoder

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HEADSTART_CACHE"] = ""  # each test loads its encoder by transformers, and leaves nothing in a home
os.environ["TRITON_INTERPRET"] = "1"  # kernels for GPUs run on the CPU, as plain Python
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Where the tests were started with `&` or `nohup`, what they start would rightly ignore their Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("headstart", deadline=None)  # a busy machine fails no test
hypothesis.settings.load_profile("headstart")

DATA = Path(__file__).resolve().parent.parent / ".data"


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2, as a folder."""
    assert (DATA / "minilm" / "model.safetensors").is_file(), "run `make data` first"
    return DATA / "minilm"


@pytest.fixture(scope="session")
def vader() -> list[dict[str, str]]:
    """The real 23,703 texts with their labels, in the demo's order."""
    with (DATA / "vader.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random BERT, as a folder."""
    return save_tiny_encoder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def write_csv(tmp_path: Path) -> Callable[..., Path]:
    """Write rows of (text, label) to a CSV file."""

    def write(
        rows: list[tuple[str, Any]], name: str = "table.csv", header: tuple[str, ...] = ("text", "label")
    ) -> Path:
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        return path

    return write


@pytest.fixture
def large_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """No table is kept in memory from its first reading: each is read again, as a large one is."""
    from headstart.stages.tables.scan import scan_table

    monkeypatch.setitem(scan_table.__kwdefaults__, "keep_rows", 0)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """Every sequence that the encoder is asked for, in order; its own trials when it is loaded are not counted."""
    from headstart.stages.encoders.backend import Backend

    sequences: list[list[int]] = []
    original = Backend.encode

    def encode(self: Backend, batch: Any) -> Any:
        sequences.extend(sequence.tolist() for sequence in batch)
        return original(self, batch)

    monkeypatch.setattr(Backend, "encode", encode)
    yield sequences


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    """A client of a server of this machine that speaks S3, with a bucket "reviews"; the environment leads to it."""
    import fsspec
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION")
        for name, value in zip(names, ("key", "secret", "token", "us-east-1"), strict=True):
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        s3fs.S3FileSystem.clear_instance_cache()  # one would lead to the server of another file of tests
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.makedirs("reviews", exist_ok=True)
        yield system
    server.stop()
