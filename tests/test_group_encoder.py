"""Encoders of several subjects: folders, compiled engines, scores, parity, damaged files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from brainfast import golden
from brainfast.data import Arrays, Group
from brainfast.encoder import load
from brainfast.engine import Engine
from brainfast.errors import BrainfastError
from brainfast.folded_blobgpt import BlobProjection
from brainfast.group_encoder import GroupEncoder
from brainfast.group_engine import GroupEngine
from brainfast.runtimes import TorchRuntime

IMAGES = np.random.default_rng(5).integers(0, 255, (3, 40, 30, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def group(make_group: Callable[..., Group]) -> Group:
    return make_group()


@pytest.fixture(scope="module")
def encoder(fit_tiny: Callable[..., Any], group: Group, tmp_path_factory: Any) -> GroupEncoder:
    found: GroupEncoder = fit_tiny(tmp_path_factory.mktemp("work"), {"steps": 20}, group)
    return found


@pytest.fixture(scope="module")
def folder(encoder: GroupEncoder, tmp_path_factory: Any) -> Path:
    return encoder.save(tmp_path_factory.mktemp("model") / "group")


@pytest.mark.parametrize("subject", ["a", "c", "group"])
def test_the_engine_answers_as_torch_and_as_the_twin(encoder: GroupEncoder, subject: str) -> None:
    engine = encoder.compile(subjects=[subject], device="cpu")
    found = engine.predict(IMAGES)[subject]
    assert found.space == encoder.space_of(subject)
    expected = encoder.twin(IMAGES, subject)
    assert np.abs(found.values - expected).max() < 1e-4 * expected.std()
    eager = encoder.respond(IMAGES, subject)
    assert np.abs(found.values - eager.values).max() < 1e-4 * expected.std()


def test_a_saved_model_answers_with_the_same_bits(encoder: GroupEncoder, folder: Path) -> None:
    again = load(folder)
    assert isinstance(again, GroupEncoder)
    assert again.card == encoder.card
    assert again.subjects == ("a", "b", "c")
    first, second = (model.compile(device="cpu").predict(IMAGES) for model in (encoder, again))
    assert all(np.array_equal(first[name].values, second[name].values) for name in first)
    loaded = GroupEngine.load(folder, subjects=["b", "group"], device="cpu")
    assert loaded.subjects == ("b", "group")
    assert np.array_equal(loaded.predict(IMAGES)["b"].values, first["b"].values)
    assert set(loaded.predict(IMAGES, subjects=["group"])) == {"group"}


def test_one_subject_is_an_engine_like_any_other(encoder: GroupEncoder, folder: Path) -> None:
    several = GroupEngine.load(folder, device="cpu")
    engine = Engine.load(folder, subject="b", device="cpu")
    expected = several.predict(IMAGES)["b"].values
    assert np.array_equal(engine.predict(IMAGES).values, expected)
    assert np.array_equal(several.of("b").predict(IMAGES).values, expected)
    ffa = engine.take("FFA-1")
    assert np.array_equal(ffa.predict(IMAGES).values, expected[:, 11:])
    whole = several.take(["FFA-1"]).predict(IMAGES)
    assert np.array_equal(whole["b"].values, expected[:, 11:])
    parts = engine.contributions(IMAGES[:1])
    assert parts.shape == (1, 2, 16)


def test_subjects_share_one_projection(encoder: GroupEncoder) -> None:
    engine = encoder.compile(device="cpu", precision="bf16")
    projections = {id(head.projection) for head in engine.heads.values()}
    assert len(projections) == 1
    assert engine.heads["a"].precision == "bf16"
    taken = engine.take("V1v")
    assert {id(head.projection) for head in taken.heads.values()} == projections


def _counted(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[Any]:
    """First arguments of the calls to come of a function, which still does its work."""
    calls, original = [], getattr(place, name)

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[0])
        return original(*arguments, **options)

    monkeypatch.setattr(place, name, count)
    return calls


@pytest.mark.parametrize("subjects", [None, ["b"], ["c", "group"]])
@pytest.mark.parametrize("way", ["load", "compile"])
def test_opening_runs_the_trunk_once_for_all_subjects(
    encoder: GroupEncoder,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    subjects: list[str] | None,
) -> None:
    trunk = _counted(monkeypatch, TorchRuntime, "__call__")
    projections = _counted(monkeypatch, BlobProjection, "run")
    reads = _counted(monkeypatch, golden, "load_tensors")
    if way == "load":
        engine = GroupEngine.load(folder, subjects=subjects, device="cpu")
    else:
        engine = encoder.compile(subjects=subjects, device="cpu")
    assert len(trunk) == len(projections) == 1
    assert [path.name for path in reads] == ["golden.safetensors"] * (way == "load")
    assert engine.subjects == tuple(subjects or encoder.subjects)


def test_every_subject_is_checked_as_if_alone(encoder: GroupEncoder, folder: Path) -> None:
    engine = encoder.compile(device="cpu", precision="bf16")
    runtime, preprocessing = engine.runtime, encoder.card.trunk.preprocessing
    goldens = golden.Golden.load_subjects(folder, encoder.subjects)
    found = golden.Golden.check_subjects(goldens, runtime, engine.heads, preprocessing)
    for name, own in goldens.items():
        response = engine.heads[name].run(own.tokens(runtime, preprocessing))[:, own.vertices]
        error = np.abs(response - own.response).max() / own.response.std()
        assert found[name] == pytest.approx(error, rel=1e-4)
        assert own.check(runtime, engine.heads[name], preprocessing) == found[name]
        assert own.images is goldens["a"].images
    assert min(found.values()) > 1e-4


def test_no_subject_at_all_is_refused(encoder: GroupEncoder, folder: Path) -> None:
    for call in (encoder.compile, lambda subjects: GroupEngine.load(folder, subjects=subjects)):
        with pytest.raises(BrainfastError, match="at least one"):
            call(subjects=[])


def test_twins_of_several_are_those_of_each(encoder: GroupEncoder) -> None:
    found = encoder.twins(IMAGES, ["c", "group"])
    assert list(found) == ["c", "group"]
    for name, response in found.items():
        assert np.array_equal(response, encoder.twin(IMAGES, name))


def test_scores_are_kept_a_subject(encoder: GroupEncoder, group: Group) -> None:
    found = {name: encoder.evaluate(group.heldout.of(name), name, progress=False) for name in "ab"}
    split = group.heldout.of("a")
    predicted = encoder.respond(list(split.images), "a").values
    measured = split.responses[np.arange(len(split))]
    error = np.square(predicted - measured).sum(axis=0)
    expected = 1 - error / np.square(measured - measured.mean(axis=0)).sum(axis=0)
    np.testing.assert_allclose(found["a"].r2, expected, rtol=1e-4)
    assert [(card.split, card.subject) for card in encoder.card.scores[-2:]] == [
        ("heldout", "a"),
        ("heldout", "b"),
    ]
    encoder.evaluate(group.heldout.of("b"), "group", progress=False)
    without = encoder.evaluate(split, "group", progress=False)
    assert [card.subject for card in encoder.card.scores[-2:]] == ["group/b", "group/a"]
    columns = encoder.space.positions(split.space)
    guess = encoder.respond(list(split.images), "group").values[:, columns]
    np.testing.assert_allclose(
        without.r2,
        1 - np.square(guess - measured).sum(0) / np.square(measured - measured.mean(0)).sum(0),
        rtol=1e-4,
    )


def test_splits_of_others_are_refused(
    encoder: GroupEncoder, group: Group, make_group: Callable[..., Group]
) -> None:
    with pytest.raises(BrainfastError, match="vertices of b"):
        encoder.evaluate(group.heldout.of("b"), "a", progress=False)
    other = make_group(seed=4)
    with pytest.raises(BrainfastError, match="training images could be scored"):
        encoder.evaluate(other.heldout.of("a"), "a", progress=False)


def _renamed(data: Any, subject: str | None) -> Arrays:
    """The same images and responses under another subject's name, or none."""
    return Arrays(
        data.whole.images,
        np.asarray(data.whole.responses),
        data.coordinates,
        space=replace(data.space, subject=subject),
        image_ids=data.whole.image_ids.tolist(),
    )


@pytest.mark.parametrize("subject", [None, "lab01"])
def test_group_predictions_for_data_of_no_or_another_name(
    encoder: GroupEncoder, group: Group, subject: str | None
) -> None:
    """Names within a group are enough to know which images a subject was trained on."""
    data = group.data | {"a": _renamed(group.data["a"], subject)}
    spaces = encoder.spaces | {"a": data["a"].space}
    model = replace(encoder, spaces=spaces)
    same = Group(data, fractions=(0.6, 0.2, 0.2), seed=1)
    model.evaluate(same.heldout.of("a"), "group", progress=False)
    assert model.card.scores[-1].subject == "group/a"
    other = Group(data, fractions=(0.6, 0.2, 0.2), seed=4)
    with pytest.raises(BrainfastError, match="training images could be scored"):
        model.evaluate(other.heldout.of("a"), "group", progress=False)


def test_parity_goes_into_the_card(encoder: GroupEncoder) -> None:
    engine = encoder.compile(device="cpu", precision="bf16")
    card = encoder.parity(engine, IMAGES, "b")
    assert 0 < card.rms_error < 2e-2
    assert card.subject == "b"
    assert encoder.card.parity[-1] == card
    other = encoder.parity(engine, IMAGES, "c")
    again = encoder.parity(engine, IMAGES[:2], "b")
    assert encoder.card.parity == (other, again)


def test_unknown_subjects_are_named(encoder: GroupEncoder, folder: Path) -> None:
    for call in (
        lambda: Engine.load(folder, subject="x"),
        lambda: GroupEngine.load(folder, subjects=["x"]),
        lambda: encoder.compile(subjects=["x"]),
        lambda: encoder.respond(IMAGES, "x"),
    ):
        with pytest.raises(BrainfastError, match="one of a, b, c, group"):
            call()
    with pytest.raises(BrainfastError, match="name the subject"):
        Engine.load(folder)
    with pytest.raises(BrainfastError, match="some of a"):
        encoder.compile(subjects=["a"], device="cpu").predict(IMAGES, subjects=["b"])


def _without(path: Path, name: str) -> None:
    arrays = load_file(path)
    del arrays[name]
    save_file(arrays, path)


def _changed(path: Path, name: str) -> None:
    arrays = load_file(path)
    arrays[name] = arrays[name] * 1.5 + 1
    save_file(arrays, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _without(f / "folded.safetensors", "subject.b.bias"), "subject.b.bias"),
        (lambda f: _changed(f / "folded.safetensors", "subject.b.weight"), "golden"),
        (lambda f: _changed(f / "folded.safetensors", "filters.1"), "golden"),
        (lambda f: _without(f / "golden.safetensors", "b.response"), "response"),
        (lambda f: (f / "folded.safetensors").write_bytes(b"x" * 50), "safetensors"),
    ],
)
def test_a_damaged_engine_is_refused(
    folder: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(BrainfastError, match=message):
        GroupEngine.load(copy, subjects=["b"], device="cpu")


@pytest.mark.parametrize(
    ("file", "name"),
    [("model.safetensors", "shared"), ("basis.safetensors", "weight")],
)
def test_a_damaged_model_is_refused(folder: Path, tmp_path: Path, file: str, name: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    _without(copy / file, name)
    with pytest.raises(BrainfastError, match=file):
        GroupEncoder.load(copy)


def test_another_models_basis_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    arrays = load_file(copy / "basis.safetensors")
    save_file({n: a[:-1].copy() for n, a in arrays.items()}, copy / "basis.safetensors")
    with pytest.raises(BrainfastError, match="basis"):
        GroupEncoder.load(copy)


def test_hostile_options_take_no_memory(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    card = json.loads((copy / "config.json").read_text())
    card["head"]["options"]["latent"] = 10**9
    (copy / "config.json").write_text(json.dumps(card))
    with pytest.raises(BrainfastError, match="shared"):
        GroupEncoder.load(copy)
