"""One batch size of an engine: buffers, capture and replay, on a GPU that is this machine's CPU."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brainfast.errors import BrainfastError
from brainfast.export import tensorrt_runtime
from brainfast.export.tensorrt_key import EngineKey, TensorKey

KEY = EngineKey(
    brainfast="0",
    package="tensorrt",
    version="11.4.0",
    gpu="NVIDIA H200",
    capability="9.0",
    batches=(1, 2, 4),
    readout="operators",
    input=TensorKey(name="pixels", dtype="float32", shape=(-1, 3)),
    outputs=(TensorKey(name="sum", dtype="float32", shape=(-1, 1)),),
    metadata={},
    engine_sha256="",
)


class Context:
    """Sums every row of the buffer called pixels into the one called sum."""

    def __init__(self, refuses=""):
        self.refuses, self.places, self.streams = refuses, {}, []

    def set_input_shape(self, name, shape):
        self.shape = shape
        return self.refuses != "shape"

    def set_tensor_address(self, name, place):
        self.places[name] = place
        return self.refuses != "buffer"

    def execute_async_v3(self, stream):
        self.streams.append(stream)
        rows, columns = self.shape
        inputs, sums = (
            np.ctypeslib.as_array((ctypes.c_float * (rows * width)).from_address(self.places[name]))
            for name, width in (("pixels", columns), ("sum", 1))
        )
        sums[:] = inputs.reshape(rows, columns).sum(axis=1)
        return self.refuses != "run"


@pytest.fixture
def captured(monkeypatch):
    """What was asked of `torch.cuda.graph`; a replay runs what was recorded last."""
    found = SimpleNamespace(options=[], replay=lambda: None)
    stream = SimpleNamespace(cuda_stream=7, synchronize=lambda: None)

    @contextmanager
    def graph(recorded, **options):
        assert recorded is found
        found.options.append(options)
        yield

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda shape, dtype, pin_memory: zeros(shape, dtype=dtype))
    for name, value in {
        "Stream": lambda device: stream,
        "CUDAGraph": lambda: found,
        "graph": graph,
        "stream": nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    found.stream = stream
    return found


def bucket(context, size=4):
    engine = SimpleNamespace(create_execution_context=lambda: context)
    return tensorrt_runtime._Bucket(engine, KEY, torch.device("cpu"), size)


def test_a_batch_goes_through_the_buffers_and_comes_back(captured):
    context = Context()
    opened = bucket(context)
    captured.replay = opened._step
    inputs = np.arange(9, dtype=np.float32).reshape(3, 3)
    (sums,) = opened.run(inputs)
    assert np.array_equal(sums, inputs.sum(axis=1, keepdims=True))
    assert context.shape == (4, 3)
    assert set(context.streams) == {7}


def test_the_capture_minds_its_own_thread_and_stream_alone(captured):
    bucket(Context())
    assert captured.options == [{"stream": captured.stream, "capture_error_mode": "thread_local"}]


@pytest.mark.parametrize(
    ("context", "words"),
    [
        (None, "tensorrt: expected room on cpu for a batch of 4, got no execution context"),
        (Context("shape"), r"expected a profile with pixels \[4, 3\], got a refusal"),
        (Context("buffer"), r"expected a buffer for pixels \[4, 3\], got a refusal"),
        (Context("run"), "expected an engine that runs, got a refusal"),
    ],
)
def test_what_tensorrt_refuses_is_one_line(captured, context, words):
    with pytest.raises(BrainfastError, match=words) as caught:
        bucket(context)
    assert "\n" not in str(caught.value)
