"""A small trunk, heads and images for the tests of what runs on one device."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from brainfast.device_engine import DeviceRunner, open_head
from brainfast.folded import FoldedFactorTopy
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.images import preprocess
from brainfast.tokens import Tokens

LAYERS, C, GRID, D, V = (1, 3), 6, (4, 4), 5, 23
SETTINGS = SimpleNamespace(
    size=(32, 32),
    interpolation="bicubic",
    antialias=True,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)


class SmallTrunk(nn.Module):
    """Two layers of 4 x 4 tokens of images of 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, C, 8, stride=8)
            self.mix = nn.Linear(C, C)
        self.requires_grad_(False)

    def forward(self, pixels: torch.Tensor) -> Tokens:
        first = self.patches(pixels).flatten(2).transpose(1, 2)
        layers = [first, first + self.mix(first).tanh()]
        local = tuple(layer.transpose(1, 2).unflatten(2, GRID) for layer in layers)
        return Tokens(local, tuple(layer.mean(dim=1) for layer in layers), LAYERS)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def factortopy(precision: Any = "fp32") -> FoldedFactorTopy:
    rng = np.random.default_rng(0)
    return FoldedFactorTopy(
        space=normal(rng, V, 2),
        layer=normal(rng, V, 2),
        scale=rng.uniform(size=V).astype(np.float32),
        weight=normal(rng, V, D),
        bias=normal(rng, V),
        bottleneck_local=(normal(rng, D, C), normal(rng, D, C)),
        bottleneck_global=(normal(rng, D, C), normal(rng, D, C)),
        offset_local=normal(rng, 2, D),
        offset_global=normal(rng, 2, D),
        layers=LAYERS,
        grid=(2, 2),
        precision=precision,
    )


def subjects() -> dict[str, FoldedBlobGPT]:
    rng = np.random.default_rng(0)
    projection = BlobProjection(
        filters=(normal(rng, 7, C), normal(rng, 7, C)),
        maps=(normal(rng, 7, 17), normal(rng, 7, 17)),
        latent_bias=normal(rng, 7),
        layers=LAYERS,
        grids=(GRID, GRID),
        class_token=True,
    )
    return {
        name: FoldedBlobGPT(projection, normal(rng, n, 7), normal(rng, n))
        for name, n in (("a", 9), ("b", 4))
    }


def pictures(count: int, height: int = 41, width: int = 37, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def need_gpu() -> None:
    if not torch.cuda.is_available() and os.environ.get("BRAINFAST_REQUIRE_CUDA") != "1":
        pytest.skip("no GPU that torch sees")


def make(device: str, head: Any = None, **options: Any) -> DeviceRunner:
    given = {"preprocessing": SETTINGS, "trunk": SmallTrunk()} | options
    module = open_head(factortopy() if head is None else head, device)
    return DeviceRunner(head=module, device=device, **given)


def by_hand(images: Any, head: Any = None, trunk: Any = None, settings: Any = SETTINGS) -> Any:
    """Preprocessing in numpy, the trunk in torch on the CPU, the folded head in numpy."""
    pixels = torch.from_numpy(preprocess(list(images), settings))
    tokens = (trunk or SmallTrunk())(pixels).map(lambda array: array.float().numpy())
    return (head or factortopy()).run(tokens)


def check(found: np.ndarray, expected: np.ndarray, bound: float = 1e-5) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()
