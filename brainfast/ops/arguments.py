"""What the operators ask of their tensors: agreeing sizes, one device, dtypes that go together."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..errors import BrainfastError

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def in_compute_dtype(*tensors: torch.Tensor) -> list[torch.Tensor]:
    dtype = compute_dtype(tensors[0])
    return [tensor.to(dtype) for tensor in tensors]


def check_tensors(
    tensors: Mapping[str, torch.Tensor],
    letters: Mapping[str, str],
    at_least_one: str,
) -> None:
    """Sizes by letter, dtypes and devices as the first tensor's; none of `at_least_one` is 0."""
    first = next(iter(tensors))
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        shape = f"[{','.join(letters[name])}]"
        if tensor.ndim != len(letters[name]):
            raise BrainfastError(name, expected=shape, got=f"shape {list(tensor.shape)}")
        for letter, size in zip(letters[name], tensor.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise BrainfastError(
                    name,
                    expected=f"{shape} with {letter}={sizes[letter]}",
                    got=f"shape {list(tensor.shape)}",
                )
        check_kind(name, tensor, first, tensors[first])
    for letter in at_least_one:
        if sizes[letter] == 0:
            raise BrainfastError(
                first,
                expected=f"at least one element along {letter} of [{','.join(letters[first])}]",
                got=f"shape {list(tensors[first].shape)}",
            )


def check_kind(name: str, tensor: torch.Tensor, first: str, like: torch.Tensor) -> None:
    """A dtype that goes with that of `like`, called `first`, and the same device."""
    double = like.dtype == torch.float64
    if tensor.dtype not in DTYPES or (tensor.dtype == torch.float64) != double:
        raise BrainfastError(
            name,
            expected=f"float64, as {first} is" if double else "float32, bfloat16 or float16",
            got=str(tensor.dtype).removeprefix("torch."),
            remedy="convert it with .double() or .float()",
        )
    if tensor.device != like.device:
        raise BrainfastError(
            name,
            expected=f"a tensor on {like.device}, as {first} is",
            got=f"one on {tensor.device}",
            remedy=f"move it with .to({str(like.device)!r})",
        )
