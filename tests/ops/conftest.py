from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest
import torch

from brainfast import _C
from brainfast.ops import (
    cuda_kernels,
    factor_projection_cuda,
    factor_readout_cuda,
    vertex_embed_cuda,
)

Case = Callable[..., list[torch.Tensor]]
ROOT = Path(__file__).parents[2]
# Modules, whose names in brainfast.ops are those of the operators.
OPERATORS = [
    sys.modules[f"brainfast.ops.{name}"]
    for name in ("factor_projection", "factor_readout", "vertex_embed")
]

FORCED = os.environ.get("BRAINFAST_ISA")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes every instruction set in turn, and what runs kernels of CUDA."""
    for item in items:
        takes_all = "isa" in getattr(item, "fixturenames", ()) or "cuda" in item.path.stem
        if takes_all and item.path.parent == Path(__file__).parent:
            item.add_marker("any_isa")


@pytest.fixture(params=[isa for isa in _C.supported_isas() if FORCED in (None, isa)])
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every instruction set that this machine runs, in turn; the forced one alone if there is."""
    monkeypatch.setenv("BRAINFAST_ISA", request.param)
    return request.param


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = _C.num_threads()
    yield _C.set_num_threads
    _C.set_num_threads(before)


@pytest.fixture
def make_case() -> Case:
    """Arguments of the readout in float64, exact in float32: sampling points also lie outside."""

    def make(
        sizes: tuple[int, int, int, int, int, int],  # B V L D H W
        *,
        dtype: torch.dtype = torch.float64,
        spread: float = 1.4,
        grad: bool = False,
    ) -> list[torch.Tensor]:
        images, vertices, layers, channels, height, width = sizes
        generator = torch.Generator().manual_seed(sum(sizes))

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        case = [
            normal(images, layers, channels, height, width),
            normal(images, layers, channels),
            spread * (2 * torch.rand(vertices, 2, generator=generator, dtype=torch.float64) - 1),
            torch.softmax(normal(vertices, layers), dim=1),
            torch.sigmoid(normal(vertices)),
            normal(vertices, channels),
            0.1 * normal(vertices),
        ]
        return [tensor.float().to(dtype).requires_grad_(grad) for tensor in case]

    return make


@pytest.fixture(scope="session")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The CUDA kernels and their bindings, compiled for the host with the emulator."""
    pybind11 = pytest.importorskip("pybind11")
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler is on PATH")
    path = tmp_path_factory.mktemp("cuda") / "emulated_cuda.so"
    folders = [
        *(ROOT / "csrc", ROOT / "tests" / "csrc"),
        *(pybind11.get_include(), sysconfig.get_path("include")),
    ]
    sources = ["tests/csrc/emulated_cuda_module.cpp", "csrc/runtime/cpu_features.cpp"]
    subprocess.run(
        [
            *(compiler, "-std=c++20", "-O1", "-shared", "-fPIC", "-fvisibility=hidden"),
            *(f"-I{folder}" for folder in folders),
            *(ROOT / source for source in sources),
            *("-o", path),
        ],
        check=True,
    )
    loader = ExtensionFileLoader("emulated_cuda", str(path))
    module = module_from_spec(spec_from_loader("emulated_cuda", loader))
    loader.exec_module(module)
    return module


def need_gpu() -> None:
    if not torch.cuda.is_available() and os.environ.get("BRAINFAST_REQUIRE_CUDA") != "1":
        pytest.skip("no GPU that torch sees")


@pytest.fixture(params=["emulated", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where the kernels run: on the host, with the CPU's tensors for the GPU's, or on a GPU."""
    if request.param == "cuda":
        need_gpu()
        return "cuda"
    module = request.getfixturevalue("emulated")
    for glue in (factor_projection_cuda, factor_readout_cuda, vertex_embed_cuda):
        monkeypatch.setattr(glue, "_C", module)
    monkeypatch.setattr(cuda_kernels, "queue", lambda _: {"device": 0, "stream": 0})
    for operator in OPERATORS:
        monkeypatch.setattr(operator, "_on_cuda_kernels", lambda t: t.dtype != torch.float64)
    return "cpu"


@pytest.fixture
def gpu() -> str:
    need_gpu()
    return "cuda"


@pytest.fixture
def capture(gpu: str) -> Callable[..., tuple[torch.cuda.CUDAGraph, object]]:
    """step -> a graph of it, and what a replay writes."""

    def make(step: Callable[[], object]) -> tuple[torch.cuda.CUDAGraph, object]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = step()
        return graph, found

    return make


@pytest.fixture
def check_streams(gpu: str) -> Callable[..., None]:
    """(run, cases): whether threads with a stream each answer as one after another does."""

    def check(run: Callable[..., list[torch.Tensor]], cases: list[list[torch.Tensor]]) -> None:
        def on_a_stream(case: list[torch.Tensor]) -> list[torch.Tensor]:
            with torch.cuda.stream(torch.cuda.Stream()):
                found = run(*case)
                torch.cuda.current_stream().synchronize()
            return found

        torch.cuda.synchronize()
        expected = [on_a_stream(case) for case in cases]
        with ThreadPoolExecutor(4) as executor:
            for found, wanted in zip(executor.map(on_a_stream, cases), expected, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))

    return check
