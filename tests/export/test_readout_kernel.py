"""The plugin's kernel against the twin: emulated on the host, and its PTX on a GPU."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfast.cells import cell_blocks
from brainfast.export.kernel_file import kernel_ptx
from brainfast.export.tensorrt_plugin import IMAGES, ROWS, SHARED_BYTES, THREADS
from brainfast.folded import FoldedFactorTopy
from brainfast.ops import reference

ROOT = Path(__file__).parents[2]
SIZES = [(1, 1, 1, 1, 1, 1), (9, 40, 3, 17, 2, 3), (2, 60, 7, 130, 4, 1)]  # B V L D H W
FULL_SIZES = [*SIZES, (1, 3000, 12, 128, 8, 8), (33, 5000, 12, 128, 8, 8), (3, 500, 40, 300, 5, 3)]
DTYPES = {"i32": torch.int32, "i64": torch.int64}


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler is on PATH")
    path = tmp_path_factory.mktemp("plugin") / "emulated_plugin.so"
    folders = [f"-I{ROOT / folder}" for folder in ("csrc", "tests/csrc")]
    source = ROOT / "tests" / "csrc" / "emulated_plugin.cpp"
    options = ["-std=c++20", "-O1", "-shared", "-fPIC", "-w"]
    subprocess.run([compiler, *options, *folders, source, "-o", path], check=True)
    library = ctypes.CDLL(str(path))

    def launch(kind, grid, arguments):
        library[f"launch_{kind}"](grid, THREADS, SHARED_BYTES, arguments)

    return launch


@pytest.fixture(scope="session")
def driver():
    """Launches a kernel of the PTX through the CUDA driver."""
    if not torch.cuda.is_available() and os.environ.get("BRAINFAST_REQUIRE_CUDA") != "1":
        pytest.skip("no GPU that torch sees")
    torch.zeros(1, device="cuda")  # makes the context that the driver then uses
    library = ctypes.CDLL("libcuda.so.1")

    def call(name, *arguments):
        status = library[name](*arguments)
        assert status == 0, f"{name}: CUDA error {status}"

    module = ctypes.c_void_p()
    call("cuModuleLoadData", ctypes.byref(module), kernel_ptx())

    def launch(kind, grid, arguments):
        kernel, name = ctypes.c_void_p(), f"brainfast_factor_readout_{kind}".encode()
        call("cuModuleGetFunction", ctypes.byref(kernel), module, name)
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        sizes = (grid, 1, 1, THREADS, 1, 1, SHARED_BYTES)
        call("cuLaunchKernel", kernel, *sizes, stream, arguments, None)
        torch.cuda.synchronize()

    return launch


@pytest.fixture(params=["emulated", "cuda"])
def place(request):
    name = "driver" if request.param == "cuda" else "emulated"
    return "cuda" if request.param == "cuda" else "cpu", request.getfixturevalue(name)


def make_case(sizes):
    """A folded head, and tokens: local [B,L,D,H,W], global [B,L,D]."""
    images, vertices, layers, channels, height, width = sizes
    rng = np.random.default_rng(sum(sizes))

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    bottleneck = tuple(normal(channels, 1) for _ in range(layers))
    head = FoldedFactorTopy(
        space=1.4 * rng.uniform(-1, 1, (vertices, 2)).astype(np.float32),
        layer=normal(vertices, layers),
        scale=rng.random(vertices).astype(np.float32),
        weight=normal(vertices, channels),
        bias=normal(vertices),
        bottleneck_local=bottleneck,
        bottleneck_global=bottleneck,
        offset_local=normal(layers, channels),
        offset_global=normal(layers, channels),
        layers=tuple(range(layers)),
        grid=(height, width),
    )
    return head, normal(images, layers, channels, height, width), normal(images, layers, channels)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("sizes", FULL_SIZES, ids=str)
def test_answers_as_the_twin(place, sizes, kind):
    device, launch = place
    if device == "cpu" and sizes not in SIZES:
        pytest.skip("too large for the emulator")
    head, local, global_ = make_case(sizes)
    blocks = cell_blocks(head)
    names = ("weight", "coefficient", "cell", "corners", "slots", "vertices", "bias")
    arrays = [local, global_, *(getattr(blocks, name) for name in names)]
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
    tensors = [(t if t.is_floating_point() else t.to(DTYPES[kind])).to(device) for t in tensors]
    response = torch.full((len(local), head.V), torch.nan, device=device)
    count, width = blocks.vertices.shape
    height_width = local.shape[3] * local.shape[4]
    numbers = [*local.shape[:3], height_width, count, width, head.V]
    values = [
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors),
        *map(ctypes.c_int, numbers),
        ctypes.c_void_p(response.data_ptr()),
    ]
    addresses = [ctypes.cast(ctypes.pointer(value), ctypes.c_void_p) for value in values]
    grid = -(-count * width // ROWS) * -(-len(local) // IMAGES)
    launch(kind, grid, (ctypes.c_void_p * len(values))(*addresses))

    parameters = (head.space, head.layer, head.scale, head.weight, head.bias)
    wide = [torch.from_numpy(array).double() for array in (local, global_, *parameters)]
    expected = reference.factor_readout(*wide)
    spread = (expected - wide[-1]).norm().clamp_min(1e-6)
    assert (response.cpu() - expected).norm() <= 1e-5 * spread
