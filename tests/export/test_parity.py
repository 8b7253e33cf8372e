"""The check that decides whether an exported file is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from brainfast.encoder import load
from brainfast.errors import BrainfastError
from brainfast.export import parity
from brainfast.export.parity import check_tolerance, choose_stimuli, measure
from brainfast.export.plan import make_plan
from brainfast.images import preprocess

FORM = ("onnx file", "fp32", "fp32")
SOURCE = (40, 50)


@pytest.fixture(scope="module")
def encoder(one):
    return load(one)


def almost(encoder, error: float, wrong_pixels: int = 0):
    """A run whose first answer is off by some standard deviations of all."""

    def run(images):
        response = encoder.twin(list(images))
        response[0, 0] += error * response.std()
        pixels = preprocess(list(images), encoder.trunk.preprocessing)
        pixels.reshape(-1)[:wrong_pixels] += 1
        return [response.astype(np.float32), pixels]

    return run


def test_errors_pixels_and_r2_are_what_was_done_to_the_answers(encoder, photographs):
    plan = make_plan(encoder, None, None, None)
    measured = np.random.default_rng(2).normal(size=(5, 90)).astype(np.float32)
    stimuli = parity.Stimuli(list(photographs), measured)
    run = almost(encoder, 0.01, wrong_pixels=7)
    card = measure(plan, run, stimuli, source=SOURCE, form=FORM)[0]
    assert card.images == 5
    assert card.pixels_differ == 7
    assert card.max_error == pytest.approx(0.01, rel=1e-3)
    assert card.rms_error == pytest.approx(0.01 / np.sqrt(5 * 90), rel=1e-2)
    assert card.r2_change is not None
    assert 1e-7 < card.r2_change < 0.1
    check_tolerance([card], 0.011)
    with pytest.raises(BrainfastError, match=r"at most 0.009 standard .*, got 0.01; export the"):
        check_tolerance([card], 0.009)
    spoilt = card.model_copy(update={"max_error": float("nan")})
    with pytest.raises(BrainfastError, match="got nan"):
        check_tolerance([spoilt], 0.009)


def test_several_subjects_are_measured_one_by_one(several, photographs):
    encoder = load(several)
    plan = make_plan(encoder, ["a", "c"], ["V1v"], None)

    def run(images):
        return [
            encoder.twin(list(images), name)[:, :5].astype(np.float32) + shift
            for name, shift in (("a", 0.0), ("c", 1.0))
        ] + [preprocess(list(images), encoder.trunk.preprocessing)]

    stimuli = parity.Stimuli(list(photographs))
    first, second = measure(plan, run, stimuli, source=SOURCE, form=FORM)
    assert (first.subject, second.subject) == ("a", "c")
    assert first.max_error < 1e-5 < 1 < second.max_error


def test_every_objective_has_units_of_its_own(encoder, photographs):
    """One is a million times the other; the small one is wrong, far from zero as both are."""
    weights = np.random.default_rng(4).normal(size=(2, 90)) * [[1e6], [1.0]]
    plan = make_plan(encoder, None, None, weights)

    def run(images):
        scores = encoder.twin(list(images)) @ weights.T.astype(np.float32)
        scores[0, 1] += 0.01 * scores[:, 1].std()
        return [scores.astype(np.float32), preprocess(list(images), encoder.trunk.preprocessing)]

    stimuli = parity.Stimuli(list(photographs))
    card = measure(plan, run, stimuli, source=SOURCE, form=FORM)[0]
    assert card.max_error == pytest.approx(0.01, rel=0.05)


def test_without_pictures_the_golden_ones_and_photographs_are_taken(encoder):
    plan = make_plan(encoder, None, None, None)
    stimuli = choose_stimuli(plan, None, None)
    golden = len(encoder.golden.images)
    assert golden < len(stimuli.images) <= golden + len(parity.photographs())
    assert stimuli.measured is None


def test_data_give_the_heldout_images_of_the_one_subject_exported(
    encoder, several, photographs, monkeypatch
):
    split = SimpleNamespace(images=list(photographs), space=encoder.space)
    measured = np.ones((5, 90), np.float32)
    monkeypatch.setattr(parity, "heldout", lambda *_: split)
    monkeypatch.setattr(parity, "measured_responses", lambda *_: measured)
    found = choose_stimuli(make_plan(encoder, None, None, None), None, Path("subj01"))
    assert found.images is split.images
    assert found.measured is measured
    group = load(several)
    split.space = replace(group.space_of("b"), subject="b")
    plan = make_plan(group, ["b"], None, None)
    assert choose_stimuli(plan, None, Path("subj02")).measured is measured
    for subjects in (["a"], ["a", "b"]):
        plan = make_plan(group, subjects, None, None)
        with pytest.raises(BrainfastError, match="expected data of the one subject"):
            choose_stimuli(plan, None, Path("subj02"))


@pytest.mark.parametrize(
    ("images", "data", "message"),
    [([], None, "images: expected at least one"), ([], Path("x"), "expected images or data")],
)
def test_mistakes(encoder, images, data, message):
    with pytest.raises(BrainfastError, match=message):
        choose_stimuli(make_plan(encoder, None, None, None), images, data)
