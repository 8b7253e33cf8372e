"""A new subject: its own map by ridge, more trials help, nobody else's answers change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from brainfast.data import Group
from brainfast.data.responses import Responses
from brainfast.errors import BrainfastError
from brainfast.training import add_subject


@pytest.fixture(scope="module")
def pair(
    fit_tiny: Callable[..., Any], make_group: Callable[..., Group], tmp_path_factory: Any
) -> tuple[Any, Group]:
    """A model of subjects a and b, and the group with c, whose vertices it has."""
    group = make_group()
    known = Group({name: group.data[name] for name in "ab"}, fractions=(0.6, 0.2, 0.2), seed=1)
    changes = {"steps": 60, "check_every": 20, "crop_scale": (1.0, 1.0)}
    encoder = fit_tiny(tmp_path_factory.mktemp("work"), changes, known)
    return encoder, group


def restricted(split: Any, encoder: Any) -> Any:
    """The split with the vertices of subject c that the model's embedding has rows for."""
    space, whole = split.space, encoder.space
    inside = np.concatenate([np.isin(space.lh, whole.lh), np.isin(space.rh, whole.rh)])
    values = np.asarray(split.responses[np.arange(len(split))])[:, inside]
    return replace(
        split,
        space=space.take(np.flatnonzero(inside)),
        responses=Responses([values]),
    )


def test_the_score_rises_with_trials_and_beats_the_group(pair: tuple[Any, Group]) -> None:
    encoder, group = pair
    train, heldout = (restricted(getattr(group, s).of("c"), encoder) for s in ("train", "heldout"))
    found = {}
    for trials in (4, len(train)):
        grown = add_subject(encoder, "c", train, trials=trials, progress=False)
        found[trials] = np.median(grown.evaluate(heldout, "c", progress=False).r2)
    group_r2 = np.median(encoder.evaluate(heldout, "group", progress=False).r2)
    assert found[len(train)] > found[4]
    assert found[len(train)] > group_r2 + 0.1


def test_other_subjects_answer_as_before(pair: tuple[Any, Group]) -> None:
    encoder, group = pair
    train = restricted(group.train.of("c"), encoder)
    grown = add_subject(encoder, "c", train, progress=False)
    assert grown.subjects == ("a", "b", "c")
    images = [train.images[0], train.images[3]]
    for subject in ("a", "b", "group"):
        before = encoder.fold([subject])[subject]
        after = grown.fold([subject])[subject]
        assert np.array_equal(before.weight, after.weight)
        assert np.array_equal(before.bias, after.bias)
        same = encoder.respond(images, subject).values == grown.respond(images, subject).values
        assert same.all()
    assert encoder.subjects == ("a", "b")


def test_gradient_steps_never_leave_a_worse_map(pair: tuple[Any, Group]) -> None:
    encoder, group = pair
    train, val = (restricted(getattr(group, side).of("c"), encoder) for side in ("train", "val"))

    def error(grown: Any) -> float:
        predicted = grown.respond(list(val.images), "c").values
        return float(np.square(predicted - val.responses[np.arange(len(val))]).mean())

    plain = add_subject(encoder, "c", train, progress=False)
    refined = add_subject(
        encoder, "c", train, sgd_steps=60, lr=1e-2, validation=val, progress=False
    )
    assert error(refined) <= error(plain) * (1 + 1e-6)


def test_trials_without_data_are_left_out(pair: tuple[Any, Group]) -> None:
    encoder, group = pair
    train, val = (restricted(getattr(group, side).of("c"), encoder) for side in ("train", "val"))
    values = np.array(train.responses[:])
    kept = np.delete(np.arange(len(train)), [0, 5])
    fewer = replace(
        train,
        images=[train.images[row] for row in kept],
        responses=Responses([values[kept]]),
    )
    values[[0, 5]] = np.nan
    gaps = replace(train, responses=Responses([values], allow_nan=True))
    options = {"progress": False, "sgd_steps": 3, "validation": val}
    found, expected = (add_subject(encoder, "c", split, **options) for split in (gaps, fewer))
    for name in ("subject_weight", "subject_bias"):
        new, old = (getattr(grown.head, name)[-1] for grown in (found, expected))
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)
    assert found.card.training.images["train/c"] == len(kept)
    values[3:] = np.nan
    bare = replace(train, responses=Responses([values], allow_nan=True))
    with pytest.raises(
        BrainfastError, match=f"at least 4 with a measurement, got 2 of {len(train)}"
    ):
        add_subject(encoder, "c", bare, progress=False)


def test_bad_input_is_one_line(pair: tuple[Any, Group]) -> None:
    encoder, group = pair
    train = restricted(group.train.of("c"), encoder)
    with pytest.raises(BrainfastError, match="a name that the model does not have"):
        add_subject(encoder, "a", train, progress=False)
    with pytest.raises(BrainfastError, match="trials"):
        add_subject(encoder, "c", train, trials=3, progress=False)
    with pytest.raises(BrainfastError, match="not among them"):
        add_subject(encoder, "c", group.train.of("c"), progress=False)


def test_parts_that_were_trained_on_are_not_scored(pair: tuple[Any, Group]) -> None:
    encoder, group = pair
    train, val, heldout = (
        restricted(getattr(group, side).of("c"), encoder) for side in ("train", "val", "heldout")
    )
    grown = add_subject(encoder, "c", train, others=(val, heldout), progress=False)
    grown.evaluate(heldout, "c", progress=False)
    shifted = replace(train, name="heldout", hash="another")
    for subject in ("c", "group"):
        with pytest.raises(BrainfastError, match="training images could be scored"):
            grown.evaluate(shifted, subject, progress=False)


def test_the_ridge_is_fitted_in_the_metric_of_the_responses(pair: tuple[Any, Group]) -> None:
    """On few vertices the embedding is far from orthonormal: compare with a plain ridge there."""
    encoder, group = pair
    train = restricted(group.train.of("c"), encoder)
    rows = np.arange(5)
    part = replace(
        train,
        space=train.space.take(rows),
        responses=Responses([np.asarray(train.responses[np.arange(len(train))])[:, rows]]),
    )
    grown = add_subject(encoder, "c", part, alphas=(0.5,), progress=False)
    columns = encoder.space.positions(part.space)
    with torch.no_grad():
        features = encoder.trunk.features(list(part.images), 64)
        latent = torch.cat([encoder.head.latent(encoder.head.project(t)) for t in features])
    basis = encoder.head.weight[torch.from_numpy(columns)].double().numpy()
    left, sizes, right = np.linalg.svd(basis, full_matrices=False)
    f = latent.double().numpy()
    y = np.asarray(part.responses[np.arange(len(part))]) - encoder.head.bias.numpy()[columns]
    rest = (y - f @ encoder.head.shared.detach().double().numpy().T @ basis.T) @ left
    centred = f - f.mean(axis=0)
    gram = centred.T @ centred + 0.5 * np.eye(f.shape[1])
    solution = np.linalg.solve(gram, centred.T @ (rest - rest.mean(axis=0)))
    expected = left @ solution.T
    found = basis @ grown.head.subject_weight[-1].detach().double().numpy()
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    assert len(sizes) == len(right)
