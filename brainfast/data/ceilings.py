"""Noise ceilings: how much of each vertex's variance any model could explain."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import nibabel
import numpy as np
import numpy.typing as npt

from ..analysis.scores import noise_ceiling
from ..errors import BrainfastError
from ..vertex_space import HEMISPHERES, MESH_VERTICES, Indices, VertexSpace
from .responses import open_array

Floats: TypeAlias = npt.NDArray[np.float32]

NO_CEILING = "the folder holds no noise ceiling; give ncsnr= (--ncsnr), the folder of NSD's ncsnr"


def read_ceiling(
    folder: Path,
    space: VertexSpace,
    ncsnr: str | Path | None = None,
    repeats: tuple[int, int, int] | None = None,
) -> tuple[Floats | None, str | None, str | None]:
    """Ceilings float32 [V] as fractions, what they come from, and the reason where there are none.

    `ncsnr^2 / (ncsnr^2 + t)`, t as in `brainfast.analysis.scores.noise_ceiling`, where the folder
    `ncsnr` is given; else the organiser's files in `folder`, which state fractions or percent.

    repeats: images seen (once, twice, three times); three times each without it
    """
    if ncsnr is not None:
        ratio = np.concatenate([_read_ncsnr(Path(ncsnr), side, space) for side in HEMISPHERES])
        n1, n2, n3 = repeats or (0, 0, 1)
        values = noise_ceiling(ratio, n1=n1, n2=n2, n3=n3).astype(np.float32)
        return values, f"ncsnr, images seen once, twice, three times as {n1}:{n2}:{n3}", None
    if not folder.is_dir():
        return None, None, NO_CEILING
    values, unit = _read_organisers(folder, space)
    return values, f"the organiser's noise_ceiling, read as {unit}", None


def _read_ncsnr(folder: Path, side: str, space: VertexSpace) -> npt.NDArray[np.float64]:
    """NSD's noise-ceiling signal-to-noise ratio of one hemisphere's vertices."""
    vertices: Indices = getattr(space, side)
    expected = f"ncsnr for {MESH_VERTICES['fsaverage']} or {vertices.size} vertices"
    path = folder / f"{side}.ncsnr.mgh"
    if path.is_file():
        values = _read_mgh(path, expected)
    else:
        path = folder / f"{side}.ncsnr.npy"
        values = np.asarray(open_array(path, 1, "f", expected), dtype=np.float64)
    if values.shape == (MESH_VERTICES["fsaverage"],):
        values = values[vertices]
    if values.shape != vertices.shape or not (np.isfinite(values) & (values >= 0)).all():
        raise BrainfastError(
            str(path), expected=f"{expected}, finite, 0 or more", got=f"{list(values.shape)}"
        )
    return values


def _read_mgh(path: Path, expected: str) -> npt.NDArray[np.float64]:
    try:
        image: Any = nibabel.load(path)
        return np.asarray(image.dataobj, dtype=np.float64).reshape(-1)
    except Exception as error:  # nibabel raises many kinds for a file that is not an image
        raise BrainfastError(str(path), expected=expected, got=str(error)) from error


def _read_organisers(folder: Path, space: VertexSpace) -> tuple[Floats, str]:
    """The organiser's ceilings as fractions, and the unit that they were found in."""
    parts = []
    for side in HEMISPHERES:
        path = folder / f"{side}_noise_ceiling.npy"
        size = getattr(space, side).size
        expected = f"ceilings of {size} vertices, as fractions or in percent"
        part = np.asarray(open_array(path, 1, "f", expected), dtype=np.float32)
        if part.shape != (size,) or not ((part >= 0) & (part <= 100)).all():
            span = f" from {part.min()} to {part.max()}" if part.size else ""
            raise BrainfastError(str(path), expected=expected, got=f"{list(part.shape)}{span}")
        parts.append(part)
    values = np.concatenate(parts)
    if values.max(initial=0) > 1:
        return (values / 100).astype(np.float32), "percent"
    return values, "fraction"
