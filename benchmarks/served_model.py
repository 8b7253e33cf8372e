"""What is served: a FactorTopy behind a ViT-B of random weights, and a pool for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import brainfast as bf
from brainfast.tokens import Tokens
from brainfast.training import RECIPES
from brainfast.trunks import Trunk
from brainfast.vertex_space import VertexSpace

REGIONS = ("V1v", "EBA", "FFA-1", "PPA")
SHOWN = 24  # images that the head takes one training step on
CANDIDATE_PX = 24
CATEGORIES = 8


class Size(NamedTuple):
    """V vertices; a trunk of timm, on images of px x px; candidates in the pool."""

    V: int
    trunk: str
    px: int
    candidates: int


WHOLE = Size(37_984, "vit_base_patch16_224", 224, 10_000)
QUICK = Size(400, "vit_tiny_patch16_224", 32, 60)


def make_model(folder: Path, size: Size) -> Path:
    """A model folder. It took one training step, which costs what a trained one does to run."""
    random = np.random.default_rng(0)
    region = np.arange(size.V) * len(REGIONS) // size.V
    masks = {name: region == index for index, name in enumerate(REGIONS)}
    half = size.V // 2
    data = bf.data.Arrays(
        images=pictures(SHOWN, 64),
        responses=random.standard_normal((SHOWN, size.V), dtype=np.float32),
        coordinates=random.standard_normal((size.V, 3)),
        space=VertexSpace("custom", np.arange(size.V - half), np.arange(half), masks, "made up"),
    )
    recipe = RECIPES["paper"].model_copy(update={"max_epochs": 1, "steps_per_epoch": 1})
    trunk = Trunk.create(size.trunk, pretrained=False, size=size.px)
    encoder = bf.fit("factortopy", data, trunk=trunk, recipe=recipe, work=folder / "run")
    return encoder.save(folder / "model")


def make_pool(model: Path, path: Path, size: Size) -> Path:
    """Aligned tokens in bf16, by the code of `brainfast pool build`, all but the trunk's.

    Ten thousand images would take two cores half an hour, so tokens are made up of their pixels.
    """
    images = path.parent / "candidates"
    images.mkdir()
    for number, pixels in enumerate(pictures(size.candidates, CANDIDATE_PX, seed=1)):
        Image.fromarray(pixels).save(images / f"{number:05d}.png")
    engine = bf.Engine.load(model, runtime="torch", trunk_precision="bf16")
    engine.runtime = MadeUpTokens(engine)
    bf.Pool.build(engine, images, path=path, progress=True)
    return path


class MadeUpTokens:
    """Tokens that differ between images, and are alike within a category: a pattern of each
    category, and a number of each image for every channel."""

    name, precision = "made up", "bf16"  # as the trunk that is served

    def __init__(self, engine: Any) -> None:
        like = engine.runtime(np.zeros((1, 3, *engine.card.trunk.size), np.float32))
        random = np.random.default_rng(0)

        def patterns(array: Any) -> NDArray[np.float32]:  # [1,C,...] -> [categories,C,...]
            return random.standard_normal((CATEGORIES, *array.shape[1:]), np.float32)

        self._local, self._global = (
            tuple(map(patterns, arrays)) for arrays in (like.local, like.global_)
        )
        self._layers = like.layers

    def __call__(self, pixels: NDArray[np.float32]) -> Tokens:  # [B,3,H,W]
        own = [int.from_bytes(image[:, ::16, ::16].tobytes()[:8], "little") for image in pixels]
        category = [seed % CATEGORIES for seed in own]
        L, C = len(self._layers), self._local[0].shape[1]
        numbers = [
            np.random.default_rng(seed).standard_normal((2 * L, C), np.float32) for seed in own
        ]
        local, global_ = np.split(np.stack(numbers, axis=1), 2)  # [L,B,C] each
        return Tokens(
            tuple(
                p[category] + n[..., None, None] for p, n in zip(self._local, local, strict=True)
            ),
            tuple(p[category] + n for p, n in zip(self._global, global_, strict=True)),
            self._layers,
        )


def pictures(count: int, px: int, seed: int = 0) -> NDArray[np.uint8]:  # [B,px,px,3]
    """Smooth noise."""
    random = np.random.default_rng(seed)
    coarse = (255 * random.random((count, 5, 5, 3))).astype(np.uint8)
    resized = [
        Image.fromarray(image).resize((px, px), Image.Resampling.BICUBIC) for image in coarse
    ]
    return np.stack([np.asarray(image) for image in resized])
