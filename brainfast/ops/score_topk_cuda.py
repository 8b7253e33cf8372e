"""Choosing candidates on CUDA tensors: the compiled kernels over torch's memory and stream."""

from __future__ import annotations

import functools

import torch

from .. import _C
from . import cuda_kernels, reference_topk

CHECKED = (70, 272)  # features: rows that begin anywhere, and whole 16 bytes in every dtype


@functools.cache
def usable(device: torch.device) -> bool:
    """Whether this build's kernels run on a CUDA device and answer as torch's operations do.

    The first no is a warning that says why. The first call chooses from small pools of every dtype
    both ways and waits for the answers: make it before a graph is captured.
    """
    return cuda_kernels.check_usable("score_topk", "cuda_score_topk", device, _difference)


@torch.no_grad()
def _difference(device: torch.device) -> str:
    """What is wrong with the kernels' answers to small problems, or nothing.

    Scores are small whole numbers, so that they are exact, and many of them equal.
    """
    generator = torch.Generator().manual_seed(0)
    for features in CHECKED:
        pool, templates = (
            torch.randint(-2, 3, (rows, features), generator=generator).float().to(device)
            for rows in (150, 35)
        )
        exclude = torch.arange(150, device=device) % 5 == 2
        scale = 2.0 ** (torch.arange(150, device=device) % 3)
        problem = (
            _compare(pool, templates, None, None)
            or _compare(pool.bfloat16(), templates, exclude, None)
            or _compare(pool.to(torch.int8), templates, exclude, scale)
        )
        if problem:
            return problem
    return ""


def _compare(
    pool: torch.Tensor,  # [N,F]
    templates: torch.Tensor,  # [O,F]
    exclude: torch.Tensor | None,  # [N], bool
    scale: torch.Tensor | None,  # [N]
) -> str:
    expected = reference_topk.score_topk(pool, templates, 20, exclude, scale)
    found = choose(pool, templates, 20, exclude, scale)
    kind = cuda_kernels.name_of(pool.dtype)
    for name, ours, theirs in zip(("scores", "indices"), found, expected, strict=True):
        if not torch.equal(ours, theirs):
            return f"its {name} of a pool in {kind} differ from torch's; please report it"
    return ""


def most_choices() -> int:
    """The largest k that the kernels take."""
    return int(_C.CUDA_MOST_CHOICES)


def choose(
    pool: torch.Tensor,  # [N,F], float32, bfloat16 or int8
    templates: torch.Tensor,  # [O,F], float32
    k: int,
    exclude: torch.Tensor | None,  # [N], bool
    scale: torch.Tensor | None,  # [N], float32
) -> tuple[torch.Tensor, torch.Tensor]:  # [O,k] float32, [O,k] int64
    """`score_topk` of checked CUDA tensors: two launches on torch's current stream, which a CUDA
    graph can hold."""
    objectives, device = len(templates), pool.device
    scores = torch.empty(objectives, k, dtype=torch.float32, device=device)
    indices = torch.empty(objectives, k, dtype=torch.int64, device=device)
    if not k or not objectives:
        return scores, indices
    pool, templates = pool.contiguous(), templates.contiguous()
    exclude, scale = (None if t is None else t.contiguous() for t in (exclude, scale))
    size = _C.cuda_topk_bytes(len(pool), objectives, k)
    scratch = cuda_kernels.allocate(size, device, objectives)
    _C.cuda_score_topk(
        cuda_kernels.block(scratch),
        (pool.shape[0], pool.shape[1]),
        pool.data_ptr(),
        0 if scale is None else scale.data_ptr(),
        0 if exclude is None else exclude.data_ptr(),
        objectives,
        templates.data_ptr(),
        k,
        dtype=cuda_kernels.name_of(pool.dtype),
        out=(scores.data_ptr(), indices.data_ptr()),
        **cuda_kernels.queue(device),
    )
    return scores, indices
