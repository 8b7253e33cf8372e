"""Several subjects at once: one vertex space, one split of the images, responses with masks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias, overload

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError
from ..images import as_images
from ..surfaces import Surface
from ..vertex_space import VertexSpace
from .group_splits import SplitKind, divide
from .measured import Measured, share_keys
from .splits import NAMES, Floats, Indices, Split, Strings, split_hash

Mask: TypeAlias = npt.NDArray[np.bool_]
Missing: TypeAlias = Literal["mask", "zero"]

FRACTIONS = (0.85, 0.10, 0.05)
SAME_MM = 1e-3  # two subjects' coordinates of one vertex may differ by rounding
PROBES = 4  # shared images looked at, a subject


class Group:
    """Subjects on one mesh as one data set: `train`, `val`, `heldout` over (subject, image) pairs.

    subjects: data sets such as `Algonauts` and `Arrays`, by name or with names of their own. They
        stay as they are; in the group, one that names no subject has the name given here
    split: "by_image": an image, and whatever is grouped with it, lies on one side for every
        subject; "per_subject": each subject's images are split for themselves, as BlobGPT's report
        does, so that one may train on what another is scored on. Groups that were given mean the
        same for every subject, and a table that fixes a subject's split (`groups.csv` with a
        column split) is obeyed in both
    fractions, seed: see `split_by_image`; the same seed and fractions give the sides that one
        subject alone would get
    missing: what a vertex is that a subject lacks or has NaN for: "mask": outside loss and score;
        "zero": a response of 0 that counts, as in the report

    space: the union of the subjects' vertices; positions: subject -> columns there, int64 [V_s]
    split_hash: SHA-256 of which image of which subject is on which side
    options: how it was divided, less the seed: what a card keeps to divide the same data again

    Responses stay on disk until a batch asks for them. Raises BrainfastError for subjects without
    a name or with the same, on different meshes, with an image on two sides, with one id for
    different pictures, or with nothing to train on.
    """

    def __init__(
        self,
        subjects: Mapping[str, Any] | Sequence[Any],
        *,
        split: SplitKind = "by_image",
        fractions: Sequence[float] = FRACTIONS,
        seed: int = 0,
        missing: Missing = "mask",
    ) -> None:
        if missing not in ("mask", "zero"):
            raise BrainfastError("missing", expected="mask or zero", got=repr(missing))
        named = _name_subjects(subjects)
        self.subjects = tuple(named)
        self.missing: Missing = missing
        self.options = {"split": split, "fractions": list(fractions), "missing": missing}
        self.spaces = {name: data.space for name, data in named.items()}
        self.space = VertexSpace.union(self.spaces)
        self.positions = {name: self.space.positions(s) for name, s in self.spaces.items()}
        self.surface: Surface = _agree(named, "surface")
        self.visual_angle_deg: float | None = _agree(named, "visual_angle_deg")
        keyed = share_keys(named)
        _check_shared(keyed)
        parts = divide(keyed, split, fractions, seed)
        self.data = {name: data.resplit(parts[name]) for name, data in named.items()}
        for name, data in self.data.items():
            _check_train(name, data.train)
        ids = {
            f"{side}/{name}": data.image_keys[parts[name][side]]
            for name, data in keyed.items()
            for side in NAMES
        }
        self.split_hash = split_hash(ids)
        self.train, self.val, self.heldout = (
            GroupSplit(
                side,
                {name: getattr(data, side) for name, data in self.data.items()},
                {name: ids[f"{side}/{name}"] for name in self.subjects},
                self.space,
                self.positions,
                missing,
            )
            for side in NAMES
        )

    @cached_property
    def coordinates(self) -> Floats:
        """Where the union's vertices lie, float32 [V,3]; asked for by models that use them only.

        Raises BrainfastError where two subjects disagree about a vertex.
        """
        points = np.full((self.space.V, 3), np.nan, dtype=np.float32)
        for name, data in self.data.items():
            columns = self.positions[name]
            own = np.asarray(data.coordinates, dtype=np.float32)
            if (np.abs(points[columns] - own) > SAME_MM).any():
                raise BrainfastError(
                    f"coordinates of {name}",
                    expected="those that the other subjects have for the same vertices",
                    got="others",
                    remedy="give every subject the same surface and coordinates",
                )
            points[columns] = own
        return points


class Pictures(Sequence[Any]):
    """Images of several subjects one after the other, looked up only when asked for."""

    def __init__(self, parts: Sequence[Sequence[Any]], part: Indices, rows: Indices) -> None:
        self._parts, self._part, self._rows = parts, part, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Pictures: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Pictures(self._parts, self._part[index], self._rows[index])
        return self._parts[self._part[index]][int(self._rows[index])]


class GroupSplit:
    """One part of a group: n pairs of a subject and an image, subject after subject.

    name: "train", "val" or "heldout"
    subjects: names; subject_index: whose pair it is, as a place in `subjects`, int64 [n]
    rows: the pair's row in that subject's own Split, int64 [n]
    images: the n images, looked up when indexed
    image_ids: str [n], equal for one image whoever saw it (NSD's id "nsd-00013" for Algonauts)
    space: the union's V vertices
    hash: SHA-256 of the name, the subjects and their image ids, in order
    """

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Split],
        image_ids: Mapping[str, Strings],
        space: VertexSpace,
        positions: Mapping[str, Indices],
        missing: Missing,
    ) -> None:
        self.name = name
        self.subjects = tuple(splits)
        self.space = space
        self.positions = dict(positions)
        self.missing = missing
        self._splits = dict(splits)
        sizes = [len(split) for split in splits.values()]
        self.subject_index: Indices = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
        self.rows: Indices = np.concatenate([np.arange(size, dtype=np.int64) for size in sizes])
        self.image_ids: Strings = np.concatenate([image_ids[subject] for subject in splits])
        self.images: Sequence[Any] = Pictures(
            [split.images for split in splits.values()], self.subject_index, self.rows
        )
        self.hash = _ordered_hash(name, image_ids)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def V(self) -> int:
        """Vertices of the union."""
        return self.space.V

    def image(self, index: int) -> Any:
        """Image of one pair: a path or a uint8 array."""
        return self.images[index]

    def of(self, subject: str) -> Split:
        """The part of one subject as an ordinary Split, in its own vertices with its ceiling."""
        if subject not in self._splits:
            raise BrainfastError(
                "subject", expected=f"one of {', '.join(self.subjects)}", got=repr(subject)
            )
        return self._splits[subject]

    def responses(
        self,
        indices: Sequence[int] | npt.NDArray[Any] | slice,
    ) -> tuple[Floats, Mask]:
        """Responses float32 [B,V] of some pairs in the union, and which of them count, bool [B,V].

        A vertex that the subject lacks, or has NaN for, is 0; it counts with missing="zero" only.
        """
        chosen = np.arange(len(self))[indices]
        values = np.zeros((len(chosen), self.V), dtype=np.float32)
        mask = np.zeros((len(chosen), self.V), dtype=bool)
        for number in np.unique(self.subject_index[chosen]):
            subject = self.subjects[number]
            at = np.flatnonzero(self.subject_index[chosen] == number)
            measured = self._measured(subject, self.rows[chosen[at]])
            present = ~np.isnan(measured)
            measured[~present] = 0.0
            columns = self.positions[subject]
            for row, own, known in zip(at, measured, present, strict=True):
                values[row, columns] = own
                mask[row, columns] = known
        if self.missing == "zero":
            mask[:] = True
        return values, mask

    @cached_property
    def responses_hash(self) -> str:
        """SHA-256 of all responses, subject after subject."""
        digest = hashlib.sha256()
        for subject, split in self._splits.items():
            assert split.responses is not None  # a Split of measured images
            digest.update(f"{subject}|{split.responses.hash()}\n".encode())
        return digest.hexdigest()

    def _measured(self, subject: str, rows: Indices) -> Floats:
        responses = self._splits[subject].responses
        assert responses is not None  # a Split of measured images
        return responses[rows]

    @cached_property
    def _unique(self) -> tuple[Indices, Indices]:
        _, first, index = np.unique(self.image_ids, return_index=True, return_inverse=True)
        order = np.argsort(first)
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return first[order].astype(np.int64), place[index].astype(np.int64)

    @property
    def unique_rows(self) -> Indices:
        """The first pair of every distinct image, int64 [m], increasing."""
        return self._unique[0]

    def unique_images(self) -> tuple[Sequence[Any], Indices]:
        """The m distinct images in the order of `unique_rows`, and each pair's image, int64 [n].

        `images[index[i]]` is the image of pair i, so tokens need be computed m times only.
        """
        rows, index = self._unique
        parts = [split.images for split in self._splits.values()]
        return Pictures(parts, self.subject_index[rows], self.rows[rows]), index


def _ordered_hash(name: str, image_ids: Mapping[str, Strings]) -> str:
    digest = hashlib.sha256(name.encode())
    for subject, ids in image_ids.items():
        digest.update("\n".join(["", subject, str(len(ids)), *map(str, ids)]).encode())
    return digest.hexdigest()


def _name_subjects(subjects: Mapping[str, Any] | Sequence[Any]) -> dict[str, Measured]:
    if isinstance(subjects, Mapping):
        pairs: list[tuple[Any, Any]] = list(subjects.items())
    else:
        pairs = [(getattr(data, "subject", None), data) for data in subjects]
    names = [name for name, _ in pairs]
    if not pairs or not all(isinstance(name, str) and name for name in names):
        raise BrainfastError(
            "subjects",
            expected="at least one data set, each with a name",
            got="none" if not pairs else f"names {', '.join(map(repr, names))}",
            remedy="pass {name: data} or give each its subject=",
        )
    if len(set(names)) < len(names):
        raise BrainfastError(
            "subjects",
            expected="a name of its own for every subject",
            got=", ".join(map(str, names)),
            remedy="pass {name: data}",
        )
    for name, data in pairs:
        if not isinstance(data, Measured):
            raise BrainfastError(
                f"subject {name}",
                expected="a brainfast.data.Algonauts or Arrays",
                got=type(data).__name__,
            )
    return {name: data.as_subject(name) for name, data in pairs}


def _agree(named: Mapping[str, Measured], attribute: str) -> Any:
    values = {name: getattr(data, attribute) for name, data in named.items()}
    if len(set(values.values())) > 1:
        raise BrainfastError(
            attribute,
            expected="one value for all subjects",
            got=", ".join(f"{name} {value}" for name, value in values.items()),
            remedy=f"read them all with the same {attribute}",
        )
    return next(iter(values.values()))


def _check_train(name: str, train: Split) -> None:
    if len(train) == 0:
        raise BrainfastError(
            f"the train split of {name}",
            expected="at least one image",
            got="none",
            remedy="give more images, another seed, or other fractions",
        )


def _check_shared(named: Mapping[str, Measured]) -> None:
    """Look at a few images that several subjects share: one id must mean one picture."""
    owners: dict[str, tuple[str, int]] = {}
    for name, data in named.items():
        keys = data.image_keys.tolist()
        shared = [row for row, key in enumerate(keys) if key in owners]
        spread = np.linspace(0, len(shared) - 1, min(PROBES, len(shared))).astype(np.int64)
        for row in (shared[place] for place in spread):
            other, place = owners[keys[row]]
            here, there = (d.whole.images[r] for d, r in ((data, row), (named[other], place)))
            if not np.array_equal(as_images(here)[0], as_images(there)[0]):
                raise BrainfastError(
                    f"image {keys[row]}",
                    expected=f"one picture for {other} and {name}, as the id says",
                    got="different ones",
                    remedy="give different images different ids, or the same files to both",
                )
        owners |= {key: (name, row) for row, key in enumerate(keys) if key not in owners}
