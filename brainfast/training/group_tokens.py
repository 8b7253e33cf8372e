"""Tokens of a group's images kept on disk, for phase 1: one view of every training image."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..data.group import Group, Pictures
from ..data.token_cache import TokenCache
from ..errors import BrainfastError
from ..images import as_images
from ..tokens import Tokens
from ..trunks import Trunk
from .group_batches import CROP_STREAM, random_crop
from .group_recipes import GroupRecipe
from .ranks import Ranks

BYTES = 2  # of a bfloat16 token channel


class GroupTokens:
    """Tokens of training samples and of every subject's validation images, from one cache."""

    def __init__(
        self,
        cache: TokenCache,
        train: NDArray[np.int64],  # [n] row of each training sample
        validation: dict[str, NDArray[np.int64]],  # [n_s] row of each validation image
    ) -> None:
        self._cache, self._train, self._validation = cache, train, validation

    @property
    def images_hash(self) -> str:
        """SHA-256 of what was seen: the training images' views and the validation images."""
        return self._cache.index.key.images_hash

    def of_samples(self, samples: NDArray[np.int64]) -> Tokens:
        """Tokens of training samples, float32 on the CPU."""
        return self._cache.tokens(self._train[samples].tolist())

    def of_validation(self, subject: str, rows: range) -> Tokens:
        """Tokens of some of a subject's validation images, float32 on the CPU."""
        chosen = self._validation[subject][rows.start : rows.stop]
        return self._cache.tokens(chosen.tolist())


class FixedViews(Sequence[Any]):
    """One crop of every image, the same in each epoch, from the seed and the image's place."""

    def __init__(self, images: Sequence[Any], scale: tuple[float, float], seed: int) -> None:
        self._images, self._scale, self._seed = images, scale, seed

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if self._scale == (1.0, 1.0):
            return self._images[index]
        image = as_images(self._images[index])[0]
        rng = np.random.default_rng([self._seed, CROP_STREAM, index])
        return np.ascontiguousarray(random_crop(image, self._scale, rng))


def cache_tokens(
    data: Group,
    trunk: Trunk,
    recipe: GroupRecipe,
    folder: Path,
    *,
    ranks: Ranks,
    seed: int,
    progress: bool,
) -> GroupTokens:
    """Compute the tokens of one view of every training image and of all validation images.

    Every image is computed once, whoever saw it, on the trunk's own grid in bfloat16. The space is
    told before the work starts; where the disk has less, it is a BrainfastError.
    """
    grid, *others = set(trunk.grids)
    if others:
        raise BrainfastError(
            "cache_tokens", expected="a trunk with one token grid", got=f"grids {trunk.grids}"
        )
    train, train_rows = data.train.unique_images()
    validation, validation_rows = data.val.unique_images()
    parts = (FixedViews(train, recipe.crop_scale, seed), validation)
    sizes = [len(part) for part in parts]
    images = Pictures(parts, np.repeat([0, 1], sizes), np.concatenate([*map(np.arange, sizes)]))
    if ranks.first:
        _announce(len(images), trunk, folder, progress)
        TokenCache.build(folder, trunk, images, grid=grid, dtype="bf16", progress=progress)
    ranks.wait()
    owners = data.val.subject_index
    return GroupTokens(
        TokenCache.open(folder, trunk=trunk, grid=grid, dtype="bf16"),
        train_rows,
        {
            name: len(train) + validation_rows[owners == number]
            for number, name in enumerate(data.subjects)
        },
    )


def token_bytes(images: int, trunk: Trunk) -> int:
    """Bytes that the tokens of so many images take on disk."""
    sizes = zip(trunk.config.channels, trunk.grids, strict=True)
    return BYTES * images * sum(c * (height * width + 1) for c, (height, width) in sizes)


def _announce(images: int, trunk: Trunk, folder: Path, progress: bool) -> None:
    needed = token_bytes(images, trunk)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    there = sum(path.stat().st_size for path in folder.iterdir())
    text = f"tokens of {images} images: {needed / 1e9:.2g} GB in {folder}, {free / 1e9:.2g} GB free"
    if needed > free + there:
        raise BrainfastError(
            "cache_tokens",
            expected="space for the tokens",
            got=text,
            remedy="train without the cache: tokens are then computed as they are needed",
        )
    if progress:
        tqdm.write(text)
