"""`brainfast export` as a user types it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from brainfast.card import Card, ParityCard
from brainfast.cli_export import parity_lines
from brainfast.export import OnnxModel
from command_line import brainfast


@pytest.fixture
def model(one, tmp_path) -> Path:
    return Path(shutil.copytree(one, tmp_path / "subj01"))


@pytest.fixture
def pictures(photographs, tmp_path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number, picture in enumerate(photographs[:2]):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number}.png")
    return tmp_path / "pictures"


def test_a_model_becomes_a_file_beside_it(model, pictures, photographs):
    options = ("--source", "40x50", "--images", pictures, "--vertices", "PPA", "--quiet")
    done = brainfast("export", model, "--to", "onnx", *options)
    assert done.code == 0, done.err
    path = model.with_name("subj01.onnx")
    parity, last = done.out.splitlines()
    assert last == f"onnx: {path}"
    assert parity.startswith("onnx file: PPA, trunk fp32, 2 images: max error ")
    assert parity.endswith("standard deviations; pixels bit-exact")
    assert OnnxModel(path, device="cpu").run(photographs)["response"].shape == (5, 29)
    assert Card.read(model).parity[-1].form == "onnx file: PPA"


def test_json_and_another_place(model, pictures, tmp_path):
    path = tmp_path / "there" / "it.onnx"
    options = ("--input", "pixels", "--images", pictures, "--out", path, "--json", "--quiet")
    done = brainfast("export", model, "--to", "onnx", *options)
    assert done.code == 0, done.err
    values = json.loads(done.out)
    assert values["path"] == str(path)
    assert values["parity"][0]["images"] == 2
    assert values["parity"][0]["pixels_differ"] is None


def test_drift_is_an_error_and_leaves_nothing(model, pictures, tmp_path):
    options = ("--images", pictures, "--tolerance", "1e-12", "--quiet")
    done = brainfast("export", model, "--to", "onnx", *options)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "raise --tolerance" in done.err
    assert sorted(os.listdir(tmp_path)) == ["pictures", "subj01"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--source", "425"), "--source: expected height and width such as 425x425, got '425'"),
        (("--source", "0x9"), "source: expected height and width in 1..16384"),
        (("--vertices", "XYZ"), "ROI: expected a region that this subject has"),
        (("--subject", "subj01"), "subject: expected a model of several subjects"),
        (("--objective", "none.npy"), "none.npy: expected a .npy file of weights"),
        (("--objective", "PPA - XYZ"), "ROI: expected a region that this subject has"),
        (("--opset", "9"), "opset: expected 20 to 23 for a trunk in fp32, got 9"),
        (("--input", "pixels", "--source", "425x425"), "source: expected none with input pixels"),
        (("--name", "it"), "--name: expected --to triton, got --to onnx"),
        (("--max-batch", "4"), "--max-batch: expected --to triton, got --to onnx"),
        (("--out", "it.pt"), "it.pt: expected a file that ends in .onnx"),
    ],
)
def test_mistakes_are_one_line(model, arguments, message, tmp_path):
    done = brainfast("export", model, "--to", "onnx", "--quiet", *arguments)
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith(f"brainfast: {message}")
    assert os.listdir(tmp_path) == ["subj01"]


def test_a_model_in_the_working_folder(model, pictures, monkeypatch):
    monkeypatch.chdir(model)
    options = ("--source", "40x50", "--images", pictures, "--vertices", "PPA", "--quiet")
    done = brainfast("export", ".", "--to", "onnx", *options)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == f"onnx: {model.with_name('subj01.onnx')}"
    assert model.with_name("subj01.onnx").is_file()


def test_the_name_and_the_largest_batch_of_a_triton_model(model, pictures, tmp_path):
    options = ("--source", "40x50", "--images", pictures, "--vertices", "PPA", "--quiet")
    own = ("--name", "faces", "--max-batch", "4")
    done = brainfast("export", model, "--to", "triton", *options, *own)
    assert done.code == 0, done.err
    config = (tmp_path / "subj01-triton" / "faces" / "config.pbtxt").read_text()
    assert 'name: "faces"' in config
    assert "max_batch_size: 4\n" in config


def test_what_is_no_model(tmp_path):
    done = brainfast("export", tmp_path, "--to", "triton", "--quiet")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert "expected a model folder with config.json" in done.err


def test_lines_tell_all_that_was_measured():
    card = ParityCard(
        form="onnx file",
        precision="fp32",
        trunk_precision="fp16",
        images=984,
        subject="subj05",
        max_error=0.0123,
        rms_error=0.00123,
        r2_change=0.0004,
        pixels_differ=17,
    )
    assert parity_lines([card]) == [
        "subj05, onnx file, trunk fp16, 984 images: max error 1.2e-02, rms 1.2e-03 standard"
        " deviations; R2 of a vertex changes by 4.0e-04 at most; pixels 17 differ"
    ]
