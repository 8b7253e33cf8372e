"""The table of every form beside the float64 twin, and the way into the card."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from brainfast import parity_table
from brainfast.analysis.scores import r2
from brainfast.card import Card
from brainfast.cli import app
from brainfast.data import Algonauts, Arrays, Group
from brainfast.data.simulated_group import simulate_group
from brainfast.encoder import Encoder, load
from brainfast.errors import BrainfastError
from brainfast.group_encoder import GroupEncoder
from brainfast.parity import parity_card
from brainfast.parity_table import Stimuli, parity_lines, parity_rows
from brainfast.training import Recipe, fit

RECIPE = Recipe(
    name="tiny",
    batch=4,
    steps_per_epoch=2,
    max_epochs=1,
    lr=1e-2,
    soup=0,
    head={"dim": 4, "grid": (2, 2), "standardize": True},
    trunk={"layers": (0, 2), "size": 32},
)
FORM = ("torch", "bf16", "fp32")
PLAIN = (("torch", "fp32"), ("torch", "bf16"), ("onnx", "fp32"))


@pytest.fixture(scope="module")
def data() -> Arrays:
    rng = np.random.default_rng(0)
    return Arrays(
        images=rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8),
        responses=rng.normal(size=(40, 60)).astype(np.float32),
        coordinates=rng.normal(size=(60, 3)) * 30,
        rois={"EBA": np.arange(60) % 3 == 0, "PPA": np.arange(60) > 40},
    )


@pytest.fixture(scope="module")
def encoder(data: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return fit(
        "factortopy",
        data,
        trunk="vit_tiny_patch16_224",
        recipe=RECIPE,
        pretrained=False,
        work=tmp_path_factory.mktemp("work"),
        progress=False,
        device="cpu",
    )


def test_errors_are_in_standard_deviations_and_the_worst_vertex_gives_the_r2_change() -> None:
    rng = np.random.default_rng(1)
    expected = rng.normal(size=(30, 4)) * 5
    found = expected.astype(np.float32)
    found[3, 2] += 2
    measured = (expected + rng.normal(size=(30, 4))).astype(np.float32)
    card = parity_card(FORM, found, expected, measured)
    assert card.max_error == pytest.approx(2 / expected.std(), rel=1e-5)
    assert card.rms_error == pytest.approx(2 / expected.std() / np.sqrt(120), rel=1e-4)
    total = np.square(measured[:, 2] - measured[:, 2].mean()).sum()
    miss = [np.square(y[:, 2] - measured[:, 2]).sum() for y in (found, expected)]
    assert card.r2_change == pytest.approx(abs(miss[0] - miss[1]) / total, rel=1e-4)
    assert (card.form, card.trunk_precision, card.precision) == FORM
    assert parity_card(FORM, found, expected).r2_change is None
    flat = np.ones_like(measured)  # no vertex has an R2
    assert parity_card(FORM, found, expected, flat).r2_change is None


def test_rows_are_the_engines_own_errors(encoder: Encoder, data: Arrays, monkeypatch) -> None:
    monkeypatch.setattr(parity_table, "RUNTIMES", PLAIN)
    monkeypatch.setattr(parity_table, "BATCH", 2)
    images = [data.heldout.images[i] for i in range(5)]
    measured = np.asarray(data.heldout.responses[np.arange(5)])
    expected = encoder.twin(images)
    stimuli = Stimuli(images, {None: expected}, measured)
    rows, missing = parity_rows(encoder, stimuli)
    assert not missing
    assert len(rows) == 3 * len(PLAIN)
    for row in rows[:6]:
        card = row.card
        engine = encoder.compile(
            precision=card.precision, trunk_precision=card.trunk_precision, device="cpu"
        )
        found = engine.predict(images, batch_size=2).values
        errors = np.square((found - expected) / expected.std())
        assert card.rms_error == pytest.approx(np.sqrt(errors.mean()), rel=1e-3, abs=1e-9)
        change = r2(found, measured) - r2(expected, measured)
        assert card.r2_change == pytest.approx(np.abs(change).max(), rel=1e-3, abs=1e-9)
        assert row.r2_change_mean == pytest.approx(change.mean(), rel=1e-3, abs=1e-9)
        regions = {n: np.sqrt(errors[:, encoder.space.roi(n)].mean()) for n in ("EBA", "PPA")}
        assert row.worst_region_rms == pytest.approx(max(regions.values()), rel=1e-3, abs=1e-9)
        assert row.worst_region == max(regions, key=regions.get)
    by_form = {(r.card.form, r.card.trunk_precision, r.card.precision): r for r in rows}
    exact, coarse = by_form["torch", "fp32", "fp32"], by_form["torch", "bf16", "fp32"]
    assert exact.card.max_error < 1e-4 < coarse.card.max_error


def test_the_command_prints_the_table_and_fills_the_card(
    encoder: Encoder, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(parity_table, "RUNTIMES", (*PLAIN[:2], ("compile", "fp32")))

    def refuse(trunk, name, *rest):
        if name == "compile":
            raise BrainfastError("runtime compile", expected="a C++ compiler", got="none")
        return open_trunk(trunk, name, *rest)

    open_trunk = parity_table.compile_trunk
    monkeypatch.setattr(parity_table, "compile_trunk", refuse)
    folder = encoder.save(tmp_path / "model")
    done = CliRunner().invoke(app, ["bench", str(folder), "--parity", "--json"])
    assert done.exit_code == 0, done.output
    values = json.loads(done.stdout)
    assert len(values["rows"]) == 6
    assert "C++ compiler" in values["not_run"]["compile fp32"]
    card = Card.read(folder)
    assert len(card.parity) == 6
    assert {p.images for p in card.parity} == {len(encoder.golden.images)}
    assert card.model_copy(update={"parity": ()}) == encoder.card
    again = CliRunner().invoke(app, ["bench", str(folder), "--parity"])
    assert "worst region" in again.stdout
    assert "not run: compile fp32: runtime compile" in again.stdout
    assert len(Card.read(folder).parity) == 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("data")
    simulate_group(root, subjects=2, n_images=40, n_shared=10, vertices=60, size=32)
    return sorted(root.glob("subj*"))


@pytest.fixture(scope="module")
def several(
    folders: list[Path], fit_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> GroupEncoder:
    group = Group([Algonauts(folder, seed=3) for folder in folders], seed=3)
    found: GroupEncoder = fit_tiny(tmp_path_factory.mktemp("work"), group=group, seed=3)
    return found


def test_subjects_have_rows_of_their_own_from_one_pass_of_the_trunk(
    several: GroupEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_table, "RUNTIMES", PLAIN[:2])
    opened: list[int] = []

    def count(*arguments: Any) -> Any:
        runtime = open_trunk(*arguments)

        class Counted:
            name, precision = runtime.name, runtime.precision

            def __call__(self, pixels: Any) -> Any:
                opened.append(len(pixels))
                return runtime(pixels)

        return Counted()

    open_trunk = parity_table.compile_trunk
    monkeypatch.setattr(parity_table, "compile_trunk", count)
    folder = several.save(tmp_path / "model")
    done = CliRunner().invoke(app, ["bench", str(folder), "--parity"])
    assert done.exit_code == 0, done.output
    images = several.goldens["group"].images
    assert opened == [len(images)] * 2
    lines = done.stdout.splitlines()
    assert lines[0].split()[:2] == ["subject", "trunk"]
    named = [line.split()[0] for line in lines[1:19]]
    assert named == ["subj01", "subj02", "group"] * 6
    kept = {(p.trunk_precision, p.precision, p.subject): p for p in Card.read(folder).parity}
    assert len(kept) == 18
    again = load(folder)
    engine = again.compile(device="cpu", precision="bf16", subjects=["subj02", "group"])
    for subject in ("subj02", "group"):
        own = again.parity(engine, images, subject)
        assert kept["fp32", "bf16", subject].rms_error == pytest.approx(own.rms_error, rel=1e-3)


def test_measured_responses_are_of_the_subject_whose_folder_is_given(
    several: GroupEncoder, folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity_table, "RUNTIMES", PLAIN[:1])
    folder = several.save(tmp_path / "model")
    arguments = ["bench", str(folder), "--parity", "--json", "--data"]
    done = CliRunner().invoke(app, [*arguments, str(folders[1])])
    assert done.exit_code == 0, done.output
    rows = {row["precision"]: row for row in json.loads(done.stdout)["rows"]}
    assert set(rows) == {"fp32", "bf16x3", "bf16"}
    assert {row["subject"] for row in rows.values()} == {"subj02"}
    split = Group([Algonauts(path, seed=3) for path in folders], seed=3).heldout.of("subj02")
    images, measured = list(split.images), np.asarray(split.responses[np.arange(len(split))])
    engine = several.compile(device="cpu", precision="bf16", subjects=["subj02"])
    found = engine.predict(images)["subj02"].values
    change = r2(found, measured) - r2(several.twin(images, "subj02"), measured)
    assert rows["bf16"]["r2_change"] == pytest.approx(np.nanmax(np.abs(change)), rel=1e-3)
    other = folders[1].with_name("subj09")
    folders[1].rename(other)
    try:
        refused = CliRunner().invoke(app, [*arguments, str(other)])
    finally:
        other.rename(folders[1])
    assert isinstance(refused.exception, BrainfastError)
    assert "one of subj01, subj02, group" in str(refused.exception)


def test_a_table_without_regions_and_measurements_has_dashes() -> None:
    card = parity_card(FORM, np.ones((2, 3), np.float32), np.eye(2, 3))
    lines = parity_lines([parity_table.ParityRow(card, None, None, None)], {})
    assert lines[1].split()[:3] == list(FORM)
    assert lines[1].split()[-3:] == ["-", "-", "-"]


@pytest.mark.parametrize(
    "arguments", [["--parity"], ["MODEL", "--images", "."], ["MODEL", "--data", "."]]
)
def test_half_a_request_is_refused(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert isinstance(done.exception, BrainfastError)


def test_images_and_data_together_are_refused(tmp_path) -> None:
    with pytest.raises(BrainfastError, match="--images or --data"):
        parity_table.run_parity(tmp_path, [tmp_path], tmp_path, False)
