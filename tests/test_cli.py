"""The command line: what every command does, and mistakes that are one line."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from nilearn.surface import load_surf_data
from PIL import Image

from brainfast import maps
from brainfast.card import Card
from command_line import HOW, RECIPE, TRUNK, V, assert_one_line, brainfast, files_in

COMMANDS = (
    *("demo", "train", "adapt", "captions", "import", "evaluate", "predict", "map", "export"),
    *("pool", "select", "rehearse", "replay", "bench", "doctor"),
)


def test_help_lists_the_commands():
    for arguments in ((), ("--help",)):
        done = brainfast(*arguments)
        assert done.code == 0
        assert all(command in done.out for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command):
    done = brainfast(command, "--help")
    assert done.code == 0
    assert f"brainfast {command}" in done.out


def test_train_writes_a_whole_model(place):
    card = Card.read(place.model)
    assert card.space.vertices == V
    assert card.space.subject == "subj01"
    assert card.training is not None
    assert card.training.steps == 300
    assert card.trunk.layers == (0, 4, 11)
    assert [score.split for score in card.scores] == ["heldout"]
    hidden = [path for path in files_in(place.root) if path.name.startswith(".")]
    assert hidden == []


def test_evaluate_scores_and_keeps_them(copy):
    done = brainfast("evaluate", copy.model, copy.subject, "--split", "challenge", "--json")
    found = json.loads(done.out)
    assert found["summary"]["n"] == len(list(copy.image.parent.iterdir()))
    assert found["rois"][0]["roi"] == "all"
    assert found["rois"][0]["vertices"] == V
    assert found["rois"][0]["r2"] == pytest.approx(found["summary"]["r2_mean"])
    assert {score.split for score in Card.read(copy.model).scores} == {"heldout", "challenge"}
    table = brainfast("evaluate", copy.model, copy.subject, "--quiet")
    assert table.out.split()[:3] == ["ROI", "vertices", "R2"]
    assert table.err == ""


def test_evaluate_says_why_there_is_no_normalised_score(copy):
    shutil.rmtree(copy.subject / "test_split")
    done = brainfast("evaluate", copy.model, copy.subject, "--quiet")
    assert done.code == 0
    assert "no normalised score: the folder holds no noise ceiling" in done.out


def test_predict_answers_alike_under_both_runtimes(place):
    answers = []
    for runtime in ("onnx", "torch"):
        done = brainfast("predict", place.model, place.image, "--runtime", runtime, "--json")
        assert done.err == ""
        answers.append(json.loads(done.out)[str(place.image)])
    assert answers[0].keys() == answers[1].keys() >= {"V1", "FFA", "EBA"}
    assert list(answers[0].values()) == pytest.approx(list(answers[1].values()), abs=1e-3)


def test_predict_takes_precisions(place):
    precise = ("predict", place.model, place.image, "--json", "--vertices", "V1")
    first = json.loads(brainfast(*precise).out)[str(place.image)]["V1"]
    done = brainfast(*precise, "--precision", "bf16", "--trunk-precision", "bf16")
    assert json.loads(done.out)[str(place.image)]["V1"] == pytest.approx(first, abs=0.1)


def test_predict_names_the_regions_that_were_asked_for(place):
    done = brainfast("predict", place.model, place.image.parent, "--vertices", "FFA, lh.PPA")
    lines = done.out.splitlines()
    assert len(lines) == len(list(place.image.parent.iterdir()))
    assert all("FFA " in line and "lh.PPA " in line and "ventral" not in line for line in lines)


def test_predict_writes_gifti_that_nilearn_reads(place, tmp_path):
    done = brainfast("predict", place.model, place.image, "--out", tmp_path / "maps")
    assert done.code == 0
    sides = [
        load_surf_data(tmp_path / "maps" / f"{place.image.stem}_hemi-{side}.func.gii")
        for side in "LR"
    ]
    assert all(side.shape == (163842,) for side in sides)
    assert sum(np.isfinite(side).sum() for side in sides) == V


@pytest.mark.parametrize("what", ["layer", "space", "r2"])
def test_map_draws(place, tmp_path, what):
    done = brainfast("map", place.model, "--what", what, "--out", tmp_path / "map.png")
    assert done.out.strip() == str(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert min(picture.size) > 200
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize("what", ["layer", "space"])
def test_maps_name_the_trunks_layers(place, tmp_path, monkeypatch, what):
    drawn, draw = [], getattr(maps, f"{what}_map")
    monkeypatch.setattr(maps, f"{what}_map", lambda *a, **o: drawn.append(draw(*a, **o)))
    brainfast("map", place.model, "--what", what, "--out", tmp_path / "map.png")
    (key,) = [ax for ax in drawn[0].axes if ax.get_xlabel() == "layer"]
    assert [tick.get_text() for tick in key.get_xticklabels()] == ["0", "4", "11"]


def test_bench_and_doctor_print_json(place):
    done = brainfast(
        "bench", place.model, "--batch", "2", "--rounds", "3", "--no-listing1", "--json"
    )
    table = json.loads(done.out)
    assert table["case"]["V"] == V
    assert {row["batch"] for row in table["rows"]} == {2}
    assert "instruction_set" in json.loads(brainfast("doctor", "--json").out)["cpu"]


# The folder is a copy that each mistake may spoil first; {subject}, {model}, {image}, {root} are
# its places. Every one must be told in one line and leave no file behind.
MISTAKES = {
    "no argument": ("train", "Missing argument"),
    "unknown command": ("paint", "No such command 'paint'"),
    "unknown split": ("evaluate {model} {subject} --split all", "'--split'"),
    "negative seed": ("train {subject} --out {root}/new --seed -1", "'--seed'"),
    "no such model": ("predict {root}/none {image}", "expected a model folder with config.json"),
    "no such subject": ("train {root}/none --out {root}/new", "Algonauts subject's folder"),
    "no such image": ("predict {model} none.png", "none.png: expected an image file"),
    "no such ROI": ("predict {model} {image} --vertices FFA,XY", "a region that subj01 has"),
    "no images": ("predict {model} {root}/empty", "none in it"),
    "text as image": ("predict {model} {root}/text.png", "whole image that Pillow reads"),
    "cut image": ("predict {model} {root}/cut.png --out {root}/maps", "image file is truncated"),
    "same names": ("predict {model} {image} {image} --out {root}/maps", "2 named test-0001"),
    "out is a file": ("predict {model} {image} --out {root}/text.png", "Not a directory"),
    "no GPU runtime": (
        "predict {model} {image} --runtime onnx --trunk-precision bf16",
        "runtime onnx: expected trunk_precision fp32",
    ),
    "not a zip": ("predict {model} {image} --submission {root}/s.txt", "ends in .zip"),
    "not a challenge subject": (
        "predict {model} {image} --submission {root}/s.zip",
        "expected 19004 left and 20544 right vertices, got",
    ),
    "map before scores": ("map {model} --what r2 --split val --out {root}/m.png", "evaluate"),
    "map of no kind": ("map {model} --out {root}/map.gif", "ends in .png"),
    "model out is a file": ("train {subject} --out {root}/text.png", "a new folder, or one with"),
    "model out is taken": ("train {subject} --out {subject}", "something else of that name"),
    "model out is here": ("train {subject} --out {root}", "something else of that name"),
    "model out in a file": ("train {subject} --out {root}/text.png/new", "Not a directory"),
    "layers": ("train {subject} --out {root}/new --layers 0,x", "--layers: expected whole numbers"),
    "deep layers": ("train {subject} --out {root}/new {how} --layers 0,99", "in 0..11"),
    "trunk name": (
        "train {subject} --out {root}/new {how} --trunk vit_tiny_patch16_22",
        "did you mean vit_tiny_patch16_224",
    ),
    "recipe": ("train {subject} --out {root}/new {how} --recipe cake", "expected demo or paper"),
    "recipe file": ("train {subject} --out {root}/new {how} --recipe no.json", "nothing there"),
    "cached tokens": (
        "train {subject} --out {root}/new {how} --cache-tokens",
        "--cache-tokens: expected an option of factortopy",
    ),
    "surface of a group": (
        "train {subject} --out {root}/new --model blobgpt --surface sphere",
        "--surface: expected an option of blobgpt",
    ),
    "model kind": ("train {subject} --out {root}/new --model cake {how}", "model: expected"),
    "both weights": (
        "train {subject} --out {root}/new --weights {model}/trunk.safetensors {how}",
        "expected no --random-trunk",
    ),
    "coordinates of another": (
        "train {subject} --out {root}/new --coordinates {root}/other.npy",
        "expected numbers [300,3]",
    ),
    "cut coordinates": (
        "train {subject} --out {root}/new --coordinates {root}/cut.npy",
        "expected a .npy file of [300,3]",
    ),
    "ncsnr": ("evaluate {model} {subject} --ncsnr {root}/ncsnr", "ncsnr for 163842 or"),
    "another subject": ("evaluate {model} {root}/subj02", "vertices of subj01"),
    "batch": ("bench --batch 1,x", "--batch: expected whole numbers"),
    "batch of none": ("bench --batch 0 --vertices 9 --layers 1 --dim 4", "batch: expected 1"),
}


@pytest.fixture(scope="module")
def spoilt(place, tmp_path_factory) -> dict[str, object]:
    root = tmp_path_factory.mktemp("mistakes")
    (root / "empty").mkdir()
    (root / "ncsnr").mkdir()
    (root / "text.png").write_text("not an image")
    (root / "cut.png").write_bytes(place.image.read_bytes()[:3000])
    np.save(root / "other.npy", np.zeros((V + 1, 3), np.float32))
    (root / "cut.npy").write_bytes((root / "other.npy").read_bytes()[:50])
    for side in ("lh", "rh"):
        np.save(root / "ncsnr" / f"{side}.ncsnr.npy", np.ones(7, np.float32))
    shutil.copytree(place.subject, root / "subj02")
    how = " ".join((*TRUNK, *RECIPE, *HOW))
    return {
        "root": root,
        "subject": place.subject,
        "model": place.model,
        "image": place.image,
        "how": how,
    }


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(mistake, place, spoilt):
    line, text = MISTAKES[mistake]
    before = files_in(place.root) | files_in(spoilt["root"])
    assert_one_line(brainfast(*line.format(**spoilt).split()), text)
    assert files_in(place.root) | files_in(spoilt["root"]) == before
