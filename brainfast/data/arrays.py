"""A lab's own images and responses, as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import surfaces
from ..errors import BrainfastError
from ..vertex_space import VertexSpace
from .measured import Measured, content_keys, file_keys
from .responses import Responses
from .splits import (
    FRACTIONS,
    Floats,
    Grouping,
    Images,
    Split,
    Strings,
    ordered_hash,
    read_groups,
)

NO_CEILING = "no noise ceiling was given with the arrays"


class Arrays(Measured):
    """Images seen and responses measured by anybody, with the attributes that `Algonauts` has.

    images: paths, or uint8 arrays [H,W,3], n of them; read when needed
    responses: float [n,V] in z units; a memory map stays on disk
    coordinates: [V,3] in mm, an array or a .npy file; may be left out where `space` is on a mesh,
        and is then looked for when it is asked for
    rois: region name -> bool mask [V] or column indices
    space: the vertices on fsaverage or fsaverage5; without it they are on no known mesh ("custom")
    image_ids: str [n], equal for repeats of one image; file names or positions without them. In a
        `Group` equal ids of two subjects are one image; without ids, equal pixels are
    groups: see `read_groups`: images that must not be split from each other. Without groups and
        ids these are arrays of equal pixels and files of equal bytes
    ceiling: largest share of variance that can be explained [V], 0 to 1
    visual_angle_deg: width of the images on the subject's screen, for maps in degrees
    seed, fractions: see `split_by_image`
    allow_nan: NaN in a response is a vertex without a measurement, instead of an error

    There are no challenge images: `challenge` is None. Raises BrainfastError for what does not fit.
    """

    challenge: Split | None = None

    def __init__(
        self,
        images: Sequence[Any] | npt.NDArray[np.uint8],
        responses: npt.NDArray[Any],  # [n,V]
        coordinates: npt.NDArray[Any] | str | Path | None = None,  # [V,3]
        rois: Mapping[str, npt.NDArray[Any]] | None = None,
        *,
        space: VertexSpace | None = None,
        image_ids: Sequence[str] | None = None,
        groups: str | Path | Mapping[str, str] | Sequence[str] | None = None,
        ceiling: npt.NDArray[Any] | None = None,  # [V]
        subject: str | None = None,
        surface: surfaces.Surface = "inflated",
        visual_angle_deg: float | None = None,
        seed: int = 0,
        fractions: Sequence[float] = FRACTIONS,
        allow_nan: bool = False,
    ) -> None:
        measured = _check_responses(responses, len(images), allow_nan)
        self.space = _make_space(measured.shape[1], space, rois, subject)
        self.subject = self.space.subject
        self.surface: surfaces.Surface = surface
        self.visual_angle_deg = visual_angle_deg
        self._source = coordinates
        if coordinates is not None or self.space.name == "custom":
            _ = self.coordinates
        self.has_ids = image_ids is not None
        ids = _make_ids(images, image_ids)
        share = _check_ceiling(ceiling, self.space.V)
        self.ceiling_source = None if share is None else "given with the arrays"
        reason = NO_CEILING if share is None else None
        name = "whole"
        hash_ = ordered_hash(name, ids)
        self.whole = Split(
            name,
            Images(images, np.arange(len(images))),
            measured,
            ids,
            self.space,
            share,
            reason,
            hash_,
        )
        self.grouped = groups is not None
        self.grouping = (
            Grouping(self._first_ids(), None) if groups is None else read_groups(groups, ids)
        )
        self._divide(self.grouping.split(ids, fractions, seed))

    @cached_property
    def coordinates(self) -> Floats:
        """Where the vertices lie, float32 [V,3]; training FactorTopy asks for them."""
        return _make_coordinates(self.space, self.surface, self._source)

    def _keys(self) -> Strings:
        return self.whole.image_ids if self.has_ids else content_keys(self.whole.images)

    def _first_ids(self) -> Strings:
        """Id of the first image that is the same as each, str [n]."""
        ids, images = self.whole.image_ids, self.whole.images
        if self.has_ids:
            return ids
        files = all(isinstance(image, str | Path) for image in images)
        keys = file_keys(images) if files else self.image_keys
        _, first, same = np.unique(keys, return_index=True, return_inverse=True)
        return ids[first[same]]


def _check_responses(responses: npt.NDArray[Any], images: int, allow_nan: bool) -> Responses:
    array = np.asanyarray(responses)
    if array.ndim != 2 or len(array) != images or array.dtype.kind != "f" or not array.size:
        raise BrainfastError(
            "responses",
            expected=f"floats [{images},V], a row for each image",
            got=f"{array.dtype} {list(array.shape)}",
        )
    measured = Responses([array], allow_nan=allow_nan)
    if isinstance(array, np.memmap):
        measured.probe()
    else:
        measured.check()
    return measured


def _make_space(
    V: int,
    space: VertexSpace | None,
    rois: Mapping[str, npt.NDArray[Any]] | None,
    subject: str | None,
) -> VertexSpace:
    if space is None:
        space = VertexSpace("custom", np.arange(V), np.arange(0))
    if space.V != V:
        raise BrainfastError(
            "space", expected=f"{V} vertices, as the responses have", got=f"{space.V}"
        )
    masks = dict(space.rois)
    for name, where in (rois or {}).items():
        masks[name] = np.zeros(V, dtype=bool)
        masks[name][space.select(np.asarray(where))] = True
    return replace(space, rois=masks, subject=subject or space.subject)


def _make_coordinates(
    space: VertexSpace, surface: surfaces.Surface, given: npt.NDArray[Any] | str | Path | None
) -> Floats:
    if given is None or isinstance(given, str | Path):
        return surfaces.coordinates(space, surface, given)
    return surfaces.check_coordinates(given, space.V)


def _make_ids(
    images: Sequence[Any] | npt.NDArray[np.uint8], image_ids: Sequence[str] | None
) -> Strings:
    if image_ids is None and all(isinstance(image, str | Path) for image in images):
        names = [Path(image).stem for image in images]
        image_ids = names if len(set(names)) == len(names) else [str(image) for image in images]
    elif image_ids is None:
        image_ids = [f"image-{row:06d}" for row in range(len(images))]
    if len(image_ids) != len(images):
        raise BrainfastError(
            "image_ids", expected=f"{len(images)}, one for each image", got=f"{len(image_ids)}"
        )
    return np.asarray([str(image) for image in image_ids], dtype=np.str_)


def _check_ceiling(ceiling: npt.NDArray[Any] | None, V: int) -> Floats | None:
    if ceiling is None:
        return None
    values = np.asarray(ceiling)
    good = values.shape == (V,) and values.dtype.kind in "fiu"
    if not good or not ((values >= 0) & (values <= 1)).all():
        raise BrainfastError(
            "ceiling",
            expected=f"fractions of variance, 0 to 1 [{V}]",
            got=f"{values.dtype} {list(values.shape)}",
            remedy="divide percent by 100",
        )
    return values.astype(np.float32)
