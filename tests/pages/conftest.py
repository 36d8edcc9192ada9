"""What reports are made of; see `reported`."""

from __future__ import annotations

from pathlib import Path

import pytest
from reported import make_folder


@pytest.fixture(scope="session")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "a<b>&amp;"
    make_folder(folder, tiny)
    return folder
