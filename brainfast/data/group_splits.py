"""Which side an image of several subjects lies on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..errors import BrainfastError
from .measured import Measured
from .splits import NAMES, Grouping, Indices, Strings, split_by_image

SplitKind: TypeAlias = Literal["by_image", "per_subject"]


def divide(
    subjects: Mapping[str, Measured],
    split: SplitKind,
    fractions: Sequence[float],
    seed: int,
) -> dict[str, dict[str, Indices]]:
    """Subject -> split name -> rows of its `whole`, int64, increasing; see `Group`."""
    if split == "per_subject":
        return {name: _alone(name, data, fractions, seed) for name, data in subjects.items()}
    if split != "by_image":
        raise BrainfastError("split", expected="by_image or per_subject", got=repr(split))
    sizes = [len(data.whole) for data in subjects.values()]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    keys = np.concatenate([data.image_keys for data in subjects.values()])
    groups = np.concatenate([data.group_labels for data in subjects.values()])
    fixed = np.concatenate([_fixed_sides(data.grouping) for data in subjects.values()])
    labels = _join(keys, groups)
    sides = _sides(labels, fixed, fractions, seed)
    parts = {}
    for number, name in enumerate(subjects):
        own = sides[owner == number]
        parts[name] = {side: np.flatnonzero(own == side).astype(np.int64) for side in NAMES}
    return parts


def _alone(name: str, data: Measured, fractions: Sequence[float], seed: int) -> dict[str, Indices]:
    if data.grouping.fixed is not None:
        return data.grouping.fixed
    salted = [f"{name}|{label}" for label in data.group_labels]
    return split_by_image(data.whole.image_ids, fractions, seed, salted)


def _fixed_sides(grouping: Grouping) -> Strings:
    """Side of every image that a table fixed, "" where none did."""
    sides = np.full(grouping.groups.shape, "", dtype="<U8")
    for name, rows in (grouping.fixed or {}).items():
        sides[rows] = name
    return sides


def _join(keys: Strings, groups: Strings) -> Strings:
    """One label for all that a chain of equal keys and equal groups connects, str [n].

    It is the first of the chain's groups by name, so that a single image of one group keeps its
    own and falls on the side that it has for one subject alone.
    """
    names, group = np.unique(groups, return_inverse=True)
    _, key = np.unique(keys, return_inverse=True)
    size = len(names) + int(key.max(initial=-1)) + 1
    edges = coo_matrix((np.ones(len(key)), (group, len(names) + key)), shape=(size, size))
    _, part = connected_components(edges, directed=False)
    _, first = np.unique(part[: len(names)], return_index=True)  # names are sorted
    label: npt.NDArray[np.int64] = np.empty(int(part.max(initial=-1)) + 1, dtype=np.int64)
    label[part[first]] = first
    return np.asarray(names[label[part[group]]])


def _sides(labels: Strings, fixed: Strings, fractions: Sequence[float], seed: int) -> Strings:
    """Side of every pair: the one that a table fixed for its label, else by its hash."""
    tables = {str(label): str(side) for label, side in zip(labels, fixed, strict=True) if side}
    for label, side in zip(labels, fixed, strict=True):
        if side and tables[str(label)] != side:
            raise BrainfastError(
                "groups",
                expected="every image on one side for all subjects",
                got=f"{label} in {side} and {tables[str(label)]}",
                remedy="mend the tables, or split per_subject",
            )
    if len(tables) == len(np.unique(labels)):
        return np.asarray([tables[str(label)] for label in labels], dtype=np.str_)
    sides = np.empty(labels.shape, dtype="<U8")
    for name, rows in split_by_image(labels, fractions, seed).items():
        sides[rows] = name
    for row, label in enumerate(labels):
        sides[row] = tables.get(str(label), sides[row])
    return sides
