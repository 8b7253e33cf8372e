"""Training finds the selectors that the simulator planted, and a broken gradient is caught.

R2 alone does not catch it: with the space selector cut off it falls by a few hundredths only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from brainfast.data.algonauts import Algonauts
from brainfast.data.simulated import Planted, recovery
from brainfast.demo import demo_trunk, open_subject, simulate, train
from brainfast.encoder import Encoder
from brainfast.models.factortopy import FactorTopy, Selectors
from brainfast.trunks import Trunk

VERTICES = 500


class Subject:
    """One simulated subject, read back from disk, and encoders trained on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trunk: Trunk = demo_trunk(pretrained=False, seed=0)
        self.planted: Planted = simulate(
            folder / "subj01", self.trunk, vertices=VERTICES, progress=False
        )
        self.data: Algonauts = open_subject(folder / "subj01")

    def train(self) -> Encoder:
        """Train afresh; tokens are computed once and shared."""
        for old in (self.folder / "work").glob("*.safetensors"):
            old.unlink()
        return train(self.data, self.trunk, self.folder / "work", progress=False)

    def recovered(self, encoder: Encoder) -> dict[str, float]:
        head = encoder.fold()
        return recovery(self.planted, head.space, head.layer, head.scale)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("simulated"))


@pytest.fixture(scope="module")
def encoder(subject: Subject) -> Encoder:
    return subject.train()


BARS: dict[str, Callable[[float], bool]] = {
    "layer_r": lambda value: value >= 0.85,
    "layer_within_one": lambda value: value >= 0.9,
    "space_x_r": lambda value: value >= 0.85,
    "space_y_r": lambda value: value >= 0.85,
    "space_error": lambda value: value <= 0.2,
    "scale_r": lambda value: value >= 0.8,
}


def missed(found: dict[str, float]) -> set[str]:
    return {name for name, passes in BARS.items() if not passes(found[name])}


def test_every_planted_selector_is_recovered(subject: Subject, encoder: Encoder) -> None:
    found = subject.recovered(encoder)
    assert missed(found) == set(), found


def test_an_unseen_photograph_is_predicted(subject: Subject, encoder: Encoder) -> None:
    scores = encoder.evaluate(subject.data.heldout, progress=False)
    assert np.nanmedian(scores.r2) > 0.3
    assert np.nanmean(scores.normalised) > 0.4
    table = {row["roi"]: row for row in scores.roi_table(subject.data.space)}
    assert table["V1"]["r2"] > 0.3


def test_a_detached_space_selector_is_caught(
    subject: Subject, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = FactorTopy.selectors

    def detached(self: FactorTopy) -> Selectors:
        selectors = evaluate(self)
        return selectors._replace(space=selectors.space.detach())

    monkeypatch.setattr(FactorTopy, "selectors", detached)
    assert {"space_x_r", "space_y_r", "space_error"} <= missed(subject.recovered(subject.train()))
