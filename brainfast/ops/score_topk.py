"""Choosing candidates as a torch operator, over the compiled kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import _C
from ..errors import BrainfastError
from . import reference_topk, score_topk_cuda

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def score_topk(
    pool: torch.Tensor,  # [N,F]
    templates: torch.Tensor,  # [O,F]
    k: int,
    exclude: torch.Tensor | Sequence[int] | None = None,  # bool [N], or indices
    *,
    scale: torch.Tensor | None = None,  # [N]
) -> tuple[torch.Tensor, torch.Tensor]:  # scores [O,k] float32, indices [O,k] int64
    """score[n,o] = pool[n] . templates[o], and of every objective o the k best candidates n.

    The best first, equal scores by their index, the same bits on every run and for any number of
    threads. A candidate whose score is NaN or infinite is never chosen: where fewer than k are
    left, score -inf and index -1 stand in. O may be 0, and N with k.

    pool: float32, bfloat16, float16, or int8 that `scale` multiplies; read once, and on the CPU
    where it lies, if it is contiguous. templates: float32, bfloat16 or float16. Sums are float32.
    Products are exact in the operands but for float32 templates on the matrix tiles of AMX, with a
    bfloat16 or int8 pool: those take a template as the sum of two bfloat16, within 2^-17 of it.
    bfloat16 templates with such pools are twice as fast where the processor multiplies bfloat16.

    float16 is widened first. On CUDA up to 1024 candidates an objective come from the compiled
    kernels; more, and other devices, are torch's operations. Not differentiable.
    Errors: a wrong rank, size, dtype or device, or k beyond the candidates that are not excluded,
    is a BrainfastError; but a mask on another device than the CPU is not waited for, and -1 stands
    in for the candidates that it leaves missing.
    """
    _check(pool, templates, scale)
    mask, left = _mask_of(exclude, pool)
    if not 0 <= k <= left:
        raise BrainfastError(
            "k",
            expected=f"0 to {left}, the candidates that are not excluded",
            got=str(k),
            remedy="ask for fewer, or exclude fewer",
        )
    found: tuple[torch.Tensor, torch.Tensor] = _choose(pool, templates, k, mask, scale)
    return found


@torch.library.custom_op("brainfast::score_topk", mutates_args=())
def _choose(
    pool: torch.Tensor,
    templates: torch.Tensor,
    k: int,
    exclude: torch.Tensor | None,
    scale: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    pool, templates = (t.float() if t.dtype == torch.float16 else t for t in (pool, templates))
    scale = None if scale is None else scale.float()
    if pool.device.type == "cpu":
        mask, factors = (None if t is None else _numpy(t) for t in (exclude, scale))
        scores, indices = _C.score_topk(_numpy(pool), _numpy(templates), k, mask, scale=factors)
        return torch.from_numpy(scores), torch.from_numpy(indices)
    templates = templates.float()
    if _on_cuda_kernels(pool) and k <= score_topk_cuda.most_choices():
        return score_topk_cuda.choose(pool, templates, k, exclude, scale)
    return reference_topk.score_topk(pool, templates, k, exclude, scale)


@_choose.register_fake
def _(
    pool: torch.Tensor, templates: torch.Tensor, k: int, *others: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = templates.shape[0], k
    return (
        pool.new_empty(shape, dtype=torch.float32),
        pool.new_empty(shape, dtype=torch.int64),
    )


def _on_cuda_kernels(pool: torch.Tensor) -> bool:
    return pool.device.type == "cuda" and score_topk_cuda.usable(pool.device)


def _numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """A contiguous array in the tensor's memory where it can be; bfloat16 by its bits."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy(force=True)
    return tensor.view(torch.int16).numpy(force=True).view(np.uint16)


def _check(pool: torch.Tensor, templates: torch.Tensor, scale: torch.Tensor | None) -> None:
    if pool.ndim != 2 or pool.shape[1] == 0:
        raise BrainfastError(
            "pool", expected="[N,F] with at least one feature", got=f"shape {list(pool.shape)}"
        )
    candidates, features = pool.shape
    _check_tensor("pool", pool, pool, (candidates, features), (*_FLOATS, torch.int8))
    objectives = templates.shape[0] if templates.ndim else 0
    _check_tensor("templates", templates, pool, (objectives, features), _FLOATS)
    integers = pool.dtype == torch.int8
    if integers != (scale is not None):
        raise BrainfastError(
            "scale",
            expected="one for each candidate of an int8 pool" if integers else "none",
            got="none" if scale is None else f"one with a pool of {_name(pool.dtype)}",
        )
    if scale is not None:
        _check_tensor("scale", scale, pool, (candidates,), _FLOATS)


def _check_tensor(
    name: str,
    tensor: torch.Tensor,
    like: torch.Tensor,
    shape: tuple[int, ...],
    dtypes: tuple[torch.dtype, ...],
) -> None:
    if tuple(tensor.shape) != shape:
        raise BrainfastError(name, expected=f"shape {list(shape)}", got=str(list(tensor.shape)))
    if tensor.dtype not in dtypes:
        names = [_name(dtype) for dtype in dtypes]
        raise BrainfastError(
            name, expected=f"{', '.join(names[:-1])} or {names[-1]}", got=_name(tensor.dtype)
        )
    if tensor.device != like.device:
        raise BrainfastError(
            name,
            expected=f"a tensor on {like.device}, as pool is",
            got=f"one on {tensor.device}",
            remedy=f"move it with .to({str(like.device)!r})",
        )


def _mask_of(
    exclude: torch.Tensor | Sequence[int] | None, pool: torch.Tensor
) -> tuple[torch.Tensor | None, int]:
    """The mask, and how many candidates it leaves, as far as that is known without waiting."""
    candidates = pool.shape[0]
    if exclude is None:
        return None, candidates
    if isinstance(exclude, torch.Tensor) and exclude.dtype == torch.bool:
        _check_tensor("exclude", exclude, pool, (candidates,), (torch.bool,))
        on_host = exclude.device.type == "cpu"
        return exclude, candidates - int(exclude.sum()) if on_host else candidates
    indices = torch.as_tensor(exclude, device="cpu")
    if indices.numel() == 0:
        return None, candidates
    if indices.ndim != 1 or indices.dtype.is_floating_point or indices.dtype == torch.bool:
        raise BrainfastError(
            "exclude", expected="a bool tensor [N] or a list of indices", got=_kind(indices)
        )
    wrong = indices[(indices < 0) | (indices >= candidates)]
    if len(wrong):
        raise BrainfastError(
            "exclude", expected=f"indices from 0 to {candidates - 1}", got=str(int(wrong[0]))
        )
    mask = torch.zeros(candidates, dtype=torch.bool)
    mask[indices.long()] = True
    return mask.to(pool.device), candidates - int(mask.sum())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(tensor: torch.Tensor) -> str:
    return f"{_name(tensor.dtype)} of shape {list(tensor.shape)}"
