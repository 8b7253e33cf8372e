"""What this machine and this build can do, and why not what they cannot."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import typer

from . import _C

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


def diagnose() -> dict[str, Any]:
    """Facts about versions, processor, GPU, build and trunk runtimes; each "no" has its reason."""
    return {
        "brainfast": metadata.version("brainfast"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "cpu": {
            "model": _cpu_model(),
            "instruction_set": _C.isa(),
            "usable": list(_C.supported_isas()),
            "forced": os.environ.get("BRAINFAST_ISA"),
            "threads": _C.num_threads(),
        },
        "build": dict(_C.build_info()),
        "gpu": _gpu(),
        "trunk_runtimes": {"torch": _torch_runtime(), "onnx": _onnx_runtime()},
        "warnings": _warnings(),
    }


def print_report(report: dict[str, Any]) -> None:
    """Print what `diagnose` found, a line a fact."""
    for name, value in report.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, fact in value.items():
                typer.echo(f"  {key:16} {_plain(fact)}")
        elif isinstance(value, list):
            for fact in value:
                typer.echo(f"{name}: {fact}")
        else:
            typer.echo(f"{name:18} {_plain(value)}")


def _plain(fact: Any) -> str:
    if isinstance(fact, list | tuple):
        return ", ".join(map(str, fact)) or "none"
    return "no" if fact is None else str(fact)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "not known"


def _gpu() -> dict[str, Any]:
    facts = dict(_C.cuda_info())
    if find_spec("torch") is None:
        return facts | {"torch": "not installed"}
    import torch

    if torch.cuda.is_available():
        return facts | {"torch": f"uses {torch.cuda.get_device_name()}"}
    built = torch.version.cuda
    answer = f"built for CUDA {built}, sees no GPU" if built else "built for the CPU"
    return facts | {"torch": answer}


def _torch_runtime() -> str:
    missing = [name for name in ("torch", "timm") if find_spec(name) is None]
    if missing:
        return f"no: {' and '.join(missing)} not installed"
    return "yes, fp32 and bf16"


def _onnx_runtime() -> str:
    if find_spec("onnxruntime") is None:
        return "no: onnxruntime not installed"
    import onnxruntime

    return f"yes, fp32 ({', '.join(onnxruntime.get_available_providers())})"


def _warnings() -> list[str]:
    found = []
    both = [n for n in ("onnxruntime", "onnxruntime-gpu") if _version(n) != "not installed"]
    if len(both) == 2:
        found.append(
            "onnxruntime and onnxruntime-gpu overwrite each other: reinstall one in a fresh"
            " environment"
        )
    return found
