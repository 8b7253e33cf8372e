"""What this machine can do at best, measured in the run of the forms, and what a call needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from brainfast import _C
from brainfast.cells import grid_cells
from brainfast.folded import FoldedFactorTopy
from cases import Case

_L3_BYTES = 12 << 20  # beyond the L2 of two cores, within a usual L3
_DRAM_BYTES = 1 << 29
_SIDE = 2048  # of the square matrix product
_ROUNDS = 5
_WEIGHT_BYTES = {"fp32": 4, "bf16x3": 4, "bf16": 2}
# A training step reads the parameters forward and backward, writes their gradients, and AdamW reads
# parameter, gradient and two moments and writes three of them.
_STEP_PASSES = 10


@dataclass(frozen=True)
class Work:
    """The least that one call must do, however it does it."""

    flops: float
    bytes: float


def measure() -> dict[str, float]:
    """Ceilings at the present number of threads, the best of some rounds each.

    fma_gflop_per_s: fp32 multiply-adds in registers; l3_ and dram_gbyte_per_s: reading an array of
    12 MiB and of 512 MiB with the fastest of torch's sum, dot and matrix-vector product;
    matmul_fp32_ and matmul_bf16_gflop_per_s: torch's product of two 2048 x 2048 matrices.
    """
    return {
        "fma_gflop_per_s": max(_C.fma_ceiling(0.1) for _ in range(_ROUNDS)),
        "l3_gbyte_per_s": _read_rate(_L3_BYTES),
        "dram_gbyte_per_s": _read_rate(_DRAM_BYTES),
        "matmul_fp32_gflop_per_s": _matmul_rate(torch.float32),
        "matmul_bf16_gflop_per_s": _matmul_rate(torch.bfloat16),
    }


def readout_work(head: FoldedFactorTopy, batch: int, precision: str) -> Work:
    """2 D L (corners inside the image + 1) operations a vertex and image; the parameters, tokens
    and responses once: V (w D + 4 (L + 4)) + 4 B L D (H W + 1) + 4 B V bytes, w = 2 in bf16 else 4.
    """
    layers, dim = head.offset_local.shape
    pixels = int(np.prod(head.readout_grid))
    corners, cell = grid_cells(head)
    reads = int(((corners < pixels).sum(axis=1)[cell] + 1).sum())
    rows = len(head.bias)
    parameters = rows * (_WEIGHT_BYTES[precision] * dim + 4 * (layers + 4))
    tokens = 4 * batch * layers * dim * (pixels + 1)
    return Work(2.0 * batch * dim * layers * reads, parameters + tokens + 4.0 * batch * rows)


def align_work(case: Case, batch: int) -> Work:
    """2 L C D (H W + 1) operations of the bottlenecks an image; raw tokens and bottlenecks once."""
    flops = 2.0 * batch * case.L * case.C * case.D * (case.side**2 + 1)
    tokens = 4.0 * batch * case.L * case.C * (case.raw**2 + 1)
    return Work(flops, tokens + 2 * 4.0 * case.L * case.C * case.D)


def tokens_work(case: Case, head: FoldedFactorTopy, batch: int, precision: str) -> Work:
    """Of both parts; what lies between them need not leave the caches."""
    readout, align = readout_work(head, batch, precision), align_work(case, batch)
    return Work(readout.flops + align.flops, readout.bytes + align.bytes)


def training_work(head: FoldedFactorTopy, batch: int) -> Work:
    """Three products of the forward's size; fp32 parameters ten times, tokens, responses and their
    gradients once."""
    forward = readout_work(head, batch, "fp32")
    layers, dim = head.offset_local.shape
    parameters = 4.0 * len(head.bias) * (dim + layers + 4)
    others = forward.bytes - parameters
    return Work(3 * forward.flops, _STEP_PASSES * parameters + 2 * others)


def projection_work(case: Case, batch: int, precision: str) -> Work:
    """2 L K T (C + 1) operations an image; tokens, filters and maps, and the latent once."""
    flops = 2.0 * batch * case.L * case.K * case.T * (case.C + 1)
    constants = _WEIGHT_BYTES[precision] * case.L * case.K * (case.C + case.T)
    return Work(flops, constants + 4.0 * batch * (case.L * case.T * case.C + case.K))


def embed_work(case: Case, batch: int, precision: str) -> Work:
    """2 V K operations an image; the matrix, bias, latent and response once."""
    weights = _WEIGHT_BYTES[precision] * case.V * case.K + 4.0 * case.V
    return Work(2.0 * batch * case.V * case.K, weights + 4.0 * batch * (case.K + case.V))


def blobgpt_work(case: Case, batch: int, precision: str) -> Work:
    """Projection, and the response of S subjects: folded, S V K weights, or unfolded, S R K for the
    maps and V R for the embedding; the fewer operations, and the fewer bytes."""
    projection, width = projection_work(case, batch, precision), _WEIGHT_BYTES[precision]
    folded, maps = case.S * case.V * case.K, (case.S + 1) * case.R * case.K
    products = min(folded, maps + case.S * case.V * case.R)
    weights = width * min(folded, maps + case.V * case.R)
    responses = 4.0 * batch * case.S * case.V
    flops = projection.flops + 2.0 * batch * products
    return Work(flops, projection.bytes + weights + responses)


def phase1_work(case: Case, batch: int) -> Work:
    """Projection forward, again for its maps' gradient, and for its filters'; maps of subjects
    three times, the frozen embedding twice; parameters ten times, tokens and embedding twice."""
    projection = 2.0 * batch * case.L * case.K * case.T * (case.C + 1)
    activity = 2.0 * batch * 2 * case.R * case.K
    response = 2.0 * batch * case.V * case.R
    own = case.L * case.K * (case.C + case.T) + (case.S + 1) * case.R * case.K
    others = batch * (case.L * case.T * case.C + 3 * case.V) + case.V * case.R
    flops = 3 * projection + 3 * activity + 2 * response
    return Work(flops, 4.0 * (_STEP_PASSES * own + 2 * others))


def topk_work(case: Case, batch: int, precision: str) -> Work:
    """2 N F operations an objective; pool and templates once. Only fp32 has a float32 pool."""
    pool = {"fp32": 4.0, "bf16x3": 2.0, "bf16": 2.0}[precision] * case.N * case.F
    return Work(2.0 * batch * case.N * case.F, pool + 4.0 * batch * case.F)


def share(work: Work, seconds: float, precision: str, ceilings: dict[str, float]) -> float:
    """Fraction of the roofline that a call reached: its least possible time over its time."""
    fma = ceilings["fma_gflop_per_s"]
    bf16 = ceilings["matmul_bf16_gflop_per_s"]
    compute = {"fp32": fma, "bf16": max(fma, bf16), "bf16x3": max(fma, bf16 / 3)}[precision]
    level = "l3" if work.bytes <= 2 * _L3_BYTES else "dram"
    bandwidth = ceilings[f"{level}_gbyte_per_s"]
    least = max(work.flops / compute, work.bytes / bandwidth) / 1e9
    return least / seconds


def _read_rate(size: int) -> float:
    values = torch.ones(size // 4)
    matrix = values[: size // 4096 * 1024].view(-1, 1024)
    half, vector = values.numel() // 2, torch.ones(1024)
    reads: list[Callable[[], object]] = [
        values.sum,
        lambda: torch.dot(values[:half], values[half : 2 * half]),
        lambda: torch.mv(matrix, vector),
    ]
    inner = max(1, (1 << 27) // size)
    return max(size * inner / _best_seconds(read, inner) for read in reads) / 1e9


def _matmul_rate(dtype: torch.dtype) -> float:
    left, right = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    return 2 * _SIDE**3 / _best_seconds(lambda: left @ right, 1) / 1e9


def _best_seconds(call: Callable[[], object], inner: int) -> float:
    """Of `inner` calls in a row, the best of some rounds."""
    seconds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for _ in range(inner):
            call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])
