"""Exported files as users run them, and files that are not what they should be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import brainfast
from brainfast.card import Card
from brainfast.engine import Engine
from brainfast.errors import BrainfastError
from brainfast.export import OnnxModel
from brainfast.response import Response
from brainfast.trunk_export import export_trunk
from brainfast.trunks import Trunk


def test_it_predicts_responses_of_the_vertices_in_the_file(one, whole, photographs, tmp_path):
    model = OnnxModel(whole, device="cpu", threads=1)
    expected = Engine.load(one, device="cpu").predict(photographs)
    found = model.predict(photographs, batch_size=2)["response"]
    assert isinstance(found, Response)
    assert found.space == expected.space
    assert np.abs(found.values - expected.values).max() < 1e-4 * expected.values.std()
    assert found.roi("PPA").shape == (5, 29)
    Image.fromarray(photographs[0]).save(tmp_path / "one.png")
    again = model.predict(tmp_path / "one.png")["response"]
    assert np.array_equal(again.values, model.predict(photographs[0])["response"].values)
    assert model.run(model.blank(2))["response"].shape == (2, 90)
    assert repr(model) == "OnnxModel(whole.onnx, response, on cpu)"


MISTAKES = {
    r"images: expected uint8 \[B,40,50,3\].*got uint8 \[1, 32, 32, 3\]": np.zeros(
        (1, 32, 32, 3), np.uint8
    ),
    r"images: expected uint8 \[B,40,50,3\].*got float32 \[1, 40, 50, 3\]": np.zeros(
        (1, 40, 50, 3), np.float32
    ),
    r"images: expected at least one image": np.zeros((0, 40, 50, 3), np.uint8),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_images_that_the_file_does_not_take(whole, message):
    with pytest.raises(BrainfastError, match=message):
        OnnxModel(whole, device="cpu").run(MISTAKES[message])


def test_an_image_of_another_size_is_named(whole, photographs):
    images = [photographs[0], photographs[1][:30]]
    with pytest.raises(BrainfastError, match=r"images\[1\]: expected 40 x 50 pixels.*got 30 x 50"):
        OnnxModel(whole, device="cpu").predict(images)


def test_an_image_of_a_later_batch_has_the_number_that_it_was_given(whole, photographs):
    images = [*photographs[:3], photographs[3][:30]]
    with pytest.raises(BrainfastError, match=r"images\[3\]: expected 40 x 50 pixels"):
        OnnxModel(whole, device="cpu").predict(images, batch_size=2)
    with pytest.raises(BrainfastError, match=r"images\[3\]: expected a path, .* got int"):
        OnnxModel(whole, device="cpu").predict([*photographs[:3], 4], batch_size=2)


@pytest.mark.parametrize(
    ("images", "batch_size", "message"),
    [
        ([], 32, "images: expected at least one image, got none"),
        ([np.zeros((40, 50, 3), np.uint8)], 0, "batch_size: expected at least 1, got 0"),
    ],
)
def test_nothing_to_predict(whole, images, batch_size, message):
    with pytest.raises(BrainfastError, match=message):
        OnnxModel(whole, device="cpu").predict(images, batch_size=batch_size)


def test_an_export_of_another_model_is_refused(one, several, whole):
    OnnxModel(whole, model_hash=Card.read(one).model_hash)
    with pytest.raises(BrainfastError, match=r"expected an export of model .*; export this model"):
        OnnxModel(whole, model_hash=Card.read(several).model_hash)
    OnnxModel(whole, card=Card.read(one))
    with pytest.raises(BrainfastError, match=r"expected an export of model"):
        OnnxModel(whole, card=Card.read(several))


def test_another_onnx_model_is_refused(tmp_path):
    trunk = Trunk.create("vit_tiny_patch16_224", pretrained=False, layers=(0,), size=32)
    export_trunk(trunk, tmp_path / "trunk.onnx")
    with pytest.raises(BrainfastError, match=r"trunk\.onnx: expected a file that `brainfast ex"):
        OnnxModel(tmp_path / "trunk.onnx")


def spoil(whole: Path, path: Path, how: str) -> None:
    model = onnx.load(whole)
    metadata = {entry.key: entry for entry in model.metadata_props}
    if how == "opset":
        model.opset_import[0].version = 999
    if how == "version":
        entry = metadata["brainfast.export"]
        entry.value = entry.value.replace('"format_version":1', '"format_version":2')
    if how == "damaged":
        metadata["brainfast.export"].value = '{"format_version": 1, "input": 3}'
    if how == "no JSON":
        metadata["brainfast.card"].value = "{"
    content = model.SerializeToString()
    path.write_bytes(content[: len(content) // 2] if how == "cut off" else content)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut off", "expected a whole ONNX file and its data"),
        ("opset", "expected a whole ONNX file and its data, which this ONNX Runtime can run"),
        ("version", "expected an export of format version 1, got 2"),
        ("damaged", "expected what `brainfast export` writes"),
        ("no JSON", "expected an export of format version 1, got None"),
    ],
)
def test_spoilt_files_are_one_line(whole, tmp_path, how, message):
    path = tmp_path / "it.onnx"
    spoil(whole, path, how)
    with pytest.raises(BrainfastError, match=message) as caught:
        OnnxModel(path, device="cpu")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "nothing.onnx"):
        with pytest.raises(BrainfastError, match="expected a file"):
            OnnxModel(path)


def test_a_gpu_needs_its_onnxruntime(whole, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BrainfastError, match=r"device cuda: expected onnxruntime-gpu.*fresh env"):
        OnnxModel(whole, device="cuda")
    with pytest.raises(BrainfastError, match="device: expected auto, cpu or cuda"):
        OnnxModel(whole, device="npu")
    assert OnnxModel(whole, device="auto").device == "cpu"


def test_it_needs_no_torch(whole, photographs, tmp_path):
    np.save(tmp_path / "images.npy", photographs)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['timm'] = None\n"
        "import numpy; from brainfast.export import OnnxModel\n"
        f"model = OnnxModel({str(whole)!r}, device='cpu', threads=1)\n"
        "print(model.predict(numpy.load('images.npy'))['response'].values.shape)"
    )
    package = Path(brainfast.__path__[0]).parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "(5, 90)\n", done.stderr
