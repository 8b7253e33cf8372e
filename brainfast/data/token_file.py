"""The token cache on disk: its key, its JSON index, and the safetensors file they describe."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import BaseModel, Field, ValidationError

from ..errors import BrainfastError
from ..files import read_json
from ..preprocessing import Preprocessing

DATA_FILE = "tokens.safetensors"
PARTIAL_FILE = "tokens.partial"
INDEX_FILE = "tokens.json"
LOCK_FILE = "tokens.lock"
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)

Kind = Literal["fp32", "bf16"]


class Key(BaseModel, extra="forbid", frozen=True):
    """Everything that the numbers in the file depend on."""

    trunk: str
    weights_hash: str
    preprocessing: Preprocessing
    layers: tuple[int, ...] = Field(min_length=1)
    grid: tuple[int, int]
    dtype: Kind
    images_hash: str


class Index(BaseModel, extra="forbid", frozen=True):
    """The JSON beside the data: the key, the shapes, and how many images are done."""

    format_version: Literal[1] = 1
    key: Key
    images: int = Field(ge=1)
    channels: tuple[int, ...]
    done: int = Field(ge=0)


NAMES = {
    "trunk": "trunk",
    "weights_hash": "trunk weights",
    "preprocessing": "preprocessing",
    "layers": "layers",
    "grid": "grid",
    "dtype": "dtype",
    "images_hash": "images",
}


@dataclass(frozen=True)
class Layout:
    """The bytes before the data, where each array lies, and the size of the whole file."""

    header: bytes
    places: dict[str, tuple[int, tuple[int, ...]]]  # name: first byte in the file, shape
    size: int


def layout(index: Index) -> Layout:
    """The safetensors file that `index` describes: u64 length, JSON, then the arrays in order."""
    item, code = (4, "F32") if index.key.dtype == "fp32" else (2, "BF16")
    pairs = list(zip(index.key.layers, index.channels, strict=True))
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, channels in pairs:
        shapes[f"local.{layer}"] = (index.images, channels, *index.key.grid)
    for layer, channels in pairs:
        shapes[f"global.{layer}"] = (index.images, channels)
    entries, firsts, end = {}, {}, 0
    for name, shape in shapes.items():
        firsts[name], end = end, end + math.prod(shape) * item
        offsets = [firsts[name], end]
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    header = struct.pack("<Q", len(text)) + text
    places = {name: (len(header) + firsts[name], shape) for name, shape in shapes.items()}
    return Layout(header, places, len(header) + end)


@contextmanager
def locked(folder: Path, name: str = LOCK_FILE) -> Iterator[None]:
    """Hold the folder against other processes; the system frees it when this one ends.

    What a killed process had half written under a temporary name is removed.
    """
    with (folder / name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BrainfastError(
                str(folder),
                expected="one process working here",
                got="another one at work",
                remedy="wait for it, or choose another folder",
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        else:
            for part in folder.glob(".*.part"):
                part.unlink(missing_ok=True)
        yield


@contextmanager
def told_disk_errors(folder: Path) -> Iterator[None]:
    """Turn the system's errors about `folder` into a BrainfastError."""
    try:
        yield
    except OSError as error:
        raise BrainfastError(
            str(folder),
            expected="a folder that can be written to",
            got=error.strerror or str(error),
            remedy="mend that and run again: finished batches are kept",
        ) from error


def reserve(path: Path, place: Layout) -> None:
    """Write the header and reserve the rest of the file; without the space nothing is left."""
    free = shutil.disk_usage(path.parent).free
    if free < place.size:
        _raise_no_space(path.parent, place.size, free)
    try:
        with path.open("wb") as file:
            file.write(place.header)
            file.flush()
            _allocate(file.fileno(), place.size)
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno == errno.ENOSPC:
            _raise_no_space(path.parent, place.size, shutil.disk_usage(path.parent).free)
        raise


def _allocate(descriptor: int, size: int) -> None:
    """Reserve real blocks where the file system can, so that a full disk shows now."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        os.truncate(descriptor, size)


def read_index(folder: Path) -> Index:
    """Read and check the index of `folder`."""
    path = folder / INDEX_FILE
    try:
        index = Index.model_validate(read_json(path), strict=False)
    except ValidationError as error:
        raise damaged(path) from error
    shapes = len(index.channels) == len(index.key.layers) and min(index.channels) >= 1
    if not shapes or min(index.key.grid) < 1 or index.done > index.images:
        raise damaged(path)
    return index


def check_key(folder: Path, index: Index, want: dict[str, Any]) -> None:
    """Refuse a cache whose key differs from `want` in a field that `want` has, naming it."""
    have = dict(index.key)
    changed = [label for name, label in NAMES.items() if want.get(name, have[name]) != have[name]]
    if changed:
        raise BrainfastError(
            f"token cache {folder}",
            expected="the same " + ", ".join(changed),
            got="a cache of other " + ", ".join(changed),
            remedy="delete the folder or choose another one",
        )


def damaged(path: Path) -> BrainfastError:
    """The error for a file that is not what the index says."""
    return BrainfastError(
        str(path),
        expected="a whole token cache",
        got="a missing or damaged file",
        remedy=f"delete {path.parent} and build it again",
    )


def _raise_no_space(folder: Path, size: int, free: int) -> NoReturn:
    raise BrainfastError(
        str(folder),
        expected=f"{size / 1e9:.3g} GB of free space",
        got=f"{free / 1e9:.3g} GB",
        remedy="free some space, choose another folder, or dtype='bf16'",
    )
