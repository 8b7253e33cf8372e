"""An engine whose trunk is an engine file, where ONNX Runtime stands for TensorRT and the GPU."""

from __future__ import annotations

import json
import shutil

import fake_tensorrt
import numpy as np
import pytest
from PIL import Image

from brainfast.encoder import load
from brainfast.engine import Engine
from brainfast.errors import BrainfastError
from brainfast.export import tensorrt_runtime
from brainfast.export.tensorrt_build import build_engine
from brainfast.export.tensorrt_key import key_path
from brainfast.group_engine import GroupEngine
from command_line import brainfast


@pytest.fixture
def machine(monkeypatch):
    fake_tensorrt.install_graphs(monkeypatch)


@pytest.fixture(scope="module")
def saved(one, tmp_path_factory):
    """A model of one subject with its trunk as an ONNX file."""
    return load(one).save(tmp_path_factory.mktemp("saved") / "model", onnx=True)


@pytest.fixture
def model(machine, saved, tmp_path):
    return with_engine(shutil.copytree(saved, tmp_path / "model"))


def with_engine(folder):
    """The folder, and in it the trunk as an engine of at most two images."""
    build_engine(folder / "trunk.onnx", folder / "trunk.engine", batches=(1, 2, 2))
    return folder


def test_it_answers_as_under_onnx(model, photographs):
    engine = Engine.load(model, runtime="tensorrt")
    expected = Engine.load(model, runtime="onnx").predict(photographs).values
    assert np.allclose(engine.predict(photographs).values, expected, atol=1e-5)
    assert "trunk tensorrt fp32, cuda:0" in repr(engine)
    engine.warm_up([1, 2])


def test_a_model_of_several_subjects(machine, several, tmp_path, photographs):
    model = with_engine(load(several).save(tmp_path / "several", onnx=True))
    found = GroupEngine.load(model, runtime="tensorrt").predict(photographs)
    expected = GroupEngine.load(model, runtime="onnx").predict(photographs)
    assert list(found) == list(expected)
    for subject, response in found.items():
        assert np.allclose(response.values, expected[subject].values, atol=1e-5)


def test_golden_responses_are_checked(model, monkeypatch):
    monkeypatch.setattr(fake_tensorrt.GraphBucket, "drift", 1.0)
    with pytest.raises(BrainfastError, match=r"golden.safetensors: expected golden responses"):
        Engine.load(model, runtime="tensorrt")


def test_the_command(model, photographs, tmp_path):
    Image.fromarray(photographs[0]).save(tmp_path / "it.png")
    image = str(tmp_path / "it.png")
    found, expected = (
        json.loads(brainfast("predict", model, image, "--runtime", runtime, "--json").out)
        for runtime in ("tensorrt", "onnx")
    )
    assert found[image] == pytest.approx(expected[image], abs=1e-5)


@pytest.mark.parametrize(
    ("metadata", "options", "words"),
    [
        ({"weights_hash": "b" * 64}, {}, "trunk.engine: expected trunk weights .*, got bbbbbbbbbb"),
        ({"layers": "[1, 0]"}, {}, r"trunk.engine.json: expected outputs local.1, local.0"),
        ({"layers": "nothing"}, {}, r"trunk.engine.json: expected layers and weights_hash"),
        ({}, {"trunk_precision": "bf16"}, "trunk.engine: expected trunk precision bf16, got fp32"),
    ],
)
def test_another_trunk_is_refused(model, metadata, options, words):
    path = key_path(model / "trunk.engine")
    key = json.loads(path.read_text())
    path.write_text(json.dumps(key | {"metadata": key["metadata"] | metadata}))
    with pytest.raises(BrainfastError, match=words):
        Engine.load(model, runtime="tensorrt", **options)


@pytest.mark.parametrize("damaged", ["trunk.engine", "trunk.engine.json"])
def test_damaged_files_are_refused(model, damaged):
    (model / damaged).write_bytes((model / damaged).read_bytes()[:-9])
    with pytest.raises(BrainfastError, match=rf"{damaged}: expected"):
        Engine.load(model, runtime="tensorrt")


def test_a_folder_without_an_engine_file(one):
    with pytest.raises(BrainfastError, match=r"trunk.engine: .*nothing there; build it from"):
        Engine.load(one, runtime="tensorrt")


def test_it_does_not_run_on_the_cpu(model, monkeypatch):
    def refuse(device):
        raise BrainfastError("device", expected="a GPU", got=device)

    monkeypatch.setattr(tensorrt_runtime, "find_gpu", refuse)
    with pytest.raises(BrainfastError, match="device: expected a GPU, got cpu"):
        Engine.load(model, runtime="tensorrt", device="cpu")
