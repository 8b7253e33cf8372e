"""The Open Inference Protocol, version 2: its requests read, its answers written.

Tensors are numbers in the JSON, or bytes behind it (the binary tensor extension):
https://github.com/kserve/open-inference-protocol and Triton's `extension_binary_data`.
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from .http_numbers import json_numbers, read_bytes_u8

RESPONSE = "response"
VERSION = "1"  # of every model: a folder has no other
INPUTS = "images UINT8 [B,H,W,3], or files BYTES [B]"
UNSUPPORTED = ("classification", "shared_memory_region")  # they would change the answer
LENGTH = 4  # bytes before each element of a BYTES tensor, little-endian
US = 1e-6  # the protocol's clients give time-outs in microseconds

Image = bytes | NDArray[np.uint8]


class Tensor(msgspec.Struct):
    """An input as its client describes it; `data` where it is not binary."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = msgspec.Raw(b"")


class Requested(msgspec.Struct):
    """An output that a client asks for."""

    name: str
    parameters: dict[str, Any] = {}


class Header(msgspec.Struct):
    """The JSON part of a request."""

    inputs: list[Tensor]
    id: str = ""
    outputs: list[Requested] = []
    parameters: dict[str, Any] = {}


class Asked(NamedTuple):
    """A request that was read: images, and the outputs with whether each is wanted in binary."""

    images: list[Image]
    outputs: dict[str, bool]
    timeout_s: float | None
    id: str


_header = msgspec.json.Decoder(Header)
_strings = msgspec.json.Decoder(list[str])


def output_names(subjects: Sequence[str]) -> dict[str, str]:
    """Subject by the name of its output; of a model of one, "" by "response"."""
    return {f"{RESPONSE}.{each}": each for each in subjects} or {RESPONSE: ""}


def metadata(model: str, vertices: Mapping[str, int]) -> dict[str, Any]:
    """What a model takes and gives. vertices: V by subject, "" for a model of one."""
    outputs = output_names([subject for subject in vertices if subject])
    return {
        "name": model,
        "versions": [VERSION],
        "platform": "brainfast",
        "inputs": [
            {"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]},
            {"name": "files", "datatype": "BYTES", "shape": [-1]},
        ],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, vertices[subject]]}
            for name, subject in outputs.items()
        ],
    }


def read_request(
    body: bytes | bytearray, header_bytes: int | None, names: Sequence[str], json_bytes: int
) -> Asked:
    """Read and check a whole request; a mistake in it is a BrainfastError.

    header_bytes: length of the JSON where binary tensors follow it
    names: outputs that the model has, all of which are given where none is asked for
    json_bytes: the most that the JSON may take
    """
    if header_bytes is not None and not 0 < header_bytes <= len(body):
        raise BrainfastError(
            "Inference-Header-Content-Length",
            expected=f"1 to {len(body)}, the length of the body",
            got=str(header_bytes),
        )
    view = memoryview(body)
    text, rest = view[:header_bytes], view[len(body) if header_bytes is None else header_bytes :]
    if len(text) > json_bytes:
        raise BrainfastError(
            "request",
            expected=f"at most {json_bytes} bytes of JSON",
            got=str(len(text)),
            remedy="send the tensors in binary",
        )
    try:
        header = _header.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BrainfastError(
            "request", expected="an inference request in JSON", got=str(error)
        ) from error
    outputs = _outputs(header, names)
    return Asked(_images(header.inputs, rest), outputs, _timeout_s(header.parameters), header.id)


def write_answer(
    model: str, asked: Asked, found: Mapping[str, NDArray[np.float32]]
) -> tuple[list[bytes], int | None]:
    """The parts of an answer's body, and the length of its JSON where binary tensors follow it.

    found: [B,V] by output
    """
    described, parts = [], []
    for name, binary in asked.outputs.items():
        values = found[name]
        about: dict[str, Any] = {"name": name, "datatype": "FP32", "shape": list(values.shape)}
        if binary:
            parts.append(np.ascontiguousarray(values, dtype="<f4").tobytes())
            about["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            about["data"] = msgspec.Raw(json_numbers(values.ravel()))
        described.append(about)
    answer: dict[str, Any] = {"model_name": model, "model_version": VERSION, "outputs": described}
    if asked.id:
        answer["id"] = asked.id
    text = msgspec.json.encode(answer)
    return [text, *parts], len(text) if parts else None


def _outputs(header: Header, names: Sequence[str]) -> dict[str, bool]:
    everything = header.parameters.get("binary_data_output", False)
    if not header.outputs:
        return {name: bool(everything) for name in names}
    wanted: dict[str, bool] = {}
    for output in header.outputs:
        if output.name not in names:
            raise BrainfastError("output", expected=" or ".join(names), got=repr(output.name))
        _refuse_unsupported(output.name, output.parameters)
        wanted[output.name] = bool(output.parameters.get("binary_data", everything))
    return wanted


def _refuse_unsupported(name: str, parameters: Mapping[str, Any]) -> None:
    for each in UNSUPPORTED:
        if each in parameters:
            raise BrainfastError(name, expected=f"no {each}", got="one", remedy="leave it out")


def _timeout_s(parameters: Mapping[str, Any]) -> float | None:
    timeout = parameters.get("timeout")
    if timeout is None:
        return None
    number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
    if not number or not 0 < timeout < math.inf:
        raise BrainfastError("timeout", expected="microseconds above 0", got=repr(timeout))
    return float(timeout) * US


def _images(inputs: Sequence[Tensor], rest: memoryview) -> list[Image]:
    if len(inputs) != 1:
        names = ", ".join(repr(tensor.name) for tensor in inputs) or "none"
        raise BrainfastError("inputs", expected=f"one: {INPUTS}", got=names)
    tensor = inputs[0]
    _refuse_unsupported(tensor.name, tensor.parameters)
    kind = {"images": "UINT8", "files": "BYTES"}.get(tensor.name)
    if kind is None:
        raise BrainfastError("input", expected=INPUTS, got=repr(tensor.name))
    if tensor.datatype != kind:
        raise BrainfastError(f"datatype of {tensor.name}", expected=kind, got=tensor.datatype)
    shape = tensor.shape
    fits = len(shape) == 4 and shape[3] == 3 if kind == "UINT8" else len(shape) == 1
    if not fits or min(shape) < 1:
        expected = "[B,H,W,3]" if kind == "UINT8" else "[B]"
        raise BrainfastError(f"shape of {tensor.name}", expected=expected, got=str(shape))
    data = _binary(tensor, rest)
    if kind == "UINT8":
        return _pixels(tensor, data)
    files = _from_strings(tensor) if data is None else _elements(tensor, data)
    _check_count(tensor, len(files))
    return files


def _binary(tensor: Tensor, rest: memoryview) -> memoryview | None:
    """The tensor's bytes where it is binary; they must be all that follows the JSON."""
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if len(rest):
            raise BrainfastError(
                f"data of {tensor.name}",
                expected="in the JSON alone",
                got=f"{len(rest)} more bytes",
            )
        return None
    if bytes(tensor.data):
        raise BrainfastError(
            f"data of {tensor.name}", expected="binary or in the JSON", got="both of them"
        )
    if size != len(rest) or isinstance(size, bool):
        raise BrainfastError(
            f"binary_data_size of {tensor.name}",
            expected=f"{len(rest)}, the bytes that follow the JSON",
            got=str(size),
        )
    return rest


def _pixels(tensor: Tensor, data: memoryview | None) -> list[Image]:
    """[B,H,W,3] as B arrays [H,W,3]; binary ones share the request's memory."""
    if data is None:
        flat = read_bytes_u8(bytes(tensor.data), f"data of {tensor.name}")
    else:
        flat = np.frombuffer(data, np.uint8)
    _check_count(tensor, flat.size)
    return list(flat.reshape(tensor.shape))


def _check_count(tensor: Tensor, found: int) -> None:
    expected = math.prod(tensor.shape)
    if found != expected:
        raise BrainfastError(
            f"data of {tensor.name}",
            expected=f"{expected} elements, as shape {tensor.shape} says",
            got=str(found),
        )


def _from_strings(tensor: Tensor) -> list[Image]:
    """Files in JSON are base64: JSON has no bytes."""
    try:
        texts = _strings.decode(tensor.data)
        return [binascii.a2b_base64(text, strict_mode=True) for text in texts]
    except (msgspec.MsgspecError, ValueError) as error:
        raise BrainfastError(
            f"data of {tensor.name}", expected="files in base64, or binary", got=str(error)
        ) from error


def _elements(tensor: Tensor, data: memoryview) -> list[Image]:
    """BYTES in binary: the length of an element, then the element."""
    found: list[Image] = []
    place = 0
    while place < len(data):
        start = place + LENGTH
        end = start + int.from_bytes(data[place:start], "little")
        if end > len(data):
            raise BrainfastError(
                f"data of {tensor.name}",
                expected="a length and so many bytes for every element",
                got=f"element {len(found)} with {max(len(data) - start, 0)} bytes of {end - start}",
            )
        found.append(bytes(data[start:end]))
        place = end
    return found
