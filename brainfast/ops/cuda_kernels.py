"""What the operators' CUDA forms share: torch's memory and stream as the kernels take them, and the
check that a device's answers are right."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Literal, TypedDict

import torch

from .. import _C
from ..errors import BrainfastError
from ..machine import ADD_CUDA_KERNELS
from ..strict_fp32 import strict_fp32

TOLERANCE = 1e-4  # of the largest value: fp32 sums in another order
# Of gradients: in bf16 some of their products are rounded, which makes 3e-3 of the largest.
GRADIENT_TOLERANCE = {"fp32": TOLERANCE, "bf16": 1e-2}
OUT_OF_MEMORY = "out of memory"  # as CUDA and torch say it
Precision = Literal["fp32", "bf16x3", "bf16"]


class Queue(TypedDict):
    """Where a call's work goes."""

    device: int
    stream: int


def may_take(tensor: torch.Tensor) -> bool:
    """Whether the kernels are made for a tensor's device and dtype; float64 is torch's."""
    return tensor.device.type == "cuda" and tensor.dtype != torch.float64


def check_usable(
    operator: str, kernels: str, device: torch.device, find_difference: Callable[..., str]
) -> bool:
    """Whether this build's class `kernels` runs on a CUDA device and answers as torch does.

    A no is a warning that says why; `find_difference(device)` says it of the answers, or nothing.
    Too little memory is an error and no answer: it may pass, and an answer is remembered.
    """
    unnamed = device.type == "cuda" and device.index is None
    index = torch.cuda.current_device() if unnamed else device.index
    problem = find_problem(kernels, index or 0) or _try(find_difference, device)
    if problem:
        warnings.warn(f"{operator} on {device} runs as torch operations: {problem}", stacklevel=3)
    return not problem


def _try(find_difference: Callable[..., str], device: torch.device) -> str:
    """What it says, or why the kernels fail."""
    # Whatever the caller has set for its own products, the answers are judged in float32.
    with strict_fp32(), torch.autocast(device.type, enabled=False), torch.inference_mode(False):
        try:
            return find_difference(device)
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or OUT_OF_MEMORY in str(error):
                raise
            first, _, _ = str(error).partition("\n")
            return f"a kernel fails: {first}"


def find_problem(kernels: str, index: int) -> str:
    """Why the kernels cannot run on a device, or nothing. Leaves other devices untouched."""
    if not hasattr(_C, kernels):
        return f"this build has no CUDA kernels; in the source folder: {ADD_CUDA_KERNELS}"
    found = _C.cuda_info(index)
    if found["problem"]:
        return str(found["problem"])
    problem = str(found["devices"][0]["problem"])
    if problem == OUT_OF_MEMORY:
        raise BrainfastError(
            "memory",
            expected=f"room for a kernel on cuda:{index}",
            got=problem,
            remedy="free memory on the GPU",
        )
    return problem and f"{problem}; the build has code for {found['architectures']}"


def compare(
    names: Iterable[str],
    found: Iterable[torch.Tensor | None],
    expected: Iterable[torch.Tensor],
    tolerance: float = TOLERANCE,
) -> str:
    """What of the kernels' answers is not torch's, or nothing. Waits for the device."""
    for name, ours, theirs in zip(names, found, expected, strict=True):
        assert ours is not None
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        if not error <= tolerance:
            return f"its {name} differ from torch's by {error:.1g} of the largest; please report it"
    return ""


def small_problem(device: torch.device, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    """Normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(device) for shape in shapes]


def shared_precision(*tensors: torch.Tensor) -> Precision:
    """bf16 where all are bfloat16, whose products lose nothing on tensor cores; else fp32."""
    return "bf16" if all(tensor.dtype == torch.bfloat16 for tensor in tensors) else "fp32"


def shared_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """The dtype as which the kernels read these tensors."""
    return torch.bfloat16 if shared_precision(*tensors) == "bf16" else torch.float32


def name_of(dtype: torch.dtype) -> str:
    """As the compiled core calls it."""
    return str(dtype).removeprefix("torch.")


def queue(device: torch.device) -> Queue:
    """torch's current stream of a device."""
    stream = torch.cuda.current_stream(device)
    return {"device": stream.device.index, "stream": stream.cuda_stream}


def hold(memory: torch.Tensor, made: Queue, read: Queue) -> None:
    """Keep a plan's memory from other uses until a stream that did not make it has read it.

    What a captured graph reads must live as long as the graph, which its owner sees to.
    """
    if read == made:
        return
    with torch.cuda.device(memory.device):
        if not torch.cuda.is_current_stream_capturing():
            memory.record_stream(torch.cuda.current_stream())


def block(memory: torch.Tensor) -> tuple[int, int]:
    """Address and bytes of memory from `allocate`."""
    return memory.data_ptr(), memory.numel()


def allocate(size: int, device: torch.device, images: int) -> torch.Tensor:
    """Memory of torch's allocator for so many images; an error names a batch that fits."""
    try:
        return torch.empty(size, dtype=torch.uint8, device=device)
    except torch.OutOfMemoryError as error:
        free, _ = torch.cuda.mem_get_info(device)
        fits = images * free // size
        raise BrainfastError(
            "memory",
            expected=f"{size:,} bytes on {device}",
            got=f"{free:,} free",
            remedy=f"use batches of at most {fits}" if fits else "free memory on the GPU",
        ) from error


def make_output(
    out: torch.Tensor | None, shape: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """`out`, which must be contiguous float32 of this shape and device, or a new tensor."""
    if out is None:
        return torch.empty(shape, dtype=torch.float32, device=device)
    check_place("out", out, shape, device)
    if out.dtype != torch.float32 or not out.is_contiguous():
        got = name_of(out.dtype) if out.dtype != torch.float32 else "a strided tensor"
        raise BrainfastError("out", expected="contiguous float32", got=got)
    return out


def check_place(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], device: torch.device
) -> None:
    """A tensor of this shape, on this device."""
    if tensor.shape != shape:
        raise BrainfastError(name, expected=str(list(shape)), got=str(list(tensor.shape)))
    if tensor.device != device:
        raise BrainfastError(
            name,
            expected=f"a tensor on {device}",
            got=f"one on {tensor.device}",
            remedy=f"move it with .to({str(device)!r})",
        )


def check_number(name: str, tensor: torch.Tensor) -> None:
    """A dtype that the kernels read, or that float32 holds."""
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise BrainfastError(
            name, expected="float32, bfloat16 or float16", got=name_of(tensor.dtype)
        )
