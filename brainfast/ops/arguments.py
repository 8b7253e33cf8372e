"""What the operators ask of their tensors, and how these go to the compiled core and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from ..errors import BrainfastError

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def compute_dtype(tensor: torch.Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def in_compute_dtype(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """All in the dtype that the first is computed in."""
    dtype = compute_dtype(tensors[0])
    return [tensor.to(dtype) for tensor in tensors]


def numpy_arrays(*tensors: torch.Tensor) -> list[NDArray[Any]]:
    """Contiguous arrays for the compiled core; memory is shared where it can be."""
    return [tensor.contiguous().numpy(force=True) for tensor in tensors]


def gradients_as(
    found: Sequence[Any], inputs: Sequence[torch.Tensor], needs: Sequence[bool]
) -> list[torch.Tensor]:
    """Each gradient in the dtype of its input; an empty tensor where none is needed."""
    return [
        grad.to(tensor.dtype) if need else tensor.new_empty(0)
        for grad, tensor, need in zip(found, inputs, needs, strict=True)
    ]


def empty_gradients(inputs: Sequence[torch.Tensor], needs: Sequence[bool]) -> list[torch.Tensor]:
    """What `gradients_as` gives, without the numbers."""
    return [
        tensor.new_empty(tensor.shape if need else (0,))
        for tensor, need in zip(inputs, needs, strict=True)
    ]


def check_tensors(
    tensors: Mapping[str, torch.Tensor],
    letters: Mapping[str, str],
    at_least_one: str,
) -> None:
    """Sizes by letter, dtypes and devices as the first tensor's; none of `at_least_one` is 0.

    A digit among the letters is the size itself.
    """
    first = next(iter(tensors))
    sizes = {digit: int(digit) for digit in "".join(letters.values()) if digit.isdigit()}
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
