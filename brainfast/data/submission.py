"""Predictions for the Algonauts challenge's test images, as its site takes them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError
from ..files import atomic_path
from ..response import Response

Floats: TypeAlias = npt.NDArray[np.float32]

# Vertices (left, right) of the challenge's eight subjects.
CHALLENGE_VERTICES: dict[str, tuple[int, int]] = {
    **{f"subj0{number}": (19004, 20544) for number in range(1, 9)},
    "subj06": (18978, 20220),
    "subj08": (18981, 20530),
}


def write_submission(
    path: str | Path,
    predictions: Mapping[str, Response | npt.NDArray[Any]],  # each [N,V]
    *,
    vertices: Mapping[str, tuple[int, int]] = CHALLENGE_VERTICES,
) -> None:
    """Write a zip of `<subject>/{lh,rh}_pred_test.npy`, float32 [N,V_lh] and [N,V_rh], atomically.

    predictions: subject -> responses to all of its test images, in their order
    vertices: subject -> vertices (left, right); give it for subjects outside the challenge

    Raises BrainfastError for another number of vertices, NaN or infinity, or an unknown subject.
    """
    if Path(path).suffix != ".zip":
        raise BrainfastError(str(path), expected="a path that ends in .zip", got=Path(path).name)
    if not predictions:
        raise BrainfastError("predictions", expected="at least one subject", got="none")
    parts = {
        subject: _hemispheres(subject, value, vertices) for subject, value in predictions.items()
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for subject, sides in parts.items():
            for side, values in zip(("lh", "rh"), sides, strict=True):
                info = zipfile.ZipInfo(f"{subject}/{side}_pred_test.npy")  # a fixed date: same
                info.compress_type = zipfile.ZIP_DEFLATED  # predictions give the same bytes
                with archive.open(info, "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)


def _hemispheres(
    subject: str,
    value: Response | npt.NDArray[Any],
    vertices: Mapping[str, tuple[int, int]],
) -> tuple[Floats, Floats]:
    if subject not in vertices:
        raise BrainfastError(
            "subject",
            expected=f"one of {', '.join(vertices)}",
            got=repr(subject),
            remedy="give vertices={subject: (left, right)}",
        )
    left, right = vertices[subject]
    name = f"predictions of {subject}"
    if isinstance(value, Response):
        _check_space(name, subject, value, (left, right))
        value = value.values
    array = np.asarray(value)
    good = array.ndim == 2 and array.shape[1] == left + right and array.dtype.kind == "f"
    if not good or not len(array):
        raise BrainfastError(
            name,
            expected=f"floats [images,{left + right}], {left} left and {right} right vertices",
            got=f"{array.dtype} {list(array.shape)}",
        )
    if not np.isfinite(array).all():
        raise BrainfastError(name, expected="finite values", got="NaN or infinity")
    array = array.astype(np.float32)
    return np.ascontiguousarray(array[:, :left]), np.ascontiguousarray(array[:, left:])


def _check_space(name: str, subject: str, response: Response, sizes: tuple[int, int]) -> None:
    space = response.space
    if space.subject not in (None, subject):
        raise BrainfastError(name, expected="that subject's own response", got=f"{space.subject}'s")
    if (space.lh.size, space.rh.size) != sizes:
        raise BrainfastError(
            name,
            expected=f"{sizes[0]} left and {sizes[1]} right vertices",
            got=f"{space.lh.size} and {space.rh.size}",
            remedy="predict with all vertices of the challenge",
        )
