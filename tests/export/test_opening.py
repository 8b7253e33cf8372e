"""Exported files where commands take a model: `predict` and `bench`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from brainfast.bench.latency import open_model
from brainfast.card import Card
from brainfast.engine import Engine
from brainfast.errors import BrainfastError
from brainfast.export import OnnxModel, opening
from brainfast.export.opening import beside, is_exported, open_exported
from brainfast.machine import usable_cores
from command_line import brainfast


@pytest.fixture
def cat(photographs, tmp_path):
    Image.fromarray(photographs[0]).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def test_predict_takes_a_file(one, whole, cat):
    done = brainfast("predict", whole, cat, "--json")
    assert done.code == 0, done.err
    expected = Engine.load(one, device="cpu").predict(cat)
    means = json.loads(done.out)[str(cat)]
    assert means["PPA"] == pytest.approx(float(expected.roi("PPA").mean()), abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--trunk-precision", "bf16"), "--trunk-precision: expected no choice for an exported"),
        (("--vertices", "PPA"), "--vertices: expected no choice"),
        (("--subject", "a"), "--subject: expected no choice"),
        (("--runtime", "torch"), "--runtime: expected no choice"),
    ],
)
def test_what_the_file_holds_is_not_chosen_again(whole, cat, options, message):
    done = brainfast("predict", whole, cat, *options)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_bench_opens_files_and_folders(one, several, whole, photographs):
    opened = open_model(whole, device="cpu")
    assert opened.name == "OnnxModel(whole.onnx, response, on cpu)"
    assert opened.source == (40, 50)
    assert opened.answer(photographs)["response"].shape == (5, 90)
    assert (opened.threads, opened.device) == (usable_cores(), "cpu")
    opened = open_model(one, runtime="torch", device="cpu")
    assert (opened.threads, opened.device) == (torch.get_num_threads(), "cpu")
    assert opened.answer(photographs).values.shape == (5, 90)
    opened = open_model(several, runtime="torch", device="cpu", subjects=["a", "b"])
    assert set(opened.answer(photographs)) == {"a", "b"}
    with pytest.raises(BrainfastError, match="expected a model of several subjects"):
        open_model(one, subjects=["a"])
    with pytest.raises(BrainfastError, match="expected runtime onnx and the subjects"):
        open_model(whole, subjects=["a"])


def test_bench_refuses_a_file_in_another_trunk_precision(whole):
    assert open_model(whole, device="cpu", trunk_precision="fp32").source == (40, 50)
    with pytest.raises(BrainfastError, match=r"whole\.onnx: expected a trunk in bf16, got fp32"):
        open_model(whole, device="cpu", trunk_precision="bf16")


class Runner:
    """Stands for an engine file of a model, which only a GPU would open."""

    device = "cuda:0"

    def __init__(self, path, *, device, card):
        self.path, self.card = path, card
        self.about = OnnxModel(path.with_name("whole.onnx"), device="cpu").about

    def run(self, images):
        return {}


def test_bench_holds_an_engine_file_against_the_folder_beside_it(
    one, several, whole, tmp_path, monkeypatch
):
    """The runner is given the folder's card, and by TensorRTModel another model's is refused."""
    made = []
    monkeypatch.setattr(opening, "RUNNERS", {".engine": ("made", "up")})
    monkeypatch.setattr(
        opening,
        "import_module",
        lambda *_: SimpleNamespace(up=lambda *a, **k: made.append(Runner(*a, **k)) or made[-1]),
    )
    model = shutil.copytree(one, tmp_path / "model")
    shutil.copy(whole, tmp_path / "whole.onnx")
    monkeypatch.chdir(model)
    opened = open_model(Path("."), runtime="tensorrt")
    assert made[0].path == tmp_path / "model.engine"
    assert made[0].card == Card.read(model)
    assert opened.device.startswith("cuda:0")
    with pytest.raises(BrainfastError, match="expected a trunk in bf16, got fp32"):
        open_model(model, runtime="tensorrt", trunk_precision="bf16")
    with pytest.raises(BrainfastError, match=r"expected a model folder with config\.json"):
        open_model(tmp_path, runtime="tensorrt")


def test_a_file_beside_a_folder_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "v1.5").mkdir()
    assert beside(tmp_path / "v1.5", ".onnx") == tmp_path / "v1.5.onnx"
    monkeypatch.chdir(tmp_path / "v1.5")
    assert beside(Path("."), "-triton") == tmp_path / "v1.5-triton"
    assert beside(Path("/"), ".onnx") == Path("/.onnx")


def test_endings_decide(whole, tmp_path):
    assert is_exported(whole)
    assert not is_exported(tmp_path)
    (tmp_path / "folder.onnx").mkdir()
    assert not is_exported(tmp_path / "folder.onnx")
    assert isinstance(open_exported(whole, device="cpu"), OnnxModel)
    with pytest.raises(BrainfastError, match=r"a file that ends in \.onnx or \.engine"):
        open_exported(tmp_path / "model.pt")
    assert np.isfinite(
        open_exported(whole).run(np.zeros((1, 40, 50, 3), np.uint8))["response"]
    ).all()
