"""Small saved models of one and of several subjects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.data import Arrays
from brainfast.export import export_onnx
from brainfast.training import Recipe, fit


@pytest.fixture(scope="session")
def make_one(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A saved FactorTopy of 90 vertices and two blocks of a small trunk, hardly trained."""
    rng = np.random.default_rng(0)
    data = Arrays(
        images=rng.integers(0, 255, (24, 32, 32, 3), dtype=np.uint8),
        responses=rng.normal(size=(24, 90)).astype(np.float32),
        coordinates=rng.normal(size=(90, 3)) * 30,
        rois={"EBA": np.arange(90) % 3 == 0, "PPA": np.arange(90) > 60},
    )

    def make(**head: Any) -> Path:
        recipe = Recipe(
            name="tiny",
            batch=4,
            steps_per_epoch=4,
            max_epochs=2,
            lr=1e-2,
            soup=0,
            head={"dim": 4, "grid": (3, 3)} | head,
            trunk={"layers": (0, 1), "size": 32},
        )
        encoder = fit(
            "factortopy",
            data,
            trunk="vit_tiny_patch16_224",
            recipe=recipe,
            pretrained=False,
            work=tmp_path_factory.mktemp("work"),
            progress=False,
            device="cpu",
        )
        return encoder.save(tmp_path_factory.mktemp("one") / "model")

    return make


@pytest.fixture(scope="session")
def one(make_one: Callable[..., Path]) -> Path:
    """A saved model of one subject."""
    return make_one(standardize=True)


@pytest.fixture(scope="session")
def several(fit_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model of the subjects a, b and c."""
    encoder = fit_tiny(tmp_path_factory.mktemp("work"))
    return encoder.save(tmp_path_factory.mktemp("several") / "model")


@pytest.fixture(scope="session")
def photographs() -> np.ndarray:
    """Five smooth pictures [5,40,50,3]."""
    rng = np.random.default_rng(3)
    coarse = rng.random((5, 5, 5, 3))
    fine = np.repeat(np.repeat(coarse, 8, axis=1), 10, axis=2)
    return (255 * fine).astype(np.uint8)


@pytest.fixture(scope="session")
def whole(one: Path, photographs: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All vertices of that model as an ONNX file for pictures of 40 x 50 pixels."""
    path = tmp_path_factory.mktemp("whole") / "whole.onnx"
    export_onnx(one, path, source=(40, 50), images=list(photographs))
    return path
