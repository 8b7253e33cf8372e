"""Cortical meshes on disk and the coordinates that a model's vertices have on them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import nibabel
import numpy as np
import numpy.typing as npt
from nilearn.datasets import fetch_surf_fsaverage
from nilearn.surface import load_surf_data, load_surf_mesh

from .errors import BrainfastError
from .vertex_space import HEMISPHERES, MESH_VERTICES, Hemisphere, VertexSpace

Surface: TypeAlias = Literal["inflated", "sphere"]
MeshKind: TypeAlias = Literal["infl", "flat", "sphere", "pial", "white"]
DataKind: TypeAlias = Literal["sulc", "curv", "area", "thick"]
Floats: TypeAlias = npt.NDArray[np.float32]
Hemispheres: TypeAlias = tuple[Floats, Floats]

REMEDY = (
    "give coordinates= (--coordinates) a FreeSurfer surf folder or a .npy of [V,3], or set "
    "SUBJECTS_DIR to a folder that holds fsaverage"
)
freesurfer: Any = nibabel.freesurfer  # its functions carry no types

GAP = 1.5  # widths of the left hemisphere from its left edge to the right hemisphere's


@dataclass(frozen=True)
class Mesh:
    """One hemisphere's triangles: coordinates float32 [N,3] in mm, faces int64 [F,3]."""

    coordinates: Floats
    faces: npt.NDArray[np.int64]


def mesh(name: str, kind: MeshKind, hemisphere: Hemisphere) -> Mesh:
    """The mesh `name` as nilearn has it; "fsaverage5" is in its wheel and needs no network.

    kind: "infl", "flat", "sphere", "pial" or "white". The flat one leaves vertices of the cut out
    of its faces.
    """
    part = load_surf_mesh(_nilearn_file(name, kind, hemisphere))
    return Mesh(
        np.asarray(part.coordinates, dtype=np.float32), np.asarray(part.faces, dtype=np.int64)
    )


def mesh_data(name: str, kind: DataKind, hemisphere: Hemisphere) -> Floats:
    """A value for every vertex of a hemisphere's mesh [N]: "sulc", "curv", "area" or "thick"."""
    values = load_surf_data(_nilearn_file(name, kind, hemisphere))
    return np.asarray(values, dtype=np.float32)


def coordinates(
    space: VertexSpace, surface: Surface = "inflated", source: str | Path | None = None
) -> Floats:
    """Where each vertex lies, float32 [V,3] in mm, hemispheres side by side along x.

    On whole meshes, `rh.x += limit - min(rh.x)` where `min(rh.x)` lies below
    `limit = min(lh.x) + 1.5 (max(lh.x) - min(lh.x))`; then the V vertices are taken.

    surface: "inflated" (the paper) or "sphere" (its reference code)
    source: a FreeSurfer `surf` folder; a .npy file of [V,3], used as it is; or "fsaverage5", the
        mesh inside nilearn's wheel, for vertices that all lie on it. Without one, a space on
        fsaverage5 takes that mesh, and a space on fsaverage takes `$SUBJECTS_DIR/fsaverage/surf`,
        else nilearn's download.

    Raises BrainfastError where nothing is found or it does not belong to this space.
    Source: FactorTopy, supplement, and its public code.
    """
    if surface not in get_args(Surface):
        raise BrainfastError("surface", expected="inflated or sphere", got=repr(surface))
    if source is not None and Path(source).suffix == ".npy":
        return read_coordinates(source, space.V)
    if space.name == "custom":
        raise BrainfastError(
            "coordinates",
            expected=f"a .npy file of [{space.V},3], since this space has no mesh",
            got="nothing" if source is None else str(source),
        )
    left, right = side_by_side(*_whole_meshes(space, surface, source))
    return np.concatenate([left[space.lh], right[space.rh]])


def side_by_side(
    lh: Floats,  # [N,3]
    rh: Floats,  # [N,3]
) -> Hemispheres:
    """Whole meshes with the right one moved along x, where the two overlap or nearly touch."""
    low, high = lh[:, 0].min(), lh[:, 0].max()
    limit = low + np.float32(GAP) * (high - low)
    moved = np.array(rh, dtype=np.float32)
    if moved[:, 0].min() < limit:
        moved[:, 0] += limit - moved[:, 0].min()
    return lh, moved


def read_coordinates(path: str | Path, V: int) -> Floats:
    """A lab's own coordinates from a .npy file [V,3], checked, float32."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BrainfastError(
            str(path), expected=f"a .npy file of [{V},3]", got=str(error), remedy="check the path"
        ) from error
    return check_coordinates(values, V, str(path))


def check_coordinates(values: npt.ArrayLike, V: int, name: str = "coordinates") -> Floats:
    """`values` as finite float32 [V,3], or a BrainfastError."""
    array = np.asarray(values)
    if array.shape != (V, 3) or array.dtype.kind not in "fiu":
        raise BrainfastError(
            name,
            expected=f"numbers [{V},3], a row for each vertex",
            got=f"{array.dtype} {list(array.shape)}",
            remedy="these may be another subject's",
        )
    if not np.isfinite(array).all():
        raise BrainfastError(name, expected="finite coordinates", got="NaN or infinity")
    return array.astype(np.float32)


def _whole_meshes(space: VertexSpace, surface: Surface, source: str | Path | None) -> Hemispheres:
    small = MESH_VERTICES["fsaverage5"]
    fits = all(part.size == 0 or part[-1] < small for part in (space.lh, space.rh))
    if source is None and space.name == "fsaverage5":
        return _from_nilearn("fsaverage5", surface)
    if source is None:
        return _found_fsaverage(surface, fits)
    if str(source) != "fsaverage5":
        return _from_folder(Path(source), surface, MESH_VERTICES[space.name])
    if not fits:
        raise BrainfastError(
            "coordinates",
            expected="a source for vertices of the whole fsaverage mesh",
            got="fsaverage5, which has only its first 10,242",
            remedy=REMEDY,
        )
    return _from_nilearn("fsaverage5", surface)


def _found_fsaverage(surface: Surface, fits: bool) -> Hemispheres:
    """fsaverage from FreeSurfer's subjects, else nilearn's download, else what to do."""
    subjects = os.environ.get("SUBJECTS_DIR")
    folder = Path(subjects) / "fsaverage" / "surf" if subjects else None
    if folder is not None and folder.is_dir():
        return _from_folder(folder, surface, MESH_VERTICES["fsaverage"])
    try:
        return _from_nilearn("fsaverage", surface)
    except Exception as error:  # whatever a failing download raises
        offline = "give coordinates='fsaverage5' (--coordinates fsaverage5), which has them all"
        raise BrainfastError(
            "coordinates",
            expected="fsaverage's surfaces under $SUBJECTS_DIR or by nilearn's download",
            got=f"neither ({_first_line(error).split(' (Caused by')[0][:120]})",
            remedy=offline if fits else REMEDY,
        ) from error


def _from_nilearn(name: str, surface: Surface) -> Hemispheres:
    kind: MeshKind = "infl" if surface == "inflated" else "sphere"
    left, right = (mesh(name, kind, side).coordinates for side in HEMISPHERES)
    return left, right


def _from_folder(folder: Path, surface: Surface, expected: int) -> Hemispheres:
    def read(side: str) -> Floats:
        path = folder / f"{side}.{surface}"
        points = _read_file(path, lambda: freesurfer.read_geometry(path)[0])
        if points.shape != (expected, 3):
            raise BrainfastError(
                str(path),
                expected=f"a mesh of {expected} vertices",
                got=f"{len(points)}",
                remedy="give fsaverage's surf folder, not a subject's own",
            )
        return check_coordinates(points, expected, str(path))

    return read("lh"), read("rh")


def _read_file(path: Path, read: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    try:
        return read()
    except Exception as error:  # nibabel raises many kinds for a file that is not a surface
        raise BrainfastError(
            str(path), expected="a FreeSurfer surface", got=_first_line(error), remedy=REMEDY
        ) from error


def _nilearn_file(name: str, kind: str, hemisphere: Hemisphere) -> str:
    side = {"lh": "left", "rh": "right"}[hemisphere]
    with redirect_stdout(io.StringIO()):  # it tells of its downloads where scripts read our answers
        return str(fetch_surf_fsaverage(name)[f"{kind}_{side}"])


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
