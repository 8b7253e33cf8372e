"""The built module holds code for every architecture that it names, and that code is what it should
be: no kernel spills registers, products of bfloat16 run on tensor cores."""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from brainfast import _C

# Of a fat binary, as nvcc 11 to 13 write it: its header, then entries of these kinds.
MAGIC = struct.pack("<IHH", 0xBA55ED50, 1, 16)
PTX, MACHINE_CODE = 1, 2
# Sources with kernels and the one that asks the driver.
SOURCES = 5
# Kernels that multiply, by their names in the code, where the precision is part of the name.
PRODUCTS = re.compile(
    "answer_tiles|differentiate_selectors|differentiate_weight|differentiate_tokens"
    "|project_tokens|differentiate_maps|differentiate_filters|differentiate_projected_tokens"
    "|embed_vertices"
)
ROUNDED = re.compile("PrecisionE[12]E")  # bf16 and bf16x3


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


def cuobjdump(*arguments: str) -> str:
    """NVIDIA's tool, of the CUDA toolkit or of the Triton that comes with torch."""
    tool = shutil.which("cuobjdump")
    if tool is None and (triton := importlib.util.find_spec("triton")) and triton.origin:
        tool = shutil.which("cuobjdump", path=Path(triton.origin).parent / "backends/nvidia/bin")
    if tool is None:
        pytest.skip("no cuobjdump")
    done = subprocess.run([tool, *arguments, _C.__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def machine_architecture() -> str:
    """One that the module has machine code for."""
    names = _C.cuda_info()["architectures"].split()
    real = [name.partition("-")[0] for name in names if not name.endswith("-virtual")]
    if not real:
        pytest.skip("no machine code, only PTX")
    return f"sm_{real[0]}"


compiled = pytest.mark.skipif(not _C.cuda_info()["compiled"], reason="built without CUDA")


@compiled
def test_every_source_has_code_for_every_architecture():
    architectures = _C.cuda_info()["architectures"]
    found = list(fat_binaries(Path(_C.__file__).read_bytes()))
    assert len(found) == SOURCES
    for entries in found:
        assert entries == wanted(architectures)


@compiled
def test_no_kernel_uses_local_memory():
    """On any architecture: registers that do not suffice, or an array that has no place in them."""
    usage = cuobjdump("--dump-resource-usage")
    found = re.findall(r"Function (\S+?):\s+REG:\d+ STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert len(found) >= 30
    assert [name for name, stack, local in found if (stack, local) != ("0", "0")] == []


@compiled
def test_products_of_bfloat16_run_on_tensor_cores_and_those_of_float32_do_not():
    code = cuobjdump("-sass", "-arch", machine_architecture())
    found = {}
    for part in code.split("Function : ")[1:]:
        name = part.split(maxsplit=1)[0]
        if PRODUCTS.search(name):
            found[name] = "HMMA" in part
    assert len(found) >= 20
    assert {name for name, tensor_cores in found.items() if tensor_cores} == {
        name for name in found if ROUNDED.search(name)
    }
