"""Exported files where commands take a model: `predict` and `bench`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from brainfast.bench.latency import open_model
from brainfast.engine import Engine
from brainfast.errors import BrainfastError
from brainfast.export import OnnxModel
from brainfast.export.opening import is_exported, open_exported
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
    opened = open_model(one, runtime="torch", device="cpu")
    assert opened.answer(photographs).values.shape == (5, 90)
    opened = open_model(several, runtime="torch", device="cpu", subjects=["a", "b"])
    assert set(opened.answer(photographs)) == {"a", "b"}
    with pytest.raises(BrainfastError, match="expected a model of several subjects"):
        open_model(one, subjects=["a"])
    with pytest.raises(BrainfastError, match="expected runtime onnx and the subjects"):
        open_model(whole, subjects=["a"])


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
