"""Writes a simulated subject's files exactly as the Algonauts 2023 challenge lays them out."""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import BrainfastError
from ..files import atomic_path, write_bytes, write_json
from ..vertex_space import ATLASES, HEMISPHERES, MESH_VERTICES, VertexSpace
from .photographs import SCENES, SIZE, cut, load_photograph

Progress: TypeAlias = Callable[[int, int], None]

# Each photograph is on one side only, so that "unseen" means a scene never trained on.
VALIDATION_SOURCE = "flower"
HELDOUT_SOURCE = "china"
CHALLENGE_SOURCE = "coffee"
TRAIN_SOURCES = tuple(
    name for name in SCENES if name not in (VALIDATION_SOURCE, HELDOUT_SOURCE, CHALLENGE_SOURCE)
)
LEAST_IMAGES = 20

NOTE = (
    "Simulated: no brain was measured. Regions are discs around published centres, responses are "
    "FactorTopy's equation with planted selectors plus noise, stimuli are cut from photographs "
    "that scikit-image and scikit-learn ship."
)


@dataclass(frozen=True)
class Picture:
    """A stimulus to be cut: its number, which is its id, the photograph, and its split."""

    number: int
    source: str
    split: str


@dataclass(frozen=True)
class Stimuli:
    """Images on disk: training_split's first, then test_split's.

    sources: the photograph each was cut from
    splits: "train", "val", "heldout" or "challenge" (test_split)
    """

    paths: list[Path]
    sources: list[str]
    splits: list[str]

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """Which images are in `split`."""
        return np.flatnonzero(np.asarray(self.splits) == split).astype(np.int64)


def write_images(
    folder: str | Path,
    *,
    n_images: int = 560,
    seed: int = 0,
    progress: Progress | None = None,
) -> Stimuli:
    """Cut stimuli from the photographs and write them as the challenge names them, 425x425 PNG.

    n_images: in training_split, of which a tenth each are for val and heldout, one photograph
        each; another tenth, from a photograph of its own, goes to test_split

    An earlier simulated subject in `folder` is replaced; any other content is refused.
    """
    if n_images < LEAST_IMAGES:
        raise BrainfastError("n_images", expected=f"at least {LEAST_IMAGES}", got=str(n_images))
    few = n_images // 10
    pictures = choose_pictures(n_images, few, np.random.default_rng([seed, 0]))
    pictures += [Picture(n_images + row, CHALLENGE_SOURCE, "challenge") for row in range(few)]
    return write_pictures(folder, pictures, seed=seed, progress=progress)


def choose_pictures(
    n_images: int, few: int, random: np.random.Generator, first: int = 0
) -> list[Picture]:
    """Pictures numbered from `first`; in a random order `few` each are for val and heldout."""
    train = [TRAIN_SOURCES[i % len(TRAIN_SOURCES)] for i in range(n_images - 2 * few)]
    chosen = [(source, "train") for source in train]
    chosen += [(VALIDATION_SOURCE, "val")] * few + [(HELDOUT_SOURCE, "heldout")] * few
    order = random.permutation(n_images)
    return [Picture(first + number, *chosen[i]) for number, i in enumerate(order)]


def write_pictures(
    folder: str | Path,
    pictures: Sequence[Picture],
    *,
    seed: int = 0,
    size: int = SIZE,
    progress: Progress | None = None,
) -> Stimuli:
    """Write stimuli size x size as the challenge names them, and `groups.csv`; see `write_images`.

    A picture depends on its number, source and the seed alone: what several subjects see is the
    same file for all of them.
    """
    folder = Path(folder)
    _clear(folder)
    ordered = sorted(pictures, key=lambda picture: picture.split == "challenge")
    n_images = sum(picture.split != "challenge" for picture in pictures)
    photographs = {name: load_photograph(name) for name in SCENES}
    paths = []
    for row, picture in enumerate(ordered):
        path = folder / _image_name(row, n_images, picture.number)
        path.parent.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng([seed, 2, picture.number])
        stimulus = cut(photographs[picture.source], random, size)
        Image.fromarray(stimulus).save(path, compress_level=1)
        paths.append(path)
        if progress is not None:
            progress(row + 1, len(ordered))
    sources, splits = [p.source for p in ordered], [p.split for p in ordered]
    _write_groups(folder / "groups.csv", paths[:n_images], sources, splits)
    return Stimuli(paths, sources, splits)


def _clear(folder: Path) -> None:
    """Make room in a folder that is empty or holds a simulated subject, and mark it as one."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "simulated.json").is_file():
        raise BrainfastError(
            str(folder),
            expected="an empty folder or a simulated subject",
            got="other files",
            remedy="choose another folder; data that were measured are never overwritten",
        )
    write_json(folder / "simulated.json", {"simulated": True, "complete": False, "note": NOTE})
    for part in ("training_split", "test_split", "roi_masks"):
        if (folder / part).is_dir():
            shutil.rmtree(folder / part)


def _image_name(row: int, n_images: int, number: int) -> str:
    """0-based row of all stimuli -> path inside the folder; the number serves as NSD's id."""
    if row < n_images:
        return f"training_split/training_images/train-{row + 1:04d}_nsd-{number:05d}.png"
    return f"test_split/test_images/test-{row - n_images + 1:04d}_nsd-{number:05d}.png"


def _write_groups(path: Path, images: list[Path], sources: list[str], splits: list[str]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "group", "split"])
    for image, source, split in zip(images, sources, splits, strict=False):
        writer.writerow([image.name, source, split])
    write_bytes(path, text.getvalue().encode())


def write_responses(
    folder: str | Path,
    stimuli: Stimuli,
    space: VertexSpace,
    measured: npt.NDArray[np.float32],  # [N,V]
    ceiling: npt.NDArray[np.float32],  # [V]
    about: dict[str, Any],
) -> None:
    """Write responses, masks, mappings and the organiser's files; `simulated.json` comes last."""
    folder = Path(folder)
    tests = stimuli.rows("challenge")
    training = np.setdiff1d(np.arange(len(stimuli.paths)), tests)
    for side in HEMISPHERES:
        columns = space.lh_slice if side == "lh" else space.rh_slice
        values = measured[:, columns]
        _save(folder / f"training_split/training_fmri/{side}_training_fmri.npy", values[training])
        _save(folder / f"test_split/test_fmri/{side}_test_fmri.npy", values[tests])
        _save(folder / f"test_split/noise_ceiling/{side}_noise_ceiling.npy", ceiling[columns])
        _write_masks(folder / "roi_masks", space, side, columns)
    for atlas, names in ATLASES.items():
        mapping = dict(enumerate(("Unknown", *names)))
        _save(folder / f"roi_masks/mapping_{atlas}.npy", np.array(mapping, dtype=object))
    about = (
        {"note": NOTE}
        | about
        | {
            "simulated": True,
            "complete": True,
            "mesh": "fsaverage5",
            "vertices": {"lh": space.lh.size, "rh": space.rh.size},
            "images": {name: len(stimuli.rows(name)) for name in dict.fromkeys(stimuli.splits)},
        }
    )
    write_json(folder / "simulated.json", about)


def _write_masks(folder: Path, space: VertexSpace, side: str, columns: slice) -> None:
    """All-vertices and region masks of one hemisphere, on fsaverage and in challenge space.

    fsaverage5's vertices are the first of fsaverage's, so the long masks are zero beyond them.
    """
    vertices = space.lh if side == "lh" else space.rh

    def on_fsaverage(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        whole = np.zeros(MESH_VERTICES["fsaverage"], dtype=np.int32)
        whole[vertices] = values
        return whole

    ones = np.ones(vertices.size, dtype=np.int32)
    _save(folder / f"{side}.all-vertices_fsaverage_space.npy", on_fsaverage(ones))
    for atlas, names in ATLASES.items():
        labels = np.zeros(vertices.size, dtype=np.int32)
        for number, name in enumerate(names, start=1):
            if name in space.rois:
                labels[space.rois[name][columns]] = number
        _save(folder / f"{side}.{atlas}_challenge_space.npy", labels)
        _save(folder / f"{side}.{atlas}_fsaverage_space.npy", on_fsaverage(labels))


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    """Write a .npy; a mapping is a pickled dict, as the challenge's own files have it."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=array.dtype == object)
