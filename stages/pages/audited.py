"""Section: what an audit found in the labels of a cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .data import file_name
from .html import Cell, Html, in_one_line, join, paragraph, table
from .subject import Key, Record, Section

_KINDS = {
    "label-error": "likely wrong labels",
    "duplicate": "rows whose text has another label elsewhere",
    "near-duplicate": "rows that are nearly the same as one of another label",
    "outlier": "rows far from all classes",
}


def section(audit: Record | None, issues: Sequence[Record], texts: Mapping[Key, str] | None, most: int) -> Section:
    """What an audit found: its counts, and the ``most`` worst lines of each kind."""
    if audit is None:
        return Section("audit", "Audit of the labels", Html(""))
    rows, head = audit["rows"], audit["head"]
    first = paragraph(
        f"Of {file_name(audit['cache'])}: {rows['audited']:,} rows, {rows['judged']:,} of them judged by heads of "
        f"{audit['settings']['folds']} folds that were not trained on them (accuracy {head['accuracy']:.4f}). A "
        "finding is a reason to look at the row, and no proof."
    )
    counts = [
        [_KINDS.get(kind, kind), count, Cell(count / max(rows["audited"], 1), f"{count / max(rows['audited'], 1):.2%}")]
        for kind, count in audit["issues"].items()
    ]
    pairs = [[pair["label"], pair["suggested"], pair["rows"]] for pair in audit.get("confusions", ())]
    parts = [first, table("What was found", ["kind", "rows", "of all rows"], counts)]
    if pairs:
        parts.append(table("Likely wrong labels, by what they may be", ["label", "suggested", "rows"], pairs))
    shown = issues_shown(issues, most)
    with_text = any(_text(line, texts) for line in shown)
    header = [
        "kind",
        "row",
        *["text"] * with_text,
        "label",
        "p(label)",
        "suggested",
        "p(suggested)",
        "score",
        "partner",
    ]
    lines = [_line(line, _text(line, texts) if with_text else None) for line in shown]
    some = "" if len(shown) == len(issues) else f" of {len(issues):,}"
    if shown:
        what = f"{len(shown):,}{some} findings, the worst of each kind first" + "; issues.parquet has all" * bool(some)
        parts.append(table(what, header, lines, filtered=True))
    return Section("audit", "Audit of the labels", join(parts))


def issues_shown(issues: Sequence[Record], most: int) -> list[Record]:
    """The first ``most`` lines of each kind."""
    return [line for kind in _KINDS for line in [each for each in issues if each["kind"] == kind][:most]]


def _text(line: Record, texts: Mapping[Key, str] | None) -> str:
    own = " / ".join(filter(None, (line.get("text"), line.get("text_pair"))))
    return own or (texts or {}).get((line["row"], line["text_hash"]), "")


def _line(line: Record, text: str | None) -> list[Any]:
    partner = None if line["partner_row"] is None else f"{line['partner_row']:,} {line['partner_label']}"
    chances = [line["label_probability"], line["suggested_probability"]]
    own, other = (None if chance is None else Cell(chance, f"{chance:.3f}") for chance in chances)
    score = Cell(line["score"], f"{line['score']:.4g}")
    shown = [] if text is None else [Cell(None, in_one_line(text), number=False, kind="text")]
    return [line["kind"], line["row"], *shown, line["label"], own, line["suggested"], other, score, partner]
