"""Text embeddings of images: one vector an image, found by the image's id."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from ..errors import BrainfastError
from ..files import file_size, hash_arrays, load_tensors, read_json, save_tensors
from .responses import open_array

Floats: TypeAlias = npt.NDArray[np.float32]

MAX_LIST_BYTES = 64 << 20
NAMED = 3  # ids that an error names
LAYOUT = (
    "safetensors with `embedding` [n,text_dim] and metadata image_ids, or .npy [n,text_dim] with "
    "the ids beside it in a .json list or a .txt of lines"
)


@dataclass(frozen=True, eq=False)
class TextEmbeddings:
    """One text vector for every image, float32 [n,text_dim], and the n image ids.

    An id is that of `GroupSplit.image_ids`: "nsd-00013" for NSD's image 13. Vectors are kept as
    they are; whoever compares them normalises.

    Raises BrainfastError for vectors that are not [n,text_dim] and finite, a vector of zeros, which
    has no direction, and for ids that are not n different ones.
    """

    embedding: Floats
    image_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        array = self.embedding
        if array.ndim != 2 or array.dtype != np.float32 or not array.size:
            raise _refuse("vectors of one width, float32 [n,text_dim]", _describe(array))
        if len(self.image_ids) != len(array):
            raise _refuse(f"{len(array)} image ids, one a vector", f"{len(self.image_ids)}")
        bad = ~(np.isfinite(array).all(axis=1) & array.any(axis=1))
        if bad.any():
            ids = np.asarray(self.image_ids)[bad].tolist()
            raise _refuse("finite vectors that are not zero", f"others for {_some(ids)}")
        if len(self._rows) < len(array):
            twice = [image for image, count in Counter(self.image_ids).items() if count > 1]
            raise _refuse("every image id once", f"{_some(twice)} more often")

    @property
    def text_dim(self) -> int:
        """Length of a vector."""
        return int(self.embedding.shape[1])

    @property
    def hash(self) -> str:
        """SHA-256 of vectors and ids; their order does not matter."""
        order = np.argsort(np.asarray(self.image_ids))
        ids = np.asarray(self.image_ids)[order]
        text = np.frombuffer("\n".join(ids.tolist()).encode(), dtype=np.uint8)
        return hash_arrays({"embedding": self.embedding[order], "image_ids": text})

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {image: row for row, image in enumerate(self.image_ids)}

    def of(self, image_ids: Sequence[str] | npt.NDArray[Any]) -> Floats:
        """Vectors float32 [n,text_dim] of some images; ids without one are a BrainfastError."""
        ids = [str(image) for image in image_ids]
        missing = list(dict.fromkeys(image for image in ids if image not in self._rows))
        if missing:
            raise BrainfastError(
                "text embeddings",
                expected=f"one for every image, by its id such as {ids[0]!r}",
                got=f"none for {_some(missing)}; the file has ids such as {self.image_ids[0]!r}",
                remedy="make vectors for these images, or name them as the images are named",
            )
        return self.embedding[[self._rows[image] for image in ids]]

    def save(self, path: str | Path) -> None:
        """Write one safetensors file: `embedding`, and the ids as a JSON list in its metadata."""
        ids = json.dumps(list(self.image_ids))
        save_tensors(path, {"embedding": self.embedding}, {"image_ids": ids})

    @staticmethod
    def read(path: str | Path) -> TextEmbeddings:
        """Read a .safetensors file as `save` writes it, or a .npy with its ids beside it.

        .safetensors: `embedding` [n,text_dim]; ids in the metadata `image_ids` (a JSON list), else
        in a file beside it. Beside `text.npy` lies `text.json`, a list, or `text.txt`, a line an
        id. A JSON file of {image id: vector} is read as well. Never unpickles.
        """
        path = Path(path)
        file_size(path)
        try:
            array, ids = _READERS[path.suffix.lower()](path)
        except KeyError:
            raise BrainfastError(
                str(path), expected=LAYOUT, got=path.suffix or "no suffix"
            ) from None
        if array.dtype.kind != "f":
            raise BrainfastError(str(path), expected=LAYOUT, got=_describe(array))
        try:
            return TextEmbeddings(np.ascontiguousarray(array, dtype=np.float32), tuple(ids))
        except BrainfastError as error:
            raise error.renamed("text embeddings", str(path)) from error


def _read_safetensors(path: Path) -> tuple[npt.NDArray[Any], list[str]]:
    tensors = load_tensors(path)
    if tensors.keys() != {"embedding"}:
        got = ", ".join(sorted(tensors)) or "no arrays"
        raise BrainfastError(str(path), expected=LAYOUT, got=got)
    with safe_open(path, framework="numpy") as file:
        listed = (file.metadata() or {}).get("image_ids")
    if listed is None:
        return tensors["embedding"], _ids_beside(path)
    try:
        return tensors["embedding"], _check_ids(path, json.loads(listed))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BrainfastError):
            raise
        raise BrainfastError(
            str(path), expected="metadata image_ids, a JSON list of strings", got=str(error)
        ) from error


def _read_npy(path: Path) -> tuple[npt.NDArray[Any], list[str]]:
    return open_array(path, 2, "f", LAYOUT), _ids_beside(path)


def _read_json_table(path: Path) -> tuple[npt.NDArray[Any], list[str]]:
    """{image id: vector}; vectors of mixed width are an error that names one of each."""
    table = read_json(path)
    if not isinstance(table, dict) or not table:
        raise BrainfastError(str(path), expected="{image id: vector}", got=type(table).__name__)
    widths = {image: len(v) if isinstance(v, list) else 0 for image, v in table.items()}
    first, width = next(iter(widths.items()))
    odd = next((image for image in widths if widths[image] != width), None)
    if odd is not None:
        raise BrainfastError(
            str(path),
            expected=f"vectors of one width, {width} as for {first}",
            got=f"{widths[odd]} for {odd}",
        )
    try:
        array = np.asarray(list(table.values()), dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BrainfastError(str(path), expected="vectors of numbers", got=str(error)) from error
    return array, list(table)


_READERS = {".safetensors": _read_safetensors, ".npy": _read_npy, ".json": _read_json_table}


def _ids_beside(path: Path) -> list[str]:
    listed, lines = path.with_suffix(".json"), path.with_suffix(".txt")
    if listed.is_file():
        return _check_ids(listed, read_json(listed))
    if not lines.is_file() or lines.stat().st_size > MAX_LIST_BYTES:
        raise BrainfastError(
            str(path),
            expected=f"image ids beside it, in {listed.name} or {lines.name}",
            got="neither" if not lines.is_file() else f"{lines.stat().st_size} bytes",
            remedy="write the ids in the order of the vectors",
        )
    try:
        return [line.strip() for line in lines.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise BrainfastError(str(lines), expected="lines of image ids", got=str(error)) from error


def _check_ids(path: Path, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BrainfastError(
            str(path), expected="a JSON list of image ids", got=type(value).__name__
        )
    return value


def _refuse(expected: str, got: str) -> BrainfastError:
    return BrainfastError("text embeddings", expected=expected, got=got)


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    return ", ".join(ids[:NAMED]) + more


def _describe(array: npt.NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"
