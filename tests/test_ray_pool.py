"""What is refused before Ray is loaded, by both commands that use it."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from extracting import settings
from headstart.cache.errors import SettingsError
from headstart.stages.extract import extract
from headstart.stages.sweep import sweep
from tiny import tiny_rows

Command = Callable[..., Any]


@pytest.fixture(params=["extract", "sweep"])
def command(request: pytest.FixtureRequest, tiny: Path, tmp_path: Path, write_csv: Callable[..., Path]) -> Command:
    """A command with options of Ray."""
    table = write_csv(tiny_rows(60))
    if request.param == "extract":
        return lambda **options: extract(table, tmp_path / "out", settings(tiny), shards=2, **options)
    cache = extract(table, tmp_path / "c.h5", settings(tiny))
    return lambda **options: sweep(cache, tmp_path / "out", solver="exact", **options)


def test_ray_is_asked_for_where_it_is_missing(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SettingsError, match=r"`ray` needs Ray: pip install 'headstart\[ray\]'"):
        command(ray="local")


def test_an_address_where_nothing_answers_is_refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # it is not loaded for that
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(SettingsError, match=r"`ray` is '127\.0\.0\.1:1', and no cluster answers there"):
        command(ray="127.0.0.1:1")
    assert not (tmp_path / "out").exists()


def test_no_workers_are_refused(command: Command) -> None:
    with pytest.raises(SettingsError, match="`workers` is 0; it must be at least 1"):
        command(ray="local", workers=0)
