"""Reads the one pickle that the Algonauts folders hold, without trusting it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import BrainfastError
from ..files import file_size
from ..inert_pickle import Call, Opaque, decode_bytes, load_inert

MAX_BYTES = 1 << 20
REMEDY = "download it again from the challenge's site"


class _Array:
    """Stands where numpy would rebuild an array, and only keeps what it is given."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstruct(*_: Any) -> _Array:
    return _Array()


# Inert stand-ins take the parts and no function of numpy runs, so hostile states do nothing.
CALLS: dict[tuple[str, str], Call] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): Opaque,
    ("_codecs", "encode"): decode_bytes,
}


def read_mapping(path: str | Path) -> dict[int, str]:
    """The dict id -> name that `np.save` pickled into `mapping_<atlas>.npy`.

    Anything but one dict of ints and strings is a BrainfastError, and nothing in it is executed.
    """
    path = Path(path)
    size = file_size(path)
    if size > MAX_BYTES:
        raise _refusal(path, f"{size} bytes")
    try:
        with path.open("rb") as file:
            _check_header(file)
            value = _unpickle(file.read())
    except Exception as error:  # a hostile pickle can make the machinery raise anything
        raise _refusal(path, str(error) or type(error).__name__) from error
    if not isinstance(value, dict) or not value:
        raise _refusal(path, type(value).__name__)
    for key, name in value.items():
        if type(key) is not int or type(name) is not str:
            raise _refusal(path, f"{type(key).__name__} -> {type(name).__name__}")
    return value


def _refusal(path: Path, got: str) -> BrainfastError:
    return BrainfastError(
        str(path), expected="a pickled dict of region ids and names", got=got, remedy=REMEDY
    )


def _check_header(file: BinaryIO) -> None:
    """Accept an object array without axes, which is how `np.save` writes a dict."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read(file)
    if shape != () or dtype != np.dtype(object):
        raise ValueError(f"an array {dtype} {list(shape)}")


def _unpickle(data: bytes) -> object:
    array = load_inert(data, CALLS)
    if type(array) is not _Array:
        raise ValueError(type(array).__name__)
    _version, shape, _dtype, _order, items = array.state
    if shape != () or not isinstance(items, list) or len(items) != 1:
        raise ValueError(f"an array of shape {shape}")
    return items[0]
