"""Creating a cache file with its complete HDF5 structure, and all its bytes reserved on the disk."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import h5py
import numpy as np

from .errors import StorageError, one_line, storage_errors
from .layout import GROUPS, Layout, Span
from .seal import FORMAT, SEAL_BYTES, VERSION, Extent, write_seal

_ALIGNMENT = 4096


def create_file(path: Path, layout: Layout) -> None:
    """Make a cache file of this layout, with empty datasets, where there is no file yet.

    Raises:
        StorageError: the folder cannot be written, has no room for the whole file, or holds a file of this name.
    """
    needed = SEAL_BYTES + sum(Span(0, *kind).nbytes + _ALIGNMENT for kind in layout.datasets().values())
    require_room(path, needed)
    with storage_errors(f"cannot create {path}, which takes {needed:,} bytes"):
        try:
            path.touch(exist_ok=False)
            extents = _create_datasets(path, layout)
        except RuntimeError as error:  # HDF5 raises it when it closes a file that it could not write
            raise OSError(one_line(error)) from error
        write_seal(path, block_rows=layout.block_rows, label_kind=layout.label_kind, extents=extents)
        with path.open("rb+") as raw:
            # HDF5 reserves addresses, not disk space. A disk without room should fail now, not after hours.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(raw.fileno(), 0, os.fstat(raw.fileno()).st_size)
            os.fsync(raw.fileno())


def _create_datasets(path: Path, layout: Layout) -> list[Extent]:
    """Make the HDF5 structure of the file; return the bytes of each dataset."""
    options = {"alignment_threshold": _ALIGNMENT, "alignment_interval": _ALIGNMENT, "userblock_size": SEAL_BYTES}
    with h5py.File(path, "w", locking=False, **options) as file:  # some file systems have no locks
        file.attrs["format"] = FORMAT
        file.attrs["version"] = VERSION
        file.attrs["block_rows"] = layout.block_rows
        if layout.label_kind is not None:
            file.attrs["label_kind"] = str(layout.label_kind)
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        creation.set_obj_track_times(False)
        for group in GROUPS:
            file.create_group(group)
        extents = []
        for name, (shape, dtype) in layout.datasets().items():
            # A low-level call, because create_dataset of h5py allocates a scalar later.
            kind = h5py.h5t.py_create(_hdf5_dtype(dtype), logical=True)
            space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
            dataset = h5py.h5d.create(file.id, name.encode(), kind, space, creation)
            extents.append(Span(dataset.get_offset(), shape, dtype).extent)
        return extents


def require_room(path: Path, needed: int) -> None:
    """Refuse to create a file if there is no room for it.

    Raises:
        StorageError: the file system has fewer bytes free, or this process may not write so large a file.
    """
    with storage_errors(f"cannot create {path}"):
        free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise StorageError(f"cannot create {path}: it takes {needed:,} bytes, and {free:,} are free there")
    with contextlib.suppress(ImportError):  # Windows has no such limits
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        if limit != resource.RLIM_INFINITY and limit < needed:
            raise StorageError(
                f"cannot create {path}: it takes {needed:,} bytes, and the limit for a file is {limit:,} (ulimit -f)"
            )


def _hdf5_dtype(dtype: np.dtype[np.generic]) -> np.dtype[np.generic]:
    return h5py.string_dtype("utf-8", dtype.itemsize) if dtype.kind == "S" else dtype
