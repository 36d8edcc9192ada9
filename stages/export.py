"""`headstart export`: a head, and the encoder below it, in a format of another library."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..cache.errors import ExportError, HeadstartError, SettingsError, TableError, one_line
from .encoders.memory import is_memory_full
from .encoders.session import EncoderSession
from .exporters.card import encoder_name, write_card
from .exporters.check import Comparison, built_in, compare, require_same
from .exporters.exporter import Exporter
from .exporters.source import Source, Texts
from .progress import Action, Note, Outcome, Report, Step, in_notebooks
from .runs.export_folder import EXPORT
from .runs.run import load_head, read_run
from .settings import ExportFormat, ExportSettings, ExtractSettings, settings_from, takes
from .tables.table import open_table

_HOMES = {
    ExportFormat.TRANSFORMERS: ("transformers", "TransformersExporter"),
    ExportFormat.SENTENCE_TRANSFORMERS: ("sentence_transformers", "SentenceTransformersExporter"),
    ExportFormat.ONNX: ("onnx", "OnnxExporter"),
    ExportFormat.TORCH: ("torch", "TorchExporter"),
    ExportFormat.NUMPY: ("numpy", "NumpyExporter"),
}


@takes(ExportSettings)
def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: ExportSettings | None = None,
    *,
    texts: Any = None,
    reading: ExtractSettings | None = None,
    encoder: str | None = None,
    allow_pickled_weights: bool = False,
    overwrite: bool = False,
    wait: bool = False,
    report: Report = in_notebooks,
    **options: Any,
) -> Path:
    """Write a run in a format of another library, and compare what it says with what headstart says.

    Args:
        run: The run folder.
        out: The folder to write.
        settings: The format, and what goes with it; or as keyword arguments.
        texts: A table of texts to compare, as in `extract`; None for built-in ones.
        reading: How to read that table.
        encoder: A folder or hub id, where the encoder is no longer where the run says; it must be the same encoder.
        allow_pickled_weights: Read a ``pytorch_model.bin`` where the encoder has no safetensors.
        overwrite: Replace an export.
        wait: If another run is writing the folder, wait until it has finished.
        report: Receives progress; in a notebook, it is shown without one.
        options: Fields of `ExportSettings`, in place of ``settings``.

    Returns:
        The folder. Its README.md says how to load it.

    Raises:
        SettingsError: the format cannot carry what the run does; the message names the formats that can. Or a library
            is not installed.
        ExportError: the export says something else than headstart; nothing is left of it. Or a library failed.
        FormatError: ``run`` is not a run.
        IdentityError: the encoder is not the one that the head was trained on.
        EncoderError: the encoder cannot be found or read.
        TableError: the texts cannot be read.
        OutputExistsError: the folder exists and may not be replaced.
    """
    run, out, settings = Path(run), Path(out), settings_from(ExportSettings, settings, options)
    format = ExportFormat(str(settings.to))
    with EXPORT.held(out, overwrite=overwrite, wait=wait, report=report):
        source = _open(run, encoder, allow_pickled_weights=allow_pickled_weights, report=report)
        exporter = _exporter(format, source, int8=settings.int8)
        _require_carried(exporter, format, run)
        exporter.require_libraries()
        given = _texts(source, texts, reading or ExtractSettings(), settings.sample, report)
        report(Step("loading the encoder", 0, 0, "files"))
        kept = _with_tokens(source, given)
        report(Step("encoding", 0, len(kept.texts), "texts"))
        ours = source.answers(kept)
        with EXPORT.new(out, overwrite=overwrite) as folder, _library_errors(format):
            report(Step("writing", 0, 0, "files"))
            exporter.write(folder)
            report(Step("comparing", 0, len(kept.texts), "texts"))
            comparison = compare(ours, exporter.answers(folder, kept), source.head.task)
            require_same(comparison, int8=settings.int8)
            title = settings.push.partition("/")[2] if settings.push else out.name
            write_card(folder / "README.md", exporter, comparison, title=title, int8=settings.int8)
            EXPORT.write(folder, _fields(source, format, comparison, int8=settings.int8))
    for note in source.encoder.notes:
        report(Note(note))
    if settings.push is not None:
        with _library_errors(format, f"{out} is written, but not uploaded"):
            report(Step("uploading", 0, 0, "files"))
            push(out, settings.push)
    report(Outcome(command="export", output=out, action=Action.MADE, counts={"texts_compared": comparison.texts}))
    return out


def push(folder: Path, repository: str) -> None:
    """Upload an export to the hub. A new repository is private; of one that is there, files are replaced."""
    import huggingface_hub

    hub = huggingface_hub.HfApi()
    hub.create_repo(repository, private=True, exist_ok=True)
    hub.upload_folder(repo_id=repository, folder_path=str(folder), commit_message="Export of headstart")


def _open(run: Path, encoder: str | None, *, allow_pickled_weights: bool, report: Report) -> Source:
    """Find the encoder of a run. An export computes in float32, so the precision of the features is left aside."""
    head, record = load_head(run), read_run(run)
    session = EncoderSession.from_identity(
        dataclasses.replace(head.identity, precision="float32", quantization="none"),
        record["encoder"],
        where=run,
        encoder=encoder,
        device="cpu",
        allow_pickled_weights=allow_pickled_weights,
        report=report,
    )
    return Source(head, record, session.files, session.encoder_settings)


def _exporter(format: ExportFormat, source: Source, *, int8: bool = False) -> Exporter:
    module, name = _HOMES[format]
    kind = getattr(importlib.import_module(f".exporters.{module}", __package__), name)
    exporter: Exporter = kind(source, int8=True) if int8 else kind(source)
    return exporter


def _require_carried(exporter: Exporter, format: ExportFormat, run: Path) -> None:
    """Refuse a format that cannot carry what the run does; the message names those that can."""
    if not (problems := exporter.problems()):
        return
    able = [f"`to={other}`" for other in ExportFormat if not _exporter(other, exporter.source).problems()]
    raise SettingsError(f"{run} cannot be exported to {format}: {problems[0]}; choose {' or '.join(able)}")


def _texts(source: Source, table: Any, reading: ExtractSettings, most: int, report: Report) -> Texts:
    """Read the texts to compare."""
    pairs = source.given.pairs
    if table is None:
        return built_in(pairs=pairs)
    if pairs != (reading.text_pair_column is not None):
        raise SettingsError(
            "the head was trained on "
            + ("pairs: give `text_pair_column`" if pairs else "single texts, and not on pairs")
        )
    opened = open_table(
        table,
        text_column=reading.text_column,
        pair_column=reading.text_pair_column,
        label_column=None,
        skip_bad_rows=reading.skip_bad_rows,
        settings=reading,
    )
    first: list[str] = []
    second: list[str] = []
    for batch in opened.batches(lambda text: report(Note(text))):
        first += batch.texts[: most - len(first)]
        second += (batch.pairs or [])[: most - len(second)]
        if len(first) == most:
            break
    if not first:
        raise TableError(f"{opened.source} has no rows to compare")
    return Texts(texts=first, pairs=second if pairs else None)


def _with_tokens(source: Source, texts: Texts) -> Texts:
    """Leave out texts of which the tokenizer makes no tokens: they have no features."""
    kept = [place for place, sequence in enumerate(source.tokenize(texts)) if len(sequence)]
    if not kept:
        raise TableError(
            "the encoder's tokenizer makes no tokens of any of the texts to compare; give others as `texts`"
        )
    pairs = None if texts.pairs is None else [texts.pairs[place] for place in kept]
    return Texts(texts=[texts.texts[place] for place in kept], pairs=pairs)


def _fields(source: Source, format: ExportFormat, comparison: Comparison, *, int8: bool) -> dict[str, Any]:
    """Return what ``headstart.json`` says. It names no folder: it goes to others."""
    head = source.head
    return {
        "headstart": version("headstart"),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "to": format,
        "int8": int8,
        "encoder": encoder_name(source.record["encoder"]),
        "identity": dataclasses.asdict(head.identity),
        "task": head.task,
        "label_names": list(head.label_names),
        "thresholds": None if head.thresholds is None else list(head.thresholds),
        "compared": dataclasses.asdict(comparison),
    }


@contextmanager
def _library_errors(format: ExportFormat, what: str = "") -> Iterator[None]:
    """Turn an exception of a format's library into one line."""
    try:
        yield
    except (HeadstartError, OSError):
        raise
    except Exception as error:  # of any kind: it is the library's own code
        if is_memory_full(error):
            raise
        reason = one_line(error)[:200] or type(error).__name__
        raise ExportError(f"{what or f'the export to {format} failed'}: {reason}") from error
