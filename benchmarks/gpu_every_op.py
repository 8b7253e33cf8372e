"""Every CUDA op and plan once, at odd sizes: small enough for compute-sanitizer.

compute-sanitizer --tool memcheck python benchmarks/gpu_every_op.py
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial

import torch

from brainfast import ops
from brainfast.ops import factor_readout_cuda, reference
from brainfast.ops.factor_projection_cuda import CudaFactorProjectionPlan
from brainfast.ops.vertex_embed_cuda import CudaVertexEmbedPlan

SIZES = ((2, 37, 3, 20, 3, 5), (9, 70, 13, 130, 2, 2), (1, 1, 1, 1, 1, 1))  # B V L D H W
KINDS = (torch.float32, torch.bfloat16)
BARS = {torch.float32: 1e-4, torch.bfloat16: 3e-2}  # of the largest value


def calls(device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is called, by name; each compares what it got with plain torch."""
    for sizes in SIZES:
        for kind in KINDS:
            yield f"factor_readout {sizes} {kind}", partial(_readout, device, sizes, kind)
        for precision in ("fp32", "bf16x3", "bf16"):
            yield f"plan {sizes} {precision}", partial(_plan, device, sizes, precision)
    for kind in KINDS:
        for batch, tokens, channels, latent in ((3, 17, 21, 37), (1, 1, 1, 1), (33, 5, 72, 130)):
            shapes = ((batch, tokens, channels), (latent, channels), (latent, tokens))
            arguments = _random(device, kind, *shapes)
            yield (
                f"factor_projection {shapes} {kind}",
                partial(_same, ops.factor_projection, reference.factor_projection, arguments),
            )
            shapes = ((batch, channels), (latent, channels), (latent,))
            arguments = _random(device, kind, *shapes)
            yield (
                f"vertex_embed {shapes} {kind}",
                partial(_same, ops.vertex_embed, reference.vertex_embed, arguments),
            )
            if device.type == "cuda":
                sizes = (batch, tokens, channels, latent)
                for precision in ("fp32", "bf16x3", "bf16"):
                    yield (
                        f"BlobGPT's plans {sizes} {precision}",
                        partial(_blobgpt_plans, device, sizes, precision),
                    )
    for sizes in ((70, 33, 3, 5), (1, 1, 1, 1), (1000, 65, 9, 10)):
        for kind in KINDS:
            yield f"score_topk {sizes} {kind}", partial(_scores, device, sizes, kind)


def _readout(device: torch.device, sizes: tuple[int, ...], kind: torch.dtype) -> None:
    """Forward and all gradients."""
    _same(ops.factor_readout, reference.factor_readout_cells, _case(device, sizes, kind))


def _plan(device: torch.device, sizes: tuple[int, ...], precision: str) -> None:
    local, global_, *constants = _case(device, sizes, torch.float32)
    if device.type != "cuda":
        return
    plan = factor_readout_cuda.CudaFactorReadoutPlan(*constants, *sizes[4:], precision=precision)
    expected = reference.factor_readout_cells(local, global_, *constants)
    _close(plan.run(local, global_), expected, 1e-4 if precision != "bf16" else 3e-2)


def _blobgpt_plans(device: torch.device, sizes: tuple[int, ...], precision: str) -> None:
    """Two layers of tokens as sequences, and as a class token before a grid; then the embedding."""
    images, places, channels, latent = sizes
    bar = BARS[torch.bfloat16 if precision == "bf16" else torch.float32]
    shapes = ((images, channels, places, 1), (images, channels), (latent, channels))
    grid, summary, filters, maps, bias = _random(
        device, torch.float32, *shapes, (latent, places + 1), (latent,)
    )
    tokens = torch.cat([summary[:, None], grid.flatten(2).transpose(1, 2)], dim=1)
    expected = bias + 2 * reference.factor_projection(tokens, filters, maps)
    plan = CudaFactorProjectionPlan([filters] * 2, [maps] * 2, bias, precision=precision)
    _close(plan.run([tokens] * 2), expected, bar)
    _close(plan.run([grid] * 2, [summary] * 2), expected, bar)
    weight, offset = _random(device, torch.float32, (places + 30, latent), (places + 30,))
    response = CudaVertexEmbedPlan(weight, offset, precision=precision).run(expected)
    _close(response, reference.vertex_embed(expected, weight, offset), bar)


def _scores(device: torch.device, sizes: tuple[int, ...], kind: torch.dtype) -> None:
    """Of N candidates with F features for O objectives the k best, some left out."""
    count, features, objectives, best = sizes
    pool, templates = _random(device, kind, (count, features), (objectives, features))
    out = torch.arange(count, device=device) % 7 == 3
    scores, indices = ops.score_topk(pool, templates, best, out)
    every = (templates.float() @ pool.float().T).masked_fill(out, -torch.inf)
    _close(scores, every.topk(best, dim=1).values, BARS[torch.float32])
    _close(every.gather(1, indices), scores, BARS[torch.float32])


def _same(
    ours: Callable[..., torch.Tensor],
    twin: Callable[..., torch.Tensor],
    arguments: list[torch.Tensor],
) -> None:
    """Answer and gradients of an op against its twin's in float32."""
    bar = BARS[arguments[0].dtype]
    wide = [tensor.float().requires_grad_() for tensor in arguments]
    own = [tensor.requires_grad_() for tensor in arguments]
    expected, found = twin(*wide), ours(*own)
    _close(found, expected, bar)
    grad = torch.randn_like(expected)
    pairs = (torch.autograd.grad(found, own, grad), torch.autograd.grad(expected, wide, grad))
    for a, b in zip(*pairs, strict=True):
        _close(a.float(), b, 2 * bar)


def _case(device: torch.device, sizes: tuple[int, ...], kind: torch.dtype) -> list[torch.Tensor]:
    images, vertices, layers, channels, height, width = sizes
    shapes = ((images, layers, channels, height, width), (images, layers, channels), (vertices, 2))
    shapes += ((vertices, layers), (vertices,), (vertices, channels), (vertices,))
    local, global_, space, layer, scale, weight, bias = _random(device, kind, *shapes)
    return [local, global_, 0.7 * space, layer.softmax(1), scale.sigmoid(), weight, bias]


def _random(
    device: torch.device, kind: torch.dtype, *shapes: tuple[int, ...]
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(shape, generator=generator).to(device, kind) for shape in shapes]


def _close(found: torch.Tensor, expected: torch.Tensor, bar: float) -> None:
    found, expected = found.detach(), expected.detach()
    error = float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-6))
    if not error <= bar:
        raise SystemExit(f"expected an error of at most {bar:.0e}, got {error:.1e}")


def main(device: torch.device) -> None:
    """Call everything; a wrong answer ends it with its name."""
    for name, call in calls(device):
        print(name, flush=True)
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    main(torch.device("cuda", torch.cuda.current_device()))
