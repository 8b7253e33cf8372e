"""The built module holds code for every architecture that it names."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from brainfast import _C

# Of a fat binary, as nvcc 11 to 13 write it: its header, then entries of these kinds.
MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
PTX, MACHINE_CODE = 1, 2


def fat_binaries(data: bytes) -> Iterator[set[tuple[int, int]]]:
    """(kind, architecture) of all entries, for each fat binary: one a source file."""
    start = data.find(MAGIC)
    while start >= 0:
        (size,) = struct.unpack_from("<Q", data, start + 8)
        entry, end = start + 16, start + 16 + size
        found = set()
        while entry < end:
            kind, header, length = struct.unpack_from("<HxxIQ", data, entry)
            (architecture,) = struct.unpack_from("<I", data, entry + 28)
            found.add((kind, architecture))
            entry += header + length
        yield found
        start = data.find(MAGIC, end)


def wanted(names: str) -> set[tuple[int, int]]:
    """Of CMake's names: 90-real is machine code, 90-virtual is PTX, 90 is both."""
    found = set()
    for name in names.split():
        number, _, kind = name.partition("-")
        architecture = int(number.rstrip("af"))
        if kind != "virtual":
            found.add((MACHINE_CODE, architecture))
        if kind != "real":
            found.add((PTX, architecture))
    return found


@pytest.mark.skipif(not _C.cuda_info()["compiled"], reason="built without CUDA")
def test_every_source_has_code_for_every_architecture():
    architectures = _C.cuda_info()["architectures"]
    found = list(fat_binaries(Path(_C.__file__).read_bytes()))
    assert len(found) >= 2
    for entries in found:
        assert entries == wanted(architectures)
