"""A pool on disk: its key, its index, its candidates, and the safetensors file they describe."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from .data.token_file import Layout
from .errors import BrainfastError
from .files import hash_arrays, read_json, write_json
from .folded import FoldedFactorTopy
from .preprocessing import Preprocessing

if TYPE_CHECKING:
    from .engine import Engine

DATA_FILE = "pool.safetensors"
PARTIAL_FILE = "pool.partial"
INDEX_FILE = "pool.json"
ITEMS_FILE = "items.json"
BASIS_FILE = "basis.safetensors"
LOCK_FILE = "pool.lock"
FILES = {DATA_FILE, PARTIAL_FILE, INDEX_FILE, ITEMS_FILE, BASIS_FILE, LOCK_FILE}

Dtype: TypeAlias = Literal["fp32", "bf16", "int8"]
STORED: dict[str, tuple[str, Any]] = {
    "fp32": ("F32", np.float32),
    "bf16": ("BF16", np.uint16),
    "int8": ("I8", np.int8),
}


class Key(BaseModel, extra="forbid", frozen=True):
    """Everything that the numbers in the file depend on.

    head_precision: of what is computed of an image; head_hash: of what of the folded head that
    takes (bottlenecks, or filters and maps), so that a pool serves any of its vertices; of a
    projected pool, of the whole head. basis_hash: of the weights of the objectives that it was
    projected on; images_hash: of the candidates' bytes, in order. All of it was given and nothing
    computed, which each instruction set would round in its own way.
    """

    trunk: str
    weights_hash: str
    preprocessing: Preprocessing
    layers: tuple[int, ...] = Field(min_length=1)
    precision: str
    head: str
    head_precision: str = "fp32"
    head_hash: str
    basis_hash: str | None
    dtype: Dtype
    images_hash: str


class Index(BaseModel, extra="forbid", frozen=True):
    """The JSON beside the data: the key, the shape, how many candidates are done, and the hash of
    the finished file."""

    format_version: Literal[1] = 1
    key: Key
    items: int = Field(ge=1)
    features: int = Field(ge=1)
    done: int = Field(ge=0)
    basis: tuple[str, ...] = ()
    data_hash: str | None = None


class Items(BaseModel, extra="forbid", frozen=True):
    """The candidates, in the order of the rows."""

    names: tuple[str, ...]
    categories: tuple[str, ...]
    digests: tuple[str, ...]
    removed: tuple[int, ...] = ()

    def without(self, rows: Sequence[int]) -> Items:
        """The same candidates, of which these are removed too."""
        return self.model_copy(update={"removed": tuple(sorted({*self.removed, *rows}))})

    def check(self, path: Path, count: int) -> Items:
        """Itself, if it tells of `count` candidates."""
        lengths = {len(self.names), len(self.categories), len(self.digests)}
        inside = all(0 <= index < count for index in self.removed)
        if lengths != {count} or not inside:
            raise damaged(path)
        return self


def joined(old: Items, kept: npt.NDArray[np.int64], more: Items) -> Items:
    """Some rows of a pool's candidates and then further ones, which must be new by name."""
    names, categories, digests = (
        tuple(column[row] for row in kept) for column in (old.names, old.categories, old.digests)
    )
    both = sorted(set(more.names) & set(names))
    if both:
        raise BrainfastError(
            "source", expected="new candidates", got=f"{both[0]!r}, which is in the pool"
        )
    return Items(
        names=names + more.names,
        categories=categories + more.categories,
        digests=digests + more.digests,
    )


NAMES = {
    "trunk": "trunk",
    "weights_hash": "trunk weights",
    "preprocessing": "preprocessing",
    "layers": "layers",
    "precision": "trunk precision",
    "head": "kind of head",
    "head_precision": "head precision",
    "head_hash": "folded head",
    "basis_hash": "objectives",
    "dtype": "dtype",
    "images_hash": "images",
}


def engine_key(engine: Engine, projected: bool) -> dict[str, Any]:
    """The part of a key that an engine decides."""
    trunk, head = engine.card.trunk, engine.head
    factortopy = isinstance(head, FoldedFactorTopy)
    return {
        "trunk": trunk.name,
        "weights_hash": trunk.weights_hash,
        "preprocessing": trunk.preprocessing,
        "layers": tuple(trunk.layers),
        "precision": engine.runtime.precision,
        "head": "factortopy" if factortopy else "blobgpt",
        # Tokens are aligned in fp32; a latent and a template have the precision of their head.
        "head_precision": "fp32" if factortopy and not projected else head.precision,
        "head_hash": _head_hash(head, projected),
    }


def _head_hash(head: Any, projected: bool) -> str:
    if not isinstance(head, FoldedFactorTopy):
        arrays = head.projection.arrays()
        if projected:
            arrays |= {"weight": head.weight, "bias": head.bias}
        return hash_arrays(arrays)
    arrays = head.arrays()
    grid = [*head.readout_grid, *head.grid]
    if projected:
        grid.append(head.samples)
    else:
        arrays = {n: a for n, a in arrays.items() if n.startswith(("bottleneck", "offset"))}
    return hash_arrays(arrays | {"grid": np.array(grid)})


def images_hash(digests: Sequence[str]) -> str:
    """SHA-256 of all candidates' hashes in order."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def layout(index: Index) -> Layout:
    """The safetensors file that `index` describes: `features` [N,F], and of int8 `scale` [N]."""
    code, dtype = STORED[index.key.dtype]
    shapes: dict[str, tuple[str, int, tuple[int, ...]]] = {}
    if index.key.dtype == "int8":
        shapes["scale"] = ("F32", 4, (index.items,))
    shapes["features"] = (code, np.dtype(dtype).itemsize, (index.items, index.features))
    entries, firsts, end = {}, {}, 0
    for name, (kind, item, shape) in shapes.items():
        firsts[name], end = end, end + math.prod(shape) * item
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [firsts[name], end]}
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % 64)  # rows begin at a cache line where they can
    header = struct.pack("<Q", len(text)) + text
    places = {n: (len(header) + firsts[n], shape) for n, (_, _, shape) in shapes.items()}
    return Layout(header, places, len(header) + end)


def describe(index: Index, removed: int = 0) -> str:
    """Candidates without those removed, features and bytes, in a line."""
    what = "objectives" if index.basis else "features"
    size = layout(index).size / 1e6
    count = index.items - removed
    return f"{count} candidates, {index.features} {what} in {index.key.dtype}, {size:.1f} MB"


def encode(features: npt.NDArray[np.float32], dtype: Dtype) -> dict[str, npt.NDArray[Any]]:
    """Rows [B,F] as they are stored; of int8 a row's largest magnitude is 127."""
    if dtype == "fp32":
        return {"features": features}
    if dtype == "bf16":
        bits = features.view(np.uint32)
        return {"features": ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)}
    scale = np.maximum(np.abs(features).max(axis=1), np.finfo(np.float32).tiny * 127) / 127
    scale = scale.astype(np.float32)
    return {"features": np.rint(features / scale[:, None]).astype(np.int8), "scale": scale}


def decode(
    rows: npt.NDArray[Any],  # [B,F]
    scale: npt.NDArray[np.float32] | None,  # [B]
) -> npt.NDArray[np.float32]:  # [B,F]
    """Stored rows as float32."""
    if rows.dtype == np.uint16:
        bits = rows.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    wide = rows.astype(np.float32)
    if scale is not None:
        wide *= scale[:, None]
    return wide


def read_index(folder: Path) -> Index:
    """Read and check the index of a pool."""
    index: Index = _read(folder / INDEX_FILE, Index)
    if index.done > index.items:
        raise damaged(folder / INDEX_FILE)
    return index


def read_items(folder: Path, count: int) -> Items:
    """Read and check the candidates of a pool."""
    items: Items = _read(folder / ITEMS_FILE, Items)
    return items.check(folder / ITEMS_FILE, count)


def write_items(folder: Path, items: Items) -> None:
    """Write the candidates of a pool, atomically."""
    write_json(folder / ITEMS_FILE, items.model_dump(mode="json"))


def _read(path: Path, kind: Any) -> Any:
    try:
        return kind.model_validate(read_json(path), strict=False)
    except ValidationError as error:
        raise damaged(path) from error


def check_key(
    folder: Path,
    index: Index,
    want: dict[str, Any],
    remedy: str = "build it again, in a new folder",
) -> None:
    """Refuse a pool whose key differs from `want` in a field that `want` has, naming it."""
    have = dict(index.key)
    changed = [label for name, label in NAMES.items() if want.get(name, have[name]) != have[name]]
    if changed:
        raise BrainfastError(
            f"pool {folder}",
            expected="the same " + ", ".join(changed),
            got="a pool of other " + ", ".join(changed),
            remedy=remedy,
        )


def damaged(path: Path) -> BrainfastError:
    """The error for a file that is not what the index says."""
    return BrainfastError(
        str(path),
        expected="a whole pool",
        got="a missing or damaged file",
        remedy=f"delete {path.parent} and build it again",
    )


def changed_since(folder: Path) -> BrainfastError:
    """The error for a pool that another process, or another `Pool`, has changed meanwhile."""
    return BrainfastError(
        str(folder),
        expected="the pool as it was opened",
        got="one that was changed since",
        remedy="open it again",
    )
