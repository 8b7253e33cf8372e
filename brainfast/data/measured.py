"""What every data set of one subject has: all of its images, and the splits made of them."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from ..errors import BrainfastError
from ..files import hash_file
from ..images import as_images, hash_image
from ..machine import usable_cores
from ..surfaces import Surface
from ..vertex_space import VertexSpace
from .splits import NAMES, Floats, Grouping, Indices, Split, Strings, make_splits, split_hash


class Measured:
    """Images that one subject saw and the responses to them, divided into three splits.

    subject: whose they are, if anybody's;  space: the subject's V vertices
    has_ids: whether somebody gave the images ids, so that `image_keys` are not hashes of pixels
    whole: all measured images in their own order, as one Split named "whole"
    grouping: the group of every image of `whole`, and the split that a table fixed for it
    grouped: whether somebody gave the groups, which then mean the same for every subject
    train, val, heldout: splits of `whole`;  split_hash: SHA-256 of which image is on which side
    """

    subject: str | None
    space: VertexSpace
    has_ids: bool
    whole: Split
    grouping: Grouping
    grouped: bool
    surface: Surface
    visual_angle_deg: float | None
    train: Split
    val: Split
    heldout: Split
    split_hash: str

    @cached_property
    def image_keys(self) -> Strings:
        """One key an image of `whole`, equal where two subjects saw the same image, str [n].

        Keys of subjects with ids and of subjects without do not compare: see `share_keys`.
        """
        return self._keys()

    @property
    def group_labels(self) -> Strings:
        """What must not part in a split over subjects: the groups given, else the keys, str [n]."""
        return self.grouping.groups if self.grouped else self.image_keys

    @property
    def coordinates(self) -> Floats:
        """Where the vertices lie, float32 [V,3]; may need a download."""
        raise NotImplementedError

    def _keys(self) -> Strings:
        raise NotImplementedError

    def as_subject(self, name: str) -> Self:
        """The same data as those of `name`, unless they name their subject themselves."""
        if self.space.subject:
            return self
        other = copy.copy(self)
        other.subject, other.space = name, replace(self.space, subject=name)
        for part in ("whole", *NAMES):
            setattr(other, part, replace(getattr(self, part), space=other.space))
        return other

    def with_keys(
        self,
        keys: Strings,  # [n]
    ) -> Self:
        """The same data with other `image_keys`."""
        other = copy.copy(self)
        other.image_keys = keys
        return other

    def resplit(self, parts: Mapping[str, Indices]) -> Self:
        """The same data, still unread, with other images in train, val and heldout.

        parts: "train", "val", "heldout" -> rows of `whole`, int64; rows in none are left out

        Raises BrainfastError for another split, and for a row on two sides or of no image.
        """
        rows = {name: np.asarray(parts.get(name, ()), dtype=np.int64) for name in NAMES}
        every = np.concatenate(list(rows.values()))
        inside = not every.size or (every.min() >= 0 and every.max() < len(self.whole))
        if set(parts) - set(NAMES) or not inside or np.unique(every).size < every.size:
            raise BrainfastError(
                "parts",
                expected=f"{', '.join(NAMES)} -> rows 0..{len(self.whole) - 1}, each on one side",
                got=f"{every.size} rows in {', '.join(parts) or 'no split'}",
            )
        other = copy.copy(self)
        other._divide(rows)
        return other

    def _divide(self, parts: Mapping[str, Indices]) -> None:
        whole = self.whole
        assert whole.responses is not None
        ids = whole.image_ids
        self.split_hash = split_hash({name: ids[rows] for name, rows in parts.items()})
        splits = make_splits(
            whole.images,
            whole.responses,
            ids,
            parts,
            whole.space,
            whole.ceiling,
            whole.ceiling_reason,
        )
        self.train, self.val, self.heldout = splits["train"], splits["val"], splits["heldout"]


def share_keys(subjects: Mapping[str, Measured]) -> dict[str, Measured]:
    """The same data with `image_keys` that compare also where only some subjects have ids.

    An image without an id takes the id of the same pixels, where a subject has such.
    """
    if len({data.has_ids for data in subjects.values()}) < 2:
        return dict(subjects)
    ids: dict[str, str] = {}
    for data in (data for data in subjects.values() if data.has_ids):
        contents = content_keys(data.whole.images).tolist()
        for content, key in zip(contents, data.image_keys.tolist(), strict=True):
            ids[content] = min(key, ids.get(content, key))
    shared = dict(subjects)
    for name, data in subjects.items():
        if not data.has_ids:
            keys = [ids.get(content, content) for content in data.image_keys.tolist()]
            shared[name] = data.with_keys(np.asarray(keys, dtype=np.str_))
    return shared


def content_keys(images: Sequence[object]) -> Strings:
    """SHA-256 of every image's pixels, whether it is a file or an array, str [n]."""

    def digest(row: int) -> str:
        return hash_image(as_images(images[row], f"images[{row}]")[0])

    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        return np.asarray(list(pool.map(digest, range(len(images)))), dtype=np.str_)


def file_keys(paths: Sequence[str | Path]) -> Strings:
    """Equal for files of equal bytes, str [n]; only files that are alike in size are read.

    A file that is not there is unlike all others: whoever reads it is told.
    """
    files = {str(path): Path(path) for path in paths}
    sizes = {name: path.stat().st_size for name, path in files.items() if path.is_file()}
    alike = Counter(sizes.values())
    keys = {
        name: hash_file(path) if alike[sizes.get(name, -1)] > 1 else name
        for name, path in files.items()
    }
    return np.asarray([keys[str(path)] for path in paths], dtype=np.str_)
