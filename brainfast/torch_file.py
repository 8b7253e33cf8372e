"""Reads what `torch.save` wrote, tensors and plain values, without unpickling an object."""

from __future__ import annotations

import math
import pickle
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .errors import BrainfastError
from .files import file_size
from .inert_pickle import Call, Global, Opaque, decode_bytes, load_inert

MAX_PICKLE = 8 << 20  # bytes; a thousand tensors take a quarter of a megabyte
MAX_DEPTH = 32
MAX_DIMS = 64
MAX_NUMBERS = 1 << 48  # of one tensor; far below where torch's own products overflow
CHUNK = 16 << 20

DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}


def read_torch_tensors(
    path: str | Path, keys: Collection[str] | None = None
) -> dict[str | int, Any]:
    """The dict in a torch file: nested dicts, lists and tuples of tensors and plain values.

    keys: of the outermost dict, which alone are read and checked; all of them without

    Tensors lie on the CPU, parameters are plain tensors, numpy scalars become an `Opaque` that
    says nothing. Their sizes are checked against the file before memory is taken, and the file's
    checksums against its bytes. Raises BrainfastError for a file that is missing, cut off,
    damaged, of another format (before torch 1.6), or that would call anything else.
    """
    path = Path(path)
    size = file_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Reader(archive, size).read(keys)
    except Exception as error:  # a hostile file can make the machinery raise anything
        raise _refusal(path, error) from error


def _refusal(path: Path, error: Exception) -> BrainfastError:
    got = (str(error) or type(error).__name__)[:200]
    remedy = "copy or download it again, or save its tensors as plain ones"
    if _is_bare_pickle(path):
        got = "a pickle without one, as torch wrote before 1.6"
        remedy = "save it again with a newer torch, where its origin is trusted"
    return BrainfastError(
        str(path), expected="a zip file of tensors, as torch.save writes it", got=got, remedy=remedy
    )


def _is_bare_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == pickle.PROTO


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    numbers: int


class _View(NamedTuple):
    """A tensor as the pickle describes it; nothing in it is checked yet."""

    storage: Any
    offset: Any
    size: Any
    stride: Any


class _Mapping(dict[Any, Any]):
    """Stands for an OrderedDict, whose attributes are left out."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


def _find_storage(pid: Any) -> _Storage:
    kind, storage, key, place, numbers = pid
    types = (type(kind), type(storage), type(key), type(place), type(numbers))
    if types != (str, Global, str, str, int) or kind != "storage" or storage.name not in DTYPES:
        raise pickle.UnpicklingError("a persistent id that is no storage")
    return _Storage(key, DTYPES[storage.name], numbers)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _View:
    return _View(storage, offset, size, stride)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _new_mapping() -> _Mapping:
    return _Mapping()


def _rebuild_size(size: Any) -> tuple[Any, ...]:
    if type(size) is not tuple:
        raise pickle.UnpicklingError("a size that is no tuple")
    return size


def _refuse_call(*_: Any) -> Any:
    raise pickle.UnpicklingError("a storage that is called")


CALLS: dict[tuple[str, str], Call] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch", "Size"): _rebuild_size,
    ("collections", "OrderedDict"): _new_mapping,
    ("numpy.core.multiarray", "scalar"): Opaque,
    ("numpy._core.multiarray", "scalar"): Opaque,
    ("numpy", "dtype"): Opaque,
    ("_codecs", "encode"): decode_bytes,
}
CALLS |= {("torch", name.removeprefix("torch.")): _refuse_call for name in DTYPES}


class _Reader:
    """One open torch file; every storage is read once, when the first tensor asks for it."""

    def __init__(self, archive: zipfile.ZipFile, size: int) -> None:
        self._archive = archive
        members = archive.infolist()
        self._members = {member.filename: member for member in members}
        if len(self._members) < len(members):
            raise ValueError("two members of one name")
        if any(m.compress_type or m.file_size != m.compress_size for m in members):
            raise ValueError("compressed members, which torch.save never writes")
        if sum(member.file_size for member in members) > size:
            raise ValueError("members that are longer than the file")
        pickles = [name for name in self._members if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise ValueError(f"{len(pickles)} members data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        self._storages: dict[str, torch.Tensor] = {}
        self._done: dict[int, Any] = {}

    def read(self, keys: Collection[str] | None) -> dict[str | int, Any]:
        order = self._members.get(f"{self._folder}byteorder")
        if order is not None and self._archive.read(order) != b"little":
            raise ValueError("numbers of another byte order")
        description = self._members[f"{self._folder}data.pkl"]
        if description.file_size > MAX_PICKLE:
            raise ValueError(f"a description of {description.file_size} bytes")
        value = load_inert(self._archive.read(description), CALLS, _find_storage)
        if not isinstance(value, dict):
            raise ValueError(f"a {type(value).__name__}, and no dict")
        if keys is not None:
            value = {key: item for key, item in value.items() if key in keys}
        plain: dict[str | int, Any] = self._plain(value, 0)
        return plain

    def _plain(self, value: Any, depth: int) -> Any:
        """Every container once, however often it occurs, so that what is shared costs nothing."""
        if id(value) in self._done:
            return self._done[id(value)]
        if depth > MAX_DEPTH:
            raise ValueError(f"values nested more than {MAX_DEPTH} deep")
        made = self._make(value, depth)
        if type(value) in (dict, _Mapping, list, tuple, _View):
            self._done[id(value)] = made
        return made

    def _make(self, value: Any, depth: int) -> Any:
        if type(value) is _View:
            return self._tensor(value)
        if type(value) in (list, tuple):
            return type(value)([self._plain(item, depth + 1) for item in value])
        if type(value) in (dict, _Mapping):
            if not all(type(key) in (str, int) for key in value):
                raise ValueError("a dict with keys that are neither text nor numbers")
            return {key: self._plain(item, depth + 1) for key, item in value.items()}
        if value is None or type(value) in (str, bytes, int, float, bool, Opaque):
            return value
        raise ValueError(f"a value {type(value).__name__}")

    def _tensor(self, view: _View) -> torch.Tensor:
        storage, offset, size, stride = view
        shapes = type(storage) is _Storage and type(size) is type(stride) is tuple
        if not shapes or not len(size) == len(stride) <= MAX_DIMS:
            raise ValueError("a tensor without sizes and strides")
        if any(type(n) is not int or not 0 <= n < MAX_NUMBERS for n in (offset, *size, *stride)):
            raise ValueError("a tensor of impossible sizes")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        fits = count <= storage.numbers and (count == 0 or last < storage.numbers)
        if not fits or math.prod(max(n, 1) for n in size) >= MAX_NUMBERS:
            raise ValueError(f"a tensor {list(size)} in a storage of {storage.numbers} numbers")
        return self._numbers(storage).as_strided(size, stride, offset if count else 0)

    def _numbers(self, storage: _Storage) -> torch.Tensor:  # [numbers]
        member = self._members.get(f"{self._folder}data/{storage.key}")
        if member is None:
            raise ValueError(f"no storage {storage.key!r}")
        if member.file_size != storage.numbers * storage.dtype.itemsize:
            raise ValueError(
                f"storage {storage.key!r} of {member.file_size} bytes for {storage.numbers} numbers"
            )
        if storage.key not in self._storages:
            self._storages[storage.key] = self._load(member, storage.dtype)
        numbers = self._storages[storage.key]
        if numbers.dtype is not storage.dtype:
            raise ValueError(f"storage {storage.key!r} of two types")
        return numbers

    def _load(self, member: zipfile.ZipInfo, dtype: torch.dtype) -> torch.Tensor:  # [numbers]
        content = torch.empty(member.file_size, dtype=torch.uint8)
        place, start = content.numpy().data, 0
        with self._archive.open(member) as file:
            while chunk := file.read(CHUNK):
                place[start : start + len(chunk)] = chunk
                start += len(chunk)
        if start < member.file_size:
            raise ValueError(f"{start} bytes of {member.file_size}")
        if dtype is torch.bool and bool((content > 1).any()):
            raise ValueError("truth values other than 0 and 1")
        return content.view(dtype)
