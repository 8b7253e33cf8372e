"""Algonauts 2023: a subject's folder as the challenge hands it out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import surfaces
from ..errors import BrainfastError
from ..vertex_space import ATLASES, HEMISPHERES, MESH_VERTICES, Indices, Mask, VertexSpace
from .ceilings import read_ceiling
from .measured import Measured
from .responses import Responses, open_array
from .safe_pickle import read_mapping
from .splits import (
    FRACTIONS,
    Floats,
    Grouping,
    Split,
    Strings,
    ordered_hash,
    read_groups,
)

TRAIN_NAME = re.compile(r"train-(\d{4,})_(nsd-\d{5})\.png")
TEST_NAME = re.compile(r"test-(\d{4,})_(nsd-\d{5})\.png")
VISUAL_ANGLE_DEG = 8.4  # width of NSD's images on the screen
REMEDY = "download this part of the challenge's data again"


class Algonauts(Measured):
    """One subject of the Algonauts 2023 challenge, in z units, responses left on disk.

    folder: `subj0X`, with training_split, test_split and roi_masks
    ncsnr: folder of NSD's `{lh,rh}.ncsnr.mgh` (or .npy), a value for each vertex of fsaverage or of
        the challenge; gives the ceiling, and goes before the organiser's files
    repeats: how many of the scored images were seen (once, twice, three times), for that ceiling;
        without it, three times each
    groups: CSV file, or mapping image id -> group, that keep images together; NSD's images are
        kept apart by their id anyway; without it, `groups.csv` in the folder where there is one
    seed, fractions: see `split_by_image`
    surface, coordinates: see `brainfast.surfaces.coordinates`
    allow_nan: NaN in a response is a vertex without a measurement, instead of an error

    train, val, heldout are splits of the training images; challenge is the test images, whose
    responses are there only with the organiser's files. Image ids are file names without ".png".
    Raises BrainfastError for any file that is missing, short or does not fit the others.
    Source: Gifford et al. 2023, The Algonauts Project 2023 Challenge.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        ncsnr: str | Path | None = None,
        repeats: tuple[int, int, int] | None = None,
        groups: str | Path | Mapping[str, str] | None = None,
        seed: int = 0,
        fractions: Sequence[float] = FRACTIONS,
        surface: surfaces.Surface = "inflated",
        coordinates: str | Path | npt.NDArray[Any] | None = None,
        allow_nan: bool = False,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise BrainfastError(
                str(folder),
                expected="an Algonauts subject's folder, such as challenge_data/subj01",
                got="no such folder",
            )
        self.subject: str = self.folder.resolve().name
        self.has_ids = True
        self.surface: surfaces.Surface = surface
        self.visual_angle_deg: float | None = VISUAL_ANGLE_DEG
        self.space = _read_space(self.folder, self.subject)
        self._source = coordinates
        self._allow_nan = allow_nan
        if coordinates is not None:
            _ = self.coordinates
        training = self.folder / "training_split"
        images, ids, self._nsd_ids = _list_images(training / "training_images", TRAIN_NAME)
        responses = self._open(training / "training_fmri", "training_fmri")
        _check_rows(responses, len(images), training / "training_fmri")
        ceiling, self.ceiling_source, reason = read_ceiling(
            self.folder / "test_split" / "noise_ceiling", self.space, ncsnr, repeats
        )
        table = self.folder / "groups.csv"
        if groups is None and table.is_file():
            groups = table
        self.grouped = groups is not None
        self.grouping = (
            Grouping(self._nsd_ids, None) if groups is None else read_groups(groups, ids)
        )
        name = "whole"
        hash_ = ordered_hash(name, ids)
        self.whole = Split(name, images, responses, ids, self.space, ceiling, reason, hash_)
        self._divide(self.grouping.split(ids, fractions, seed))
        self.challenge = self._challenge(ceiling, reason)

    @cached_property
    def coordinates(self) -> Floats:
        """Where the vertices lie, float32 [V,3]; training alone asks for them.

        Those that are given are checked at once; those that are not may need a download.
        """
        return _coordinates(self.space, self.surface, self._source)

    def _keys(self) -> Strings:
        return self._nsd_ids

    def _open(self, folder: Path, name: str) -> Responses:
        return _open_responses(folder, name, self.space, self._allow_nan)

    def _challenge(self, ceiling: Floats | None, reason: str | None) -> Split | None:
        """The test images, with responses where the organiser's files are; None without images."""
        folder = self.folder / "test_split" / "test_images"
        if not folder.is_dir():
            return None
        images, ids, _ = _list_images(folder, TEST_NAME)
        measured = self.folder / "test_split" / "test_fmri"
        responses = None
        if measured.is_dir():
            responses = self._open(measured, "test_fmri")
            _check_rows(responses, len(images), measured)
        name = "challenge"
        hash_ = ordered_hash(name, ids)
        return Split(name, images, responses, ids, self.space, ceiling, reason, hash_)


def _read_space(folder: Path, subject: str) -> VertexSpace:
    """Vertices from the all-vertices masks, regions from the masks in challenge space."""
    masks = folder / "roi_masks"
    lh, rh = (_all_vertices(masks / f"{s}.all-vertices_fsaverage_space.npy") for s in HEMISPHERES)
    sizes = {"lh": lh.size, "rh": rh.size}
    rois: dict[str, Mask] = {}
    for atlas in ATLASES:
        rois |= _read_atlas(masks, atlas, sizes)
    return VertexSpace("fsaverage", lh, rh, rois, subject)


def _all_vertices(path: Path) -> Indices:
    size = MESH_VERTICES["fsaverage"]
    expected = f"a mask of 0 and 1 [{size}]"
    mask = open_array(path, 1, "iubf", expected)
    if mask.shape != (size,) or not np.isin(mask, (0, 1)).all():
        raise BrainfastError(
            str(path), expected=expected, got=f"{mask.dtype} {list(mask.shape)}", remedy=REMEDY
        )
    return np.flatnonzero(mask).astype(np.int64)


def _read_atlas(folder: Path, atlas: str, sizes: Mapping[str, int]) -> dict[str, Mask]:
    """Masks [V] of one atlas; an atlas of which no file is there has no regions."""
    mapping = folder / f"mapping_{atlas}.npy"
    paths = {side: folder / f"{side}.{atlas}_challenge_space.npy" for side in HEMISPHERES}
    if not any(path.exists() for path in (mapping, *paths.values())):
        return {}
    names = read_mapping(mapping)
    labels = np.concatenate([_read_labels(paths[side], sizes[side]) for side in HEMISPHERES])
    unknown = set(np.unique(labels).tolist()) - {0, *names}
    if unknown:
        raise BrainfastError(
            str(mapping), expected="a name for every region", got=f"none for {min(unknown)}"
        )
    return {name: labels == number for number, name in names.items() if number != 0}


def _read_labels(path: Path, size: int) -> npt.NDArray[np.int64]:
    labels = open_array(path, 1, "iuf", f"a region number for each of {size} vertices")
    if labels.shape != (size,) or (labels != np.rint(labels)).any():
        raise BrainfastError(
            str(path),
            expected=f"{size} region numbers, as the all-vertices mask has vertices",
            got=f"{labels.dtype} {list(labels.shape)}",
            remedy=REMEDY,
        )
    return labels.astype(np.int64)


def _open_responses(folder: Path, name: str, space: VertexSpace, allow_nan: bool) -> Responses:
    """Both hemispheres' responses, memory-mapped, with as many columns as the masks have."""
    parts = []
    for side in HEMISPHERES:
        path = folder / f"{side}_{name}.npy"
        size = getattr(space, side).size
        part = open_array(path, 2, "f", f"float responses [images,{size}]")
        if part.shape[1] != size:
            raise BrainfastError(
                str(path),
                expected=f"{size} vertices, as {side}.all-vertices_fsaverage_space.npy has",
                got=f"{part.shape[1]}",
                remedy=REMEDY,
            )
        parts.append(part)
    if len(parts[0]) != len(parts[1]):
        raise BrainfastError(
            str(folder),
            expected="as many rows in lh as in rh",
            got=f"{len(parts[0])} and {len(parts[1])}",
            remedy=REMEDY,
        )
    responses = Responses(parts, name=str(folder), allow_nan=allow_nan)
    responses.probe()
    return responses


def _check_rows(responses: Responses, images: int, folder: Path) -> None:
    if len(responses) != images:
        raise BrainfastError(
            str(folder),
            expected=f"{images} rows, one for each image",
            got=f"{len(responses)}",
            remedy=REMEDY,
        )


def _list_images(folder: Path, pattern: re.Pattern[str]) -> tuple[list[Path], Strings, Strings]:
    """Paths in the order of their 1-based numbers, image ids, and NSD ids."""
    if not folder.is_dir():
        raise BrainfastError(
            str(folder), expected="a folder of images", got="no such folder", remedy=REMEDY
        )
    found: dict[int, tuple[Path, str]] = {}
    for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        match = pattern.fullmatch(path.name)
        if match is None or int(match[1]) < 1:
            raise _odd_image(path, "take this file out of the folder")
        if int(match[1]) in found:
            raise _odd_image(path, f"{found[int(match[1])][0].name} has the same number")
        found[int(match[1])] = (path, match[2])
    for number in range(1, max(found, default=1) + 1):
        if number not in found:
            raise BrainfastError(
                str(folder),
                expected=f"an image with number {number:04d}",
                got="no such file",
                remedy=REMEDY,
            )
    order = [found[number] for number in sorted(found)]
    paths = [path for path, _ in order]
    ids = np.asarray([path.stem for path in paths], dtype=np.str_)
    return paths, ids, np.asarray([nsd for _, nsd in order], dtype=np.str_)


def _odd_image(path: Path, remedy: str) -> BrainfastError:
    return BrainfastError(
        str(path),
        expected="only images train-0001_nsd-00013.png (test- for test images), one a number",
        got=path.name,
        remedy=remedy,
    )


def _coordinates(
    space: VertexSpace, surface: surfaces.Surface, source: str | Path | npt.NDArray[Any] | None
) -> Floats:
    if isinstance(source, np.ndarray):
        return surfaces.check_coordinates(source, space.V)
    return surfaces.coordinates(space, surface, source)
