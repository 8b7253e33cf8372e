"""Training: the loss, the soup, exact resume after kill -9, early stop and divergence."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfast.data import Arrays
from brainfast.encoder import Encoder
from brainfast.errors import BrainfastError
from brainfast.models.factortopy import Selectors
from brainfast.training import Recipe, fit
from brainfast.training.examples import Sampler
from brainfast.training.losses import factortopy_loss, layer_negentropy
from brainfast.training.recipes import RECIPES, find_recipe
from brainfast.training.soup import average, greedy_soup
from brainfast.training.trainer import CHECKPOINT, Trainer

TINY = Recipe(
    name="tiny",
    batch=4,
    steps_per_epoch=5,
    max_epochs=4,
    lr=1e-2,
    selector_lr=1e-2,
    regularizer_steps=8,
    soup=3,
    head={"dim": 4, "grid": (2, 2)},
    trunk={"layers": (0, 1), "size": 32},
)


def make_data(**changes: object) -> Arrays:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    brightness = images.reshape(40, -1).mean(axis=1, keepdims=True)
    signal = (brightness - brightness.mean()) / brightness.std()
    responses = signal + rng.normal(size=(40, 12)) * 0.1
    coordinates = rng.normal(size=(12, 3)) * 30
    given = {"images": images, "responses": responses, "coordinates": coordinates} | changes
    return Arrays(**given)


def run(work: Path, recipe: Recipe = TINY, seed: int = 0, data: Arrays | None = None) -> Encoder:
    return fit(
        "factortopy",
        data or make_data(),
        trunk="vit_tiny_patch16_224",
        recipe=recipe,
        pretrained=False,
        work=work,
        seed=seed,
        device="cpu",
        progress=False,
    )


def weights(encoder: Encoder) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in encoder.head.state_dict().items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_negentropy_runs_from_minus_one_to_zero() -> None:
    assert layer_negentropy(torch.full((3, 4), 0.25)).item() == pytest.approx(-1)
    assert layer_negentropy(torch.eye(4)).item() == pytest.approx(0)
    assert layer_negentropy(torch.ones(5, 1)).item() == 0
    skewed = torch.tensor([[0.5, 0.25, 0.25]])
    expected = (0.5 * math.log(0.5) + 0.5 * math.log(0.25)) / math.log(3)
    assert layer_negentropy(skewed).item() == pytest.approx(expected)


def test_the_loss_is_the_papers() -> None:
    paper = RECIPES["paper"]
    selectors = Selectors(torch.zeros(2, 2), torch.tensor([[0.5, 0.5]] * 2), torch.tensor([0.2, 1]))
    predicted, measured = torch.tensor([[0.05, 2.0]]), torch.zeros(1, 2)
    smooth = (0.5 * 0.05**2 / 0.1 + (2.0 - 0.05)) / 2
    for step, strength in ((0, 0.1), (1500, 0.075), (6000, 0.0), (9000, 0.0)):
        found = factortopy_loss(predicted, measured, selectors, paper, step).item()
        assert found == pytest.approx(smooth + strength * -1.0, rel=1e-6)
    reference = paper.model_copy(update={"scale_regularizer": True})
    found = factortopy_loss(predicted, measured, selectors, reference, 0).item()
    assert found == pytest.approx(smooth + 0.1 * (-1.0 + (0.09 + 0.25) / 2), rel=1e-6)


def test_the_papers_recipe() -> None:
    paper = find_recipe("paper")
    assert (paper.batch, paper.steps_per_epoch, paper.patience, paper.soup) == (8, 1000, 20, 10)
    assert (paper.lr, paper.selector_lr, paper.weight_decay) == (1e-3, 1e-3, 1e-2)
    with pytest.raises(BrainfastError, match="demo or paper"):
        find_recipe("papre")


def test_the_sampler_shows_every_image_once_a_pass_and_depends_on_nothing_else() -> None:
    sampler = Sampler(10, 4, seed=3)
    steps = [sampler.indices(step) for step in range(5)]
    seen = np.concatenate(steps)
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10].tolist() != seen[10:].tolist()
    assert np.array_equal(Sampler(10, 4, seed=3).indices(3), steps[3])
    assert len(Sampler(3, 8, seed=0).indices(0)) == 3


def test_the_soup_takes_only_what_helps() -> None:
    kept = {step: {"w": torch.tensor([value])} for step, value in ((1, 4.0), (2, 9.0), (3, 2.0))}
    scores = {1: 0.5, 2: 0.4, 3: 0.3}

    def score(candidate: dict[str, torch.Tensor]) -> float:
        return -abs(candidate["w"].item() - 3.0)

    result, steps, best = greedy_soup(scores, kept.__getitem__, score)
    assert steps == (1, 3)
    assert result["w"].item() == 3.0
    assert best == 0
    assert average([kept[1], kept[2]])["w"].item() == 6.5


def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = weights(run(tmp_path / "whole"))
    script = (
        "import os, signal, sys\n"
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('tests_training', {__file__!r})\n"
        "tests = module_from_spec(spec)\n"
        "spec.loader.exec_module(tests)\n"
        "step = tests.Trainer._step\n"
        "def kill_at_eight(self, number):\n"
        "    if number == 8:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(self, number)\n"
        "tests.Trainer._step = kill_at_eight\n"
        "tests.run(tests.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "killed")]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / "killed" / CHECKPOINT).is_file()
    resumed = run(tmp_path / "killed")
    assert same(weights(resumed), whole)
    assert [row["step"] for row in resumed.history] == [5, 10, 15, 20]


def test_a_finished_run_is_read_and_not_trained_again(tmp_path: Path, monkeypatch) -> None:
    first = weights(run(tmp_path))

    def fail(*_: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(Trainer, "_step", fail)
    assert same(weights(run(tmp_path)), first)


def test_another_seed_gives_another_model_and_the_same_seed_the_same(tmp_path: Path) -> None:
    first = weights(run(tmp_path / "a"))
    assert same(first, weights(run(tmp_path / "b")))
    assert not same(first, weights(run(tmp_path / "c", seed=1)))


def test_a_checkpoint_of_another_run_is_refused_with_what_differs(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(BrainfastError, match="recipe") as error:
        run(tmp_path, TINY.model_copy(update={"lr": 2e-2}))
    assert str(tmp_path / CHECKPOINT) in str(error.value)


def test_corrected_responses_are_not_answered_with_the_old_model(tmp_path: Path) -> None:
    run(tmp_path)
    corrected = make_data(responses=np.random.default_rng(1).normal(size=(40, 12)))
    with pytest.raises(BrainfastError, match="another responses"):
        run(tmp_path, data=corrected)


def test_a_finished_run_goes_on_when_it_is_given_more_epochs(tmp_path: Path) -> None:
    longer = TINY.model_copy(update={"max_epochs": 6})
    whole = weights(run(tmp_path / "whole", longer))
    run(tmp_path / "extended")
    assert same(weights(run(tmp_path / "extended", longer)), whole)


def test_divergence_in_validation_names_the_step(tmp_path: Path, monkeypatch) -> None:
    step = Trainer._step

    def poison(self: Trainer, number: int) -> float:
        value = step(self, number)
        if number == 9:
            with torch.no_grad():
                self.model.weight.fill_(float("nan"))
        return value

    monkeypatch.setattr(Trainer, "_step", poison)
    with pytest.raises(BrainfastError, match="training step 10"):
        run(tmp_path)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    run(tmp_path)
    path = tmp_path / CHECKPOINT
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(BrainfastError, match="whole checkpoint"):
        run(tmp_path)


def test_divergence_names_the_step_and_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch
) -> None:
    batch = Trainer._step

    def poison(self: Trainer, step: int) -> float:
        if step == 7:
            with torch.no_grad():
                self.model.weight.fill_(float("nan"))
        return batch(self, step)

    monkeypatch.setattr(Trainer, "_step", poison)
    with pytest.raises(BrainfastError, match="training step 7") as error:
        run(tmp_path)
    assert "step 5 is kept" in str(error.value)
    monkeypatch.undo()
    assert run(tmp_path).card.training.steps == 20


def test_patience_stops_a_run_that_learns_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    data = make_data(responses=rng.normal(size=(40, 12)))
    recipe = TINY.model_copy(update={"lr": 0.1, "patience": 2, "max_epochs": 50, "soup": 0})
    training = run(tmp_path, recipe, data=data).card.training
    assert training.steps == training.best_step + 2 * recipe.steps_per_epoch
    assert training.soup_steps == (training.best_step,)


def test_only_the_named_checkpoints_stay_on_disk(tmp_path: Path) -> None:
    encoder = run(tmp_path)
    kept = sorted(int(path.stem.split("-")[1]) for path in tmp_path.glob("kept-*"))
    assert len(kept) == 3
    assert set(encoder.card.training.soup_steps) <= set(kept)
    assert not list(tmp_path.rglob("*.part"))


def test_the_soup_may_be_chosen_on_the_heldout_split(tmp_path: Path, monkeypatch) -> None:
    scored: list[int] = []
    validate = Trainer.validate

    def count(self: Trainer, examples: object = None) -> float:
        scored.append(len(examples or self.validation))
        return validate(self, examples)

    monkeypatch.setattr(Trainer, "validate", count)
    data = make_data(fractions=(0.7, 0.1, 0.2))
    assert len(data.val) != len(data.heldout)
    run(tmp_path, TINY.model_copy(update={"soup_split": "heldout"}), data=data)
    assert scored[:4] == [len(data.val)] * 4
    assert set(scored[4:]) == {len(data.heldout)}


def test_it_learns(tmp_path: Path) -> None:
    history = run(tmp_path, TINY.model_copy(update={"max_epochs": 40})).history
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]
    json.dumps(history, allow_nan=False)


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BrainfastError, match="device"):
        fit(
            "factortopy",
            make_data(),
            trunk="vit_tiny_patch16_224",
            pretrained=False,
            work=tmp_path,
            device="tpu9",
        )
    assert os.listdir(tmp_path) == []
