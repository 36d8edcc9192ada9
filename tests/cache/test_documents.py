"""Documents that may come from anyone are checked before they are used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypedDict

import pytest
from headstart.cache.documents import checked, is_lfs_pointer, parse_json
from headstart.cache.errors import DamagedError


class Inner(TypedDict):
    names: list[str]


class Outer(TypedDict):
    count: int
    seconds: float
    note: str | None
    inner: Inner


GOOD: dict[str, Any] = {"count": 1, "seconds": 2, "note": None, "inner": {"names": ["a"]}, "more": {"kept": True}}


def test_a_document_is_returned_as_it_is_with_all_that_it_holds() -> None:
    assert checked(GOOD, Outer, "it") is GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": "1"}, "it lacks 'count', or it is of the wrong kind"),
        ({"seconds": None}, "it lacks 'seconds'"),
        ({"note": 1}, "it lacks 'note'"),
        ({"inner": []}, "it: its 'inner' is not a JSON object"),
        ({"inner": {}}, "it: its 'inner' lacks 'names'"),
        ({"inner": {"names": {}}}, "it: its 'inner' lacks 'names'"),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        checked({**GOOD, **change}, Outer, "it")


@pytest.mark.parametrize("name", [name for name in GOOD if name != "more"])
def test_a_field_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(DamagedError, match=name):
        checked({key: value for key, value in GOOD.items() if key != name}, Outer, "it")


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b"1" * 5000, b""])
def test_what_is_not_json_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(DamagedError, match=r"^it is .*") as caught:
        parse_json(content, "it")
    assert "\n" not in str(caught.value)


def test_a_git_lfs_pointer_is_told_from_other_files(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for content, expected in ((pointer, True), (b"version,text\n1,a\n", False), (b"", False)):
        (tmp_path / "file").write_bytes(content)
        assert is_lfs_pointer(tmp_path / "file") is expected
