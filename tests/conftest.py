"""Small groups of subjects, a small model on disk, a toy engine: for tests in several files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

from brainfast import demo
from brainfast.data import Arrays, Group
from brainfast.training import GroupRecipe
from brainfast.vertex_space import VertexSpace
from command_line import HOW, RECIPE, TRUNK, Place, V, brainfast
from toy_engine import ToyEngine

# Hypothesis fails a test that takes 200 ms, which a busy machine makes of any.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

POOL = 48
EACH = 28  # images that a subject saw; neighbours share most of theirs


def _subject(name: str, first: int) -> Arrays:
    """Responses that mix the brightness of the image's quarters, much alike in all subjects."""
    rng = np.random.default_rng(first)
    images = np.random.default_rng(99).integers(0, 255, (POOL, 32, 32, 3), dtype=np.uint8)
    images = (images // 4 + np.arange(POOL, dtype=np.uint8)[:, None, None, None] * 3).astype(
        "uint8"
    )
    images[:, :16] = np.roll(images[:, :16], 7, axis=0)
    shown = images[first : first + EACH]
    quarters = shown.reshape(EACH, 2, 16, 2, 16, 3).mean(axis=(2, 4, 5)).reshape(EACH, 4)
    quarters = (quarters - quarters.mean(axis=0)) / quarters.std(axis=0)
    lh, rh = (np.sort(rng.choice(*of, replace=False)) for of in ((12, 9), (10, 7)))
    masks = {"V1v": np.arange(16) < 5, "FFA-1": np.arange(16) >= 11}
    common = np.random.default_rng(7).normal(size=(4, 22))  # of every vertex, for everybody
    mix = common[:, np.concatenate([lh, 12 + rh])] + 0.5 * rng.normal(size=(4, 16))
    responses = quarters @ mix * 0.5 + 0.1 * rng.normal(size=(EACH, 16))
    return Arrays(
        images=shown,
        responses=responses.astype(np.float32),
        coordinates=rng.normal(size=(16, 3)),
        space=VertexSpace("fsaverage5", lh, rh, masks, name),
        image_ids=[f"image-{index:02d}" for index in range(first, first + EACH)],
    )


@pytest.fixture(scope="session")
def make_group() -> Callable[..., Group]:
    """Three subjects of 16 vertices each, who saw 28 of 48 images."""

    def make(**options: Any) -> Group:
        subjects = {name: _subject(name, first) for name, first in (("a", 0), ("b", 8), ("c", 20))}
        return Group(subjects, **({"fractions": (0.6, 0.2, 0.2), "seed": 1} | options))

    return make


@pytest.fixture(scope="session")
def tiny_recipe() -> GroupRecipe:
    """Six steps of phase 1 on two blocks of a small trunk, with crops and dropout."""
    return GroupRecipe(
        name="tiny",
        batch=8,
        steps=6,
        warm_up=2,
        check_every=3,
        lr=1e-2,
        weight_decay=0.01,
        head={"latent": 6, "components": 4, "dropout": 0.2},
        trunk={"layers": (0, 1), "size": 32},
    )


@pytest.fixture(scope="session")
def fit_tiny(make_group: Callable[..., Group], tiny_recipe: GroupRecipe) -> Callable[..., Any]:
    """`fit_group` on the small group: `fit_tiny(work, changes of the recipe, group, **options)`."""
    from brainfast.training import fit_group

    def run(
        work: Any, changes: dict[str, Any] | None = None, group: Group | None = None, **options: Any
    ) -> Any:
        given = {
            "model": "blobgpt",
            "data": group or make_group(),
            "trunk": "vit_tiny_patch16_224",
            "recipe": tiny_recipe.changed(changes or {}),
            "pretrained": False,
            "work": work,
            "device": "cpu",
            "progress": False,
        }
        return fit_group(**(given | options))

    return run


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A simulated subject and a model of it, both small."""
    root = tmp_path_factory.mktemp("cli")
    subject = root / "subj01"
    trunk = demo.demo_trunk(pretrained=False, seed=0)
    demo.simulate(subject, trunk, n_images=60, vertices=V, progress=False)
    done = brainfast("train", subject, "--out", root / "model", *TRUNK, *RECIPE, *HOW, "--onnx")
    assert done.code == 0, done.err
    assert done.err == ""
    assert done.out.splitlines()[-1] == f"model: {root / 'model'}"
    return Place(root, subject, root / "model")


@pytest.fixture
def copy(place: Place, tmp_path: Path) -> Place:
    """The same, to be spoilt."""
    shutil.copytree(place.subject, tmp_path / "subj01")
    shutil.copytree(place.model, tmp_path / "model")
    return Place(tmp_path, tmp_path / "subj01", tmp_path / "model")


@pytest.fixture
def make_engine() -> type[ToyEngine]:
    """`make_engine("factortopy" | "blobgpt")`."""
    return ToyEngine


@pytest.fixture
def candidates(tmp_path: Path) -> Path:
    """A folder of 13 small images in three sub-folders."""
    rng = np.random.default_rng(6)
    folder = tmp_path / "candidates"
    for number in range(13):
        place = folder / "abc"[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (9, 8, 3), dtype=np.uint8)).save(
            place / f"{number:02d}.png"
        )
    return folder
