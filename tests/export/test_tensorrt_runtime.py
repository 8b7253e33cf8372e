"""Opening and running engine files, with a fake TensorRT: what is refused, and what runs where."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace

import fake_tensorrt
import numpy as np
import pytest
import torch

from brainfast.card import Card
from brainfast.errors import BrainfastError
from brainfast.export import export_onnx, tensorrt_build, tensorrt_key, tensorrt_runtime
from brainfast.export.tensorrt_build import build_engine
from brainfast.export.tensorrt_key import key_path
from brainfast.export.tensorrt_runtime import TensorRTModel, TensorRTRuntime
from brainfast.trunk_export import FORMAT

H200 = ("NVIDIA H200", "9.0")


class FakeBucket:
    """Answers with the mean of every image, and remembers its size."""

    made: list[int]

    def __init__(self, engine, key, device, size):
        assert engine == b"an engine"
        type(self).made.append(size)
        self.size, self.outputs = size, key.outputs

    def run(self, inputs):
        assert len(inputs) <= self.size
        mean = inputs.reshape(len(inputs), -1).mean(axis=1, dtype=np.float32)
        shapes = [output.shape[1:] for output in self.outputs]
        return [mean.reshape(-1, *[1] * len(s)) + np.zeros(s, np.float32) for s in shapes]


@pytest.fixture
def machine(monkeypatch):
    """A machine with an H200 and TensorRT."""
    module = fake_tensorrt.FakeBuilder().module()
    module.Logger = type("Logger", (), {"ERROR": 1, "__init__": lambda self, level: None})
    opened = SimpleNamespace(deserialize_cuda_engine=lambda plan: plan)
    module.Runtime = lambda log: opened
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    gpu = (torch.device("cuda", 0), H200)
    monkeypatch.setattr(tensorrt_runtime, "find_gpu", lambda device="cuda": gpu)
    monkeypatch.setattr(tensorrt_runtime, "_Bucket", FakeBucket)
    monkeypatch.setattr(
        tensorrt_runtime.EngineSession, "_on_device", lambda self: nullcontext(), raising=True
    )
    FakeBucket.made = []
    return opened


@pytest.fixture(scope="module")
def exported(one, photographs, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(one, path, source=(40, 50), images=list(photographs))
    return path


@pytest.fixture
def engine(machine, exported, monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt_build, "prepare_plugin", lambda package: None)
    monkeypatch.setattr(tensorrt_build, "find_gpu", lambda: (None, H200))
    path = tmp_path / "model.engine"
    build_engine(exported, path, batches=(1, 2, 4))
    return path


def test_a_batch_runs_in_the_smallest_bucket_that_holds_it(engine, photographs):
    model = TensorRTModel(engine)
    for count in (1, 3, 4, 2, 3):
        inputs = photographs[np.arange(count) % len(photographs)]
        response = model.run(inputs)["response"]
        assert response.shape == (count, 90)
        assert np.allclose(response[:, 0], inputs.reshape(count, -1).mean(axis=1))
    assert FakeBucket.made == [1, 4, 2]


def test_predict_gives_responses_with_their_vertices(engine, photographs):
    response = TensorRTModel(engine).predict(photographs)["response"]  # 4 and 1
    assert response.values.shape == (5, 90)
    assert response.roi("PPA").shape == (5, 29)


def test_a_batch_outside_the_profile_is_one_line(engine, photographs):
    with pytest.raises(BrainfastError, match=r"images: expected a batch of 1 to 4, the profile"):
        TensorRTModel(engine).run(photographs)


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 40, 51, 3), np.uint8), np.zeros((1, 40, 50, 3), np.float32)]
)
def test_images_that_the_profile_does_not_allow(engine, wrong):
    with pytest.raises(BrainfastError, match=r"images: expected uint8 \[B,40,50,3\]"):
        TensorRTModel(engine).run(wrong)


def test_buckets_outside_the_profile(engine):
    with pytest.raises(BrainfastError, match="buckets: expected batches of 1 to 4, got 4, 8"):
        TensorRTModel(engine, buckets=[8])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_hash": "0" * 64}, "expected model 000000"),
        ({"space": {"hash": "1" * 64}}, "expected vertices 111111"),
        ({"trunk": {"weights_hash": "2" * 64}}, "expected trunk weights 222222"),
    ],
)
def test_an_engine_of_another_model(engine, one, change, words):
    card = Card.read(one)
    TensorRTModel(engine, card=card)
    parts = {
        name: getattr(card, name).model_copy(update=value) if isinstance(value, dict) else value
        for name, value in change.items()
    }
    with pytest.raises(BrainfastError, match=words):
        TensorRTModel(engine, card=card.model_copy(update=parts))


def test_an_engine_that_tensorrt_refuses(engine, machine):
    machine.deserialize_cuda_engine = lambda plan: None
    with pytest.raises(BrainfastError, match=r"engine that tensorrt 11.4.0 opens, got one that"):
        TensorRTModel(engine)


def test_no_gpu_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BrainfastError, match="device: expected a GPU that torch sees, got none"):
        tensorrt_key.find_gpu()


def test_an_engine_does_not_run_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(BrainfastError, match="device: expected a GPU, which engines run on, got c"):
        tensorrt_key.find_gpu("cpu")


@pytest.fixture
def trunk_engine(engine):
    """The same engine with the metadata of a trunk of two layers."""
    path = key_path(engine)
    key = tensorrt_build.EngineKey.model_validate_json(path.read_bytes())
    metadata = {"format": FORMAT, "layers": "[0, 2]", "weights_hash": "a" * 64}
    output = key.outputs[0]
    shapes = {"local.0": (5, 2, 2), "local.2": (5, 2, 2), "global.0": (5,), "global.2": (5,)}
    outputs = [
        output.model_copy(update={"name": name, "shape": (-1, *shape)})
        for name, shape in shapes.items()
    ]
    changed = key.model_copy(update={"metadata": metadata, "outputs": tuple(outputs)})
    path.write_text(changed.model_dump_json())
    return engine


def change_metadata(engine, change):
    """Write the key again with other metadata; None leaves an entry out."""
    path = key_path(engine)
    key = tensorrt_build.EngineKey.model_validate_json(path.read_bytes())
    found = {name: text for name, text in (key.metadata | change).items() if text is not None}
    path.write_text(key.model_copy(update={"metadata": found}).model_dump_json())


def test_a_trunk_gives_tokens(trunk_engine, photographs):
    runtime = TensorRTRuntime(trunk_engine, layers=[0, 2], weights_hash="a" * 64)
    tokens = runtime(photographs[:3])
    assert tokens.layers == (0, 2)
    assert [part.shape for part in tokens.local] == [(3, 5, 2, 2)] * 2
    assert [part.shape for part in tokens.global_] == [(3, 5)] * 2


def test_a_batch_above_the_profile_runs_in_parts(trunk_engine, photographs):
    tokens = TensorRTRuntime(trunk_engine)(photographs)  # 4 and 1
    means = photographs.reshape(5, -1).mean(axis=1)
    assert np.allclose(tokens.global_[1], means[:, None])
    assert FakeBucket.made == [4, 1]
    with pytest.raises(BrainfastError, match=r"images: expected a batch of 1 to 4, .* got 0"):
        TensorRTRuntime(trunk_engine)(photographs[:0])


@pytest.mark.parametrize(
    ("form", "opened"), [("engine", TensorRTModel), ("trunk_engine", TensorRTRuntime)]
)
def test_warming_up_opens_the_buckets_that_are_needed(request, form, opened):
    opened(request.getfixturevalue(form)).warm_up([1, 3])
    assert FakeBucket.made == [1, 4]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": "[0, "}, "engine.json: expected layers and weights_hash of a trunk"),
        ({"layers": "7"}, "engine.json: expected layers and weights_hash"),
        ({"layers": "[0]"}, r"engine.json: expected outputs local.0, global.0, got local.0, local"),
        ({"precision": "fp8"}, "trunk precision: expected fp32 or bf16, got 'fp8'"),
    ],
)
def test_a_damaged_key_of_a_trunk(trunk_engine, change, words):
    change_metadata(trunk_engine, change)
    with pytest.raises(BrainfastError, match=words):
        TensorRTRuntime(trunk_engine)


def test_a_key_without_the_weights(trunk_engine):
    change_metadata(trunk_engine, {"weights_hash": None})
    with pytest.raises(BrainfastError, match="got KeyError: 'weights_hash'"):
        TensorRTRuntime(trunk_engine)


def test_the_precision_is_the_keys(trunk_engine):
    assert TensorRTRuntime(trunk_engine, precision="fp32").precision == "fp32"
    change_metadata(trunk_engine, {"precision": "bf16"})
    assert TensorRTRuntime(trunk_engine).precision == "bf16"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"layers": [0, 1]}, r"expected layers \[0, 1\], got \[0, 2\]"),
        ({"weights_hash": "b" * 64}, "expected trunk weights bbbbbb"),
        ({"precision": "bf16"}, "expected trunk precision bf16, got fp32"),
    ],
)
def test_a_trunk_of_another_model(trunk_engine, options, words):
    with pytest.raises(BrainfastError, match=words):
        TensorRTRuntime(trunk_engine, **options)


def test_a_whole_model_is_no_trunk(engine):
    with pytest.raises(BrainfastError, match="expected the engine of a trunk"):
        TensorRTRuntime(engine)
