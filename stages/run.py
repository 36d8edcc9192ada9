"""The folder that a training run leaves: ``head.safetensors`` and ``run.json``."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..cache.errors import DamagedError, NotOursError, OutputExistsError, StorageError
from ..cache.layout import storage_errors

HEAD_FILE = "head.safetensors"
RUN_FILE = "run.json"
FORMAT = "headstart-run"
VERSION = 1


@contextlib.contextmanager
def new_run(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a scratch folder to fill; it takes the run's name when all went well, and is gone when not.

    Raises:
        OutputExistsError: the folder is there already and may not be replaced.
        StorageError: it cannot be written.
    """
    require_free(folder, overwrite=overwrite)
    folder = folder.resolve()  # a link stays a link: what it points to is replaced
    with storage_errors(f"cannot write {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside the run, so that it is moved and not copied; of a name that is nobody's.
        holder = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        scratch = holder / "new"
        with storage_errors(f"cannot write {folder}"):
            scratch.mkdir()
        yield scratch
        with storage_errors(f"cannot write {folder}"):
            if folder.exists():
                folder.rename(holder / "old")
            scratch.rename(folder)
    finally:
        shutil.rmtree(holder, ignore_errors=True)


def require_free(folder: Path, *, overwrite: bool) -> None:
    """Refuse an output that is there already, unless it is a run that may be replaced."""
    if not folder.name:
        raise OutputExistsError(f"{str(folder)!r} is no name for a run; choose a folder that is to be made with --out")
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder} is a file; choose another --out for the run's folder")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise OutputExistsError(f"{folder} exists already; choose another --out, or --overwrite it")
    if not (folder / RUN_FILE).is_file():
        raise OutputExistsError(f"{folder} is not a run, so it is not overwritten; choose another --out")


def write_run(folder: Path, fields: dict[str, Any]) -> None:
    """Write ``run.json``."""
    content = json.dumps({"format": FORMAT, "version": VERSION, **fields}, ensure_ascii=False, indent=1)
    (folder / RUN_FILE).write_text(content + "\n", encoding="utf-8")


def read_run(folder: Path) -> dict[str, Any]:
    """Read and check ``run.json``.

    Raises:
        NotOursError: the folder is not a run, or one of a newer version.
        DamagedError: its ``run.json`` is not what it should be.
        StorageError: it cannot be read.
    """
    path = folder / RUN_FILE
    try:
        fields = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotOursError(
            f"{folder} is not a run (it holds no {RUN_FILE}); make one with headstart train-head"
        ) from None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DamagedError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise NotOursError(f"{path} was not written by headstart")
    if fields.get("version") != VERSION:
        raise NotOursError(
            f"{path} is of version {fields.get('version')!r}; this headstart reads {VERSION}: upgrade it"
        )
    names = fields.get("label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DamagedError(f"{path}: its label_names are not a list of names")
    for name in ("identity", "encoder", "settings", "metrics"):
        if not isinstance(fields.get(name), dict):
            raise DamagedError(f"{path}: it lacks {name!r}")
    return fields
