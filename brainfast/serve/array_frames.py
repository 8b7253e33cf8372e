"""Arrays as frames of a message: what lies in each is told by the header, and checked against it.

Nothing is copied and nothing allocated by reading: an array is a view of its frame.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from .refusal import Refusal

Frame: TypeAlias = bytes | memoryview
Array: TypeAlias = bytes | memoryview | NDArray[Any]  # the first two: an encoded image file

Number: TypeAlias = Literal["uint8", "float32", "float64"]

FILE: Literal["file"] = "file"
DTYPES: dict[Number, np.dtype[Any]] = {
    "uint8": np.dtype("u1"),
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
}

Size = Annotated[int, msgspec.Meta(ge=0, lt=1 << 40)]


class ArrayInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What lies in a frame: little-endian numbers in C order, or a "file" as it lies on a disk."""

    dtype: Number | Literal["file"]
    shape: Annotated[list[Size], msgspec.Meta(max_length=4)] = msgspec.field(default_factory=list)

    def __str__(self) -> str:
        return self.dtype if self.dtype == FILE else f"{self.dtype} {self.shape}"


def is_array(given: Any) -> bool:
    """Whether it is one array, of any kind, and no number of numpy's.

    Its type is asked, since a picture is decoded to ask itself.
    """
    kinds = ("__array_interface__", "__array__")
    return any(hasattr(type(given), name) for name in kinds) and not isinstance(given, np.generic)


def as_array(name: str, given: Any, *, expected: str) -> NDArray[Any]:
    """Whatever was given as an array; what cannot be one is a BrainfastError."""
    try:
        return np.asarray(given)
    except Exception as error:  # a picture's decoder, or another library's array, may raise any
        got = f"{type(given).__name__}: {error}"
        raise BrainfastError(name, expected=expected, got=got) from error


def to_frames(arrays: Sequence[Array]) -> tuple[list[ArrayInfo], list[Frame]]:
    """Arrays as frames, and what the header has to tell of them. Other types are a Refusal."""
    infos: list[ArrayInfo] = []
    frames: list[Frame] = []
    for array in arrays:
        if isinstance(array, bytes | memoryview):
            infos.append(ArrayInfo(FILE))
            frames.append(array)
            continue
        name = next((name for name, dtype in DTYPES.items() if dtype == array.dtype), None)
        if name is None:
            got = str(array.dtype)
            raise Refusal("invalid", "array", expected=" or ".join(DTYPES), got=got)
        array = np.ascontiguousarray(array)
        infos.append(ArrayInfo(name, list(array.shape)))
        frames.append(array.reshape(-1).view(np.uint8).data if array.size else b"")
    return infos, frames


def from_frames(infos: Sequence[ArrayInfo], frames: Sequence[Frame]) -> list[Array]:
    """Arrays as views of their frames, files as these; a frame that does not fit is a Refusal."""
    if len(infos) != len(frames):
        raise Refusal(
            "invalid", "arrays", expected=f"{len(infos)} frames, as told", got=str(len(frames))
        )
    return [_from_frame(info, frame) for info, frame in zip(infos, frames, strict=True)]


def _from_frame(info: ArrayInfo, frame: Frame) -> Array:
    if info.dtype == FILE:
        if info.shape:
            raise Refusal("invalid", "array", expected="no shape of a file", got=str(info.shape))
        return frame
    dtype = DTYPES[info.dtype]
    size = math.prod(info.shape) * dtype.itemsize
    if size != len(frame):
        raise Refusal(
            "invalid", "array", expected=f"{size} bytes of {info}", got=f"{len(frame)} bytes"
        )
    return np.frombuffer(frame, dtype).reshape(info.shape)
