"""Training of several subjects: one batch or many pieces of it, resume, phases, alignment."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brainfast.data import Group
from brainfast.errors import BrainfastError
from brainfast.training import GroupRecipe, group_trainer
from brainfast.training.group_batches import dropout_mask, random_crop
from brainfast.training.group_losses import info_nce, masked_squared_error
from brainfast.training.group_recipes import GROUP_RECIPES, Alignment, find_group_recipe
from brainfast.training.group_tokens import FixedViews
from brainfast.training.group_trainer import learning_rate

PHASE_2 = {"phase": 2, "unfreeze": ("attn",), "lr": 1e-3}


def state(encoder: Any) -> dict[str, torch.Tensor]:
    return {**encoder.head.state_dict(), **encoder.trunk.model.state_dict()}


def largest_difference(a: Any, b: Any) -> float:
    mine, other = state(a), state(b)
    assert mine.keys() == other.keys()
    return max(float((mine[n].double() - other[n].double()).abs().max()) for n in mine)


def response_difference(a: Any, b: Any) -> float:
    """Of tuned trunks: the gradient of some of their parameters (the biases of keys) is zero but
    for rounding, which AdamW makes as large as any other."""
    images = np.random.default_rng(5).integers(0, 255, (6, 32, 32, 3), dtype=np.uint8)
    found = [encoder.respond(images, "b").values for encoder in (a, b)]
    return float(np.abs(found[0] - found[1]).max() / found[0].std())


@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_pieces_of_a_batch_train_as_the_whole(
    fit_tiny: Callable[..., Any], tmp_path: Path, micro_batch: int
) -> None:
    whole = fit_tiny(tmp_path / "whole")
    pieces = fit_tiny(tmp_path / "pieces", {"micro_batch": micro_batch})
    assert largest_difference(whole, pieces) < 1e-5


@pytest.mark.parametrize("micro_batch", [1, 3])
def test_pieces_of_a_batch_tune_the_trunk_as_the_whole(
    fit_tiny: Callable[..., Any], tmp_path: Path, micro_batch: int
) -> None:
    start = fit_tiny(tmp_path / "start")
    before = {name: tensor.clone() for name, tensor in state(start).items()}
    whole = fit_tiny(tmp_path / "whole", PHASE_2, phase=2, start=start)
    pieces = fit_tiny(
        tmp_path / "pieces", {**PHASE_2, "micro_batch": micro_batch}, phase=2, start=start
    )
    assert response_difference(whole, pieces) < 1e-5
    changed = {n for n, t in state(whole).items() if not torch.equal(t, before[n])}
    assert "blocks.0.attn.qkv.weight" in changed
    assert not [name for name in changed if "mlp" in name or "patch_embed" in name]
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(start).items())
    assert whole.card.trunk.weights_hash != start.card.trunk.weights_hash


RANKS = """
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from conftest import _subject
from brainfast.data import Group
from brainfast.training import GroupRecipe, fit_group
from brainfast.encoder import load
group = Group({{n: _subject(n, f) for n, f in (("a", 0), ("b", 8), ("c", 20))}},
              fractions=(0.6, 0.2, 0.2), seed=1)
recipe = GroupRecipe.model_validate_json({recipe!r})
options = dict(trunk="vit_tiny_patch16_224", pretrained=False, device="cpu", progress=False)
one = fit_group("blobgpt", group, recipe=recipe, work={work!r} + "/1", **options)
two = recipe.changed({phase2!r})
tuned = fit_group("blobgpt", group, phase=2, start=one, recipe=two, work={work!r} + "/2",
                  **options)
import os
if os.environ["RANK"] == "0":
    tuned.save({work!r} + "/model")
"""


def test_two_processes_train_as_one(
    fit_tiny: Callable[..., Any], tiny_recipe: GroupRecipe, tmp_path: Path
) -> None:
    recipe = tiny_recipe.changed({"micro_batch": 3})
    script = tmp_path / "ranks.py"
    script.write_text(
        RANKS.format(
            tests=str(Path(__file__).parents[1]),
            recipe=recipe.model_dump_json(),
            phase2=PHASE_2,
            work=str(tmp_path / "ranks"),
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(script)],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    from brainfast.encoder import load

    together = load(tmp_path / "ranks" / "model")
    one = fit_tiny(tmp_path / "one")
    alone = fit_tiny(tmp_path / "two", PHASE_2, phase=2, start=one)
    assert response_difference(together, alone) < 1e-5


def test_an_interrupted_run_ends_in_the_same_weights(
    fit_tiny: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit_tiny(tmp_path / "whole")
    calls = []

    def stop_late(recipe: GroupRecipe, step: int) -> float:
        calls.append(step)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return learning_rate(recipe, step)

    monkeypatch.setattr(group_trainer, "learning_rate", stop_late)
    with pytest.raises(KeyboardInterrupt):
        fit_tiny(tmp_path / "stopped")
    resumed = fit_tiny(tmp_path / "stopped")
    assert calls == [0, 1, 2, 3, 4, 3, 4, 5]  # from the checkpoint of step 3 on
    assert largest_difference(whole, resumed) == 0
    assert whole.history == resumed.history


def test_a_checkpoint_of_another_run_is_refused(
    fit_tiny: Callable[..., Any], tmp_path: Path
) -> None:
    fit_tiny(tmp_path)
    with pytest.raises(BrainfastError, match="another recipe"):
        fit_tiny(tmp_path, {"lr": 1e-3})


def test_training_learns(fit_tiny: Callable[..., Any], tmp_path: Path) -> None:
    encoder = fit_tiny(tmp_path, {"steps": 60, "check_every": 20, "crop_scale": (1.0, 1.0)})
    assert encoder.history[-1]["r2"] > 0.4
    assert encoder.card.training.best_step in (40, 60)


def test_cached_tokens_train_as_fresh_ones_without_crops(
    fit_tiny: Callable[..., Any],
    make_group: Callable[..., Group],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = make_group()
    images = len(group.train.unique_rows) + len(group.val.unique_rows)
    changes = {"crop_scale": (1.0, 1.0), "steps": 30, "check_every": 10}
    fresh = fit_tiny(tmp_path / "fresh", changes)
    cached = fit_tiny(tmp_path / "cached", {**changes, "cache_tokens": True}, progress=True)
    assert f"tokens of {images} images" in capsys.readouterr().out
    found = [row["r2"] for row in cached.history]
    assert found == pytest.approx([row["r2"] for row in fresh.history], abs=0.02)  # bf16 tokens
    with pytest.raises(BrainfastError, match="phase 1"):
        fit_tiny(tmp_path / "x", {**PHASE_2, "cache_tokens": True}, phase=2, start=fresh)


def test_a_cached_view_is_one_crop_for_all_epochs(make_group: Callable[..., Group]) -> None:
    images, _ = make_group().train.unique_images()
    views = FixedViews(images, (0.5, 0.6), seed=3)
    assert np.array_equal(views[4], FixedViews(images, (0.5, 0.6), seed=3)[4])
    assert views[4].shape[0] == views[4].shape[1] < 32
    assert len({view.tobytes() for view in views}) == len(images)


def test_the_schedule_warms_up_and_ends_at_its_minimum() -> None:
    recipe = GROUP_RECIPES["blobgpt", 1, "paper"]
    assert learning_rate(recipe, 0) == pytest.approx(6e-4 / 250)
    assert learning_rate(recipe, 249) == pytest.approx(6e-4)
    assert learning_rate(recipe, 4999) == pytest.approx(3e-5)
    middle = learning_rate(recipe, 250 + (5000 - 251) // 2)
    assert middle == pytest.approx((6e-4 + 3e-5) / 2, rel=1e-3)


def test_missing_vertices_have_no_loss_and_no_gradient() -> None:
    rng = np.random.default_rng(0)
    predicted = torch.tensor(rng.normal(size=(3, 5)), requires_grad=True)
    measured = torch.tensor(rng.normal(size=(3, 5)))
    present = torch.tensor(rng.random((3, 5)) > 0.4)
    measured[~present] = math.nan
    loss = masked_squared_error(predicted, measured, present)
    loss.backward()
    expected = np.nansum((predicted.detach().numpy() - measured.numpy()) ** 2)
    assert loss.item() == pytest.approx(expected)
    assert torch.equal(predicted.grad == 0, ~present)


def test_info_nce_is_the_mean_log_softmax_of_the_matches() -> None:
    similarities = torch.tensor(np.random.default_rng(1).normal(size=(4, 4)))
    image = torch.arange(4)
    rows = -torch.log_softmax(similarities, dim=1).diagonal().mean()
    columns = -torch.log_softmax(similarities, dim=0).diagonal().mean()
    both = info_nce(similarities, image, Alignment())
    assert torch.allclose(both, (rows + columns) / 2)
    one_way = Alignment(direction="image_to_text")
    assert torch.allclose(info_nce(similarities, image, one_way), rows)
    other = Alignment(direction="text_to_image")
    assert torch.allclose(info_nce(similarities, image, other), columns)


def test_copies_of_an_image_are_matches_of_each_other() -> None:
    similarities = torch.tensor(np.random.default_rng(2).normal(size=(3, 3)))
    image = torch.tensor([7, 5, 7])
    e = similarities.exp()
    rows = [
        (e[0, 0] + e[0, 2]) / e[0].sum(),
        e[1, 1] / e[1].sum(),
        (e[2, 0] + e[2, 2]) / e[2].sum(),
    ]
    expected = -torch.stack(rows).log().mean()
    found = info_nce(similarities, image, Alignment(direction="image_to_text"))
    assert torch.allclose(found, expected)


def test_dropout_depends_on_the_sample_and_the_step_alone() -> None:
    keys = {"keep": 0.25, "seed": 3, "layer": 1, "device": torch.device("cpu")}
    samples = np.array([4, 9, 2])
    mask = dropout_mask((50, 40), samples, step=7, **keys)
    again = dropout_mask((50, 40), samples[[2, 1]], step=7, **keys)
    assert torch.equal(mask[[2, 1]], again)
    assert not torch.equal(mask, dropout_mask((50, 40), samples, step=8, **keys))
    assert set(mask.unique().tolist()) == {0.0, 4.0}
    assert mask.mean().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("size", [(40, 40), (30, 60), (1, 1)])
def test_crops_are_square_and_as_large_as_asked(size: tuple[int, int]) -> None:
    image = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(*size, 3).astype(np.uint8)
    rng = np.random.default_rng(0)
    crops = [random_crop(image, (0.8, 1.0), rng) for _ in range(50)]
    for crop in crops:
        height, width, _ = crop.shape
        assert height == width
        assert height == min(size) or 0.78 <= height * width / (size[0] * size[1]) <= 1.0
    if size == (40, 40):
        assert len({crop.shape for crop in crops}) > 1


def test_bad_arguments_are_one_line(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    start = fit_tiny(tmp_path / "start", {"steps": 1, "check_every": 1})
    with pytest.raises(BrainfastError, match="a model of phase 1 to go on from"):
        fit_tiny(tmp_path / "x", PHASE_2, phase=2)
    with pytest.raises(BrainfastError, match="another one, so that held-out"):
        fit_tiny(tmp_path / "x", PHASE_2, make_group(seed=2), phase=2, start=start)
    with pytest.raises(BrainfastError, match="text embeddings in phase 2"):
        fit_tiny(tmp_path / "x", {**PHASE_2, "alignment": Alignment()}, phase=2, start=start)
    nothing = {"phase": 2, "unfreeze": ("nothing",), "freeze_head": True}
    with pytest.raises(BrainfastError, match="no trunk parameter named"):
        fit_tiny(tmp_path / "x", nothing, phase=2, start=start)
    with pytest.raises(BrainfastError, match="expected 1 to"):
        fit_tiny(tmp_path / "y", {"head": {"components": 5000}})
    with pytest.raises(BrainfastError, match="paper"):
        find_group_recipe("blobgpt", 1, "papers")


def test_a_basis_of_other_responses_is_fitted_again(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    fit_tiny(tmp_path, {"steps": 1, "check_every": 1})
    (tmp_path / "checkpoint.safetensors").unlink()
    first = (tmp_path / "basis.safetensors").read_bytes()
    fit_tiny(tmp_path, {"steps": 1, "check_every": 1})
    assert (tmp_path / "basis.safetensors").read_bytes() == first
    group = make_group()
    group.data["a"].train.responses._parts[0][:] *= -2
    other = Group(group.data, fractions=(0.6, 0.2, 0.2), seed=1)
    (tmp_path / "checkpoint.safetensors").unlink()
    fit_tiny(tmp_path, {"steps": 1, "check_every": 1}, other)
    assert (tmp_path / "basis.safetensors").read_bytes() != first


def test_a_phase_takes_its_own_recipe_and_the_same_data(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path: Path
) -> None:
    start = fit_tiny(tmp_path / "start", {"steps": 1, "check_every": 1})
    with pytest.raises(BrainfastError, match="one of phase 1"):
        fit_tiny(tmp_path / "x", PHASE_2, phase=1)
    with pytest.raises(BrainfastError, match="divided as in phase 1"):
        fit_tiny(tmp_path / "x", PHASE_2, make_group(missing="zero"), phase=2, start=start)
