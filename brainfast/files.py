"""Reading and writing files so that nothing half-written is left and nothing hostile is trusted."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise_tensors

from .errors import BrainfastError

MAX_JSON_BYTES = 64 << 20
NUMPY_TYPES = {"BOOL", "U8", "I8", "U16", "I16", "F16", "U32", "I32", "F32", "U64", "I64", "F64"}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path; on success it is synced and renamed to `path`, else removed.

    A reader sees the old file or the new one, never a part. Disk errors become a BrainfastError.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        temporary = None
        _sync(path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):  # a read-only disk must not hide its first error
                temporary.unlink(missing_ok=True)


@contextmanager
def atomic_with_parts(path: str | Path) -> Iterator[Path]:
    """Give the path of a file in a temporary folder, in which parts may be written beside it.

    On success the parts move beside `path`, then the file itself becomes `path`, so that a reader
    finds all or the old file; else nothing is left. Parts bear names of their own, such as a hash.
    """
    path = Path(path)
    with (
        atomic_path(path) as final,
        tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder,
    ):
        written = Path(folder) / path.name
        yield written
        for part in sorted(set(Path(folder).iterdir()) - {written}):
            with atomic_path(path.parent / part.name) as place:
                os.replace(part, place)
        os.replace(written, final)


@contextmanager
def atomic_folder(folder: str | Path, marker: str) -> Iterator[Path]:
    """Give a temporary folder; on success it takes the place of `folder`, else it is removed.

    A folder that is there already is replaced only if `check_replaceable` lets it.
    """
    folder = Path(folder).resolve()
    check_replaceable(folder, marker)
    mark = uuid.uuid4().hex
    part, old = (folder.with_name(f".{folder.name}.{mark}.{kind}") for kind in ("part", "old"))
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
    except OSError as error:
        raise _unwritable(folder, error) from error
    except BrainfastError as error:
        raise error.renamed(str(part), str(folder)) from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: Path, marker: str) -> None:
    """Refuse a place where `atomic_folder` would not write: call it before long work.

    `folder` may be missing, empty, or hold a file named `marker`; its parent must be writable.
    """
    if folder.exists() and not _replaceable(folder, marker):
        raise BrainfastError(
            str(folder),
            expected=f"a new folder, or one with {marker}",
            got="something else of that name",
            remedy="choose another name",
        )
    check_writable(folder.parent)


def check_writable(folder: Path) -> None:
    """Refuse a folder that can neither be written to nor made: call it before long work."""
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    problem = None if nearest.is_dir() else errno.ENOTDIR
    if problem is None and not os.access(nearest, os.W_OK | os.X_OK):
        problem = errno.EACCES
    if problem is not None:
        raise _unwritable(folder, OSError(problem, os.strerror(problem)))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON to `path` atomically."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: str | Path) -> Any:
    """Read JSON from `path`; a missing, oversized or malformed file is a BrainfastError."""
    path = Path(path)
    size = file_size(path)
    if size > MAX_JSON_BYTES:
        raise BrainfastError(
            str(path), expected=f"at most {MAX_JSON_BYTES} bytes of JSON", got=f"{size} bytes"
        )
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise BrainfastError(
            str(path), expected="valid JSON", got=str(error) or type(error).__name__
        ) from error


def file_size(path: str | Path) -> int:
    """Size of a regular file in bytes; a missing one is a BrainfastError."""
    path = Path(path)
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        raise BrainfastError(str(path), expected="a file", got=got, remedy="check the path")
    return path.stat().st_size


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays as one safetensors file, atomically."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    write_bytes(path, serialise_tensors(contiguous, dict(metadata) if metadata else None))


def load_tensors(
    path: str | Path, wanted: Callable[[str], bool] | None = None
) -> dict[str, np.ndarray]:
    """Read the arrays of a safetensors file; `wanted`, where given, says by name which.

    The header is checked against the file's size before anything is allocated, so a truncated or
    hostile file is a BrainfastError. Numeric types that numpy knows are read; bfloat16 is not.
    """
    path = Path(path)
    file_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            names = list(filter(wanted, file.keys()))
            # Other types would be read or refused depending on what else is imported.
            foreign = {file.get_slice(name).get_dtype() for name in names} - NUMPY_TYPES
            if foreign:
                raise TypeError(f"numbers of type {', '.join(sorted(foreign))}")
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, TypeError, ValueError, MemoryError) as error:
        raise BrainfastError(
            str(path),
            expected="a whole safetensors file",
            got=str(error).strip() or type(error).__name__,
            remedy="copy or download it again",
        ) from error


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of `arrays`, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.data.cast("B") if array.size else b"")
    return digest.hexdigest()


def hash_file(path: str | Path) -> str:
    """SHA-256 of a file's bytes."""
    file_size(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replaceable(folder: Path, marker: str) -> bool:
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or marker in names


def _unwritable(path: Path, error: OSError) -> BrainfastError:
    return BrainfastError(
        str(path),
        expected="a place that can be written to",
        got=error.strerror or str(error),
        remedy="free some space or choose another folder",
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
