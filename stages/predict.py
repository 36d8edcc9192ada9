"""The two stages put together on new texts: the encoder that a run names, then its head."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..cache.documents import is_text
from ..cache.errors import EncoderError, IdentityError, OutputExistsError, SettingsError, TableError
from ..cache.identity import differences
from ..cache.layout import storage_errors
from ..cache.lock import hold
from .devices import choose_device
from .encoders.encoder import BatchReport, EncoderSettings, encode_sequences
from .encoders.files import EncoderFiles, find_encoder, recorded_encoder
from .encoders.hf import load_encoder
from .encoders.pooling import parse_features
from .heads.head import Head, load_head
from .progress import Note, Report, Step, silent
from .runs.run import read_run
from .settings import Precision
from .tables.formats import COMPRESSIONS, file_format
from .tables.table import open_table


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a head says of some texts.

    Attributes:
        texts: The texts.
        pairs: The second texts, where the head reads pairs.
        labels: The most probable class of each.
        probabilities: (texts, classes) float32.
        label_names: The classes, in the order of the columns of ``probabilities``.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[str]
    probabilities: npt.NDArray[np.float32]
    label_names: tuple[str, ...]


def predict(
    run: str | Path,
    texts: Sequence[str],
    *,
    pairs: Sequence[str] | None = None,
    encoder: str | None = None,
    device: str = "auto",
    allow_pickled_weights: bool = False,
    report: Report = silent,
) -> Predictions:
    """Classify texts with a run's head, through the encoder that its features came from.

    Args:
        run: The run folder.
        texts: The texts; every one is held in memory, so this is for many thousands, not many millions.
        pairs: The second text of each, where the head was trained on pairs.
        encoder: A folder or hub id, where the one that the run names has moved; it must be the same encoder.
        device: ``auto``, or a torch device.
        allow_pickled_weights: Read a ``pytorch_model.bin`` where the encoder has no safetensors.
        report: Where progress goes.

    Raises:
        IdentityError: the encoder is not the one that the head was trained on.
        EncoderError: it cannot be found or read, or its tokenizer makes no tokens of a text.
        SettingsError: the head was trained on pairs and there are none, or the other way round.
        TableError: a text is blank.
    """
    head = load_head(run)
    if head.identity.pairs != (pairs is not None):
        wanted = "pairs of texts: give a table with `text_pair_column`" if pairs is None else "single texts"
        raise SettingsError(f"{run} was trained on {wanted}")
    if pairs is not None and len(pairs) != len(texts):
        raise SettingsError(f"there are {len(texts):,} texts and {len(pairs):,} second texts; give one for each")
    for what, values in (("text", texts), ("second text", pairs or ())):
        for number, text in enumerate(values, 1):
            if not text.strip():
                raise TableError(f"{what} {number} is blank; give it some words")
            if not is_text(text):
                raise TableError(f"{what} {number} is not UTF-8; mend it, or the terminal's encoding")
    files = _find(Path(run), encoder, allow_pickled_weights)
    _require_same(head, files, Path(run))
    chosen = choose_device(device)
    report(Step("loading the encoder", 0, 0, "files"))
    settings = EncoderSettings(
        features=parse_features(head.identity.features, files.layers()),
        device=chosen,
        precision=Precision(head.identity.precision),
        prefix=head.identity.prefix,
        max_length=head.identity.max_length,
        pairs=head.identity.pairs,
    )
    loaded = load_encoder(files, settings)
    sequences, _ = loaded.tokenize(texts, pairs)
    if empty := [number for number, sequence in enumerate(sequences, 1) if not len(sequence)]:
        raise EncoderError(f"text {empty[0]}: the encoder's tokenizer makes no tokens of it; mend it")
    done = 0

    def count(batch: BatchReport) -> None:
        nonlocal done
        done += len(batch.sequences)
        report(Step("encoding", done, len(sequences), "texts"))

    (features,) = encode_sequences(loaded, sequences, on_batch=count).values()
    probabilities = head.probabilities(features)
    labels = [head.label_names[number] for number in probabilities.argmax(axis=1)]
    return Predictions(list(texts), None if pairs is None else list(pairs), labels, probabilities, head.label_names)


def predict_table(
    run: str | Path,
    table: Any,
    out: str | Path,
    *,
    text_column: str = "text",
    text_pair_column: str | None = None,
    overwrite: bool = False,
    report: Report = silent,
    **options: Any,
) -> Path:
    """Classify a table's texts, and write them to a file with their labels and probabilities.

    Args:
        run: The run folder.
        table: A table as for `extract`; only its texts are read.
        out: The file to write; its name says of which kind. Columns: ``text``, of pairs ``text_pair``, ``label`` and
            one ``probability_NAME`` for each class.
        text_column: Column of the texts.
        text_pair_column: Column of the second texts, where the head was trained on pairs.
        overwrite: Replace the file at ``out``.
        report: Where progress goes.
        options: As for `predict`.
    """
    out = Path(out)
    kind = file_format(out)
    if kind is None or out.suffix.lower() in COMPRESSIONS:
        raise OutputExistsError(f"{out} must end in .csv, .tsv, .jsonl or .parquet")
    if not out.parent.is_dir() or out.is_dir():
        raise OutputExistsError(f"{out} cannot be a file: make its folder first, or choose another `out`")
    if out.exists() and not overwrite:
        raise OutputExistsError(f"{out} exists already; choose another `out`, or pass `overwrite=True`")
    source = open_table(
        table, text_column=text_column, pair_column=text_pair_column, label_column=None, skip_bad_rows=False
    )
    if out.resolve() in [file.resolve() for file in source.files]:
        raise OutputExistsError(f"{out} is the table that is read; choose another `out`")
    texts: list[str] = []
    pairs: list[str] = []
    for rows in source.batches():
        texts += rows.texts
        pairs += rows.pairs or []
    if not texts:
        raise TableError(f"{source.source} has no rows")
    with hold(out, note=lambda text: report(Note(text))):
        return _write_table(run, texts, None if text_pair_column is None else pairs, out, kind, report, options)


def _write_table(
    run: str | Path,
    texts: list[str],
    pairs: list[str] | None,
    out: Path,
    kind: str,
    report: Report,
    options: dict[str, Any],
) -> Path:
    found = predict(run, texts, pairs=pairs, report=report, **options)
    scratch = out.with_name(out.name + ".partial")
    try:
        with storage_errors(f"cannot write {out}"):
            _write(found, scratch, kind)
            scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
    return out


def _find(run: Path, encoder: str | None, allow_pickled_weights: bool) -> EncoderFiles:
    name, revision = (encoder, None) if encoder is not None else recorded_encoder(read_run(run)["encoder"], run)
    return find_encoder(name, revision=revision, allow_pickled_weights=allow_pickled_weights)


def _require_same(head: Head, files: EncoderFiles, run: Path) -> None:
    hashes: dict[str, Any] = dict(files.hashes())
    ours = dataclasses.replace(head.identity, **hashes)
    if clauses := differences(ours, head.identity, our_name=files.name, their_name=str(run)):
        raise IdentityError(
            f"encoder {files.name} is not the one that {run} was trained on: they differ in {'; '.join(clauses)}; "
            "pass the right one with `encoder`"
        )


def _write(found: Predictions, path: Path, kind: str) -> None:
    columns: dict[str, list[Any]] = {"text": found.texts}
    columns |= {} if found.pairs is None else {"text_pair": found.pairs}
    columns["label"] = found.labels
    for number, name in enumerate(found.label_names):
        columns[f"probability_{name}"] = [float(p) for p in found.probabilities[:, number]]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet

        pa.parquet.write_table(pa.table(columns), path)
        return
    rows = zip(*columns.values(), strict=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        if kind == "jsonl":
            file.writelines(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.writer(file, delimiter="\t" if kind == "tsv" else ",", lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)
