"""A pool's folder: filled part after part, resumed after a kill, and replaced as it grows."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from .data.token_file import locked, reserve, told_disk_errors
from .errors import BrainfastError
from .files import check_writable, hash_file, save_tensors, write_json
from .pool_file import (
    BASIS_FILE,
    DATA_FILE,
    FILES,
    INDEX_FILE,
    ITEMS_FILE,
    LOCK_FILE,
    PARTIAL_FILE,
    Dtype,
    Index,
    Items,
    Key,
    changed_since,
    check_key,
    damaged,
    engine_key,
    images_hash,
    layout,
    read_index,
    read_items,
    write_items,
)
from .pool_fill import Filling, Projection
from .pool_source import Item, digests

if TYPE_CHECKING:
    from .engine import Engine

Floats = npt.NDArray[np.float32]


def list_items(sources: Sequence[Item], progress: bool = False) -> Items:
    """Names, categories and hashes of candidates; their bytes are read."""
    return Items(
        names=tuple(item.name for item in sources),
        categories=tuple(item.category for item in sources),
        digests=tuple(digests(sources, progress)),
    )


def make_index(projection: Projection, items: Items, dtype: Dtype) -> Index:
    """The index of a pool of which nothing has been computed."""
    key = Key(
        **engine_key(projection.engine, projected=projection.weights is not None),
        basis_hash=projection.hash(),
        dtype=dtype,
        images_hash=images_hash(items.digests),
    )
    return Index(
        key=key,
        items=len(items.names),
        features=projection.size,
        done=0,
        basis=projection.names,
    )


def check_place(folder: Path) -> None:
    """Refuse a folder with anything but a pool in it, or that cannot be written to."""
    if folder.exists() and not folder.is_dir():
        raise BrainfastError(str(folder), expected="a folder", got="a file")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = sorted(names - FILES - set(_leftovers(names)))
    if others and INDEX_FILE not in names:
        raise BrainfastError(
            str(folder),
            expected="a new folder, or a pool",
            got=f"one with {others[0]!r} in it",
            remedy="choose another name",
        )
    check_writable(folder)


def _leftovers(names: Iterable[str]) -> list[str]:
    """What a killed process has half written."""
    return [name for name in names if name.startswith(".") and name.endswith(".part")]


def build(folder: Path, index: Index, items: Items, filling: Filling, progress: bool) -> None:
    """Make `folder` a whole pool; what an earlier call has finished is not computed again.

    The data are synced before the index that tells of them, so that a kill costs one part at most.
    """
    with told_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with told_disk_errors(folder), locked(folder, LOCK_FILE):
        index = _begin(folder, index, items, filling.projection)
        if not (folder / DATA_FILE).is_file():
            index = _fill(folder, index, filling, progress)
            _check_readable(folder, index)
            partial = folder / PARTIAL_FILE
            _write_index(folder, index.model_copy(update={"data_hash": hash_file(partial)}))
            os.replace(partial, folder / DATA_FILE)


def _begin(folder: Path, empty: Index, items: Items, projection: Projection) -> Index:
    data, partial, place = folder / DATA_FILE, folder / PARTIAL_FILE, layout(empty)
    if (folder / INDEX_FILE).exists():
        index: Index = _with_images_mended(folder, read_index(folder), empty, items)
        check_key(folder, index, dict(empty.key))
        if (index.items, index.features) != (empty.items, empty.features):
            raise damaged(folder / INDEX_FILE)
        if data.is_file() or (partial.is_file() and partial.stat().st_size == place.size):
            _rename_items(folder, items, index.done)
            return index
        (folder / INDEX_FILE).unlink()  # it tells of rows that are lost
    elif data.exists():
        raise damaged(folder / INDEX_FILE)
    reserve(partial, place)
    if projection.weights is not None:
        save_tensors(folder / BASIS_FILE, {"weights": projection.weights})
    write_items(folder, items)
    _write_index(folder, empty)
    return empty


def _with_images_mended(folder: Path, index: Index, empty: Index, items: Items) -> Index:
    """Of a pool half built: images that are still to come may have been replaced since."""
    if index.done == index.items or index.items != empty.items:
        return index
    old = read_items(folder, index.items)
    if old.digests[: index.done] != items.digests[: index.done]:
        return index
    key = index.key.model_copy(update={"images_hash": empty.key.images_hash})
    return index.model_copy(update={"key": key})


def _rename_items(folder: Path, items: Items, done: int) -> None:
    """The same images may bear other names and categories by now; what was removed stays so.

    But for rows that are still to come, which a kill may have left unreadable and not counted: it
    is told anew whether they can be read.
    """
    old = read_items(folder, len(items.names))
    removed = tuple(row for row in old.removed if row < done)
    new = items.model_copy(update={"removed": removed})
    if new != old:
        write_items(folder, new)


def _fill(folder: Path, index: Index, filling: Filling, progress: bool) -> Index:
    bar = tqdm(
        desc="pool", unit="image", initial=index.done, total=index.items, disable=not progress
    )
    with (folder / PARTIAL_FILE).open("r+b", buffering=0) as file, bar:
        for rows, unreadable in filling.parts(index.done, index.key.dtype):
            done = index.done + len(rows["features"])
            _write_rows(file, index, index.done, rows)
            os.fsync(file.fileno())
            if unreadable:
                items = read_items(folder, index.items)
                lost = [index.done + row for row in unreadable]
                write_items(folder, items.without(lost))
                if progress:
                    _tell(items.names[row] for row in lost)
            bar.update(done - index.done)
            index = index.model_copy(update={"done": done})
            _write_index(folder, index)
    return index


def _check_readable(folder: Path, index: Index) -> None:
    """Take back a pool of no candidate: none of the images could be read."""
    items = read_items(folder, index.items)
    if len(items.removed) < index.items:
        return
    for name in (INDEX_FILE, PARTIAL_FILE, ITEMS_FILE, BASIS_FILE):
        (folder / name).unlink(missing_ok=True)
    raise BrainfastError(
        "source",
        expected="an image that can be read",
        got=f"none of {index.items}, such as {items.names[0]!r}",
    )


def _tell(unreadable: Iterable[str]) -> None:
    for name in unreadable:
        tqdm.write(f"{name}: cannot be read, left out", file=sys.stderr)


def _write_index(folder: Path, index: Index) -> None:
    write_json(folder / INDEX_FILE, index.model_dump(mode="json"))


def _write_rows(file: Any, index: Index, first: int, rows: dict[str, npt.NDArray[Any]]) -> None:
    for name, (begin, shape) in layout(index).places.items():
        array = np.ascontiguousarray(rows[name])
        if array.shape[1:] != shape[1:]:
            raise BrainfastError(
                "features", expected=f"{shape[1:]} a candidate", got=f"{array.shape[1:]}"
            )
        for part in _pieces(array):
            file.seek(begin + first * array[:1].nbytes + part.start)
            data = array.reshape(-1).view(np.uint8)[part].data
            while data:
                data = data[file.write(data) :]


def _pieces(array: npt.NDArray[Any]) -> Iterator[slice]:
    most = 1 << 26
    for begin in range(0, array.nbytes, most):
        yield slice(begin, min(begin + most, array.nbytes))


def check_engine(folder: Path, index: Index, engine: Engine) -> None:
    """Refuse an engine of which the pool's features are not."""
    check_key(folder, index, engine_key(engine, projected=bool(index.basis)))


@contextmanager
def unchanged(folder: Path, index: Index, items: Items) -> Iterator[Items]:
    """Hold the pool against other writers; its candidates now, which only removals may differ in.

    Once `add` has put another folder in its place, the lock here is that folder's: whoever held or
    waited for the old one finds the index changed.
    """
    with told_disk_errors(folder), locked(folder, LOCK_FILE):
        found = read_index(folder)
        now = read_items(folder, found.items)
        if found != index or now.names != items.names:
            raise changed_since(folder)
        yield now


def adding_folder(path: Path) -> Path:
    """Where a pool with further candidates grows."""
    return path.parent / f"{path.name}.adding"


def check_adding(path: Path, index: Index, items: Items) -> None:
    """Refuse to go on with an interrupted `add` of other candidates."""
    adding = adding_folder(path)
    if (adding / INDEX_FILE).is_file():
        found = _with_images_mended(adding, read_index(adding), index, items)
        remedy = f"delete {adding} to give up the addition that was interrupted"
        check_key(adding, found, dict(index.key), remedy)


def swap_added(path: Path) -> None:
    """Put the pool that `adding_folder` holds in the place of the one at `path`."""
    old = _replaced_folder(path)
    shutil.rmtree(old, ignore_errors=True)
    _keep_others(path, adding_folder(path))
    os.rename(path, old)
    os.rename(adding_folder(path), path)
    shutil.rmtree(old, ignore_errors=True)


def _keep_others(path: Path, adding: Path) -> None:
    """A user's own files, such as the table of categories, stay with the pool."""
    names = {each.name for each in path.iterdir()} - FILES
    for name in sorted(names - set(_leftovers(names))):
        if (path / name).is_dir():
            shutil.copytree(path / name, adding / name, dirs_exist_ok=True)
        else:
            shutil.copy2(path / name, adding / name)


def finish_swap(path: Path) -> None:
    """After a kill between the two renames the new pool is whole and nothing is in its place."""
    old = _replaced_folder(path)
    if not path.exists() and (adding_folder(path) / DATA_FILE).is_file():
        with locked(old, LOCK_FILE) if old.is_dir() else nullcontext():
            os.rename(adding_folder(path), path)
    elif not (path / INDEX_FILE).is_file():
        raise BrainfastError(
            str(path), expected="a pool", got="no pool there", remedy="brainfast pool build"
        )
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)


def _replaced_folder(path: Path) -> Path:
    """A name that no user's own copy of a pool bears: what lies there may be deleted."""
    return path.parent / f".{path.name}.replaced"
