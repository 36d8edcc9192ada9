"""The card of an export, README.md: what it is, how to load it, how good it is, and what it cannot do.

It goes to others, so it names files and no folders.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from ..encoders.files import EncoderFiles
from ..settings import Precision, Task
from .check import Comparison
from .exporter import Exporter

_LICENSE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*$", re.MULTILINE)
_SHOWN_HASHES = ("weights_sha256", "config_sha256", "tokenizer_sha256", "modules_sha256")


def encoder_name(record_encoder: Mapping[str, Any]) -> str:
    """Return an encoder's name: of one from the hub its id, of a folder its last part."""
    name = str(record_encoder["name"])
    return name if record_encoder.get("revision") else PurePath(record_encoder.get("folder") or name).name


def write_card(path: Path, exporter: Exporter, comparison: Comparison, *, title: str, int8: bool) -> None:
    """Write the card of an export that was compared."""
    source = exporter.source
    record, head, identity = source.record, source.head, source.head.identity
    encoder, hub = encoder_name(record["encoder"]), bool(record["encoder"].get("revision"))
    license = license_of(source.files)
    fields = {
        "library_name": exporter.library,
        "pipeline_tag": "text-classification",
        "tags": ["headstart", "text-classification"],
        **({"license": license} if license else {}),
        **({"base_model": encoder} if hub else {}),
    }
    front = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in fields.items())
    rows = record["rows"]
    metrics = record["metrics"]["test"]
    table = [
        f"| {name.replace('_', ' ')} | {metrics[name]:.4f} | {metrics[f'{name}_interval'][0]:.4f} to "
        f"{metrics[f'{name}_interval'][1]:.4f} |"
        for name in metrics
        if isinstance(metrics[name], float) and isinstance(metrics.get(f"{name}_interval"), list)
    ]
    limits = [
        f"A text has at most {identity.max_length} tokens; a longer one is cut on the {identity.truncation_side}.",
        "The metrics are those of the test rows, which are of the same data as the training rows. "
        "Texts of other kinds may be classified worse.",
    ]
    if identity.computed_in != Precision.FLOAT32:
        limits.append(f"The head was trained on features in {identity.computed_in}; this export computes in float32.")
    if int8:
        limits.append("The weights are 8-bit integers: logits differ from those of float32, and some labels may.")
    if exporter.library == "transformers":
        limits.append(
            "Give `truncation=True`, or a text with too many tokens fails. The layer before the last one scales its "
            "inputs down: compute in float32 or bfloat16."
        )
    if identity.prefix:
        limits.append(f"Every text begins with {_code(identity.prefix)}, as in training.")
    names = [f"{number}. {_code(name)}" for number, name in enumerate(head.label_names)]
    kinds = {
        Task.CLASSES: "Each text has one of these classes.",
        Task.MULTI_LABEL: "Each text has any number of these labels.",
        Task.ORDINAL: "Each text has one of these classes, from the least to the greatest.",
        Task.REGRESSION: "Each text has a number.",
    }
    thresholds = ""
    if head.thresholds is not None:
        pairs = zip(head.label_names, head.thresholds, strict=True)
        thresholds = "\n\nThresholds: " + ", ".join(f"{_code(name)} {value:.6g}" for name, value in pairs) + "."
    hashes = [f"| {name} | {getattr(identity, name)} |" for name in _SHOWN_HASHES if getattr(identity, name)]
    data = f"Cache {_code(PurePath(str(record['cache'])).name)}: " if record.get("cache") else ""
    parts = [
        f"---\n{front}\n---",
        f"# {title}",
        f"A head on the feature {_code(identity.features[0])} of the frozen encoder {_code(encoder)}, trained by "
        f"headstart {record.get('headstart', '')}.",
        f"## Use\n\n`texts` is a list of texts{', `pairs` of the second text of each' * identity.pairs}.\n\n"
        f"```python\n{exporter.usage()}\n```",
        "## Labels\n\n" + "\n".join([kinds[head.task], *([""] if names else []), *names]) + thresholds,
        f"## Data\n\n{data}{rows['train']:,} training rows, {rows['test']:,} test rows.",
        "## Metrics on the test rows\n\n| metric | value | 95% interval |\n|---|---|---|\n" + "\n".join(table),
        "## Identity\n\n| file | sha256 |\n|---|---|\n" + "\n".join(hashes),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in limits),
        f"## Check\n\nThis export was compared with headstart in float32: {comparison}.",
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def license_of(files: EncoderFiles) -> str | None:
    """Return the license that an encoder's own card names; None where it names none."""
    card = next(
        (folder / "README.md" for folder in (files.folder, files.model) if (folder / "README.md").is_file()), None
    )
    if card is None:
        return None
    found = re.match(r"---\r?\n(.*?)\r?\n---", card.read_text(encoding="utf-8", errors="replace"), re.DOTALL)
    named = _LICENSE.search(found[1]) if found else None
    return named[1] if named else None


def _code(text: str) -> str:
    """Return a text for a line of Markdown, shown as it is."""
    shown = json.dumps(text, ensure_ascii=False)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{ticks} {shown} {ticks}" if len(ticks) > 1 else f"`{shown}`"
