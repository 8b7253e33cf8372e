"""What the GPU can do at best, measured in the process that measures the forms."""

from __future__ import annotations

import torch

import gpu_clock

COPY_BYTES = 1 << 32
SIDE = 8192  # of the square matrix product
ROUNDS = 7


def measure(device: torch.device) -> dict[str, float]:
    """copy_tbyte_per_s: bytes read and written by a copy of 4 GiB; matmul_{fp32,bf16}_tflop_per_s:
    torch's product of two random 8192 x 8192 matrices, strict float32 and bfloat16."""
    return {
        "copy_tbyte_per_s": _copy_rate(device),
        "matmul_fp32_tflop_per_s": _matmul_rate(device, torch.float32),
        "matmul_bf16_tflop_per_s": _matmul_rate(device, torch.bfloat16),
    }


def _copy_rate(device: torch.device) -> float:
    size = min(COPY_BYTES, gpu_clock.free_bytes(device) // 4)
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(device, lambda: target.copy_(source)) / 1e12


def _matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    left, right = (torch.randn(SIDE, SIDE, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * SIDE**3 / _best(device, lambda: torch.mm(left, right, out=out)) / 1e12


def _best(device: torch.device, call: gpu_clock.Call) -> float:
    for _ in range(2):
        call()
    return min(gpu_clock.seconds(device, call) for _ in range(ROUNDS))
