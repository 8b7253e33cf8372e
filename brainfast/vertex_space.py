"""Which vertex of which mesh every column of a response is, and which regions it lies in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError
from .files import hash_arrays

Indices: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
SpaceName: TypeAlias = Literal["fsaverage", "fsaverage5", "custom"]
Hemisphere: TypeAlias = Literal["lh", "rh"]
Selection: TypeAlias = str | Sequence[str] | Sequence[int] | npt.NDArray[Any] | None

HEMISPHERES: tuple[Hemisphere, Hemisphere] = ("lh", "rh")

# Vertices of one hemisphere's mesh; fsaverage5's are the first of fsaverage's.
MESH_VERTICES: dict[str, int] = {"fsaverage": 163842, "fsaverage5": 10242}

# Regions of the Algonauts 2023 challenge, atlas by atlas, as its mappings spell them.
ATLASES: dict[str, tuple[str, ...]] = {
    "prf-visualrois": ("V1v", "V1d", "V2v", "V2d", "V3v", "V3d", "hV4"),
    "floc-bodies": ("EBA", "FBA-1", "FBA-2", "mTL-bodies"),
    "floc-faces": ("OFA", "FFA-1", "FFA-2", "mTL-faces", "aTL-faces"),
    "floc-places": ("OPA", "PPA", "RSC"),
    "floc-words": ("OWFA", "VWFA-1", "VWFA-2", "mfs-words", "mTL-words"),
    "streams": (
        "early",
        "midventral",
        "midlateral",
        "midparietal",
        "ventral",
        "lateral",
        "parietal",
    ),
}

UNIONS: dict[str, tuple[str, ...]] = {
    "V1": ("V1v", "V1d"),
    "V2": ("V2v", "V2d"),
    "V3": ("V3v", "V3d"),
    "FBA": ("FBA-1", "FBA-2"),
    "FFA": ("FFA-1", "FFA-2"),
    "VWFA": ("VWFA-1", "VWFA-2"),
}

ALIASES: dict[str, str] = {"OVWFA": "OWFA", "V4": "hV4"}


@dataclass(frozen=True, eq=False)
class VertexSpace:
    """The V vertices of a response: all of the left hemisphere, then all of the right.

    name: the mesh that `lh` and `rh` index; "custom" where there is none to draw on
    lh, rh: vertex of the left and right mesh, int64 [V_lh], [V_rh], strictly increasing
    rois: region name -> bool [V]; a region without a vertex is left out
    subject: whose vertices these are, if anybody's

    Raises BrainfastError where indices or masks do not fit the mesh or each other.
    """

    name: SpaceName
    lh: Indices
    rh: Indices
    rois: Mapping[str, Mask] = field(default_factory=dict)
    subject: str | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(SpaceName):
            raise BrainfastError(
                "vertex space", expected="fsaverage, fsaverage5 or custom", got=repr(self.name)
            )
        for side in HEMISPHERES:
            object.__setattr__(self, side, _mesh_indices(getattr(self, side), side, self.name))
        masks = {name: _roi_mask(name, mask, self.V) for name, mask in self.rois.items()}
        lowered = [name.lower() for name in masks]
        if len(set(lowered)) < len(lowered):
            raise BrainfastError(
                "rois", expected="names that differ in more than case", got=", ".join(masks)
            )
        present = {name: mask for name, mask in masks.items() if mask.any()}
        object.__setattr__(self, "rois", MappingProxyType(present))

    @property
    def V(self) -> int:
        """How many vertices."""
        return self.lh.size + self.rh.size

    @property
    def lh_slice(self) -> slice:
        """Columns of the left hemisphere."""
        return slice(0, self.lh.size)

    @property
    def rh_slice(self) -> slice:
        """Columns of the right hemisphere."""
        return slice(self.lh.size, self.V)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VertexSpace) and self.hash() == other.hash()

    def __hash__(self) -> int:
        return hash(self.hash())

    def hash(self) -> str:
        """SHA-256 of the mesh's name and the vertices; regions and subject are labels on them."""
        return hash_arrays({"lh": self.lh, "rh": self.rh, "name." + self.name: np.zeros(0)})

    def roi_names(self) -> list[str]:
        """Regions that are here, unions before their parts, in the order of the tables."""
        whole = {part: union for union, parts in UNIONS.items() for part in parts}
        tables = [n for atlas in ATLASES.values() for r in atlas for n in (whole.get(r, r), r)]
        own = {name.lower(): name for name in self.rois}
        known = [
            own.get(name.lower(), name)
            for name in tables
            if any(part.lower() in own for part in (name, *UNIONS.get(name, ())))
        ]
        return list(dict.fromkeys([*known, *self.rois]))

    def roi(self, name: str) -> Indices:
        """Columns of one region, int64 [n], increasing.

        Case does not matter. "lh.FFA" and "rh.FFA" keep one hemisphere, "all", "lh" and "rh" are
        whole; unions (V1 V2 V3 FBA FFA VWFA) join those of their parts that the subject has, and
        aliases (V4, OVWFA) work. An absent region is a BrainfastError that lists what is here.
        """
        if not isinstance(name, str):
            raise BrainfastError("ROI", expected="a name", got=repr(name))
        wanted = name.strip().lower()
        side, _, rest = wanted.partition(".")
        if side not in HEMISPHERES:
            side, rest = "", wanted
        if side and not rest:
            rest = "all"
        mask = self._mask(rest)
        if side == "lh":
            mask[self.rh_slice] = False
        elif side == "rh":
            mask[self.lh_slice] = False
        if not mask.any() and rest != "all":
            raise self._absent(name)
        return np.flatnonzero(mask).astype(np.int64)

    def _mask(self, wanted: str) -> Mask:
        """Mask of a lower-case region name; empty where it is absent."""
        if wanted == "all":
            return np.ones(self.V, dtype=bool)
        own = {name.lower(): mask for name, mask in self.rois.items()}
        pairs = [pair for alias in ALIASES.items() for pair in (alias, reversed(alias))]
        aliases = {one.lower(): other.lower() for one, other in pairs}
        unions = {name.lower(): parts for name, parts in UNIONS.items()}
        if wanted not in own:
            wanted = aliases.get(wanted, wanted)
        parts = (wanted,) if wanted in own else unions.get(wanted, ())
        mask = np.zeros(self.V, dtype=bool)
        for part in parts:
            mask |= own.get(part.lower(), False)
        return mask

    def _absent(self, name: str) -> BrainfastError:
        have = ", ".join(self.roi_names()) or "no region at all"
        return BrainfastError(
            "ROI",
            expected=f"a region that {self.subject or 'this subject'} has ({have})",
            got=repr(name),
            remedy="choose one of those, with lh. or rh. before it for one hemisphere",
        )

    def select(self, what: Selection = None) -> Indices:
        """Columns chosen by region names, indices or a mask, int64, increasing, each once.

        what: a name or names (their union), integer indices, each once, a bool mask [V], or None
            for all
        """
        if what is None:
            return np.arange(self.V, dtype=np.int64)
        names = [what] if isinstance(what, str) else what
        if len(names) and all(isinstance(item, str) for item in names):
            chosen = [self.roi(cast(str, item)) for item in names]
            return np.unique(np.concatenate(chosen))
        return self._numbers(np.asarray(what))

    def _numbers(self, what: npt.NDArray[Any]) -> Indices:
        if what.dtype == bool and what.shape == (self.V,):
            return np.flatnonzero(what).astype(np.int64)
        whole = what.ndim == 1 and (what.dtype.kind in "iu" or what.size == 0)
        if not whole or (what.size and not (what.min() >= 0 and what.max() < self.V)):
            raise BrainfastError(
                "vertices",
                expected=f"region names, indices from 0 to {self.V - 1} or a mask [{self.V}]",
                got=_describe(what),
            )
        chosen = np.unique(what.astype(np.int64))
        if chosen.size < what.size:  # a mask of 0 and 1 would be read as the vertices 0 and 1
            raise BrainfastError(
                "vertices",
                expected=f"indices, each once, or a bool mask [{self.V}]",
                got=f"{_describe(what)}, {what.size - chosen.size} of them repeats",
                remedy="of a mask of 0 and 1 give mask.astype(bool)",
            )
        return chosen

    def take(
        self,
        indices: npt.NDArray[Any],  # [n]
    ) -> VertexSpace:
        """The subset of these columns, in this order, which must be increasing as `select` gives.

        Regions that lose all of their vertices are gone from the subset.
        """
        indices = np.asarray(indices)
        chosen = self._numbers(indices)
        if indices.dtype != bool and not np.array_equal(chosen, indices):
            raise BrainfastError(
                "vertices", expected="increasing indices, each once", got="another order"
            )
        left = chosen < self.lh.size
        return replace(
            self,
            lh=self.lh[chosen[left]],
            rh=self.rh[chosen[~left] - self.lh.size],
            rois={name: mask[chosen] for name, mask in self.rois.items()},
        )

    @staticmethod
    def union(spaces: Mapping[str, VertexSpace]) -> VertexSpace:
        """Every vertex that any of some subjects has, on the mesh that they share.

        A region of the union is what `roi` finds for any subject, by OR, so V1 is V1v and V1d too
        where a subject has no more. Regions are drawn subject by subject: a vertex may lie in FFA-1
        for one and outside it for another. Ask a subject's own space for that subject's regions.

        spaces: subject -> space, at least one

        Raises BrainfastError for different meshes, and for spaces on no mesh ("custom") that are
        not one and the same: nothing says which of their columns belong together.
        """
        _check_one_mesh(spaces)
        first, *rest = spaces.values()
        lh, rh = (
            np.unique(np.concatenate([getattr(first, side), *(getattr(s, side) for s in rest)]))
            for side in HEMISPHERES
        )
        whole = VertexSpace(first.name, lh, rh)
        spelling: dict[str, str] = {}
        for name in (name for space in spaces.values() for name in space.rois):
            spelling.setdefault(name.lower(), name)
        rois = {name: np.zeros(whole.V, dtype=bool) for name in spelling.values()}
        for space in spaces.values():
            columns = whole.positions(space)
            for wanted, name in spelling.items():
                rois[name][columns[space._mask(wanted)]] = True
        return replace(whole, rois=rois)

    def positions(self, part: VertexSpace) -> Indices:
        """Columns here of the vertices of `part`, int64 [part.V], increasing.

        Raises BrainfastError where `part` is on another mesh or has a vertex that is not here.
        """
        missing = 0
        columns = []
        for side in HEMISPHERES:
            here, wanted = getattr(self, side), getattr(part, side)
            columns.append(np.searchsorted(here, wanted))
            missing += int((~np.isin(wanted, here)).sum())
        if part.name != self.name or missing:
            on = f" on {part.name}" if part.name != self.name else ""
            raise BrainfastError(
                f"vertices of {part.subject or 'the part'}",
                expected=f"some of these {self.V} vertices of {self.name}",
                got=f"{part.V} vertices{on}" if on else f"{missing} that are not among them",
            )
        return np.concatenate([columns[0], columns[1] + self.lh.size]).astype(np.int64)

    def to_arrays(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Arrays for a safetensors file (lh, rh int64; rois uint8 [R,V]) and the JSON beside."""
        masks = np.zeros((len(self.rois), self.V), dtype=np.uint8)
        for row, mask in enumerate(self.rois.values()):
            masks[row] = mask
        about = {
            "name": self.name,
            "subject": self.subject,
            "rois": list(self.rois),
            "hash": self.hash(),
            "rois_hash": hash_arrays({"rois": masks}),
        }
        return {"lh": self.lh, "rh": self.rh, "rois": masks}, about

    @staticmethod
    def from_arrays(
        arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]
    ) -> VertexSpace:
        """Read back what `to_arrays` gave; arrays and JSON that do not agree are an error."""
        try:
            names = [str(name) for name in about["rois"]]
            masks = arrays["rois"]
            V = len(arrays["lh"]) + len(arrays["rh"])
            agree = masks.shape == (len(names), V)
            expected_hash, subject = about["hash"], about["subject"]
            masks_hash = about["rois_hash"]
            name = cast(SpaceName, about["name"])
        except (KeyError, TypeError) as error:
            raise _unreadable(f"nothing usable under {error}") from error
        if not agree or not isinstance(subject, str | None):
            raise _unreadable(f"masks {list(masks.shape)} for {len(names)} regions, {V} vertices")
        rois = {name: mask.astype(bool) for name, mask in zip(names, masks, strict=True)}
        space = VertexSpace(name, arrays["lh"], arrays["rh"], rois, subject)
        if space.hash() != expected_hash:
            raise _unreadable("vertices whose hash differs")
        if hash_arrays({"rois": masks}) != masks_hash:
            raise _unreadable("regions whose hash differs")
        return space


def _check_one_mesh(spaces: Mapping[str, VertexSpace]) -> None:
    if not spaces:
        raise BrainfastError("union", expected="at least one subject's vertices", got="none")
    names = {subject: space.name for subject, space in spaces.items()}
    different = len({space.hash() for space in spaces.values()}) > 1
    if len(set(names.values())) > 1:
        raise BrainfastError(
            "union",
            expected="subjects on one mesh",
            got=", ".join(f"{subject} on {name}" for subject, name in names.items()),
            remedy="resample them to one of the meshes",
        )
    if "custom" in names.values() and different:
        raise BrainfastError(
            "union",
            expected="subjects on fsaverage or fsaverage5, or the same columns for all of them",
            got="different vertices on no known mesh",
            remedy="give space=VertexSpace('fsaverage', lh, rh) for each subject",
        )


def _unreadable(got: str) -> BrainfastError:
    return BrainfastError(
        "vertex space",
        expected="arrays lh, rh, rois and their description, as saved",
        got=got,
        remedy="copy or save it again",
    )


def _mesh_indices(value: npt.ArrayLike, side: str, name: str) -> Indices:
    given = np.asarray(value)
    if given.size == 0:
        return np.zeros(0, dtype=np.int64)
    largest = MESH_VERTICES.get(name, np.iinfo(np.int64).max)
    good = given.ndim == 1 and given.dtype.kind in "iu"
    good = good and int(given.min()) >= 0 and int(given.max()) < largest
    if not good or (np.diff(given.astype(np.int64)) <= 0).any():
        limit = f" below {largest}" if name in MESH_VERTICES else ""
        raise BrainfastError(
            f"vertex space {side}",
            expected=f"increasing integer indices [V_{side}] into {name}{limit}",
            got=_describe(given),
        )
    indices = given.astype(np.int64)
    indices.setflags(write=False)
    return indices


def _roi_mask(name: str, value: npt.ArrayLike, V: int) -> Mask:
    mask = np.array(value)
    if mask.dtype != bool or mask.shape != (V,):
        raise BrainfastError(f"ROI {name}", expected=f"a bool mask [{V}]", got=_describe(mask))
    mask.setflags(write=False)
    return mask


def _describe(array: npt.NDArray[Any]) -> str:
    span = ""
    if array.size and array.dtype.kind in "iuf":
        span = f" from {array.min()} to {array.max()}"
    return f"{array.dtype} {list(array.shape)}{span}"
