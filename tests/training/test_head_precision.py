"""Training with bfloat16 operands: the trainer passes the precision on, and the curves agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from brainfast import _C
from brainfast.data.simulated import plant, respond
from brainfast.errors import BrainfastError
from brainfast.models.factortopy import FactorTopy
from brainfast.models.factortopy_config import FactorTopyConfig
from brainfast.ops import FactorReadoutWorkspace
from brainfast.tokens import Tokens
from brainfast.training import Recipe
from brainfast.training.examples import Examples
from brainfast.training.trainer import Trainer

LAYERS, CHANNELS = (0, 1, 2), (8, 8, 8)
TRAIN, VALIDATION = 160, 60
STEPS = 240
SLOW = Recipe(
    name="tiny",
    batch=8,
    steps_per_epoch=20,
    max_epochs=STEPS // 20,
    patience=STEPS,
    lr=1e-2,
    selector_lr=1e-2,
    regularizer_steps=100,
    soup=0,
)
NAMES = ("local", "global_", "space", "layer", "scale", "weight", "bias")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """These steps are too small to share out."""
    before = _C.num_threads()
    _C.set_num_threads(1)
    yield
    _C.set_num_threads(before)


@pytest.fixture(scope="module")
def subject():
    """Tokens, responses and coordinates of a small simulated subject."""
    generator = torch.Generator().manual_seed(0)
    count = TRAIN + VALIDATION
    coarse = [torch.randn(count, c, 3, 3, generator=generator) for c in CHANNELS]
    tokens = Tokens(  # smooth, as images are: so a sampling point sees where to go
        tuple(functional.interpolate(part, (8, 8), mode="bilinear") for part in coarse),
        tuple(torch.randn(count, c, generator=generator) for c in CHANNELS),
        LAYERS,
    )
    planted = plant(LAYERS, CHANNELS, dim=8, vertices=100, seed=0, noise=0.3)
    responses = respond(planted, tokens, np.arange(TRAIN))
    position = np.random.default_rng(0).normal(size=(planted.vertices.V, 3))
    position[:, :2] = planted.space
    return tokens, responses, position.astype(np.float32)


def history_of(subject, work: Path, precision: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Loss and validation R2 of every epoch."""
    tokens, responses, position = subject
    torch.manual_seed(seed)
    model = FactorTopy(torch.from_numpy(position), CHANNELS, LAYERS, FactorTopyConfig(dim=8))

    def examples(begin: int, end: int) -> Examples:
        return Examples(
            lambda rows: Tokens(
                tuple(part[begin:end][list(rows)] for part in tokens.local),
                tuple(part[begin:end][list(rows)] for part in tokens.global_),
                LAYERS,
            ),
            responses[begin:end],
        )

    state = Trainer(
        model,
        SLOW.model_copy(update={"head_precision": precision}),
        train=examples(0, TRAIN),
        validation=examples(TRAIN, TRAIN + VALIDATION),
        seed=seed,
        work=work,
        key={},
        device=torch.device("cpu"),
        progress=False,
    ).run()
    return tuple(np.array([row[name] for row in state.history]) for name in ("loss", "r2"))


def distance(curve: np.ndarray, other: np.ndarray) -> float:
    """Largest difference, as a share of what training gains."""
    return float(np.abs(curve - other).max() / np.ptp(other))


@pytest.fixture(scope="module")
def strict(subject, tmp_path_factory):
    return history_of(subject, tmp_path_factory.mktemp("fp32"), "fp32")


# Rounding is noise of a few thousandths in every gradient, and the curves part by about a hundredth
# of what training gains; without the gradient of a selector or of the weights, by six and more.
BAR = 0.02


def test_curves_agree(subject, strict, tmp_path):
    loss, r2 = history_of(subject, tmp_path / "bf16", "bf16")
    assert strict[1][-1] > strict[1][0] + 0.2  # it does learn
    assert not np.array_equal(loss, strict[0])  # it does round
    assert distance(loss, strict[0]) < BAR
    assert distance(r2, strict[1]) < BAR


@pytest.mark.parametrize("name", ["space", "layer", "weight"])
def test_the_bar_misses_a_lost_gradient(subject, strict, tmp_path, monkeypatch, name):
    call = FactorReadoutWorkspace.__call__

    def lose(self, *tensors, **options):
        kept = [t.detach() if n == name else t for n, t in zip(NAMES, tensors, strict=True)]
        return call(self, *kept, **options)

    monkeypatch.setattr(FactorReadoutWorkspace, "__call__", lose)
    loss, r2 = history_of(subject, tmp_path, "bf16")
    assert max(distance(loss, strict[0]), distance(r2, strict[1])) > 2 * BAR


def test_other_devices_refuse_bf16(subject, tmp_path):
    tokens, responses, position = subject
    examples = Examples(lambda rows: tokens, responses)
    with pytest.raises(BrainfastError, match="head_precision: expected fp32 on mps, got bf16"):
        Trainer(
            FactorTopy(torch.from_numpy(position), CHANNELS, LAYERS, FactorTopyConfig(dim=8)),
            SLOW.model_copy(update={"head_precision": "bf16"}),
            train=examples,
            validation=examples,
            seed=0,
            work=tmp_path,
            key={},
            device=torch.device("mps"),
            progress=False,
        )
