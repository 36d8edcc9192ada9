"""Bad and hostile inputs, one in each line, and what the command line does with them.

``python tests/bad_inputs.py`` writes the page ``BAD_INPUTS.md``. The tests compare the page with what the code does.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import io
import json
import os
import re
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import typer
from extracting import seal_again
from headstart import cli
from headstart.cache.reader import open_cache
from headstart.cache.writer import CacheWriter
from processes import command_here
from safetensors.numpy import load_file, save_file
from tiny import WORDS, save_tiny_encoder, tiny_rows

GOOD = [(f"a {word} film", f"class{number % 2}") for number, word in enumerate(WORDS)]
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d' * 32}\nsize 12345\n"
PAGE = Path(__file__).with_name("BAD_INPUTS.md")
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a case is made: its own folder, and files that all cases may read."""

    folder: Path
    encoder: Path
    cache: Path
    run: Path

    def write(self, content: bytes | str, name: str = "t.csv") -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def csv(self, rows: Sequence[Sequence[str]], name: str = "t.csv") -> Path:
        buffer = io.StringIO()
        csv.writer(buffer).writerows([("text", "label"), *rows])
        return self.write(buffer.getvalue(), name)

    def copy(self, path: Path, name: str) -> Path:
        shutil.copytree(path, self.folder / name) if path.is_dir() else shutil.copy(path, self.folder / name)
        return self.folder / name


@dataclasses.dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        given: The input, in words.
        make: Makes the input, and returns the arguments of the command.
    """

    given: str
    make: Callable[[Place], list[Any]]


@dataclasses.dataclass(frozen=True)
class Answer:
    """The exit code, and the message, or what was done if there was no error."""

    code: int
    said: str


def table(make: Callable[[Place], Path], *options: Any) -> Callable[[Place], list[Any]]:
    """Extract the table that is made."""
    return lambda place: [
        *("extract", make(place), "--encoder", place.encoder, "--out", place.folder / "out.h5"),
        *("--precision", "float32", *options),
    ]


def rows(*more: Sequence[str], good: int = 18) -> Callable[[Place], list[Any]]:
    """Extract a CSV file of good rows and these."""
    return table(lambda place: place.csv([*GOOD[:good], *more]))


def raw(content: bytes | str, name: str = "t.csv") -> Callable[[Place], list[Any]]:
    """Extract a file of these bytes."""
    return table(lambda place: place.write(content, name))


def parquet(**columns: Any) -> Callable[[Place], list[Any]]:
    """Extract a Parquet file of these columns."""

    def make(place: Place) -> Path:
        pa.parquet.write_table(pa.table(columns), place.folder / "t.parquet")
        return place.folder / "t.parquet"

    return table(make)


QUICK_SGD = ("--solver", "sgd", "--epochs", 2)


def trained(make: Callable[[Place], Path], *options: Any) -> Callable[[Place], list[Any]]:
    """Extract the table that is made, and train a head on it."""

    def arguments(place: Place) -> list[Any]:
        answer = command(table(make)(place), place)
        assert answer.code == 0, answer
        return ["train-head", place.folder / "out.h5", "--out", place.folder / "head", *options]

    return arguments


def encoder(harm: Callable[[Path], Any], *options: str, **made: Any) -> Callable[[Place], list[Any]]:
    """Extract good rows with a copy of the encoder that was harmed, or with another one."""

    def arguments(place: Place) -> list[Any]:
        folder = place.folder / "bert"
        save_tiny_encoder(folder, **made) if made else shutil.copytree(place.encoder, folder)
        harm(folder)
        return ["extract", place.csv(GOOD), "--encoder", folder, "--out", place.folder / "out.h5", *options]

    return arguments


def cache(harm: Callable[[Path], Any], *, sealed: bool = True) -> Callable[[Place], list[Any]]:
    """Train on a copy of the cache that was harmed, and sealed again as whoever harms on purpose would."""

    def arguments(place: Place) -> list[Any]:
        path = place.copy(place.cache, "c.h5")
        harm(path)
        if sealed:
            seal_again(path)
        return ["train-head", path, "--out", place.folder / "head"]

    return arguments


def run(harm: Callable[[Path], Any], *command: str) -> Callable[[Place], list[Any]]:
    """Predict with (or inspect) a copy of the run that was harmed."""

    def arguments(place: Place) -> list[Any]:
        folder = place.copy(place.run, "run")
        harm(folder)
        return [*(command or ("predict",)), folder, *([] if command else ["a good film"])]

    return arguments


def relabelled(content: str, *options: Any) -> Callable[[Place], list[Any]]:
    """Train on the cache with the labels of a CSV file of these bytes."""
    return lambda place: [
        *("train-head", place.cache, "--labels", place.write(content), "--out", place.folder / "head", *options),
    ]


def measured(content: str) -> Callable[[Place], list[Any]]:
    """Measure the speedup on a CSV file of these bytes."""
    return lambda place: [
        *("speedup", place.write(content), "--encoder", place.encoder, "--out", place.folder / "speedup"),
    ]


def audit_of(place: Place) -> list[Any]:
    return ["audit", place.copy(place.cache, "c.h5"), "--out", place.folder / "audit"]


def audited(make: Callable[[Place], Path], *options: Any) -> Callable[[Place], list[Any]]:
    """Extract the table that is made, and audit its labels."""

    def arguments(place: Place) -> list[Any]:
        answer = command(table(make, *options)(place), place)
        assert answer.code == 0, answer
        return ["audit", place.folder / "out.h5", "--out", place.folder / "audit"]

    return arguments


def numbered() -> list[tuple[str, str]]:
    return [(text, f"{number}.5") for number, (text, _) in enumerate(GOOD)]


def pooled(*options: Any) -> Callable[[Place], list[Any]]:
    """Audit with a pool that was extracted with these options."""

    def arguments(place: Place) -> list[Any]:
        answer = command(table(lambda place: place.csv(GOOD), *options)(place), place)
        assert answer.code == 0, answer
        return [*audit_of(place), "--next", 5, "--pool", place.folder / "out.h5"]

    return arguments


def reported(options: Callable[[Place], list[Any]]) -> Callable[[Place], list[Any]]:
    """Write a report with these options."""
    return lambda place: ["report", place.run, "--out", place.folder / "p.html", *options(place)]


def exported(*options: Any) -> Callable[[Place], list[Any]]:
    """Export the run with these options."""
    return lambda place: ["export", place.run, "--out", place.folder / "x", *options]


def harmed_export(harm: Callable[[Path], Any]) -> Callable[[Place], list[Any]]:
    """Export a copy of the run that was harmed."""

    def make(place: Place) -> list[Any]:
        folder = place.copy(place.run, "run")
        harm(folder)
        return ["export", folder, "--out", place.folder / "x", "--to", "torch"]

    return make


def inspected_export(harm: Callable[[Path], Any]) -> Callable[[Place], list[Any]]:
    """Inspect an export that was harmed."""

    def make(place: Place) -> list[Any]:
        answer = command(exported("--to", "numpy")(place), place)
        assert answer.code == 0, answer
        harm(place.folder / "x")
        return ["inspect", place.folder / "x"]

    return make


def inspected_audit(harm: Callable[[Path], Any]) -> Callable[[Place], list[Any]]:
    """Inspect an audit that was harmed."""

    def arguments(place: Place) -> list[Any]:
        answer = command(audit_of(place), place)
        assert answer.code == 0, answer
        harm(place.folder / "audit")
        return ["inspect", place.folder / "audit"]

    return arguments


def predicted(
    content: bytes | str, *options: Any, name: str = "t.csv", out: str = "p.csv"
) -> Callable[[Place], list[Any]]:
    """Classify a table of these bytes with the run."""
    return lambda place: [
        *("predict", place.run, "--input", place.write(content, name), "--out", place.folder / out, *options),
    ]


def thesis_beside(place: Place, name: str) -> list[str]:
    """Put a file of somebody's where `predict` would keep its unfinished work; no more arguments."""
    place.write("my thesis", f"{name}.headstart-partial")
    return []


def nothing(path: Path) -> None:
    """Harm nothing."""


def training_beside(name: str, make: Callable[[Path], Any]) -> Callable[[Place], list[Any]]:
    """Make a file of a user's, and train a head where there is one already."""

    def arguments(place: Place) -> list[Any]:
        head = place.copy(place.run, "head")
        (place.folder / name).parent.mkdir(exist_ok=True)
        make(place.folder / name)
        return ["train-head", place.cache, "--out", head, "--solver", "sgd", "--epochs", 2, "--overwrite"]

    return arguments


def looped(place: Place, name: str) -> Place:
    """Make a symbolic link to itself."""
    (place.folder / name).symlink_to(name)
    return place


def change(name: str, **fields: Any) -> Callable[[Path], None]:
    """Change fields of a folder's JSON file; None takes one away."""

    def harm(folder: Path) -> None:
        found = json.loads((folder / name).read_text()) | fields
        (folder / name).write_text(json.dumps({n: value for n, value in found.items() if value is not None}))

    return harm


def before_release(folder: Path) -> None:
    found = json.loads((folder / "run.json").read_text())
    for name in ("modules_sha256", "model", "prefix_pooled", "truncation_side"):
        del found["identity"][name]
    (folder / "run.json").write_text(json.dumps(found))


def tensors(name: str, make: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Path], None]:
    """Change the tensors of a folder's safetensors file."""

    def harm(folder: Path) -> None:
        save_file(make(load_file(folder / name)), folder / name, metadata={"format": "pt"})

    return harm


def truncated(name: str = "") -> Callable[[Path], None]:
    """Cut a file to its half."""

    def harm(path: Path) -> None:
        file = path / name if name else path
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    return harm


def h5(change: Callable[[h5py.File], Any]) -> Callable[[Path], None]:
    """Change a cache through HDF5."""

    def harm(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return harm


def resealed(**changes: Any) -> Callable[[Path], None]:
    """Change fields of a cache's seal."""
    return lambda path: seal_again(path, **changes)


def instead(name: str, **options: Any) -> Callable[[h5py.File], None]:
    """Put another dataset of the same shape and type in the place of one."""

    def harm(file: h5py.File) -> None:
        shape, kind = file[name].shape, file[name].dtype
        del file[name]
        file.create_dataset(name, **{"shape": shape, "dtype": kind, **options})

    return harm


def linked(file: h5py.File) -> None:
    del file["features/cls"]
    file["features/cls"] = h5py.ExternalLink("/etc/hostname", "/features/cls")


def virtual(file: h5py.File) -> None:
    shape, kind = file["features/cls"].shape, file["features/cls"].dtype
    layout = h5py.VirtualLayout(shape, kind)
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", shape, kind)
    del file["features/cls"]
    file.create_virtual_dataset("features/cls", layout)


def plugin(file: h5py.File) -> None:
    """A dataset whose filter (32,015 is zstandard) would be loaded from a plugin."""
    shape = file["features/cls"].shape
    del file["features/cls"]
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(shape)
    properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, ())
    h5py.h5d.create(file["features"].id, b"cls", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(shape), properties)


def header_of_terabytes(folder: Path) -> None:
    """A safetensors file whose header says that it has 2^60 bytes."""
    (folder / "head.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def head_in_bfloat16(folder: Path) -> None:
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [2, 32], "data_offsets": [0, 128]}}).encode()
    (folder / "head.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(128))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def shards(name: str) -> Callable[[Path], None]:
    """Weights in one shard of this name."""

    def harm(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))

    return harm


def deep_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)


def far_word(folder: Path) -> None:
    found = json.loads((folder / "tokenizer.json").read_text())
    found["model"]["vocab"]["far"] = 999_999
    (folder / "tokenizer.json").write_text(json.dumps(found))


def document(name: str, **fields: Any) -> Callable[[Path], None]:
    """Change fields of a cache's document, with a checksum that holds."""

    def harm(path: Path) -> None:
        found = open_cache(path)
        whole = {"record": found.record, "identity": json.loads(found.identity.to_json())}[name]
        with CacheWriter(path) as writer:
            writer._write_document(name, {**whole, **fields})

    return harm


def one_nan(path: Path) -> None:
    """Make one value of the eighteenth row NaN."""
    found = open_cache(path)
    with CacheWriter(path) as writer:
        features = np.array(found.features())
        features[17, 3] = np.nan
        writer.write_block(0, features={"cls": features}, **found.row_metadata(slice(0, found.rows)))


def code_of_its_own(folder: Path) -> None:
    change("config.json", auto_map={"AutoModel": "modeling.Model"}, model_type="own")(folder)
    (folder / "modeling.py").write_text("raise SystemExit('the code of the folder was run')")


def within(*parts: str) -> Callable[[Path], None]:
    """Move the files of the folder into a folder inside it."""

    def harm(folder: Path) -> None:
        files, inner = list(folder.iterdir()), folder.joinpath(*parts)
        inner.mkdir(parents=True)
        for file in files:
            file.rename(inner / file.name)

    return harm


def hub_cache(folder: Path) -> None:
    """The hub's cache of a model: of two snapshots, the later one is called main."""
    within("snapshots", "89abcdef")(folder)
    shutil.copytree(folder / "snapshots" / "89abcdef", folder / "snapshots" / "01234567")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("89abcdef")


def recipe(kind: str = "Pooling", **pooling: Any) -> Callable[[Path], None]:
    """Add the files of sentence-transformers, with a module after the transformer and its settings."""

    def harm(folder: Path) -> None:
        modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in paths.items()]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **pooling}))

    paths = {"": "Transformer", "1_Pooling": kind}
    return harm


def truncated_to(numbers: Any) -> Callable[[Path], None]:
    """Add the files of sentence-transformers, which cut vectors at so many numbers."""

    def harm(folder: Path) -> None:
        recipe()(folder)
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": numbers}))

    return harm


def static_embedding(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.StaticEmbedding"}]')


def several_features(place: Place) -> list[Any]:
    """Train on a cache of two features without a choice."""
    answer = command([*table(lambda place: place.csv(GOOD))(place), "--features", "cls,mean"], place)
    assert answer.code == 0, answer
    return ["train-head", place.folder / "out.h5", "--out", place.folder / "head", "--solver", "sgd", "--epochs", 2]


def old_sentence_transformer(folder: Path) -> None:
    within("0_Transformer")(folder)
    (folder / "config.json").write_text('{"__version__": "0.2.0"}')
    (folder / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "0_Transformer", "type": "x"}]')


def pointer(name: str) -> Callable[[Path], Any]:
    """Put what Git keeps of a large file in the place of a file."""
    return lambda folder: (folder / name).write_text(POINTER)


def pickled_whole(folder: Path) -> None:
    import torch
    import transformers

    torch.save(transformers.AutoModel.from_pretrained(folder), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def tokenizer(**parts: Any) -> Callable[[Path], None]:
    """Change parts of a folder's tokenizer.json."""
    return change("tokenizer.json", **parts)


def of_class(name: str) -> Callable[[Path], None]:
    """Let a folder's tokenizer be of another class."""
    return change("tokenizer_config.json", tokenizer_class=name)


def without_words(folder: Path) -> None:
    """A tokenizer.json of special tokens alone."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {name: number for number, name in enumerate(names)}
    sizes = {"max_input_chars_per_word": 9, "continuing_subword_prefix": "##"}
    tokenizer(model={"type": "WordPiece", "unk_token": "[UNK]", **sizes, "vocab": vocabulary})(folder)


def without_vocabulary(folder: Path) -> None:
    """The settings of a tokenizer whose vocabulary was left out."""
    (folder / "tokenizer.json").unlink()
    of_class("BertTokenizer")(folder)


def of_another_vocabulary(folder: Path) -> None:
    """A vocab.txt beside the settings of a tokenizer that reads another file."""
    without_vocabulary(folder)
    of_class("AlbertTokenizer")(folder)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))


def without_merges(folder: Path) -> None:
    """A vocab.json that came without its merges.txt."""
    without_vocabulary(folder)
    of_class("RobertaTokenizer")(folder)
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(["<unk>", *WORDS])}))


def of_a_page(folder: Path) -> None:
    """A vocab.txt that is an error page."""
    without_vocabulary(folder)
    (folder / "vocab.txt").write_text("<!DOCTYPE html>\n<html>\n<body>Not found</body>\n</html>\n")


def panicking(folder: Path) -> None:
    """A tokenizer whose Rust code panics when it encodes."""
    piece = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    sides = {side: [piece, {"Sequence": {"id": "A", "type_id": 0}}] for side in ("single", "pair")}
    sides["pair"].append({"Sequence": {"id": "B", "type_id": 0}})
    token = {"id": "[X]", "ids": [1], "tokens": ["[UNK]"]}
    tokenizer(post_processor={"type": "TemplateProcessing", **sides, "special_tokens": {"[X]": token}})(folder)


def relative_positions(folder: Path) -> None:
    """A BERT whose weights have positions that transformers no longer knows."""
    change("config.json", position_embedding_type="relative_key_query")(folder)
    more = {
        f"encoder.layer.{number}.attention.self.distance_embedding.weight": np.ones((255, 16), np.float32)
        for number in range(2)
    }
    tensors("model.safetensors", lambda found: {**found, **more})(folder)


def quantised(folder: Path) -> None:
    tensors(
        "model.safetensors", lambda found: {n: (127 * w).astype(np.int8) if w.ndim > 1 else w for n, w in found.items()}
    )(folder)


def not_a_number(folder: Path) -> None:
    def spoil(found: dict[str, Any]) -> dict[str, Any]:
        found["embeddings.LayerNorm.weight"][:] = np.nan
        return found

    tensors("model.safetensors", spoil)(folder)


def two_rows_a_class(place: Place) -> Path:
    return place.csv([(f"{word} {number}", f"class{number}") for number in range(9) for word in ("good", "bad")])


def adjusted(*options: Any) -> Callable[[Place], list[Any]]:
    """Train a head on the shared cache with these options."""
    return lambda place: ["train-head", place.cache, "--out", place.folder / "head", *options]


def many_classes(place: Place) -> Path:
    return place.csv(
        [(f"{number} {word}", f"class {number}") for number in range(3_000) for word in ("good", "bad", "fine")]
    )


def with_numbers(place: Place, step: float = 0.25) -> Path:
    return place.csv([(text, f"{number * step + 0.5}") for number, (text, _) in enumerate(GOOD)])


def with_lists(place: Place) -> Path:
    lines = (json.dumps({"text": text, "label": ["all", "some"][: 1 + n % 2]}) for n, (text, _) in enumerate(GOOD))
    return place.write("\n".join(lines), "t.jsonl")


TABLES = [
    Case("no column of that name", raw("body,label\ngood film,pos\n")),
    Case("two columns of that name", raw("text,text,label\ngood,film,pos\n")),
    Case("an empty file", raw("")),
    Case("a pipe", table(lambda place: (os.mkfifo(place.folder / "t.csv"), place.folder / "t.csv")[-1])),
    Case("a header only", raw("text,label\n")),
    Case("blank lines only", raw("\n\n\n")),
    Case("semicolons in a .csv", raw("text;label\ngood film;pos\n")),
    Case("tabs in a .csv", raw("text\tlabel\ngood film\tpos\n")),
    Case("UTF-8 with a byte order mark", raw(b"\xef\xbb\xbftext,label\ngood film,pos\nbad film,neg\n")),
    Case("UTF-16", raw("text,label\ngood film,pos\n".encode("utf-16"))),
    Case("UTF-16 without a byte order mark", raw("text,label\ngood film,pos\n".encode("utf-16-le"))),
    Case("UTF-32", raw("text,label\ngood film,pos\n".encode("utf-32"))),
    Case("GBK", raw("text,label\n这个酒店很好,1\n房间太吵了,0\n".encode("gbk"))),
    Case(
        "GBK, and --encoding gbk",
        table(
            lambda place: place.write("text,label\n这个酒店很好,1\n房间太吵了,0\n".encode("gbk")), "--encoding", "gbk"
        ),
    ),
    Case("an unknown encoding", table(lambda place: place.csv(GOOD), "--encoding", "klingon")),
    Case(
        "Latin-1 among UTF-8, and --skip-bad-rows",
        table(lambda place: place.write(b"text,label\ngood film,pos\ncaf\xe9,neg\nbad film,neg\n"), "--skip-bad-rows"),
    ),
    Case("Latin-1 among UTF-8", raw(b"text,label\ngood film,pos\n" + "caf\xe9,neg\n".encode("latin-1"))),
    Case("a NUL byte in a text", raw("text,label\ngood\0film,pos\nbad film,neg\n")),
    Case("NUL bytes only", raw(b"\0" * 5000)),
    Case("a cell of 50 MB, CSV", rows((("g" * 999 + " ") * 50_000, "class0"))),
    Case("a row with a cell too many", raw("text,label\ngood film,pos\nbad, film,neg\n")),
    Case("Excel's note of the delimiter", raw("sep=;\ntext;label\ngood film;pos\n")),
    Case("a row with a cell too few", raw("text,label\ngood film,pos\nbad film\n")),
    Case(
        "rows with too many, too few, and --skip-bad-rows",
        table(
            lambda place: place.write("text,label\ngood film,pos\nbad, film,neg\nbad\nbad film,neg\n"),
            "--skip-bad-rows",
        ),
    ),
    Case("a row with a cell too many, in predict", predicted("text,label\ngood film,pos\nbad, film,neg\n")),
    Case(
        "a row with a cell too many, in train-head --labels", relabelled("text,label\ngood film,pos\nbad, film,neg\n")
    ),
    Case("a quotation mark that is never closed", raw('text,label\ngood film,pos\n"bad film,neg\nfine,pos\n')),
    Case("a quotation mark that is never closed, .tsv", raw('text\tlabel\ngood film\tpos\n"bad film\tneg\n', "t.tsv")),
    Case(
        "quotation marks of a .tsv that enclose cells or not",
        raw('text\tlabel\n"good film\tpos\nbad film\tneg\nfine film"\tpos\n', "t.tsv"),
    ),
    Case("quotation marks within a text, .tsv", raw('text\tlabel\ngood "film"\tpos\nbad film\tneg\n', "t.tsv")),
    Case("line ends of all three kinds", raw("text,label\r\ngood film,pos\nbad film,neg\r\n")),
    Case("no header, .tsv", raw("good film\tpos\nbad film\tneg\n", "t.tsv")),
    Case(
        "no header, .tsv, and --no-header",
        table(
            lambda place: place.write("good film\tpos\nbad film\tneg\n", "t.tsv"),
            *("--no-header", "--text-column", 1, "--label-column", 2),
        ),
    ),
    Case("texts, one a line, .txt", table(lambda place: place.write("good film\nbad film\n", "t.txt"), "--no-labels")),
    Case("texts, one a line, .txt, without --no-labels", raw("good film\nbad film\n", "t.txt")),
    Case("a table as .txt", raw("text\tlabel\ngood film\tpos\n", "t.txt")),
    Case("a header in a .txt", table(lambda place: place.write("text\ngood film\n", "t.txt"), "--no-labels")),
    Case("two characters as --delimiter", table(lambda place: place.csv(GOOD), "--delimiter", "||")),
    Case("--no-quotes for JSON lines", table(lambda place: place.write("{}", "t.jsonl"), "--no-quotes")),
    Case("a header of 320,000 bytes", raw(",".join(f"column {i:08}" for i in range(20_000)) + "\n")),
    Case("a Git LFS pointer", raw("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")),
    Case(
        "a link to itself",
        table(lambda place: ((place.folder / "t.csv").symlink_to("t.csv"), place.folder / "t.csv")[-1]),
    ),
    Case("a name that is not UTF-8", table(lambda place: place.write("text\na\n", os.fsdecode(b"t\xe9.csv")))),
    Case(
        "a column that the second of two tables lacks",
        lambda place: [
            *("extract", place.csv(GOOD), place.write("body,label\ngood film,pos\n", "u.csv")),
            *("--encoder", place.encoder, "--out", place.folder / "caches"),
        ],
    ),
    Case("a .parquet.gz that is compressed as a whole", raw(gzip.compress(b"PAR1"), "t.parquet.gz")),
    Case("a .csv that is compressed in name only", raw("text,label\ngood film,pos\n", "t.csv.gz")),
    Case("a .parquet file that is not Parquet", raw("text,label\ngood film,pos\n", "t.parquet")),
    Case("a .jsonl that is one list", raw('[{"text": "good film", "label": "pos"}]', "t.jsonl")),
    Case("a .jsonl with two labels in an object", raw('{"text": "good film", "label": 1, "label": 0}', "t.jsonl")),
    Case("a .jsonl with a broken line", raw('{"text": "good film", "label": "pos"}\n{"text": \n', "t.jsonl")),
    Case(
        "half of a surrogate pair, .jsonl, and --skip-bad-rows",
        table(
            lambda place: place.write(
                '{"text": "good \\ud83d", "label": 1}\n{"text": "good film", "label": 0}\n', "t.jsonl"
            ),
            "--skip-bad-rows",
        ),
    ),
    Case("a .jsonl that is nested 100,000 deep", raw('{"text": ' + "[" * 100_000 + "\n", "t.jsonl")),
    Case("a .jsonl with a text that is a number", raw('{"text": 5, "label": "pos"}\n', "t.jsonl")),
    Case("texts that are lists", parquet(text=[["good"], ["bad"]], label=["pos", "neg"])),
    Case("a file of another format", raw("text,label\ngood film,pos\n", "t.ods")),
    Case("an .xlsx that is no workbook", raw("text,label\ngood film,pos\n", "t.xlsx")),
    Case("a URL of an unknown kind", table(lambda place: Path("abc://t.csv"))),
    Case(
        "a folder of several formats",
        table(lambda place: (place.csv(GOOD), place.write("{}", "t.jsonl"), place.folder)[-1]),
    ),
    Case("a table that does not exist", table(lambda place: place.folder / "none.csv")),
]
LABELS = [
    Case("no column of labels", raw("text,class\ngood film,pos\n")),
    Case("no column of labels, in train-head --labels", relabelled("text,class\ngood film,pos\n")),
    Case("no column of labels, in speedup", measured("text,class\ngood film,pos\n")),
    Case("a blank label, in train-head --labels", relabelled("text,label\ngood film,pos\nbad film, \n")),
    Case("a blank label, in speedup", measured("text,label\ngood film,pos\nbad film, \n")),
    Case(
        "labels that are 1.0 and 2.0, and a missing one, with --skip-bad-rows",
        table(lambda place: place.write("text,label\ngood film,1.0\nbad film,2.0\nfine,\n"), "--skip-bad-rows"),
    ),
    Case("text among numbers with fractions", rows(("good film", "0.5"), ("bad film", "good"), good=0)),
    Case(
        "text among numbers, with --task regression",
        table(lambda place: place.csv([("good film", "1"), ("bad film", "good")]), "--task", "regression"),
    ),
    Case(
        "a label that is not in the --order",
        table(lambda place: place.csv(GOOD), "--task", "ordinal", "--order", "class0,other"),
    ),
    Case("names for --task ordinal, without --order", table(lambda place: place.csv(GOOD), "--task", "ordinal")),
    Case("--order without --task ordinal", table(lambda place: place.csv(GOOD), "--order", "class0,class1")),
    Case(
        "--label-delimiter with --task classes",
        table(lambda place: place.csv(GOOD), "--label-delimiter", ";", "--task", "classes"),
    ),
    Case("single labels for --task multi-label", table(lambda place: place.csv(GOOD), "--task", "multi-label")),
    Case(
        "several columns of labels, one of which holds text",
        table(lambda place: place.write("text,a,b\ngood film,1,0\nbad film,0,no\n"), "--label-column", "a,b"),
    ),
    Case(
        "several columns of labels, one of which is blank",
        table(lambda place: place.write("text,a,b\ngood film,1,0\nbad film,0,\n"), "--label-column", "a,b"),
    ),
    Case("white space around a label", rows(("good film", "class0 "))),
    Case("an empty label", rows(("good film", ""))),
    Case("a blank label", rows(("good film", " \t"))),
    Case("a label that is null", parquet(text=["good film", "bad film"], label=["pos", None])),
    Case("a label that is missing", raw('{"text": "good film", "label": "pos"}\n{"text": "bad"}\n', "t.jsonl")),
    Case("a label that is NaN", parquet(text=["good film", "bad film"], label=[1.0, float("nan")])),
    Case("the label 'NaN', which is a name", rows(("good film", "NaN"), ("bad film", "NaN"))),
    Case("a label that is infinite", parquet(text=["good film", "bad film"], label=[0.25, float("inf")])),
    Case("numbers with fractions", parquet(text=["good film", "bad film"], label=[0.25, 0.75])),
    Case("lists of labels", parquet(text=["good film", "bad film"], label=[["a", "b"], []])),
    Case("a list of labels that is null", parquet(text=["good film", "bad film"], label=[["a", "b"], None])),
    Case("a list with a blank label", parquet(text=["good film", "bad film"], label=[["a", "b"], [" "]])),
    Case("lists within lists", parquet(text=["good film", "bad film"], label=[[["a"]], [["b"]]])),
    Case("a list within a list, .jsonl", raw('{"text": "good", "label": ["a", ["b"]]}\n', "t.jsonl")),
    Case("lists of 0 and 1 without names", parquet(text=["good film", "bad film"], label=[[1, 0, 1], [0, 0, 0]])),
    Case("lists of numbers with fractions", parquet(text=["good film", "bad film"], label=[[1.0, 0.5], [0.0, 0.5]])),
    Case("labels that are dates", parquet(text=["good"], label=pa.array([0], pa.timestamp("s")))),
    Case("a number of more than 64 bits", raw('{"text": "good", "label": 123456789012345678901}\n', "t.jsonl")),
    Case("a label seen once, in train-head", trained(lambda place: place.csv([*GOOD, ("good film", "rare")]))),
    Case(
        "a label seen once, in train-head --solver sgd",
        trained(lambda place: place.csv([*GOOD, ("good film", "rare")]), *QUICK_SGD),
    ),
    Case(
        "--metric of numbers where each row has one class",
        lambda place: [
            *("train-head", place.copy(place.cache, "c.h5"), "--out", place.folder / "head"),
            *("--metric", "rmse"),
        ],
    ),
    Case("one class only, in train-head", trained(lambda place: place.csv([(text, "pos") for text, _ in GOOD]))),
    Case("two rows a class, in train-head", trained(two_rows_a_class)),
    Case("two rows a class, in train-head --solver sgd", trained(two_rows_a_class, *QUICK_SGD)),
    Case("one row a class, in train-head", trained(lambda place: place.csv([("good film", "a"), ("bad film", "b")]))),
    Case(
        "a label seen once, in speedup",
        lambda place: [
            *("speedup", place.csv([*GOOD, ("good film", "rare")]), "--encoder", place.encoder),
            *("--out", place.folder / "speedup"),
        ],
    ),
    Case("3,000 classes, in train-head", trained(many_classes, *QUICK_SGD)),
    Case(
        "no labels, in train-head",
        lambda place: (
            command([*table(lambda place: place.csv(GOOD))(place), "--no-labels"], place),
            ["train-head", place.folder / "out.h5", "--out", place.folder / "head"],
        )[-1],
    ),
    Case("names, in train-head --task regression", trained(lambda place: place.csv(GOOD), "--task", "regression")),
    Case("one label a row, in train-head --task multi-label", trained(with_numbers, "--task", "multi-label")),
    Case("fractions, in train-head --task classes", trained(with_numbers, "--task", "classes")),
    Case("numbers, in train-head --metric accuracy", trained(with_numbers, "--metric", "accuracy")),
    Case("numbers that are all equal, in train-head", trained(lambda place: with_numbers(place, step=0.0))),
    Case(
        "numbers, in sweep --rank-by accuracy",
        lambda place: ["sweep", *trained(with_numbers)(place)[1:], "--rank-by", "accuracy"],
    ),
    Case("numbers, in train-head --calibrate", trained(with_numbers, "--calibrate", "temperature")),
    Case("numbers, in train-head --class-weight", trained(with_numbers, "--class-weight", "balanced")),
    Case("a label that all rows have, in train-head", trained(with_lists)),
    Case("lists, in train-head --task classes", trained(with_lists, "--task", "classes")),
    Case("the same text with two labels", rows(("good film", "class0"), ("good film", "class1"))),
]
TEXTS = [
    Case("an empty text", rows(("", "class0"))),
    Case("a blank text", rows((" \u3000 ", "class0"))),
    Case("a text that is null", parquet(text=["good film", None], label=["pos", "neg"])),
    Case("emoji only", rows(("\U0001f600\U0001f44d\U0001f3fd", "class0"))),
    Case("right to left", rows(("\u0641\u064a\u0644\u0645 \u062c\u064a\u062f", "class0"))),
    Case("a text that the tokenizer removes completely", rows(("\u200b\u200d\u2060\ufffd", "class0"))),
    Case("a lone surrogate, as bytes", raw(b"text,label\ngood film,pos\n\xed\xa0\x80,neg\n")),
    Case("a lone surrogate, in JSON", raw('{"text": "\\ud800", "label": "pos"}\n', "t.jsonl")),
    Case("special tokens spelt out", rows(("[PAD] [CLS] good [SEP]", "class0"))),
    Case("combining marks by the thousand", rows(("a" + "\u0301" * 5000, "class0"))),
]
ENCODERS = [
    Case("no config.json", encoder(lambda f: (f / "config.json").unlink())),
    Case("no tokenizer", encoder(lambda f: [p.unlink() for p in f.glob("tokenizer*")])),
    Case("no weights", encoder(lambda f: (f / "model.safetensors").unlink())),
    Case("weights that are cut short", encoder(truncated("model.safetensors"))),
    Case("a config.json that is cut short", encoder(truncated("config.json"))),
    Case("a tokenizer.json that is cut short", encoder(truncated("tokenizer.json"))),
    Case("weights of another width", encoder(change("config.json", hidden_size=64))),
    Case("weights of another architecture", encoder(change("config.json", model_type="distilbert"))),
    Case("an unknown architecture", encoder(change("config.json", model_type="no-such-model"))),
    Case("a tokenizer with more tokens than the model", encoder(nothing, vocab_size=20)),
    Case("a decoder", encoder(nothing, kind="gpt2")),
    Case("a decoder, with --features last", encoder(nothing, "--features", "last", kind="gpt2")),
    Case(
        "a decoder whose config.json asks for attention in both directions",
        encoder(change("config.json", use_bidirectional_attention=True), "--features", "last", kind="gpt2"),
    ),
    Case("weights that are not numbers", encoder(not_a_number)),
    Case("weights of 8-bit integers", encoder(quantised)),
    Case("quantised weights, by config.json", encoder(change("config.json", quantization_config={"bits": 4}))),
    Case(
        "weights with and without the model's name before theirs",
        encoder(tensors("model.safetensors", lambda found: found | {f"bert.{n}": w + 1 for n, w in found.items()})),
    ),
    Case("pickled weights only", encoder(pickled)),
    Case("an index of weights that points outside", encoder(shards("../../elsewhere.safetensors"))),
    Case("a model with its own code", encoder(code_of_its_own)),
    Case(
        "a known model with its own code",
        encoder(change("config.json", auto_map={"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"})),
    ),
    Case(
        "a GTE with its own code",
        encoder(change("config.json", model_type="new", auto_map={"AutoConfig": "Alibaba-NLP/new-impl--c.NewConfig"})),
    ),
    Case(
        "a tokenizer with its own code",
        encoder(change("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokens.Slow", "tokens.Fast"]})),
    ),
    Case("a config.json without model_type", encoder(change("config.json", model_type=None))),
    Case("a config.json that is a list", encoder(lambda f: (f / "config.json").write_text("[]"))),
    Case(
        "bert_config.json, and no config.json",
        encoder(lambda f: (f / "config.json").rename(f / "bert_config.json")),
    ),
    Case("the folder of a model in the hub's cache", encoder(hub_cache)),
    Case("a module of sentence-transformers that is not known", encoder(recipe("CNN"))),
    Case("a pooling that is not known", encoder(recipe(pooling_mode="median"))),
    Case("a pooling for another width", encoder(recipe(word_embedding_dimension=7))),
    Case(
        "a prompt that the pooling leaves out, of as many tokens as are read",
        encoder(recipe(include_prompt=False), "--prefix", "very good ", "--max-length", "4"),
    ),
    Case(
        "a prompt that the pooling leaves out, joined to a text's first word",
        lambda place: [
            *("extract", place.csv([*GOOD, ("d film", "class0")], "u.csv")),
            *encoder(recipe(include_prompt=False), "--prefix", "very goo")(place)[2:],
        ],
    ),
    Case("vectors that are cut at no number", encoder(truncated_to("8"))),
    Case("vectors of words, without a transformer", encoder(static_embedding)),
    Case("a cache of two features, neither of them the encoder's own", several_features),
    Case("a pooling of the wrong kind", encoder(recipe(include_prompt="yes"))),
    Case("a folder of sentence-transformers' first releases", encoder(old_sentence_transformer)),
    Case(
        "an empty name of an encoder",
        lambda place: ["extract", place.csv(GOOD), "--encoder", "", "--out", place.folder / "out.h5"],
    ),
    Case("no --encoder", lambda place: ["extract", place.csv(GOOD), "--out", place.folder / "out.h5"]),
    Case("--features model without files that say it", encoder(nothing, "--features", "model")),
    Case("--dropout with the default solver", trained(lambda place: place.csv(GOOD), "--dropout", 0)),
    Case("--head mlp with the default solver", trained(lambda place: place.csv(GOOD), "--head", "mlp")),
    Case("--fold with the default solver", trained(lambda place: place.csv(GOOD), "--folds", 3, "--fold", 2)),
    Case("--metric with another solver", trained(lambda place: place.csv(GOOD), *QUICK_SGD, "--metric", "accuracy")),
    Case("--folds of more than there are texts", trained(lambda place: place.csv(GOOD), "--folds", 300)),
    Case(
        "sweep --lr with solvers that have none",
        lambda place: ["sweep", place.cache, "--out", place.folder / "runs", "--solver", "auto,exact", "--lr", 0.1],
    ),
    Case("train-head --prior of other classes", adjusted("--prior", "class0=0.5,class2=0.5")),
    Case("train-head --prior that does not sum to 1", adjusted("--prior", "class0=0.5,class1=0.6")),
    Case("train-head --precision-floor without a class", adjusted("--precision-floor", "0.9")),
    Case("train-head --precision-floor of an unknown class", adjusted("--precision-floor", "class2=0.9")),
    Case(
        "train-head --decide-by beside --precision-floor",
        adjusted("--decide-by", "accuracy", "--precision-floor", "class1=0.9"),
    ),
    Case(
        "train-head --dims of more numbers than the vectors have",
        lambda place: ["train-head", place.copy(place.cache, "c.h5"), "--out", place.folder / "head", "--dims", 99],
    ),
    Case(
        "sweep --dims of no number",
        lambda place: ["sweep", place.cache, "--out", place.folder / "runs", "--dims", "8,all"],
    ),
    Case("--overlap without --long chunks", table(lambda place: place.csv(GOOD), "--overlap", 5)),
    Case("--chunk-pooling with --long cut", table(lambda place: place.csv(GOOD), "--chunk-pooling", "mean")),
    Case(
        "--long chunks for pairs",
        table(lambda place: place.csv(GOOD), "--long", "chunks", "--text-pair-column", "label", "--no-labels"),
    ),
    Case(
        "--long chunks with an overlap of whole chunks",
        table(lambda place: place.csv(GOOD), "--long", "chunks", "--max-length", 8, "--overlap", 6),
    ),
    Case(
        "--long head-tail with a prefix as long as the text may be",
        table(
            lambda place: place.csv(GOOD), "--long", "head-tail", "--max-length", 8, "--prefix", "the a good film is "
        ),
    ),
    Case("--prompt for an encoder without prompts", encoder(nothing, "--prompt", "query")),
    Case(
        "both --prompt and --prefix", table(lambda place: place.csv(GOOD), "--prompt", "query", "--prefix", "query: ")
    ),
    Case("a config.json that is a Git LFS pointer", encoder(pointer("config.json"))),
    Case("weights that are a Git LFS pointer", encoder(pointer("model.safetensors"))),
    Case("a tokenizer that is a Git LFS pointer", encoder(pointer("tokenizer.json"))),
    Case(
        "a part of a distributed checkpoint",
        encoder(
            lambda f: shutil.copy(f / "model.safetensors", f / "shard-00000-model-00001-of-00001.safetensors"),
        ),
    ),
    Case(
        "a whole model, pickled",
        lambda place: [*encoder(pickled_whole)(place), "--allow-pickled-weights"],
    ),
    Case("other weights, by config.json", encoder(change("config.json", transformers_weights="other.safetensors"))),
    Case("other tokenizers", encoder(change("tokenizer_config.json", fast_tokenizer_files=["tokenizer.9.json"]))),
    Case("another vocabulary", encoder(change("tokenizer_config.json", vocab="elsewhere/vocab.txt"))),
    Case("an index of weights that are pickles", encoder(shards("x.bin"))),
    Case("an index of weights that is nested 100,000 deep", encoder(deep_index)),
    Case("a tokenizer of special tokens alone", encoder(without_words)),
    Case("a tokenizer without its vocabulary", encoder(without_vocabulary)),
    Case("a tokenizer whose vocabulary file is another class's", encoder(of_another_vocabulary)),
    Case("a vocab.json without its merges.txt", encoder(without_merges)),
    Case("a tokenizer.json of another kind than its class", encoder(of_class("RobertaTokenizer"))),
    Case("a vocabulary of 100 tokens, for embeddings of 30,000", encoder(nothing, vocab_size=30_000)),
    Case("a vocab.txt that is a page of HTML", encoder(of_a_page)),
    Case("a tokenizer whose own code panics", encoder(panicking)),
    Case(
        "a tokenizer without the unknown token",
        encoder(tokenizer(model={"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "c"})),
    ),
    Case("weights of relative positions, which transformers ignores", encoder(relative_positions)),
    Case("weights of more layers than config.json says", encoder(change("config.json", num_hidden_layers=1))),
    Case("weights of fewer layers than config.json says", encoder(change("config.json", num_hidden_layers=3))),
    Case("an encoder whose own pass fails", encoder(change("config.json", chunk_size_feed_forward=5))),
    Case(
        "an encoder that cannot read short texts",
        encoder(change("config.json", num_landmarks=16), kind="nystromformer"),
    ),
    Case(
        "a table of words that the encoder does not know",
        table(lambda place: place.csv([(f"\u2603 \u2604 {chr(0x2600 + n)}", f"class{n % 2}") for n in range(120)])),
    ),
    Case("an adapter", encoder(lambda f: (f / "adapter_config.json").write_text("{}"))),
    Case("a tokenizer with a token number far above the others", encoder(far_word)),
    Case("a model for images", encoder(nothing, kind="vit")),
    Case(
        "an encoder in the home of an unknown user",
        lambda place: [
            *("extract", place.csv(GOOD), "--encoder", "~nobody-of-that-name/x", "--out", place.folder / "out.h5"),
        ],
    ),
    Case("an empty folder", encoder(lambda f: [p.unlink() for p in f.iterdir()])),
]
FILES = [
    Case("a cache that is cut short", cache(truncated(), sealed=False)),
    Case(
        "a cache with a flipped bit",
        cache(lambda p: p.write_bytes((c := bytearray(p.read_bytes())) and c[:-1] + bytes([c[-1] ^ 1])), sealed=False),
    ),
    Case("a feature that is not a number, with a checksum that holds", cache(one_nan, sealed=False)),
    Case("an external link, sealed again", cache(h5(linked))),
    Case(
        "external storage, sealed again",
        cache(h5(instead("features/cls", external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]))),
    ),
    Case("a virtual dataset that points outside, sealed again", cache(h5(virtual))),
    Case("a filter that loads a plugin, sealed again", cache(h5(plugin))),
    Case("a shape of 2^62 rows, sealed again", cache(h5(instead("features/cls", shape=(1 << 62, 32), chunks=(1, 32))))),
    Case("a cache in chunks, sealed again", cache(h5(instead("features/cls", chunks=(8, 32))))),
    Case("an identity with an unknown precision", cache(document("identity", precision="x"), sealed=False)),
    Case(
        "a cache with labels of a kind to come",
        cache(resealed(label_kind="spans"), sealed=False),
    ),
    Case("a cache of one file whose seal says that it is joined", cache(resealed(shards=2), sealed=False)),
    Case("an identity of a newer version", cache(document("identity", quantization="int4"), sealed=False)),
    Case("an identity that contradicts itself", cache(document("identity", overlap=7), sealed=False)),
    Case("a record of no rows", cache(document("record", rows=0), sealed=False)),
    Case("a record with an impossible date", cache(document("record", created="some day"), sealed=False)),
    Case("a record of infinite seconds", cache(document("record", seconds=1e999), sealed=False)),
    Case("a record of a negative speed", cache(document("record", tokens_per_second=-1.0), sealed=False)),
    Case("an HDF5 file of another program", cache(lambda p: (p.unlink(), h5py.File(p, "w").close()), sealed=False)),
    Case("a text file as a cache", cache(lambda p: p.write_bytes(b"features"), sealed=False)),
    Case("a folder as a cache", cache(lambda p: (p.unlink(), p.mkdir()), sealed=False)),
    Case("a pipe as a cache", cache(lambda p: (p.unlink(), os.mkfifo(p)), sealed=False)),
    Case("a head that is cut short", run(truncated("head.safetensors"))),
    Case("a head whose header says 2^60 bytes", run(header_of_terabytes)),
    Case(
        "a head of another width",
        run(tensors("head.safetensors", lambda found: {n: np.repeat(v, 2, axis=-1) for n, v in found.items()})),
    ),
    Case(
        "a head of integers",
        run(tensors("head.safetensors", lambda found: {n: v.astype(np.int64) for n, v in found.items()})),
    ),
    Case(
        "a head that is not a number",
        run(tensors("head.safetensors", lambda found: {n: v * np.nan for n, v in found.items()})),
    ),
    Case("a head without a bias", run(tensors("head.safetensors", lambda found: {"weight": found["weight"]}))),
    Case("a head in bfloat16, which numpy lacks", run(head_in_bfloat16)),
    Case(
        "a head that is a pipe", run(lambda f: ((f / "head.safetensors").unlink(), os.mkfifo(f / "head.safetensors")))
    ),
    Case("a run.json that is a pipe", run(lambda f: ((f / "run.json").unlink(), os.mkfifo(f / "run.json")))),
    Case(
        "a run.json that is cut short", run(lambda f: (f / "run.json").write_bytes(b'{"format": "headstart-run", "ver'))
    ),
    Case("a run.json that is nested 100,000 deep", run(lambda f: (f / "run.json").write_text("[" * 100_000))),
    Case("a run.json without its identity", run(change("run.json", identity=None))),
    Case("a run made before version 1 of the format was released", run(before_release)),
    Case(
        "a run.json whose dims are not the head's",
        run(change("run.json", dims={"dims": 99, "of": 100, "normalized": False})),
    ),
    Case("a run.json whose dims are a number", run(change("run.json", dims=8))),
    Case("a run.json of a newer version", run(change("run.json", version=99))),
    Case("a run.json with a class too many", run(change("run.json", label_names=["a", "b", "c"]))),
    Case("a run.json without classes", run(change("run.json", label_names=[]))),
    Case("a run.json with a class twice", run(change("run.json", label_names=["a", "a"]))),
    Case("a run.json with half of a surrogate pair", run(change("run.json", label_names=["\ud800", "b"]))),
    Case("a run.json with a terminal's commands in a class", run(change("run.json", label_names=["\x1b[2J", "b"]))),
    Case(
        "--overwrite of a folder with a foreign run.json",
        lambda place: [
            *("train-head", place.cache, "--out", place.write("{}", "run.json").parent, "--overwrite"),
        ],
    ),
    Case("a run.json with a wrong history, inspected", run(change("run.json", history=["x"]), "inspect")),
    Case("a run.json whose encoder is a list", run(change("run.json", encoder=["../../etc"]))),
    Case("a folder that is not a run", run(lambda f: (f / "run.json").unlink())),
    Case(
        "--out that is a folder with other files",
        lambda place: [
            *("train-head", place.cache, "--out", place.csv(GOOD).parent, "--overwrite"),
        ],
    ),
    Case(
        "--out that is the table",
        lambda place: [
            *("extract", table := place.csv(GOOD), "--encoder", place.encoder, "--out", table, "--overwrite"),
        ],
    ),
]
PREDICTIONS = [
    Case("a table that has a column 'prediction'", predicted(b"text,prediction\ngood film,pos\n")),
    Case("a blank text in a table to classify", predicted(b"text\ngood film\n\nbad film\n")),
    Case(
        "a blank text in a table to classify, with --skip-bad-rows",
        predicted(b"text\ngood film\n\nbad film\n", "--skip-bad-rows"),
    ),
    Case("another column that is not UTF-8", predicted(b"text,note\ngood film,fine\nbad film,caf\xe9\n")),
    Case("NaN in another column, .jsonl", predicted(b'{"text": "good film", "x": NaN}\n', name="t.jsonl")),
    Case("two columns of one name, to .jsonl", predicted(b"text,x,x\ngood film,1,2\n", out="p.jsonl")),
    Case("a name for the predictions that tells no format", predicted(b"text\ngood film\n", out="p.txt")),
    Case("a table to classify that has no column of texts", predicted(b"body\ngood film\n")),
    Case(
        "a file where predict keeps its unfinished work",
        lambda place: [*predicted(b"text\ngood film\n")(place), *thesis_beside(place, "p.csv")],
    ),
    Case("--format of predict without --input -", predicted(b"text\ngood film\n", "--format", "json")),
    Case("--input - with --out", lambda place: ["predict", place.run, "--input", "-", "--out", place.folder / "p.csv"]),
    Case(
        "a label to evaluate that the run does not know",
        lambda place: ["evaluate", place.copy(place.run, "run"), place.csv([("good", "class0"), ("bad", "class9")])],
    ),
    Case("a table to evaluate without labels", lambda place: ["evaluate", place.run, place.write("text\ngood film\n")]),
    Case(
        "--overwrite of evaluate without --out",
        lambda place: ["evaluate", place.run, place.csv(GOOD), "--overwrite"],
    ),
]
OUTPUTS = [
    Case(
        "a file where a run's work folder belongs", training_beside("head.headstart-work", lambda p: p.write_text("a"))
    ),
    Case("somebody's folder there", training_beside("head.headstart-work/mine", lambda p: p.write_text("a"))),
    Case(
        "somebody's file there, beside headstart's mark",
        training_beside(
            "head.headstart-work/thesis.txt",
            lambda p: p.with_name("made-by-headstart").write_text("") or p.write_text("a"),
        ),
    ),
    Case("a link where a lock belongs", training_beside("head.headstart-lock", lambda p: p.symlink_to("elsewhere"))),
    Case("a text file where a lock belongs", training_beside("head.headstart-lock", lambda p: p.write_text("a"))),
    Case(
        "a text file where unfinished work belongs, with --overwrite",
        table(lambda place: place.write("mine", "out.h5.headstart-partial") and place.csv(GOOD), "--overwrite"),
    ),
    Case("notes in a run, with --overwrite", training_beside("head/notes.txt", lambda p: p.write_text("a"))),
    Case("--out that is a link to itself", table(lambda place: looped(place, "out.h5").csv(GOOD))),
    Case(
        "--out of predictions that is a link to itself",
        lambda place: predicted(b"text\ngood film\n")(looped(place, "p.csv")),
    ),
    Case("a run.json of infinite seconds, inspected", run(change("run.json", seconds=1e999), "inspect")),
    Case("a run.json of as many epochs, inspected", run(change("run.json", best_epoch=1e999), "inspect")),
]
AUDITS = [
    Case("a cache without labels", audited(lambda place: place.csv(GOOD), "--no-labels")),
    Case("a cache of numbers", audited(lambda place: place.csv(numbered()), "--task", "regression")),
    Case("a cache of several labels a row", audited(lambda place: place.csv(GOOD), "--label-delimiter", ";")),
    Case("a cache of one class", audited(lambda place: place.csv([(text, "class0") for text, _ in GOOD]))),
    Case("fewer texts than folds", audited(lambda place: place.csv(GOOD[:4]))),
    Case("a label of one text", audited(lambda place: place.csv([*GOOD, ("a good film was fine", "rare")]))),
    Case("--next without --pool", lambda place: [*audit_of(place), "--next", 5]),
    Case("--pool without --next", lambda place: [*audit_of(place), "--pool", place.folder / "c.h5"]),
    Case("a pool of the same texts", lambda place: [*audit_of(place), "--next", 5, "--pool", place.folder / "c.h5"]),
    Case("a pool of another --max-length", pooled("--max-length", 9)),
    Case("--texts without any of the texts", lambda place: [*audit_of(place), "--texts", place.csv([("other", "x")])]),
    Case("--text-column without --texts", lambda place: [*audit_of(place), "--text-column", "body"]),
    Case("--label-column without --labels", lambda place: [*audit_of(place), "--label-column", "view"]),
    Case("--dims more than an audited feature has", lambda place: [*audit_of(place), "--dims", 5000]),
    Case("--similarity 1", lambda place: [*audit_of(place), "--similarity", 1]),
    Case("--out is a run", lambda place: ["audit", place.cache, "--out", place.copy(place.run, "run"), "--overwrite"]),
    Case("an audit.json without its counts", inspected_audit(change("audit.json", issues=None))),
    Case("an audit.json whose counts are texts", inspected_audit(change("audit.json", issues={"label-error": "many"}))),
]
EXPORTS = [
    Case("--to is not given", lambda place: ["export", place.run, "--out", place.folder / "x"]),
    Case("--int8 of another format", exported("--to", "torch", "--int8")),
    Case("--push without a name", exported("--to", "torch", "--push", "mine")),
    Case("--sample without --texts", exported("--to", "torch", "--sample", 5)),
    Case(
        "a cache in place of a run",
        lambda place: ["export", place.copy(place.cache, "c.h5"), "--out", place.folder / "x", "--to", "numpy"],
    ),
    Case(
        "--out of an export is a run",
        lambda place: ["export", place.run, "--out", place.copy(place.run, "run"), "--to", "numpy"],
    ),
    Case(
        "--out of an export is a run, with --overwrite",
        lambda place: ["export", place.run, "--out", place.copy(place.run, "run"), "--to", "numpy", "--overwrite"],
    ),
    Case(
        "--texts without a column of texts",
        lambda place: exported("--to", "numpy", "--texts", place.write("body\ngood film\n"))(place),
    ),
    Case(
        "the encoder of the run is gone",
        harmed_export(change("run.json", encoder={"name": "gone", "folder": "gone", "revision": None})),
    ),
    Case("a head whose weights are cut short", harmed_export(truncated("head.safetensors"))),
    Case(
        "an export.json whose counts are texts, inspected", inspected_export(change("headstart.json", compared="a lot"))
    ),
]
REPORTS = [
    Case("a folder that is no run", lambda place: ["report", place.folder, "--out", place.folder / "p.html"]),
    Case("a page named p.txt", lambda place: ["report", place.run, "--out", place.folder / "p.txt"]),
    Case("a page that is there", lambda place: ["report", place.run, "--out", place.write("mine", "p.html")]),
    Case(
        "a page that is another file, with --overwrite",
        lambda place: ["report", place.run, "--out", place.write("mine", "p.html"), "--overwrite"],
    ),
    Case("the same run twice", lambda place: ["report", place.run, place.run, "--out", place.folder / "p.html"]),
    Case("--texts of other rows", reported(lambda place: ["--texts", place.csv([("other", "x")])])),
    Case("a column of texts without --texts", reported(lambda place: ["--text-column", "body"])),
    Case("--points without --cache", reported(lambda place: ["--points", 9])),
    Case("an audit that is a run", reported(lambda place: ["--audit", place.copy(place.run, "run")])),
    Case(
        "a tracker of another name",
        lambda place: ["train-head", place.cache, "--out", place.folder / "h", "--log", "x"],
    ),
    Case(
        "--log-dir without --log",
        lambda place: ["train-head", place.cache, "--out", place.folder / "h", "--log-dir", place.folder],
    ),
    Case("a cache that is a run", reported(lambda place: ["--cache", place.copy(place.run, "run")])),
]


def sharded(*options: Any) -> Callable[[Place], list[Any]]:
    """Extract good rows in shards."""
    return table(lambda place: place.csv(GOOD), *options)


def swept(*options: Any) -> Callable[[Place], list[Any]]:
    """Sweep over the cache."""
    return lambda place: ["sweep", place.cache, "--out", place.folder / "runs", *options]


def joined(harm: Callable[[Path], Any], *words: str) -> Callable[[Place], list[Any]]:
    """Train on a cache of three shards after its folder was harmed, or run another command on it."""

    def arguments(place: Place) -> list[Any]:
        answer = command(sharded("--shards", 3)(place), place)
        assert answer.code == 0, answer
        harm(place.folder / "out.h5.shards")
        return (
            [*words, place.folder / "out.h5"]
            if words
            else ["train-head", place.folder / "out.h5", "--out", place.folder / "head"]
        )

    return arguments


def appended(
    row: tuple[str, str], *options: Any, harm: Callable[[Path], Any] = lambda folder: None
) -> Callable[[Place], list[Any]]:
    """Append a row to a cache of three shards, after its folder was harmed."""

    def arguments(place: Place) -> list[Any]:
        out = joined(harm)(place)[1]
        return ["extract", place.csv([row], "more.csv"), "--append", "--out", out, *options]

    return arguments


def second(folder: Path) -> Path:
    """The second shard in a folder."""
    return sorted(folder.iterdir())[1]


def swap_shards(folder: Path) -> None:
    first, other, _ = sorted(folder.iterdir())
    first.rename(folder / "x")
    other.rename(first)
    (folder / "x").rename(other)


def link_shard(folder: Path) -> None:
    path = second(folder)
    path.unlink()
    path.symlink_to("/etc/hosts")


STORE = "memory://store"
Objects = Any
"""The file system of the store, with what is in its folder."""


def in_store(harm: Callable[[Objects, list[str]], Any], *words: str) -> Callable[[Place], list[Any]]:
    """Join what a store holds, on another machine, after it was harmed; or run another command there."""

    def arguments(place: Place) -> list[Any]:
        objects = fsspec.filesystem("memory")
        objects.store.clear()
        answer = command(sharded("--shards", 3, "--store", STORE)(place), place)
        assert answer.code == 0, answer
        harm(objects, sorted(objects.ls("/store", detail=False)))
        (place.folder / "out.h5").unlink()
        shutil.rmtree(place.folder / "out.h5.shards")
        if words:
            return [*sharded(*words)(place), "--store", STORE]
        return ["join", place.folder / "out.h5", "--store", STORE]

    return arguments


def cut_object(objects: Objects, names: list[str]) -> None:
    objects.pipe_file(names[1], objects.cat_file(names[1])[:-1])


def swap_objects(objects: Objects, names: list[str]) -> None:
    first, other = (objects.cat_file(name) for name in names[:2])
    objects.pipe({names[0]: other, names[1]: first})


def flip_object(objects: Objects, names: list[str]) -> None:
    """Change the first byte of the features of a shard."""
    content = bytearray(objects.cat_file(names[1]))
    content[json.loads(content[:16368].rstrip(b"\0"))["datasets"][0][0]] ^= 1
    objects.pipe_file(names[1], bytes(content))


SHARDS = [
    Case("more shards than rows", sharded("--shards", 30)),
    Case("--shard 4/3", sharded("--shard", "4/3")),
    Case("--shard three", sharded("--shard", "three")),
    Case("--shard with --shards", sharded("--shard", "1/3", "--shards", 3)),
    Case(
        "several tables with --shards",
        lambda place: [*sharded("--shards", 2)(place), place.csv(GOOD, "other.csv")],
    ),
    Case("--ray without --shards", sharded("--ray", "local")),
    Case("--ray with --shard", sharded("--ray", "local", "--shard", "1/2")),
    Case("--workers without --ray", sharded("--shards", 2, "--workers", 2)),
    Case("--workers 0", sharded("--shards", 2, "--ray", "local", "--workers", 0)),
    Case("sweep --workers without --ray", swept("--workers", 2)),
    Case("sweep --deadline without --ray", swept("--deadline", "30min")),
    Case("sweep --workers 0", swept("--ray", "local", "--workers", 0)),
    Case("sweep --deadline soon", swept("--ray", "local", "--deadline", "soon")),
    Case("--deadline soon", sharded("--shards", 2, "--ray", "local", "--deadline", "soon")),
    Case("--deadline 0", sharded("--shards", 2, "--ray", "local", "--deadline", "0")),
    Case("--array without --shards", sharded("--array")),
    Case("--array with --shard", sharded("--array", "--shard", "1/2")),
    Case("--append with --update", sharded("--append", "--update")),
    Case("--append with --features", appended(("text", "x"), "--features", "mean")),
    Case("--append of a new label", appended(("text", "new"))),
    Case("--append where a shard is missing", appended(("text", "x"), harm=lambda folder: second(folder).unlink())),
    Case(
        "--append to a cache of one file",
        lambda place: ["extract", place.csv(GOOD), "--append", "--out", place.copy(place.cache, "c.h5")],
    ),
    Case("--append where there is no cache", sharded("--append")),
    Case("a shard that was deleted", joined(lambda folder: second(folder).unlink())),
    Case("a shard that was cut short", joined(lambda folder: os.truncate(second(folder), 30_000))),
    Case("two shards that were swapped", joined(swap_shards)),
    Case("a link to a shard elsewhere", joined(link_shard)),
    Case("a text file as a shard", joined(lambda folder: second(folder).write_text("features"))),
    Case("join where a shard is missing", joined(lambda folder: second(folder).unlink(), "join")),
    Case("join where there are no shards", lambda place: ["join", place.folder / "out.h5"]),
    Case("join of a cache of one file", lambda place: ["join", place.copy(place.cache, "c.h5")]),
    Case(
        "a copy of a cache of one file",
        lambda place: ["join", place.copy(place.cache, "c.h5"), "--copy", place.folder / "d.h5"],
    ),
    Case("a copy over another file", lambda p: [*joined(lambda f: None, "join")(p), "--copy", p.write("mine", "d.h5")]),
    Case("join --overwrite without --copy", lambda place: ["join", place.folder / "out.h5", "--overwrite"]),
    Case("--store without shards", sharded("--store", STORE)),
    Case("--store that is a folder", sharded("--shards", 3, "--store", "folder")),
    Case("--store that is the URL of a folder here", sharded("--shards", 3, "--store", "file:///folder")),
    Case("--store of an unknown kind", sharded("--shards", 3, "--store", "abc://folder")),
    Case("--store that takes no files", sharded("--shards", 3, "--store", "data://folder")),
    Case("--store with --append", sharded("--append", "--store", STORE)),
    Case(
        "several tables with --store",
        lambda place: [*sharded("--store", STORE)(place), place.csv(GOOD, "other.csv")],
    ),
    Case("a store with the shards of other rows", in_store(lambda objects, names: None, "--shards", "2")),
    Case("join of a store without shards", in_store(lambda objects, names: objects.rm("/store", recursive=True))),
    Case("join where a shard is missing in the store", in_store(lambda objects, names: objects.rm_file(names[1]))),
    Case("join where a shard was cut short in the store", in_store(cut_object)),
    Case("join where two shards were swapped in the store", in_store(swap_objects)),
    Case("join where a byte of a shard was changed in the store", in_store(flip_object)),
    Case(
        "join where a text file is a shard in the store", in_store(lambda o, names: o.pipe_file(names[1], b"features"))
    ),
    Case("all shards again where one was cut short in the store", in_store(cut_object, "--shards", "3")),
    Case("one shard again where two were swapped in the store", in_store(swap_objects, "--shard", "1/3")),
    Case("join --store that is a folder", lambda place: ["join", place.folder / "out.h5", "--store", "folder"]),
]
GROUPS = {
    "Tables": TABLES,
    "Labels": LABELS,
    "Texts": TEXTS,
    "Encoders": ENCODERS,
    "Caches, heads and runs": FILES,
    "Tables to classify": PREDICTIONS,
    "Audits": AUDITS,
    "Exports": EXPORTS,
    "Reports": REPORTS,
    "Shards": SHARDS,
    "What lies beside an output, and in it": OUTPUTS,
}


def command(arguments: Sequence[Any], place: Place) -> Answer:
    """Run the command line in this process. An error with a traceback passes through."""
    ran = command_here(*arguments)
    said = ran.stderr.replace(f"{place.folder}/", "").replace(str(place.folder), "FOLDER")
    said = re.sub(r"(\d{5})-[0-9a-f]{16}", r"\1-HASH", said)  # of a shard
    if ran.returncode == 0:
        return Answer(0, done(place.folder))
    lines = [line for line in said.splitlines() if line.startswith("headstart: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    require_options(lines[0], ran=str(arguments[0]))
    return Answer(ran.returncode, lines[0].removeprefix("headstart: "))


def require_options(message: str, *, ran: str) -> None:
    """Refuse advice to use an option that the command lacks: the command that a clause names, else the one that ran."""
    for clause in re.split("[;:]", message):
        named = [
            word for word in re.findall(r"\b[a-z-]+\b", clause.replace("extracting", "extract")) if word in COMMANDS
        ]
        parameters = COMMANDS[named[-1] if named else ran].params
        options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
        assert set(re.findall(r"--[a-z][a-z0-9-]+", clause)) <= options, message


def done(folder: Path) -> str:
    """Return what a successful command did."""
    if (folder / "head").exists():
        classes = len(json.loads((folder / "head" / "run.json").read_text())["label_names"])
        return f"a head of {classes:,} classes"
    if (folder / "audit").exists():
        rows = json.loads((folder / "audit" / "audit.json").read_text())["rows"]
        return f"an audit of {rows['audited']:,} rows, of which {rows['judged']:,} were judged"
    if not (folder / "out.h5").exists():
        return "done"
    found = open_cache(folder / "out.h5")
    assert all(np.isfinite(found.features(name)).all() for name in found.layout.widths)
    row_metadata = {
        "rows encoded": found.rows,
        "left out": found.record["skipped_rows"],
        "text with conflicting labels": found.record["conflicting_texts"],
    }
    return ", ".join(f"{count:,} {what}" for what, count in row_metadata.items() if count)


@contextlib.contextmanager
def places(folder: Path) -> Iterator[Callable[[int], Place]]:
    """Make the files that all cases share; yield a function that makes the place of a case."""
    encoder = save_tiny_encoder(folder / "tiny")
    shared = Place(folder, encoder, folder / "cache.h5", folder / "run")
    table = shared.csv(tiny_rows(60), "shared.csv")
    for arguments in (
        ["extract", table, "--encoder", encoder, "--precision", "float32", "--out", shared.cache, "--quiet"],
        ["train-head", shared.cache, "--out", shared.run, "--solver", "sgd", "--epochs", 2, "--quiet"],
    ):
        answer = command(arguments, shared)
        assert answer.code == 0, answer

    def place(number: int) -> Place:
        own = folder / f"case{number}"
        own.mkdir()
        return dataclasses.replace(shared, folder=own)

    yield place


def line(case: Case, place: Place) -> str:
    """Return the line of a case in the page."""
    answer = command(case.make(place), place)
    said = answer.said.replace("|", "\\|")
    return f"| {case.given} | {answer.code} | {said} |"


def page(folder: Path) -> str:
    """Return the whole page."""
    text, number = (__doc__ or "").split("\n\n")[0] + "\n", 0
    with places(folder) as place_of:
        for group, cases in GROUPS.items():
            text += f"\n## {group}\n\n| input | exit code | message, or result |\n|---|---|---|\n"
            for case in cases:
                text += line(case, place_of(number)) + "\n"
                number += 1
    return text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        PAGE.write_text(page(Path(scratch)), encoding="utf-8")
