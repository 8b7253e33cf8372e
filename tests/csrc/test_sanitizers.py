"""The C++ tests, built with sanitizers and run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
COMPILER = next(
    (found for name in (os.environ.get("CXX"), "c++") if name and (found := shutil.which(name))),
    None,
)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler is on PATH")


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=1800,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def build(folder: Path, sanitizers: str, *targets: str) -> Path:
    cmake, ninja = (shutil.which(tool, path=TOOLS) for tool in ("cmake", "ninja"))
    assert cmake, "cmake: expected in this environment; pip install '.[test]'"
    assert ninja, "ninja: expected in this environment; pip install '.[test]'"
    run(
        *(cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"),
        "-DBRAINFAST_PYTHON=OFF",
        "-DBRAINFAST_TESTS=ON",
        "-DBRAINFAST_CUDA=0",
        "-DCMAKE_BUILD_TYPE=None",
        "-DCMAKE_CXX_FLAGS=-O1",
        f"-DBRAINFAST_SANITIZE={sanitizers}",
    )
    run(cmake, "--build", folder, "--target", *targets)
    return folder / "tests" / "csrc"


def test_kernels_and_pool_under_address_and_undefined(tmp_path: Path) -> None:
    names = [
        "test_align_tokens",
        "test_blobgpt_cuda_emulated",
        "test_factor_projection",
        "test_factor_readout",
        "test_factor_readout_cuda_emulated",
        "test_factor_readout_plugin_emulated",
        "test_factor_readout_precision",
        "test_factor_readout_workspace",
        "test_score_topk",
        "test_score_topk_cuda_emulated",
        "test_thread_block_emulator",
        "test_tile",
        "test_thread_pool",
        "test_usable_cores",
        "test_vertex_embed",
    ]
    tests = build(tmp_path, "address,undefined", *names)
    for name in names:
        assert "passed" in run(tests / name)


def test_pool_and_plans_under_thread_sanitizer(tmp_path: Path) -> None:
    tests = build(tmp_path, "thread", "test_thread_pool", "test_plans_at_once")
    # Without this the sanitizer refuses the address layout of kernels with much randomisation.
    setarch = shutil.which("setarch")
    command = [setarch, "-R"] if setarch else []
    assert "passed" in run(*command, tests / "test_thread_pool", "no-fork")
    assert "passed" in run(*command, tests / "test_plans_at_once")
