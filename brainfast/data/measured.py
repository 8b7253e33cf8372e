"""What every data set of one subject has: all of its images, and the splits made of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from ..errors import BrainfastError
from ..files import hash_file
from ..images import as_images, hash_image
from ..surfaces import Surface
from ..vertex_space import VertexSpace
from .splits import NAMES, Floats, Grouping, Indices, Split, Strings, make_splits, split_hash


class Measured:
    """Images that one subject saw and the responses to them, divided into three splits.

    space: the subject's V vertices
    whole: all measured images in their own order, as one Split named "whole"
    grouping: the group of every image of `whole`, and the split that a table fixed for it
    grouped: whether somebody gave the groups, which then mean the same for every subject
    train, val, heldout: splits of `whole`;  split_hash: SHA-256 of which image is on which side
    """

    space: VertexSpace
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
        """One key an image of `whole`, equal where any two subjects saw the same image, str [n]."""
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


def content_keys(images: Sequence[object]) -> Strings:
    """SHA-256 of every image's file, or of its pixels where it is an array, str [n]."""
    digests = [
        hash_file(image) if isinstance(image, str | Path) else hash_image(as_images(image)[0])
        for image in images
    ]
    return np.asarray(digests, dtype=np.str_)
