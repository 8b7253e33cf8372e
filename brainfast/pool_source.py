"""Where a pool's candidates come from: folders, lists, webdataset shards and HDF5 datasets."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from PIL import Image
from tqdm import tqdm

from .errors import BrainfastError
from .files import file_size, hash_file
from .images import hash_image
from .machine import usable_cores

IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_AT_ONCE = 16  # items that a thread hashes
_HDF5 = re.compile(r"(.+?\.(?:h5|hdf5|hdf))(?::(.*))?", re.IGNORECASE)  # file:dataset


class Item(Protocol):
    """One candidate: its name and category, its image when it is asked for, and its bytes' hash."""

    @property
    def name(self) -> str: ...
    @property
    def category(self) -> str: ...
    def image(self) -> Any: ...
    def digest(self) -> str: ...


@dataclass(frozen=True)
class _FileItem:
    path: Path
    name: str
    category: str

    def image(self) -> Any:
        return self.path

    def digest(self) -> str:
        return hash_file(self.path)


@dataclass(frozen=True)
class _TarItem:
    shard: Path
    begin: int
    size: int
    name: str
    category: str

    def _bytes(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.begin)
            return file.read(self.size)

    def image(self) -> Any:
        try:
            return Image.open(io.BytesIO(self._bytes()))
        except (OSError, Image.DecompressionBombError) as error:
            raise BrainfastError(
                f"{self.shard}: {self.name}", expected="an image", got=str(error)
            ) from error

    def digest(self) -> str:
        return hashlib.sha256(self._bytes()).hexdigest()


@dataclass(frozen=True)
class _RowItem:
    rows: Any  # [N,H,W,3] uint8, read a row at a time
    row: int
    name: str
    category: str = ""

    def image(self) -> Any:
        try:
            return np.asarray(self.rows[self.row])
        except OSError as error:
            raise BrainfastError(self.name, expected="a whole image", got=str(error)) from error

    def digest(self) -> str:
        return hash_image(self.image())


class Images(Sequence[Any]):
    """Images of some items, each read when it is asked for."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._items[index].image()


def read_source(source: Any, categories: str | Path | None = None) -> list[Item]:
    """The candidates of a source, in a fixed order.

    source: a folder, searched with what is in it; a .tar shard or a sequence of paths of files,
    folders and shards; an HDF5 file, or file.hdf5:dataset with its groups (file.hdf5:group/images),
    of uint8 images [N,H,W,3] (needs h5py); or `Item`s of your own.
    A file's category is the folder that it lies in below the source; `categories` is a CSV
    name,category that says otherwise.

    Errors: BrainfastError for nothing there, two items of one name, or a CSV that misses one.
    """
    parts = [source] if isinstance(source, str | os.PathLike) else list(source)
    items = [item for part in parts for item in _items_of(part)]
    if not items:
        raise BrainfastError("source", expected="at least one image", got="none")
    name, count = Counter(item.name for item in items).most_common(1)[0]
    if count > 1:
        raise BrainfastError(
            "source", expected="names that differ", got=f"{count} candidates called {name!r}"
        )
    return items if categories is None else _with_categories(items, Path(categories))


def digests(items: Sequence[Item], progress: bool = False) -> list[str]:
    """SHA-256 of every item's bytes."""

    def some(begin: int) -> list[str]:
        return [item.digest() for item in items[begin : begin + _AT_ONCE]]

    found: list[str] = []
    bar = tqdm(desc="hash", unit="image", total=len(items), disable=not progress)
    with ThreadPoolExecutor(min(4, usable_cores())) as pool, bar:
        try:
            for part in pool.map(some, range(0, len(items), _AT_ONCE)):
                found += part
                bar.update(len(part))
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _items_of(part: Any) -> Iterator[Item]:
    if not isinstance(part, str | os.PathLike):
        if not hasattr(part, "digest"):
            raise BrainfastError("source", expected="paths, or items", got=f"{part!r:.60}")
        return iter([cast(Item, part)])
    path = Path(part)
    if path.is_dir():
        return _folder_items(path)
    if path.suffix.lower() == ".tar":
        return _tar_items(path)
    if (match := _HDF5.fullmatch(str(path))) is not None:
        return _hdf5_items(Path(match[1]), match[2] or "")
    if not path.is_file():
        raise BrainfastError(
            str(path),
            expected="an image, a folder, a .tar shard or an HDF5 file",
            got="nothing there",
            remedy="check the path",
        )
    return iter([_FileItem(path, path.name, "")])


def _folder_items(folder: Path) -> Iterator[Item]:
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() == ".tar":
            yield from _tar_items(path)
        elif path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            parent = relative.parent.as_posix()
            yield _FileItem(path, relative.as_posix(), "" if parent == "." else parent)


def _tar_items(shard: Path) -> Iterator[Item]:
    file_size(shard)
    try:
        with tarfile.open(shard, "r:") as file:
            for member in file:
                path = Path(member.name)
                if member.isreg() and path.suffix.lower() in IMAGE_SUFFIXES:
                    parent = path.parent.as_posix()
                    yield _TarItem(
                        shard,
                        member.offset_data,
                        member.size,
                        f"{shard.stem}/{member.name}",
                        "" if parent == "." else parent,
                    )
    except tarfile.TarError as error:
        raise BrainfastError(
            str(shard),
            expected="a tar file without compression",
            got=str(error),
            remedy="unpack it if it is compressed, or download it again",
        ) from error


def _hdf5_items(path: Path, dataset: str) -> Iterator[Item]:
    file_size(path)
    try:
        import h5py
    except ImportError as error:
        raise BrainfastError(
            str(path), expected="h5py to read it", got=str(error), remedy="pip install h5py"
        ) from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise BrainfastError(str(path), expected="an HDF5 file", got=str(error)) from error
    images = _image_datasets(file)
    found = dataset.strip("/") or (images[0] if len(images) == 1 else "")
    rows: Any = file.get(found) if found else None
    if getattr(rows, "ndim", 0) != 4 or rows.dtype != np.uint8:
        raise BrainfastError(
            str(path),
            expected="the name of a dataset of uint8 images [N,H,W,3] behind a colon",
            got=f"{dataset!r} of {', '.join(images) or 'no such dataset'}",
            remedy=f"write {path}:imgBrick for NSD's",
        )
    return iter([_RowItem(rows, row, f"{found}/{row:06d}") for row in range(len(rows))])


def _image_datasets(file: Any) -> list[str]:
    """Names of the datasets of four axes, those in groups too."""
    found: list[str] = []

    def visit(name: str, member: Any) -> None:
        if getattr(member, "ndim", 0) == 4:
            found.append(name)

    file.visititems(visit)
    return found


@dataclass(frozen=True)
class _Renamed:
    item: Item
    category: str

    @property
    def name(self) -> str:
        return self.item.name

    def image(self) -> Any:
        return self.item.image()

    def digest(self) -> str:
        return self.item.digest()


def _with_categories(items: Sequence[Item], path: Path) -> list[Item]:
    table = _read_categories(path)
    missing = [item.name for item in items if item.name not in table]
    if missing:
        raise BrainfastError(
            str(path),
            expected="a category for every candidate",
            got=f"none for {len(missing)}, such as {missing[0]!r}",
        )
    return [_Renamed(item, table[item.name]) for item in items]


def _read_categories(path: Path) -> Mapping[str, str]:
    file_size(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # Excel begins with a mark
            rows = [row for row in csv.reader(file) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BrainfastError(
            str(path), expected="a CSV in UTF-8", got=str(error), remedy="save it as UTF-8"
        ) from error
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != 2), None)
    if wrong is not None:
        raise BrainfastError(
            str(path),
            expected="two columns, name,category",
            got=f"{rows[wrong - 1]} in row {wrong}",
        )
    return {name: category.strip() for name, category in rows}
