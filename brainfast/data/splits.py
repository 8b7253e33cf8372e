"""Which images train a model, which choose it and which judge it: by image, never by trial."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError
from ..vertex_space import VertexSpace
from .responses import Responses

Floats: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]
Strings: TypeAlias = npt.NDArray[np.str_]

NAMES = ("train", "val", "heldout")
FRACTIONS = (0.8, 0.1, 0.1)


class Images(Sequence[Any]):
    """Some of a dataset's images, by path or array, looked up only when asked for."""

    def __init__(self, images: Sequence[Any] | npt.NDArray[np.uint8], rows: Indices) -> None:
        self._images = images
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Images(self._images, self._rows[index])
        return self._images[int(self._rows[index])]


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a dataset.

    name: "train", "val", "heldout" or "challenge"
    images: paths or uint8 arrays, n of them, read when indexed
    responses: float32 [n,V] in z units, read when indexed; None where nobody has published them
    image_ids: str [n]
    space: the V vertices
    ceiling: largest share of variance that a model can explain [V], 0 to 1; None with
        `ceiling_reason`
    hash: SHA-256 of the name and the image ids, in order
    """

    name: str
    images: Sequence[Any]
    responses: Responses | None
    image_ids: Strings
    space: VertexSpace
    ceiling: Floats | None
    ceiling_reason: str | None
    hash: str

    def __len__(self) -> int:
        return len(self.images)


def split_by_image(
    image_ids: Sequence[str] | Strings,  # [n]
    fractions: Sequence[float] = FRACTIONS,
    seed: int = 0,
    groups: Sequence[str] | Strings | None = None,  # [n]
    names: Sequence[str] = NAMES,
) -> dict[str, Indices]:
    """Split name -> indices, int64, increasing: u = SHA-256(seed, group) / 2^64 falls in its share.

    All images of one group (source photograph, NSD id; the image itself without `groups`) lie on
    one side. The side depends on nothing but the group and the seed, so it is the same for every
    subject who saw the image, whatever else they saw; the shares are therefore met on average
    only. A split that would be empty takes the one group whose u lies closest to its share.

    Raises BrainfastError where fractions do not sum to 1 or there are too few groups.
    """
    _check_fractions(fractions, names)
    labels = np.asarray(image_ids if groups is None else groups, dtype=np.str_)
    if labels.shape != (len(image_ids),):
        raise BrainfastError(
            "groups", expected=f"one for each of {len(image_ids)} images", got=f"{labels.size}"
        )
    unique, group_of = np.unique(labels, return_inverse=True)
    edges = np.concatenate([[0.0], np.cumsum(fractions)])
    edges[-1] = 1.0
    place = np.array([_uniform(seed, str(label)) for label in unique])
    side = np.searchsorted(edges, place, side="right") - 1
    wanted = [number for number, share in enumerate(fractions) if share > 0]
    if unique.size < len(wanted):
        raise BrainfastError(
            "groups",
            expected=f"at least {len(wanted)}, one for each of {', '.join(names)}",
            got=f"{unique.size}",
            remedy="give more images or fewer splits",
        )
    for number in wanted:
        if not (side == number).any():
            counts = np.bincount(side, minlength=len(fractions))
            middle = (edges[number] + edges[number + 1]) / 2
            distance = np.where(counts[side] > 1, np.abs(place - middle), np.inf)
            side[distance.argmin()] = number
    return {
        name: np.flatnonzero(side[group_of] == number).astype(np.int64)
        for number, name in enumerate(names)
    }


def split_hash(parts: Mapping[str, Sequence[str] | Strings]) -> str:
    """SHA-256 of which images are on which side; the order of names and ids does not matter."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        ids = "\n".join(sorted(str(image) for image in parts[name]))
        digest.update(f"{len(ids)}|{name}\n{ids}\n".encode())
    return digest.hexdigest()


def make_splits(
    images: Sequence[Any] | npt.NDArray[np.uint8],
    responses: Responses,  # [n,V]
    image_ids: Strings,
    parts: Mapping[str, Indices],
    space: VertexSpace,
    ceiling: Floats | None,
    ceiling_reason: str | None,
) -> dict[str, Split]:
    """A Split for every name in `parts`."""
    made = {}
    for name, rows in parts.items():
        ids = image_ids[rows]
        made[name] = Split(
            name=name,
            images=Images(images, rows),
            responses=responses.rows(rows),
            image_ids=ids,
            space=space,
            ceiling=ceiling,
            ceiling_reason=ceiling_reason,
            hash=ordered_hash(name, ids),
        )
    return made


def ordered_hash(name: str, image_ids: Sequence[str] | Strings) -> str:
    """SHA-256 of a split's name and its image ids in order."""
    return hashlib.sha256("\n".join([name, *map(str, image_ids)]).encode()).hexdigest()


@dataclass(frozen=True)
class Grouping:
    """Group of every image, and the split that a table fixed for it, where one did."""

    groups: Strings
    fixed: dict[str, Indices] | None

    def split(
        self, image_ids: Strings, fractions: Sequence[float], seed: int
    ) -> dict[str, Indices]:
        """The fixed split, else one by group."""
        return self.fixed or split_by_image(image_ids, fractions, seed, self.groups)


def read_groups(
    groups: str | Path | Mapping[str, str] | Sequence[str] | Strings,
    image_ids: Strings,
) -> Grouping:
    """Groups of images from a CSV file, a mapping image id -> group, or a list in image order.

    The CSV has a header: `image` (file name or image id), `group`, and optionally `split` (train,
    val or heldout), which fixes the side of every image. Rows for other images are left aside.

    Raises BrainfastError where an image has no group or a group lies on two sides.
    """
    if isinstance(groups, str | Path):
        return _read_table(Path(groups), image_ids)
    if isinstance(groups, Mapping):
        missing = [image for image in image_ids if str(image) not in groups]
        if missing:
            raise _no_group("groups", missing[0], len(missing))
        groups = [groups[str(image)] for image in image_ids]
    labels = np.asarray([str(group) for group in groups], dtype=np.str_)
    if labels.shape != image_ids.shape:
        raise BrainfastError(
            "groups", expected=f"one for each of {len(image_ids)} images", got=f"{labels.size}"
        )
    return Grouping(labels, None)


def _read_table(path: Path, image_ids: Strings) -> Grouping:
    rows = _read_csv(path)
    table = {_image_id(row["image"]): row for row in rows}
    if len(table) < len(rows):
        raise BrainfastError(str(path), expected="one row an image", got="an image twice")
    missing = [image for image in image_ids if str(image) not in table]
    if missing:
        raise _no_group(str(path), missing[0], len(missing))
    chosen = [table[str(image)] for image in image_ids]
    labels = np.asarray([row["group"] for row in chosen], dtype=np.str_)
    if not chosen or "split" not in chosen[0]:
        return Grouping(labels, None)
    sides = np.asarray([row["split"] for row in chosen], dtype=np.str_)
    _check_sides(path, labels, sides)
    return Grouping(labels, {name: np.flatnonzero(sides == name) for name in NAMES})


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = list(reader.fieldnames or [])
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BrainfastError(
            str(path), expected="a CSV file with columns image, group", got=str(error)
        ) from error
    if not {"image", "group"} <= set(header):
        raise BrainfastError(
            str(path), expected="a header with image and group", got=", ".join(header) or "nothing"
        )
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values() or not row["group"]:
            raise BrainfastError(
                str(path), expected="every column filled", got=f"a broken line {number}"
            )
    return rows


def _check_sides(path: Path, labels: Strings, sides: Strings) -> None:
    for name in np.unique(sides):
        if name not in NAMES:
            raise BrainfastError(
                str(path), expected="split train, val or heldout", got=repr(str(name))
            )
    for label in np.unique(labels):
        found = np.unique(sides[labels == label])
        if found.size > 1:
            raise BrainfastError(
                str(path),
                expected="each group on one side",
                got=f"group {label!s} in {' and '.join(found)}",
                remedy="images of one photograph on two sides leak",
            )
    absent = [name for name in NAMES if name not in sides]
    if absent:
        raise BrainfastError(
            str(path), expected="images for train, val and heldout", got=f"none for {absent[0]}"
        )


def _image_id(image: str) -> str:
    name = Path(image).name
    return Path(name).stem if Path(name).suffix.lower() in {".png", ".jpg", ".jpeg"} else name


def _no_group(name: str, image: str, count: int) -> BrainfastError:
    more = f" and {count - 1} more" if count > 1 else ""
    return BrainfastError(name, expected="a group for every image", got=f"none for {image}{more}")


def _check_fractions(fractions: Sequence[float], names: Sequence[str]) -> None:
    values = np.asarray(fractions, dtype=np.float64)
    good = values.shape == (len(names),) and np.isfinite(values).all() and (values >= 0).all()
    if not good or abs(values.sum() - 1) > 1e-6 or values[0] <= 0:
        raise BrainfastError(
            "fractions",
            expected=f"shares of {', '.join(names)}, 0 or more, that sum to 1",
            got=str(tuple(fractions)),
        )


def _uniform(seed: int, label: str) -> float:
    """A number in [0, 1) that depends on seed and label alone, on every machine."""
    digest = hashlib.sha256(f"{seed}|{label}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
