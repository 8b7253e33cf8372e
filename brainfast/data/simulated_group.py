"""Writes a simulated group: shared structure, maps of the subjects' own, and texts to match."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..errors import BrainfastError
from ..files import check_replaceable, write_json
from ..images import iter_pixels
from ..preprocessing import Preprocessing
from .photographs import SIZE
from .planted_group import PLANTED, PlantedGroup
from .simulated import BATCH, LEAST_NOISY, MOST_NOISY, REPEATS
from .simulated_cortex import Cortex, smooth_noise, thin, visual_cortex
from .simulated_files import (
    CHALLENGE_SOURCE,
    LEAST_IMAGES,
    Picture,
    Progress,
    Stimuli,
    choose_pictures,
    write_pictures,
    write_responses,
)
from .text import TextEmbeddings

Floats: TypeAlias = npt.NDArray[np.float32]
Indices: TypeAlias = npt.NDArray[np.int64]
Features: TypeAlias = Callable[[list[Path]], npt.NDArray[Any]]

TEXT_FILE = "text.safetensors"
MOST_SUBJECTS, MOST_IMAGES = 9, 9000  # ids have five digits
KEPT = 0.85  # share of the group's vertices that one subject has
NOISIER = 1.5  # noise of the last subject over that of the first
PIXEL_GRID = 8  # side of the grid of coloured patches that latents are made of without a trunk

NOTE = (
    "Simulated: no brain was measured. Regions are discs around published centres, responses are "
    "BlobGPT's equation with planted shared and subject maps plus noise, stimuli are cut from "
    "photographs that scikit-image and scikit-learn ship."
)


def simulate_group(
    folder: str | Path,
    *,
    subjects: int = 3,
    n_images: int = 240,
    n_shared: int = 60,
    vertices: int | None = None,
    size: int = SIZE,
    latent: int = 8,
    components: int = 6,
    individuality: float = 0.5,
    noise: float = 1.0,
    text_dim: int = 32,
    text_noise: float = 0.3,
    features: Features | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PlantedGroup:
    """Write `subj01`, `subj02`, ... in the Algonauts 2023 layout, and return what was planted.

    Every subject has 85 % of the group's vertices, drawn anew, saw `n_shared` images that all
    saw and others that nobody else did, and has more noise than the one before. Photographs are
    cut for one split only, which `groups.csv` fixes; a tenth as many images, the same for all, go
    to test_split. Beside the subjects lie `text.safetensors` (`TextEmbeddings`: the text vector of
    every image carries its latent) and the planted values.

    n_images: of each subject's training_split;  vertices: of the group, None for the whole
        synthetic visual cortex;  size: side of the images in pixels
    latent: K;  components: R;  individuality: share of the variance of a subject's map that is its
        own, 0 to 1;  noise, text_noise: standard deviation over that of the plain signal
    features: paths of N images -> float [N,T,C], tokens of a trunk that the latents are read from;
        without it the colours of an 8x8 grid, which a trunk's tokens may carry in part
    progress: called with subjects written and their number
    """
    _check_sizes(subjects, n_images, n_shared, latent, components, text_dim)
    _check_levels(individuality, noise, text_noise)
    folder = Path(folder)
    check_replaceable(folder, f"{PLANTED}.json")
    names = tuple(f"subj{number + 1:02d}" for number in range(subjects))
    _clear(folder)
    random = np.random.default_rng([seed, 10])
    stimuli = {}
    for number, pictures in enumerate(_choose_images(subjects, n_images, n_shared, random)):
        name = names[number]
        stimuli[name] = write_pictures(folder / name, pictures, seed=seed, size=size)
        if progress is not None:
            progress(number + 1, subjects)
    ids, values = _latents(stimuli, features or _colours, latent, random)
    cortex, columns = _ragged(thin(visual_cortex(), vertices), names, random)
    planted = PlantedGroup(
        subjects=names,
        space=cortex.space,
        columns=columns,
        image_ids=ids,
        latent=values,
        embed=smooth_noise(cortex.space, random, components, steps=4).astype(np.float32),
        shared=_normal(random, (components, latent), 1 - individuality),
        own=_normal(random, (subjects, components, latent), individuality),
        noise=_noise(cortex, subjects, noise, random),
        text_map=_normal(random, (text_dim, latent), 1 / latent),
    )
    planted = _in_z_units(planted, stimuli)
    for number, name in enumerate(names):
        noises = np.random.default_rng([seed, 11, number])
        _write_subject(folder / name, planted, name, stimuli[name], noises)
    _texts(planted, text_noise, random).save(folder / TEXT_FILE)
    planted.save(folder)
    return planted


def _check_sizes(
    subjects: int, n_images: int, n_shared: int, latent: int, components: int, text_dim: int
) -> None:
    limits = {
        "subjects": (subjects, 1, MOST_SUBJECTS),
        "n_images": (n_images, LEAST_IMAGES, MOST_IMAGES),
        "n_shared": (n_shared, 0, n_images),
        "latent": (latent, 1, None),
        "components": (components, 1, None),
        "text_dim": (text_dim, 1, None),
    }
    for name, (value, low, high) in limits.items():
        if value < low or (high is not None and value > high):
            expected = f"at least {low}" if high is None else f"{low} to {high}"
            raise BrainfastError(name, expected=expected, got=str(value))


def _check_levels(individuality: float, noise: float, text_noise: float) -> None:
    if not 0 <= individuality <= 1:
        raise BrainfastError("individuality", expected="0 to 1", got=str(individuality))
    for name, value in (("noise", noise), ("text_noise", text_noise)):
        if not (value >= 0 and math.isfinite(value)):
            raise BrainfastError(name, expected="a finite number, 0 or more", got=str(value))


def _clear(folder: Path) -> None:
    """Remove the subjects of an earlier group, and mark the folder as one that may be replaced."""
    for old in folder.glob("subj*/simulated.json"):
        shutil.rmtree(old.parent)
    write_json(folder / f"{PLANTED}.json", {"complete": False})


def _choose_images(
    subjects: int, n_images: int, n_shared: int, random: np.random.Generator
) -> list[list[Picture]]:
    """Shared pictures and own ones in an order of its own for every subject; then the tests."""
    shared = choose_pictures(n_shared, n_shared // 10, random)
    own = n_images - n_shared
    first = n_shared + subjects * own
    tests = [Picture(first + row, CHALLENGE_SOURCE, "challenge") for row in range(n_images // 10)]
    seen = []
    for number in range(subjects):
        pictures = shared + choose_pictures(own, own // 10, random, n_shared + number * own)
        seen.append([pictures[i] for i in random.permutation(n_images)] + tests)
    return seen


def _images(stimuli: Stimuli, split: str | None = None) -> list[tuple[str, Path]]:
    """Image id and path of a subject's images, or of those in one split."""
    return [
        (path.stem.split("_")[1], path)
        for path, side in zip(stimuli.paths, stimuli.splits, strict=True)
        if split in (None, side)
    ]


def _colours(paths: list[Path]) -> npt.NDArray[np.float32]:
    """Mean colours of an 8x8 grid, [N,64,3]."""
    plain = Preprocessing(size=(PIXEL_GRID, PIXEL_GRID), mean=(0, 0, 0), std=(1, 1, 1))
    pixels = np.concatenate(list(iter_pixels(paths, plain, BATCH)))
    return pixels.reshape(len(paths), 3, -1).transpose(0, 2, 1)


def _latents(
    stimuli: Mapping[str, Stimuli], features: Features, K: int, random: np.random.Generator
) -> tuple[tuple[str, ...], Floats]:
    """Ids of the N distinct images, and sum_t map[k,t] (filter[k] . x[t]) of each, [N,K].

    Tokens are standardised a channel first, so that none drowns the others, and the latents are
    z-scored; both take their moments from the training images.
    """
    paths = {image: path for part in stimuli.values() for image, path in _images(part)}
    seen = {image for part in stimuli.values() for image, _ in _images(part, "train")}
    train = np.flatnonzero([image in seen for image in paths])
    tokens = np.asarray(features(list(paths.values())), dtype=np.float64)
    if tokens.ndim != 3 or len(tokens) != len(paths):
        raise BrainfastError(
            "features", expected=f"tokens [{len(paths)},T,C]", got=f"{list(tokens.shape)}"
        )
    tokens = tokens - tokens[train].mean(axis=(0, 1))
    spread = tokens[train].std(axis=(0, 1))
    tokens /= np.where(spread > 0, spread, 1)
    filters = random.standard_normal((K, tokens.shape[2]))
    maps = random.standard_normal((K, tokens.shape[1]))
    values = np.einsum("ntc,kc,kt->nk", tokens, filters, maps, optimize=True)
    values -= values[train].mean(axis=0)
    spread = values[train].std(axis=0)
    if not (spread > 0).all():
        raise BrainfastError("features", expected="images that differ in them", got="the same")
    return tuple(paths), np.asarray(values / spread, dtype=np.float32)


def _ragged(
    cortex: Cortex, names: Sequence[str], random: np.random.Generator
) -> tuple[Cortex, dict[str, Indices]]:
    """The vertices that anybody has, and each subject's columns among them."""
    V = cortex.space.V
    kept = [np.sort(random.choice(V, math.ceil(KEPT * V), replace=False)) for _ in names]
    whole = np.unique(np.concatenate(kept))
    columns = [np.searchsorted(whole, own).astype(np.int64) for own in kept]
    small = Cortex(
        replace(cortex.space.take(whole), subject=None),
        cortex.level[whole],
        cortex.scale[whole],
        cortex.position[whole],
    )
    return small, dict(zip(names, columns, strict=True))


def _normal(random: np.random.Generator, shape: tuple[int, ...], variance: float) -> Floats:
    return (math.sqrt(variance) * random.standard_normal(shape)).astype(np.float32)


def _noise(
    cortex: Cortex, subjects: int, noise: float, random: np.random.Generator
) -> Floats:  # [S,V]
    """Noise of a mean of 3 trials over the signal, by the vertex's level and the subject."""
    variation = smooth_noise(cortex.space, random, 1, steps=4)[:, 0]
    ncsnr = LEAST_NOISY + (MOST_NOISY - LEAST_NOISY) * cortex.level
    ncsnr *= np.exp(0.2 * variation)
    level = np.linspace(1, NOISIER, subjects) if subjects > 1 else np.ones(1)
    return (noise * level[:, None] / (ncsnr * math.sqrt(REPEATS))).astype(np.float32)


def _in_z_units(planted: PlantedGroup, stimuli: Mapping[str, Stimuli]) -> PlantedGroup:
    """The same with unit variance of signal and noise a vertex, the mean over subjects."""
    variance = np.zeros((len(planted.subjects), planted.space.V))
    for row, subject in enumerate(planted.subjects):
        weight = planted.shared + planted.own[row]
        training = [image for image, _ in _images(stimuli[subject], "train")]
        latent = planted.latent[planted.rows(training)]
        variance[row] = (latent @ weight.T @ planted.embed.T).var(axis=0)
    whole = np.sqrt(1 + np.square(planted.noise).mean(axis=0))
    gain = 1 / (np.sqrt(variance.mean(axis=0)) * whole)
    return replace(
        planted,
        embed=(planted.embed * gain[:, None]).astype(np.float32),
        noise=(planted.noise / whole).astype(np.float32),
    )


def _write_subject(
    folder: Path,
    planted: PlantedGroup,
    subject: str,
    stimuli: Stimuli,
    random: np.random.Generator,
) -> None:
    columns = planted.columns[subject]
    signal = planted.signal(subject, [image for image, _ in _images(stimuli)])
    noise = planted.noise[planted.subjects.index(subject), columns]
    measured = (signal + noise * random.standard_normal(signal.shape)).astype(np.float32)
    variance = signal[stimuli.rows("train")].var(axis=0)
    ceiling = (variance / (variance + np.square(noise))).astype(np.float32)
    space = replace(planted.space.take(columns), subject=subject)
    about: dict[str, Any] = {"note": NOTE, "group": list(planted.subjects), "repeats": REPEATS}
    write_responses(folder, stimuli, space, measured, ceiling, about)


def _texts(planted: PlantedGroup, text_noise: float, random: np.random.Generator) -> TextEmbeddings:
    """A vector an image: its latent through `text_map`, and noise beside it."""
    plain = planted.latent @ planted.text_map.T
    values = plain + text_noise * plain.std() * random.standard_normal(plain.shape)
    return TextEmbeddings(values.astype(np.float32), planted.image_ids)
