"""What this machine and this build can do, and why not what they cannot."""

from __future__ import annotations

import os
import platform
import re
from importlib import import_module, metadata
from importlib.util import find_spec
from typing import Any

from . import _C
from .errors import BrainfastError
from .export.kernel_file import kernel_ptx
from .machine import ADD_CUDA_KERNELS, cpu_model
from .runtimes import CUDA_PROVIDER

PACKAGES = (
    "torch",
    "timm",
    "torchvision",
    "numpy",
    "onnxruntime",
    "nilearn",
    "nibabel",
    "safetensors",
    "pydantic",
)
SERVE_PACKAGES = ("fastapi", "msgspec", "prometheus_client", "uvicorn", "zmq")  # as imported
NOT_INSTALLED = "not installed"
KERNELS = (
    "on a GPU each is compared with torch when it is first used, and left aside where they differ;"
    " the rest runs as torch operations"
)
NO_KERNELS = (
    "none in this build: on a GPU, brainfast's operations run as torch operations; to add them, in"
    f" the source folder: {ADD_CUDA_KERNELS}"
)


def diagnose() -> dict[str, Any]:
    """Facts about versions, processor, GPU, build and trunk runtimes; each "no" has its reason."""
    return {
        "brainfast": package_version("brainfast"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: package_version(name) for name in PACKAGES},
        "cpu": {
            "model": cpu_model(),
            "instruction_set": _C.isa(),
            "head_fp32": _C.isa("fp32"),
            "head_bf16": _C.isa("bf16"),
            "head_bf16x3": _C.isa("bf16x3"),
            "usable": list(_C.supported_isas()),
            "forced": os.environ.get("BRAINFAST_ISA"),
            "threads": _C.num_threads(),
        },
        "build": dict(_C.build_info()),
        "gpu": _gpu(),
        "trunk_runtimes": {"torch": _torch_runtime(), "onnx": _onnx_runtime()},
        "tensorrt": _tensorrt(),
        "serve": _serve(),
        "warnings": _warnings(),
    }


def print_report(report: dict[str, Any]) -> None:
    """Print what `diagnose` found, a line a fact."""
    import typer  # for those who only ask for versions

    for name, value in report.items():
        if isinstance(value, dict):
            typer.echo(f"{_label(name)}:")
            for key, fact in value.items():
                typer.echo(f"  {_label(key):16} {_plain(fact)}")
        else:
            typer.echo(f"{_label(name):18} {_plain(value)}")


def _label(key: str) -> str:
    return key.replace("_", " ")


def _plain(fact: Any) -> str:
    if isinstance(fact, list | tuple):
        return ", ".join(map(str, fact)) or "none"
    return "none" if fact is None else str(fact)


def package_version(name: str) -> str:
    """The installed version of a package, or that it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return NOT_INSTALLED


def _gpu() -> dict[str, Any]:
    found = _C.cuda_info()
    return {
        "kernels": _kernels(),
        "code_for": [_architecture(name) for name in found["architectures"].split()],
        "cuda_runtime": found["runtime_version"] or None,
        "driver": found["driver_version"] or None,
        "devices": [_device(device) for device in found["devices"]],
        "problem": found["problem"] or None,
        "torch": _torch_gpu(),
    }


def _kernels() -> str:
    """The operations that this build has on CUDA: CudaFactorReadout, cuda_score_topk and so on."""
    plans = [name.removeprefix("Cuda") for name in vars(_C) if name.startswith("Cuda")]
    operations = [re.sub("(?<=[a-z])(?=[A-Z])", "_", name).lower() for name in plans]
    operations += ["score_topk"] if hasattr(_C, "cuda_score_topk") else []
    return f"{', '.join(sorted(operations))}: {KERNELS}" if operations else NO_KERNELS


def _architecture(name: str) -> str:
    """CMake's names: "90-real" is machine code, "90-virtual" PTX for that card and later ones,
    "120" both."""
    number, _, kind = name.partition("-")
    if kind == "virtual":
        return f"PTX of sm_{number} for later cards"
    return f"sm_{number}" if kind else f"sm_{number} and later"


def _device(device: dict[str, Any]) -> str:
    memory = device["memory_bytes"] / 2**30
    text = f"{device['name']} (compute {device['capability']}, {memory:.0f} GiB)"
    return f"{text}: {device['problem']}" if device["problem"] else text


def _torch_gpu() -> str:
    problem = _import_problem("torch")
    if problem:
        return problem
    import torch

    if torch.cuda.is_available():
        return f"uses {torch.cuda.get_device_name()}"
    built = torch.version.cuda
    return f"built for CUDA {built}, sees no GPU" if built else "built for the CPU"


def _no_gpu() -> str | None:
    """Why torch has no GPU, where it has none."""
    found = _torch_gpu()
    return None if found.startswith("uses ") else f"torch: {found}"


def _torch_runtime() -> str:
    for name in ("torch", "timm"):
        problem = _import_problem(name)
        if problem:
            return f"no: {problem}"
    import torch

    return f"yes: fp32 and bf16 on the CPU{' and the GPU' if torch.cuda.is_available() else ''}"


def _onnx_runtime() -> str:
    problem = _import_problem("onnxruntime")
    if problem:
        return f"no: {problem}"
    import onnxruntime

    yes = "yes: fp32 on the CPU, for models with trunk.onnx and exported files"
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        return f"{yes}; on the GPU with device='cuda', which has not been run by us yet"
    return f"{yes}; a GPU needs onnxruntime-gpu, see docs/export.md"


def _tensorrt() -> dict[str, str]:
    """Whether engine files can be built and run here, part by part."""
    try:
        kernel_ptx()
        kernel = "yes: our readout, for compute capability 8.0 and later"
    except BrainfastError as error:
        kernel = f"no: {error.got}; {error.remedy}"
    whole = _import_problem("tensorrt") or _no_gpu()
    rtx = _import_problem("tensorrt_rtx")
    there = find_spec("tensorrt_bindings") is not None
    return {
        "kernel": kernel,
        "engines": f"no: {whole}" if whole else f"yes: TensorRT {package_version('tensorrt')}",
        "engines_for_rtx": f"no: {rtx}" if rtx else "yes: built without a GPU, run on one",
        "plugin_files": "installed" if there else NOT_INSTALLED,
    }


def _serve() -> str:
    """Whether the packages of the servers are there."""
    missing = [name for name in SERVE_PACKAGES if find_spec(name) is None]
    if missing:
        return f"no: {', '.join(missing)} not installed; pip install 'brainfast[serve]'"
    return f"yes: HTTP (uvicorn {package_version('uvicorn')}), ZeroMQ {package_version('pyzmq')}"


def _import_problem(name: str) -> str | None:
    """Why a package cannot be used: it is not there, or its import fails."""
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            return f"{name} is not installed"
        return f"{name} does not import: {error}"
    except Exception as error:  # a broken install raises anything, and is what doctor is for
        return " ".join(f"{name} does not import: {error}".split())
    return None


def _warnings() -> list[str]:
    both = ("onnxruntime", "onnxruntime-gpu")
    if all(package_version(name) != NOT_INSTALLED for name in both):
        return [
            "onnxruntime and onnxruntime-gpu overwrite each other: install one of them in a fresh"
            " environment"
        ]
    return []
