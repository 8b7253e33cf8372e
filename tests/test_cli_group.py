"""The command line on a simulated group: both phases, scores, predictions, a new subject."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import command_line
from brainfast.analysis.scores import Scores
from brainfast.boundary import UsageError, explain
from brainfast.card import Card
from brainfast.cli import app
from brainfast.cli_scores import kept_r2
from brainfast.data.simulated_group import simulate_group
from brainfast.engine import read_space
from brainfast.errors import BrainfastError

TRUNK = ("--random-trunk", "--trunk", "vit_tiny_patch16_224", "--layers", "0,3")
RUN = ("--recipe", "demo", "--steps", "4", "--batch", "8", "--device", "cpu", "--quiet")
TRAIN = (*TRUNK, *RUN)


def brainfast(*arguments: Any, check: bool = True) -> command_line.Answer:
    done = command_line.brainfast(*arguments)
    assert not check or done.code == 0, done.err[-2000:]
    return done


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("group")
    simulate_group(root, subjects=3, n_images=40, n_shared=10, vertices=150, size=64)
    return sorted(root.glob("subj*"))


@pytest.fixture(scope="module")
def model(folders: list[Path]) -> Path:
    out = folders[0].parent / "blobgpt"
    options = ("train", *folders, "--out", out, "--model", "blobgpt", *TRAIN)
    process = command_line.start(*options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    told, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-2000:]
    assert "3 subjects: median R2" in told
    return out


def test_a_rank_left_behind_by_a_scheduler_counts_for_nothing(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    out = tmp_path / "model"
    done = brainfast("train", folders[0], "--out", out, "--model", "blobgpt", *TRAIN)
    assert f"model: {out}" in done.out
    assert (out / "config.json").is_file()


def test_evaluate_prints_every_subject_and_their_median(model: Path, folders: list[Path]) -> None:
    done = brainfast("evaluate", model, *folders, "--json", "--quiet")
    found = json.loads(done.out)
    assert set(found["subjects"]) == {"subj01", "subj02", "subj03"}
    assert found["subjects"]["subj02"]["rois"]
    assert isinstance(found["summary"]["r2_median"], float)
    assert (model / "scores" / "heldout" / "subj03" / "scores.json").is_file()


def test_the_group_is_scored_without_subject_maps_and_drawn(
    model: Path, folders: list[Path], tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    draw = ("map", copy, "--what", "r2", "--out", tmp_path / "map.png", "--subject")
    early = brainfast(*draw, "group", check=False)
    assert early.code == 2
    assert "--subject group' first" in early.err
    done = brainfast("evaluate", copy, *folders[:2], "--subject", "group", "--json", "--quiet")
    found = json.loads(done.out)
    assert list(found["subjects"]) == ["group/subj01", "group/subj02"]
    card = Card.read(copy)
    kept = {
        name: Scores.load(copy / "scores/heldout/group" / name) for name in list(card.subjects)[:2]
    }
    assert found["subjects"]["group/subj02"]["summary"]["r2_mean"] == pytest.approx(
        np.nanmean(kept["subj02"].r2)
    )
    own = Scores.load(copy / "scores" / "heldout" / "subj02")
    assert not np.array_equal(kept["subj02"].r2, own.r2)
    alone = kept_r2(copy, card, "heldout", "group/subj02")
    assert np.array_equal(alone.values, kept["subj02"].r2, equal_nan=True)
    assert alone.space.subject == "subj02"
    mean = kept_r2(copy, card, "heldout", "group")
    expected: dict[int, list[float]] = {}
    for name, scores in kept.items():
        space = read_space(copy, card, name)
        for column, value in zip(mean.space.positions(space), scores.r2, strict=True):
            expected.setdefault(int(column), []).append(value)
    assert len(mean.values) == mean.space.V > len(expected)  # subj03 was not scored
    for column, value in enumerate(mean.values):
        assert value == pytest.approx(np.mean(expected.get(column, [np.nan])), nan_ok=True)
    for subject in ("group", "group/subj01", "subj03"):
        assert brainfast(*draw, subject).out.strip() == str(tmp_path / "map.png")
    late = brainfast(*draw, "group/subj03", check=False)
    assert late.code == 2
    assert "without subject maps" in late.err


def test_some_subjects_are_scored(model: Path, folders: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    shutil.rmtree(copy / "scores")
    arguments = ("evaluate", copy, *folders, "--subject", "subj03,subj01", "--json", "--quiet")
    assert list(json.loads(brainfast(*arguments).out)["subjects"]) == ["subj03", "subj01"]
    assert sorted(p.name for p in (copy / "scores/heldout").iterdir()) == ["subj01", "subj03"]


def test_predict_answers_for_one_subject_several_and_the_group(
    model: Path, folders: list[Path], tmp_path: Path
) -> None:
    image = sorted((folders[0] / "training_split" / "training_images").iterdir())[0]
    one = json.loads(brainfast("predict", model, image, "--subject", "subj02", "--json").out)
    assert str(image) in one["subj02"]
    both = brainfast(
        "predict", model, image, "--subject", "subj01,group", "--out", tmp_path / "maps"
    )
    assert both.out.count(str(image)) == 2
    files = {str(p.relative_to(tmp_path / "maps")) for p in (tmp_path / "maps").rglob("*.gii")}
    assert files == {
        f"{name}/{image.stem}_hemi-{side}.func.gii" for name in ("subj01", "group") for side in "LR"
    }


def test_phase_2_and_alignment_go_on_from_phase_1(model: Path, folders: list[Path]) -> None:
    tuned = model.with_name("tuned")
    brainfast(
        *("train", *folders, "--out", tuned, "--model", "blobgpt", "--phase", 2),
        *("--from", model, *RUN),
    )
    aligned = model.with_name("aligned")
    text = folders[0].parent / "text.safetensors"
    brainfast(
        *("train", *folders, "--out", aligned, "--model", "llm-vem", "--phase", 2),
        *("--from", model, "--text", text, *RUN, "--licence", "CC0", "--citation", "Doe 2026"),
    )
    cards = [json.loads((out / "config.json").read_text()) for out in (model, tuned, aligned)]
    assert [card["model"] for card in cards] == ["blobgpt", "blobgpt", "llm-vem"]
    assert len({card["trunk"]["weights_hash"] for card in cards}) == 3
    assert (cards[2]["licence"], cards[2]["citation"]) == ("CC0", "Doe 2026")
    assert all((out / "trunk.safetensors").is_file() for out in (tuned, aligned))


def test_adapt_adds_a_subject(folders: list[Path]) -> None:
    pair = folders[0].parent / "all"
    brainfast("train", *folders, "--out", pair, "--model", "blobgpt", *TRAIN)
    again = folders[0].parent / "renamed" / "subj09"
    shutil.copytree(folders[2], again)
    grown = pair.with_name("grown")
    done = brainfast("adapt", pair, again, "--out", grown, "--trials", 16, "--quiet")
    assert "model:" in done.out
    assert list(json.loads((grown / "config.json").read_text())["subjects"]) == [
        "subj01",
        "subj02",
        "subj03",
        "subj09",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            lambda m, f: ("predict", m, f[0] / "test_split/test_images", "--subject", "subj07"),
            "one of subj01, subj02, subj03, group",
        ),
        (
            lambda m, f: (
                "train",
                *f,
                "--out",
                "x",
                "--model",
                "blobgpt",
                "--phase",
                2,
                *RUN,
            ),
            "a model of phase 1",
        ),
        (lambda m, f: ("train", *f, "--out", "x", *TRUNK), "one folder for factortopy"),
        (lambda m, f: ("train", f[0], "--out", "x", "--phase", 2, *TRUNK), "--phase"),
        (
            lambda m, f: (
                *("train", *f, "--out", "x", "--model", "blobgpt"),
                *("--epochs", 3, "--steps", 4),
            ),
            "--epochs: expected an option of blobgpt without --steps",
        ),
        (lambda m, f: ("adapt", m, f[0], "--out", m), "another folder than the model's"),
        (lambda m, f: ("evaluate", m, f[0].parent / "blobgpt"), "expected"),
        (
            lambda m, f: ("train", *f, "--out", "x", "--model", "blobgpt", "--recipe", "best"),
            "paper",
        ),
        (lambda m, f: ("map", m, "--out", "x.png"), "--what layer: expected a FactorTopy model"),
        (
            lambda m, f: ("map", m, "--out", "x.png", "--what", "space", "--subject", "subj01"),
            "--what space: expected a FactorTopy model",
        ),
        (
            lambda m, f: ("map", m, "--out", "x.png", "--what", "r2"),
            "one of subj01, subj02, subj03, group, got nothing; name the subject",
        ),
        (
            lambda m, f: ("map", m, "--out", "x.png", "--what", "r2", "--subject", "group/subj7"),
            "one of subj01, subj02, subj03, group, got 'subj7'",
        ),
        (
            lambda m, f: ("evaluate", m, *f[:2], "--subject", "subj03"),
            "some of subj01, subj02, or group alone, got 'subj03'",
        ),
        (
            lambda m, f: ("evaluate", m, *f, "--subject", "subj01,group"),
            "or group alone, got 'group'",
        ),
    ],
)
def test_mistakes_are_one_line(
    model: Path,
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: Callable[..., Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(argument) for argument in arguments(model, folders)]
    with pytest.raises((BrainfastError, UsageError)) as caught:
        app(given, prog_name="brainfast", standalone_mode=False)
    line = explain(caught.value)
    assert line is not None
    assert "\n" not in line
    assert message in line
