"""The folder of an audit: ``issues.parquet`` has a line for each problem, ``audit.json`` counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from .folders import FolderKind

ISSUES_FILE, NEXT_FILE = "issues.parquet", "next.parquet"


class _AuditRecord(TypedDict):
    """Fields that every ``audit.json`` holds; it MAY hold more."""

    label_names: list[str]
    settings: dict[str, Any]
    rows: dict[str, int]
    head: dict[str, Any]
    issues: dict[str, int]
    worst: list[Any]
    seconds: float


AUDIT = FolderKind(
    name="label audit",
    file="audit.json",
    format="headstart-audit",
    version=1,
    command="headstart audit",
    others=r"(issues|next)\.parquet",
    record=_AuditRecord,
)


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]], types: Mapping[str, type]) -> None:
    """Write a table: a line for each mapping, with these columns and types."""
    import pyarrow as pa
    import pyarrow.parquet

    arrow = {int: pa.int64(), float: pa.float64(), str: pa.string()}
    schema = pa.schema({name: arrow[kind] for name, kind in types.items()})
    pa.parquet.write_table(pa.Table.from_pylist(list(lines), schema=schema), path)
