"""Readable twins of the compiled operators, in plain torch, on any device and in any precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from .reference_blobgpt import factor_projection, factor_projection_backward, vertex_embed
from .reference_topk import score_topk

__all__ = [
    "align_tokens",
    "factor_projection",
    "factor_projection_backward",
    "factor_readout",
    "factor_readout_cells",
    "factor_readout_cells_backward",
    "score_topk",
    "vertex_embed",
]


def align_tokens(
    local: Sequence[torch.Tensor],  # [B,C_l,H_l,W_l] a layer
    global_: Sequence[torch.Tensor],  # [B,C_l] a layer
    bottleneck_local: Sequence[torch.Tensor],  # [D,C_l] a layer
    bottleneck_global: Sequence[torch.Tensor],  # [D,C_l] a layer
    offset_local: torch.Tensor,  # [L,D]
    offset_global: torch.Tensor,  # [L,D]
    grid: tuple[int, int],  # H, W
    *,
    pool_space: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # [B,L,D,H,W], [B,L,D]
    """local_l = bottleneck_l resample(x_l) + offset_l, and the same for the global tokens.

    The resampling is bilinear, align_corners=False, no antialias. `pool_space` averages over the
    grid: local [B,L,D,1,1]. All of one dtype; B >= 1.
    Source: Yang et al., Brain Decodes Deep Nets, Listing 1.
    """
    aligned = []
    for tokens, matrix, offset in zip(local, bottleneck_local, offset_local, strict=True):
        resampled = functional.interpolate(tokens, size=grid, mode="bilinear", align_corners=False)
        if pool_space:
            resampled = resampled.mean(dim=(2, 3), keepdim=True)
        aligned.append(torch.einsum("dc,bchw->bdhw", matrix, resampled) + offset[:, None, None])
    products = [tokens @ m.T for tokens, m in zip(global_, bottleneck_global, strict=True)]
    return torch.stack(aligned, dim=1), torch.stack(products, dim=1) + offset_global


def factor_readout(
    local: torch.Tensor,  # [B,L,D,H,W]
    global_: torch.Tensor,  # [B,L,D]
    space: torch.Tensor,  # [V,2]
    layer: torch.Tensor,  # [V,L]
    scale: torch.Tensor,  # [V]
    weight: torch.Tensor,  # [V,D]
    bias: torch.Tensor,  # [V]
    *,
    align_corners: bool = False,
) -> torch.Tensor:  # [B,V]
    """y = mean_D(weight sum_l layer_l ((1-scale) interp_l + scale global_l)) + bias.

    The paper's Listing 1 as it stands: every layer is sampled at every vertex, so it needs memory
    for [B,L,D,V] and serves as the oracle, not as an implementation. All of one dtype; B, V >= 1.
    Source: Yang et al., Brain Decodes Deep Nets, Listing 1.
    """
    images, layers, channels, height, width = local.shape
    sampled = functional.grid_sample(
        local.reshape(images, layers * channels, height, width),
        space[None, :, None].expand(images, -1, -1, -1),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=align_corners,
    )
    v_local = sampled.reshape(images, layers, channels, -1)  # [B,L,D,V]
    v = (1 - scale) * v_local + scale * global_[..., None]
    v = (v * layer.T[:, None]).sum(dim=1)  # [B,D,V]
    return (v * weight.T).mean(dim=1) + bias


def factor_readout_cells(
    local: torch.Tensor,  # [B,L,D,H,W]
    global_: torch.Tensor,  # [B,L,D]
    space: torch.Tensor,  # [V,2]
    layer: torch.Tensor,  # [V,L]
    scale: torch.Tensor,  # [V]
    weight: torch.Tensor,  # [V,D]
    bias: torch.Tensor,  # [V]
    *,
    align_corners: bool = False,
) -> torch.Tensor:  # [B,V]
    """y_v = bias_v + sum_k coef_vk (weight_v . x_k) / D over the tokens that vertex v reads.

    The same function of the same arguments as `factor_readout`, as one matrix product a grid cell:
    vertices whose sampling points lie between the same pixels read the same tokens. Nothing of size
    V x D x L exists. Differentiable.
    """
    sampling = sample(space, scale, local.shape[-2:], align_corners)
    tokens = _join(local, global_)
    parts = [local.new_empty(local.shape[0], 0)]
    for cell in sampling.cells():
        dots = tokens[:, cell.tokens] @ weight[cell.vertices].T  # [B,S,L,n]
        mixed = (dots * layer[cell.vertices].T).sum(dim=2)
        parts.append((mixed * cell.coefficients).sum(dim=1))
    sorted_ = torch.cat(parts, dim=1)
    return sorted_[:, torch.argsort(sampling.order)] / weight.shape[1] + bias


def factor_readout_cells_backward(
    grad_output: torch.Tensor,  # [B,V]
    local: torch.Tensor,  # [B,L,D,H,W]
    global_: torch.Tensor,  # [B,L,D]
    space: torch.Tensor,  # [V,2]
    layer: torch.Tensor,  # [V,L]
    scale: torch.Tensor,  # [V]
    weight: torch.Tensor,  # [V,D]
    *,
    align_corners: bool = False,
) -> tuple[torch.Tensor, ...]:
    """Gradients of `factor_readout_cells` in the order of its arguments, bias last.

    Written out, because an operator's kernel runs below autograd. The same bits on every run.
    """
    sampling = sample(space, scale, local.shape[-2:], align_corners)
    tokens = _join(local, global_)
    grad_tokens, grad_weight = torch.zeros_like(tokens), torch.empty_like(weight)
    grad_layer, grad_corner = torch.empty_like(layer), scale.new_zeros(5, len(scale))
    for cell in sampling.cells():
        x, w = tokens[:, cell.tokens], weight[cell.vertices]
        mix, grad = layer[cell.vertices].T, grad_output[:, None, None, cell.vertices]
        grad_dots = grad * (cell.coefficients[:, None] * mix)  # [B,S,L,n]
        grad_tokens[:, cell.tokens] += grad_dots @ w
        grad_weight[cell.vertices] = torch.einsum("bsln,bsld->nd", grad_dots, x)
        sums = (grad * (x @ w.T)).sum(dim=0)  # [S,L,n]
        grad_layer[cell.vertices] = (sums * cell.coefficients[:, None]).sum(dim=0).T
        grad_corner[cell.corners[:, None], cell.vertices] = (sums * mix).sum(dim=1)
    grad_space, grad_scale = sampling.chain(grad_corner, scale)
    mean = 1 / weight.shape[1]
    grad_tokens = grad_tokens.permute(0, 2, 3, 1) * mean  # [B,L,D,P+1]
    return (
        grad_tokens[..., :-1].reshape(local.shape),
        grad_tokens[..., -1].contiguous(),
        grad_space * mean,
        grad_layer * mean,
        grad_scale * mean,
        grad_weight * mean,
        grad_output.sum(dim=0),
    )


@dataclass(frozen=True)
class Cell:
    """Vertices that lie between the same pixels, and the S tokens that they read."""

    vertices: torch.Tensor  # [n]
    tokens: torch.Tensor  # [S], H*W for the global ones
    corners: torch.Tensor  # [S], 0..3 = (y0,x0) (y0,x1) (y1,x0) (y1,x1), 4 = global
    coefficients: torch.Tensor  # [S,n]


@dataclass(frozen=True)
class Sampling:
    """Where every vertex falls in the grid, and in which order the cells hold the vertices."""

    size: Sequence[int]  # H, W
    fraction: torch.Tensor  # [V,2], x and y inside the cell
    slope: torch.Tensor  # [V,2], pixels per unit of space; 0 where nothing is read
    coefficients: torch.Tensor  # [5,V]
    order: torch.Tensor  # [V]
    counts: list[int]  # [(H+1)*(W+1)]

    def cells(self) -> Iterator[Cell]:
        """The cells that hold vertices, each with the corners inside the image and the globals."""
        height, width = self.size
        start = 0
        for index, count in enumerate(self.counts):
            if not count:
                continue
            vertices = self.order[start : start + count]
            start += count
            y, x = index // (width + 1) - 1, index % (width + 1) - 1
            near = [(y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)]
            corners = [k for k, (a, b) in enumerate(near) if 0 <= a < height and 0 <= b < width]
            tokens = [near[k][0] * width + near[k][1] for k in corners]
            corner_index = torch.tensor([*corners, 4], device=vertices.device)
            yield Cell(
                vertices,
                torch.tensor([*tokens, height * width], device=vertices.device),
                corner_index,
                self.coefficients[corner_index[:, None], vertices],
            )

    def chain(
        self,
        grad_corner: torch.Tensor,  # [5,V]
        scale: torch.Tensor,  # [V]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of space [V,2] and scale [V] from those of the five coefficients."""
        x, y = self.fraction.T
        nw, ne, sw, se, whole = grad_corner
        top, bottom = torch.lerp(nw, ne, x), torch.lerp(sw, se, x)
        across = torch.lerp(ne - nw, se - sw, y)
        grad_space = torch.stack([across, bottom - top], dim=1) * (1 - scale)[:, None]
        return grad_space * self.slope, whole - torch.lerp(top, bottom, y)


def sample(
    space: torch.Tensor,  # [V,2]
    scale: torch.Tensor,  # [V]
    size: Sequence[int],  # H, W
    align_corners: bool,
) -> Sampling:
    """Sort sampling points, x then y in -1..1, into the grid's cells; zeros lie outside."""
    height, width = size
    limit = space.new_tensor([width, height])
    if align_corners:
        pixel, slope = (space + 1) / 2 * (limit - 1), (limit - 1) / 2
    else:
        pixel, slope = ((space + 1) * limit - 1) / 2, limit / 2
    inside = (pixel >= -1) & (pixel < limit)
    # Past the border ring nothing is read: held at the ring's far edge, the one pixel of that cell
    # which is inside the image gets the coefficient 0.
    held = torch.where(inside, pixel, torch.clamp(pixel.detach(), -torch.ones_like(limit), limit))
    first = torch.minimum(torch.floor(held.detach()), limit - 1)
    fraction = held - first
    x, y = fraction.T
    corners = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y])
    column, row = first.long().T + 1
    cell = row * (width + 1) + column
    return Sampling(
        size=size,
        fraction=fraction,
        slope=inside * slope,
        coefficients=torch.cat([corners * (1 - scale), scale[None]]),
        order=torch.argsort(cell, stable=True),
        counts=torch.bincount(cell, minlength=(height + 1) * (width + 1)).tolist(),
    )


def _join(
    local: torch.Tensor,  # [B,L,D,H,W]
    global_: torch.Tensor,  # [B,L,D]
) -> torch.Tensor:  # [B,H*W+1,L,D]
    return torch.cat([local.flatten(3), global_[..., None]], dim=3).permute(0, 3, 1, 2)
