from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch

from brainfast import _C, trunk_export
from brainfast.bench.made_up import made_up_head
from brainfast.errors import BrainfastError
from brainfast.runtimes import OnnxRuntime, TorchRuntime
from brainfast.trunk_export import export_trunk
from small_trunks import FAMILIES, LAYERS, arrays, make, pixels_for


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    trunk = make()
    path = tmp_path_factory.mktemp("onnx") / "trunk.onnx"
    export_trunk(trunk, path)
    return trunk, path


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_torch_and_the_trunk_itself_agree(tmp_path, name):
    trunk = make(name)
    export_trunk(trunk, tmp_path / "trunk.onnx")
    onnx_runtime = OnnxRuntime(
        tmp_path / "trunk.onnx", LAYERS, threads=1, weights_hash=trunk.config.weights_hash
    )
    torch_runtime = TorchRuntime(trunk, device="cpu")
    for images in (1, 3):
        pixels = pixels_for(trunk, images)
        expected = trunk(torch.from_numpy(pixels))
        for runtime, tolerance in ((onnx_runtime, 1e-4), (torch_runtime, 0)):
            got = runtime(pixels)
            assert got.layers == LAYERS
            for ours, want in zip(arrays(got), arrays(expected), strict=True):
                assert isinstance(ours, np.ndarray)
                assert ours.dtype == np.float32
                np.testing.assert_allclose(ours, want, rtol=0, atol=tolerance * want.std())


def test_export_is_one_checked_file_of_opset_20(exported):
    trunk, path = exported
    assert os.listdir(path.parent) == ["trunk.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [opset.version for opset in model.opset_import if opset.domain == ""] == [20]
    assert [output.name for output in model.graph.output] == [
        "local.0",
        "local.2",
        "global.0",
        "global.2",
    ]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["weights_hash"] == trunk.config.weights_hash
    assert json.loads(metadata["layers"]) == list(LAYERS)


def test_a_batch_that_torch_fixes_is_not_exported():
    class Fixed(torch.nn.Module):
        def forward(self, pixels):
            return pixels.reshape(len(pixels), -1) * len(pixels)

    with pytest.raises(BrainfastError, match="it: expected a model of any batch, got one of a fix"):
        trunk_export.to_onnx(
            Fixed(), torch.zeros(2, 3), input_name="pixels", output_names=["out"], what="it"
        )


def test_tokens_of_onnx_lie_in_its_own_memory_up_to_the_head(exported, monkeypatch):
    """Nothing is copied between ONNX Runtime's outputs and what the compiled head reads."""
    trunk, path = exported
    outputs, read = [], []
    real = onnxruntime.OrtValue.numpy

    def numpy_of(value):
        array = real(value)
        outputs.append((value.data_ptr(), array.ctypes.data))
        return array

    class Plan(_C.AlignTokensPlan):
        def run(self, local, global_):
            read.extend(array.ctypes.data for array in (*local, *global_))
            return super().run(local, global_)

    monkeypatch.setattr(onnxruntime.OrtValue, "numpy", numpy_of)
    monkeypatch.setattr(_C, "AlignTokensPlan", Plan)
    runtime = OnnxRuntime(path, LAYERS, threads=1)
    tokens = runtime(pixels_for(trunk))
    head = made_up_head(40, 2, 8, channels=192, grid=(2, 2))
    replace(head, layers=LAYERS).align(tokens)
    assert len(outputs) == len(read) == 4
    assert all(pointer == address for pointer, address in outputs)
    assert read == [address for _, address in outputs]
    assert not any(array.flags.owndata for array in arrays(tokens))
    kept = [array.copy() for array in arrays(tokens)]
    runtime(pixels_for(trunk) * 2)  # another call does not write into the first one's tokens
    assert all(map(np.array_equal, kept, arrays(tokens)))


def test_onnx_on_a_gpu_says_what_is_missing(exported, monkeypatch):
    _, path = exported
    with pytest.raises(BrainfastError, match=r"device cuda: expected onnxruntime-gpu.*pip install"):
        OnnxRuntime(path, device="cuda")
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    asked = []

    class Session:
        def __init__(self, _path, _options, providers):
            asked.append(providers)

        def get_providers(self):
            return providers[1:]  # as it does where the CUDA libraries are not found

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    with pytest.raises(
        BrainfastError, match="expected CUDA and cuDNN for onnxruntime-gpu, got CPU"
    ):
        OnnxRuntime(path, device="cuda")
    assert asked == [[("CUDAExecutionProvider", {"use_tf32": "0"})]]


def test_export_leaves_the_trunk_as_it_was(exported):
    trunk, _ = exported
    assert trunk.config == make().config
    assert not trunk.training


def test_big_weights_go_to_a_file_beside(tmp_path, monkeypatch):
    monkeypatch.setattr(trunk_export, "EXTERNAL_BYTES", 1000)
    trunk = make()
    export_trunk(trunk, tmp_path / "big.onnx")
    data = f"big.onnx.{trunk.config.weights_hash[:12]}.data"
    assert sorted(os.listdir(tmp_path)) == sorted(["big.onnx", data])
    pixels = pixels_for(trunk)
    got = OnnxRuntime(tmp_path / "big.onnx")(pixels)
    want = trunk(torch.from_numpy(pixels)).local[1].numpy()
    np.testing.assert_allclose(got.local[1], want, atol=1e-4 * want.std(), rtol=0)
    (tmp_path / data).unlink()
    with pytest.raises(BrainfastError, match=r"big\.onnx"):
        OnnxRuntime(tmp_path / "big.onnx")


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_arguments, **_options):
        raise RuntimeError("unsupported\nsecond line")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(BrainfastError, match="exports to ONNX, got unsupported"):
        export_trunk(make(), tmp_path / "trunk.onnx")
    assert os.listdir(tmp_path) == []


def test_onnx_runs_without_torch(exported, tmp_path):
    trunk, path = exported
    pixels = pixels_for(trunk)
    np.save(tmp_path / "pixels.npy", pixels)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np\n"
        "from brainfast.runtimes import OnnxRuntime\n"
        "from brainfast.tokens import downsample\n"
        f"pixels = np.load({str(tmp_path / 'pixels.npy')!r})\n"
        f"tokens = OnnxRuntime({str(path)!r}, {LAYERS})(pixels)\n"
        f"np.save({str(tmp_path / 'got.npy')!r}, downsample(tokens).local[1])\n"
        "assert 'timm' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    tokens = trunk(torch.from_numpy(pixels))
    want = torch.nn.functional.interpolate(tokens.local[1], (8, 8), mode="bilinear").numpy()
    np.testing.assert_allclose(np.load(tmp_path / "got.npy"), want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_bf16_has_the_numbers_of_autocast(name):
    trunk = make(name)
    pixels = pixels_for(trunk)
    runtime = TorchRuntime(trunk, "bf16", "cpu")
    assert (runtime.name, runtime.precision) == ("torch", "bf16")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        reference = trunk(torch.from_numpy(pixels)).map(lambda array: array.float())
    exact = trunk(torch.from_numpy(pixels))
    for ours, want, true in zip(
        arrays(runtime(pixels)), arrays(reference), arrays(exact), strict=True
    ):
        assert ours.dtype == np.float32
        error = np.sqrt(np.mean((ours - true) ** 2))
        assert 0 < error < 0.02 * true.std()
        # The same but for the order of sums, and for one rounding less before a GELU.
        assert np.sqrt(np.mean((ours - want) ** 2)) <= error


def test_bf16_leaves_the_given_trunk_alone():
    trunk = make()
    before = trunk(torch.from_numpy(pixels_for(trunk))).local[0]
    TorchRuntime(trunk, "bf16", "cpu")(pixels_for(trunk))
    assert {parameter.dtype for parameter in trunk.parameters()} == {torch.float32}
    after = trunk(torch.from_numpy(pixels_for(trunk))).local[0]
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_fp32_stays_fp32_when_torch_is_told_otherwise():
    trunk = make()
    want = TorchRuntime(trunk, device="cpu")(pixels_for(trunk)).local[1]
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        got = TorchRuntime(trunk, device="cpu")(pixels_for(trunk)).local[1]
    finally:
        torch.set_float32_matmul_precision(before)
    np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(
    not torch.cuda.is_available() and os.environ.get("BRAINFAST_REQUIRE_CUDA") != "1",
    reason="no CUDA device",
)
def test_cuda_agrees_with_the_cpu():
    trunk = make("eva02_tiny_patch14_224")
    pixels = pixels_for(trunk)
    exact = trunk.double()(torch.from_numpy(pixels).double())
    trunk.float()
    for precision, tolerance in (("fp32", 1e-4), ("bf16", 0.1)):
        runtime = TorchRuntime(trunk, precision, "cuda")
        for ours, want in zip(arrays(runtime(pixels)), arrays(exact), strict=True):
            np.testing.assert_allclose(ours, want, rtol=0, atol=tolerance * want.std())
    assert trunk.device.type == "cpu"


BAD_PIXELS = [
    np.zeros((1, 3, 32, 33), np.float32),
    np.zeros((1, 32, 32, 3), np.float32),
    np.zeros((3, 32, 32), np.float32),
    np.zeros((0, 3, 32, 32), np.float32),
    np.zeros((1, 3, 32, 32), np.float64),
    np.zeros((1, 3, 32, 32), np.uint8),
]


@pytest.mark.parametrize("pixels", BAD_PIXELS, ids=lambda p: f"{p.dtype}{p.shape}")
def test_bad_pixels_are_refused(exported, pixels):
    trunk, path = exported
    for runtime in (TorchRuntime(trunk, device="cpu"), OnnxRuntime(path)):
        with pytest.raises(BrainfastError, match="pixels: expected float32"):
            runtime(pixels)


def test_pixels_of_any_memory_layout_are_read(exported):
    trunk, path = exported
    pixels = pixels_for(trunk)
    frozen = np.asfortranarray(pixels)
    frozen.flags.writeable = False
    for runtime in (TorchRuntime(trunk, device="cpu"), OnnxRuntime(path)):
        np.testing.assert_array_equal(runtime(frozen).local[1], runtime(pixels).local[1])


def test_an_export_of_another_trunk_is_refused(exported, tmp_path):
    _, path = exported
    with pytest.raises(BrainfastError, match="trunk weights"):
        OnnxRuntime(path, LAYERS, weights_hash="f" * 64)
    with pytest.raises(BrainfastError, match="layers"):
        OnnxRuntime(path, (0, 1))
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(BrainfastError, match="another ONNX model"):
        OnnxRuntime(tmp_path / "bare.onnx")


def test_bad_files_and_options_are_refused(exported, tmp_path):
    trunk, path = exported
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:-5000])
    (tmp_path / "text.onnx").write_text("hello")
    (tmp_path / "empty.onnx").touch()
    for name in ("cut.onnx", "text.onnx", "empty.onnx", "missing.onnx"):
        with pytest.raises(BrainfastError, match=name) as caught:
            OnnxRuntime(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(BrainfastError, match="precision"):
        OnnxRuntime(path, precision="bf16")
    with pytest.raises(BrainfastError, match="precision"):
        TorchRuntime(trunk, "fp16")
    with pytest.raises(BrainfastError, match="threads"):
        OnnxRuntime(path, threads=0)
    with pytest.raises(BrainfastError, match="device"):
        TorchRuntime(trunk, device="abacus")
    with pytest.raises(BrainfastError, match="CUDA devices"):
        TorchRuntime(trunk, device="cuda:99")


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_behind_the_deepest_layer_is_run_or_exported(tmp_path, name):
    trunk = make(name)
    export_trunk(trunk, tmp_path / "trunk.onnx")
    held = {
        entry.name: list(entry.dims)
        for entry in onnx.load(tmp_path / "trunk.onnx").graph.initializer
    }
    exported = sum(math.prod(dims) for dims in held.values() if len(dims) > 1)
    used = sum(value.numel() for value in trunk.parameters() if value.ndim > 1)
    whole = timm.create_model(name, num_classes=0)
    everything = sum(value.numel() for value in whole.parameters() if value.ndim > 1)
    assert 0.8 * used < exported < 1.2 * used  # positions and rotations are laid out anew
    assert used < 0.7 * everything
