"""Section: what was trained on what, and what the encoder did for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ...cache.identity import MODEL, computed_in
from ..settings import Task
from ..units import duration
from .html import Html, details, join, paragraph, table, terms
from .subject import Record, Section, Subject

_HASHES = ("weights_sha256", "config_sha256", "tokenizer_sha256", "modules_sha256")


def section(subject: Subject, cache: Record | None) -> Section:
    """What a run was trained on. ``cache`` is what its cache records, if it was given."""
    run, identity, rows = subject.run, subject.run["identity"], subject.run["rows"]
    dims = run.get("dims")
    shown = {
        "encoder": file_name(run["encoder"]["name"]),
        "encoder's revision": run["encoder"].get("revision"),
        "feature": run["settings"]["feature"],
        "the encoder's own vector": run["encoder"].get("model") if run["settings"]["feature"] == MODEL else None,
        "numbers of each vector": f"the first {dims['dims']:,} of {dims['of']:,}" if dims else None,
        "cache": file_name(run["cache"]) if "cache" in run else None,
        "labels from": file_name(run["labels"]["table"]) if run.get("labels") else None,
        "task": subject.task,
        "head": _head(run),
        "rows": _rows(run, rows),
        "left out": f"{rows['shared']:,} training rows whose text is a test or validation row"
        * bool(rows.get("shared"))
        or None,
        "precision of the encoder": computed_in(identity["precision"], identity["quantization"]),
        "tokens of a text": _tokens(identity),
        "trained": f"{run['created'].replace('T', ' ').split('+')[0]} UTC by headstart {run['headstart']}, "
        f"in {duration(run['seconds'])} on {run['machine']['device']}"
        if "machine" in run
        else None,
    }
    if cache is not None:
        widths = ", ".join(f"{name} x {width}" for name, width in cache["features"].items())
        shown["cache"] = f"{file_name(cache['path'])}: {cache['rows']:,} rows in {cache['storage']}; {widths}"
    whole = {name: value for name, value in identity.items() if value is not None}
    hashes = table("Identity of the features: another one is refused", ["field", "value"], _lines(whole))
    settings = table("All settings of the training", ["setting", "value"], _lines(run["settings"]))
    more = [details("Identity of the features (hashes)", hashes), details("Settings", settings)]
    return Section("data", "Trained on", join([terms(shown), _labels(subject, cache), *more]))


def file_name(path: str) -> str:
    """The last part of a path: where a file lies on a machine is nobody else's concern. A hub id stays whole."""
    given = PurePath(path)
    return given.name if given.is_absolute() or path.startswith(".") or "\\" in path else path


def _head(run: Record) -> str:
    settings, found = run["settings"], run.get("search")
    scaling = run.get("scaling", "none")
    kind = settings["head"] + ("" if scaling == "none" else f", {scaling} vectors")
    penalty = (found or {}).get("choice") or {}
    chosen = f", penalty {penalty['l2']:.3g} chosen among {len(found['candidates']):,}" if penalty and found else ""
    return f"{kind}, solver {settings['solver']}{chosen}"


def _rows(run: Record, rows: Mapping[str, int]) -> str:
    found = run.get("search") or {}
    held = f"{rows['validation']:,} to choose by" if rows["validation"] else ""
    folds = f"{found['rows']:,} of the former in {found['folds']} folds to choose by" if found.get("folds") else ""
    return ", ".join(filter(None, (f"{rows['train']:,} to train on", held or folds, f"{rows['test']:,} to test on")))


def _tokens(identity: Record) -> str | None:
    if "max_length" not in identity:
        return None
    ways = {"cut": "longer texts are cut", "head-tail": "of longer texts the first and last", "chunks": "in chunks"}
    return f"at most {identity['max_length']}; {ways.get(identity.get('long', 'cut'), '')}"


def _lines(fields: Mapping[str, Any]) -> list[Sequence[object]]:
    return [[name, _value(value)] for name, value in fields.items()]


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)


def _labels(subject: Subject, cache: Record | None) -> Html:
    """How many rows have each label, in each part that is known."""
    if subject.task is Task.REGRESSION:
        numbers = (subject.test or subject.chosen_by) and [
            [part, len(rows), min(rows.columns["label"]), max(rows.columns["label"])]
            for part, rows in (("rows to choose by", subject.chosen_by), ("test rows", subject.test))
            if rows is not None
        ]
        return table("The numbers", ["part", "rows", "least", "greatest"], numbers) if numbers else Html("")
    counts: dict[str, Mapping[str, int]] = {}
    if cache is not None and cache["label_rows"]:
        counts["all rows of the cache"] = cache["label_rows"]
    if subject.chosen_by is not None:
        labels = subject.chosen_by.columns["label"]
        several = subject.task is Task.MULTI_LABEL
        counts["rows to choose by"] = Counter(name for row in labels for name in (row if several else [row]))
    counts["test rows"] = {name: of["rows"] for name, of in subject.metrics["per_class"].items()}
    rows = [[name, *(of.get(name, 0) for of in counts.values())] for name in subject.run["label_names"]]
    return table(f"{len(rows):,} labels", ["label", *counts], rows, filtered=len(rows) > 12)


def passes(subjects: Sequence[Subject]) -> Section:
    """The accounting of encoder passes."""
    rows: list[Sequence[object]] = []
    for subject in subjects:
        found = (subject.sweep or subject.run).get("encoder_passes")
        if found is not None:
            seconds = found["saved_seconds"]
            speed = found["tokens_per_second"]
            rows.append(
                [
                    subject.name,
                    found["done"],
                    found["saved"],
                    "not measured" if speed is None else f"{speed:,.0f} tokens/s",
                    "" if seconds is None else duration(seconds),
                    duration((subject.sweep or subject.run)["seconds"]),
                ]
            )
    if not rows:
        return Section("passes", "Encoder passes", Html(""))
    header = ["", "passes done", "passes saved", "the encoder's speed", "they would have taken", "this took"]
    what = paragraph(
        "A pass is one text, or one chunk of a long text, that goes through the encoder. Saved are the passes of a "
        "program that encodes its texts in every epoch, less those done. Their time is an estimate from the speed that "
        "was measured while the cache was made."
    )
    return Section("passes", "Encoder passes", join([what, table("Encoder passes done and saved", header, rows)]))
