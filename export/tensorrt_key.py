"""What an engine file was built from and for; a JSON file beside it.

Torch-free at import."""

from __future__ import annotations

import hashlib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..card import Count
from ..errors import BrainfastError
from ..files import check_writable, file_size, read_json
from ..runtimes import torch_device

if TYPE_CHECKING:
    import torch

Package = Literal["tensorrt", "tensorrt_rtx"]
PACKAGES: tuple[Package, ...] = ("tensorrt", "tensorrt_rtx")
SUFFIX = ".engine"  # by which `opening.open_exported` knows the file
AGAIN = "export the model again on this machine"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorKey(_Strict):
    """An input or output of the engine; the batch is -1."""

    name: str
    dtype: Literal["float32", "uint8"]
    shape: tuple[int, ...] = Field(min_length=1)


class EngineKey(_Strict):
    """An engine runs on the GPU and the TensorRT that it was built with, and on no others.

    package, version: of TensorRT; gpu, capability: None of TensorRT for RTX, whose engines are
    compiled where they are opened; batches: smallest, preferred and largest; readout: what computes
    the node, our kernel (bf16x3) or TensorRT's operators (fp32); metadata: of the ONNX file, which
    has weights, preprocessing, precision and vertices.
    """

    format: Literal["brainfast-tensorrt"] = "brainfast-tensorrt"
    format_version: Literal[1] = 1
    brainfast: str
    package: Package
    version: str
    gpu: str | None
    capability: str | None
    batches: tuple[Count, Count, Count]
    readout: Literal["plugin", "operators"]
    input: TensorKey
    outputs: tuple[TensorKey, ...]
    metadata: dict[str, str]
    engine_sha256: str


def key_path(engine: Path) -> Path:
    """Where the key of an engine file lies."""
    return engine.with_name(f"{engine.name}.json")


def check_place(path: Path) -> None:
    """Refuse a place where no engine file and its key can be written: call it before long work."""
    if path.suffix != SUFFIX:
        raise BrainfastError(
            str(path),
            expected=f"a path that ends in {SUFFIX}",
            got=path.name or "a folder",
            remedy=f"such as model{SUFFIX}",
        )
    for file in (path, key_path(path)):
        if file.is_dir():
            raise BrainfastError(
                str(file), expected="a file", got="a folder", remedy="choose another name"
            )
    check_writable(path.parent)


def read_engine(path: Path) -> tuple[EngineKey, bytes]:
    """The key of an engine file and its bytes; a damaged or foreign one is a BrainfastError."""
    file_size(path)
    key = _read_key(key_path(path))
    plan = path.read_bytes()
    if hashlib.sha256(plan).hexdigest() != key.engine_sha256:
        raise BrainfastError(
            str(path),
            expected=f"the engine that {key_path(path).name} describes",
            got="other bytes: a damaged file, or one of two that were copied",
            remedy="copy both files again, or export the model again",
        )
    return key, plan


def check_machine(path: Path, key: EngineKey, tensorrt: str, gpu: tuple[str, str]) -> None:
    """Refuse an engine that was built by another TensorRT or brainfast, or on another GPU.

    gpu: name and compute capability, as "9.0".
    """
    portable = key.package == "tensorrt_rtx"
    facts = [
        (key.package, key.version, tensorrt),
        ("brainfast", key.brainfast, version("brainfast")),
        ("GPU", key.gpu, key.gpu if portable else gpu[0]),
        ("compute capability", key.capability, key.capability if portable else gpu[1]),
    ]
    for name, built, here in facts:
        if built != here:
            raise BrainfastError(
                str(path), expected=f"an engine for {name} {here}", got=str(built), remedy=AGAIN
            )


def open_package(package: str) -> ModuleType:
    """TensorRT's Python package; where it is missing or broken, a BrainfastError."""
    if package not in PACKAGES:
        raise BrainfastError("package", expected=" or ".join(PACKAGES), got=repr(package))
    try:
        return import_module(package)
    except Exception as error:  # a missing library raises whatever the loader says
        name = package.replace("_", "-")
        raise BrainfastError(
            package,
            expected="the package and its libraries",
            got=" ".join(str(error).split())[:160] or type(error).__name__,
            remedy=f"pip install {name}",
        ) from error


def find_gpu(device: str = "cuda") -> tuple[torch.device, tuple[str, str]]:
    """A GPU that torch sees, with its name and compute capability; none is a BrainfastError."""
    import torch

    if not torch.cuda.is_available():
        raise BrainfastError(
            "device", expected="a GPU that torch sees", got="none", remedy="see `brainfast doctor`"
        )
    place = torch_device(device)
    if place.type != "cuda":
        raise BrainfastError("device", expected="a GPU, which engines run on", got=device)
    major, minor = torch.cuda.get_device_capability(place)
    return place, (torch.cuda.get_device_name(place), f"{major}.{minor}")


def _read_key(path: Path) -> EngineKey:
    value: Any = read_json(path)
    try:
        return EngineKey.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "key"
        raise BrainfastError(
            f"{path}: {place}",
            expected="the key of an engine file",
            got=first["msg"],
            remedy="export the model again",
        ) from error
