"""Folded heads as torch modules: constants on a device, raw tokens in, responses out.

The same numbers as the folded heads in numpy, in the same precision. Nothing waits for the device
once a batch of the same shapes has been through, so that a CUDA graph can capture a call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from .errors import BrainfastError
from .folded import Array, FoldedFactorTopy, Precision
from .folded_blobgpt import BlobProjection, FoldedBlobGPT
from .ops import (
    factor_projection,
    factor_projection_cuda,
    factor_readout_cuda,
    reference,
    vertex_embed,
    vertex_embed_cuda,
)
from .ops.factor_projection_cuda import CudaFactorProjectionPlan
from .ops.vertex_embed_cuda import CudaVertexEmbedPlan
from .strict_fp32 import strict_fp32
from .tokens import Tokens

PLAN_LAYERS = 32  # of a CUDA projection plan
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Run = Callable[..., torch.Tensor]


class DeviceHead(Protocol):
    """response [B,V] = head(tokens): torch tokens of one device, float32 out, on that device.

    columns: which part of V answers for which subject; "" where there is one only.
    """

    columns: dict[str, slice]
    layers: tuple[int, ...]

    def __call__(self, tokens: Tokens) -> torch.Tensor: ...


class DeviceFactorTopy(nn.Module):
    """A folded FactorTopy head on a device: alignment in strict fp32, readout in its precision.

    Tokens are down-sampled to the grid, brought to D channels and read out. On CUDA the readout is
    the compiled kernels', packed once; where they are not usable, and on the CPU, `CellReadout`.
    """

    def __init__(self, head: FoldedFactorTopy, device: torch.device | str) -> None:
        super().__init__()
        device = _indexed(device)
        self.device, self.layers, self.channels = device, head.layers, head.channels
        self.grid, self.pool_space, self.samples = head.grid, head.pool_space, head.samples
        self.readout_grid = head.readout_grid
        self.columns = {"": slice(0, head.V)}
        self.local = _linears(head.bottleneck_local, head.offset_local).to(device)
        self.global_ = _linears(head.bottleneck_global, head.offset_global).to(device)
        self.read = _readout(head, device)
        self._resampling: dict[tuple[int, int], torch.Tensor] = {}  # by token grid

    def forward(self, tokens: Tokens) -> torch.Tensor:  # [B,V]
        with strict_fp32():
            response = self.read(*self.align(tokens))
        if self.samples == 1:
            return response
        return response.reshape(len(response), -1, self.samples).sum(dim=2)

    def align(self, tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor]:  # [B,L,D,H,W], [B,L,D]
        """Raw tokens -> every layer's in the shared channels, float32: two products a layer."""
        _check_tokens(self, tokens)
        with strict_fp32():
            local = [
                bottleneck(self._resample(patches.float())).transpose(1, 2)
                for bottleneck, patches in zip(self.local, tokens.local, strict=True)
            ]
            global_ = [
                bottleneck(summary.float())
                for bottleneck, summary in zip(self.global_, tokens.global_, strict=True)
            ]
        stacked = torch.stack(local, dim=1)  # [B,L,D,P]
        return stacked.view(*stacked.shape[:3], *self.readout_grid), torch.stack(global_, dim=1)

    def _resample(self, patches: torch.Tensor) -> torch.Tensor:  # [B,P,C] of [B,C,H,W]
        grid = (patches.shape[2], patches.shape[3])
        if grid == self.readout_grid:
            return _sequence(patches)
        if grid not in self._resampling:
            self._resampling[grid] = self._weights(grid).to(patches.device)
        return self._resampling[grid] @ _sequence(patches)

    def _weights(self, grid: tuple[int, int]) -> torch.Tensor:  # [P,T]
        """Bilinear down-sampling of a token grid, and its mean where space is pooled."""
        basis = torch.eye(grid[0] * grid[1]).view(-1, 1, *grid)  # [T,1,H,W]
        weights = functional.interpolate(
            basis, size=self.grid, mode="bilinear", align_corners=False
        )
        if self.pool_space:
            weights = weights.mean(dim=(2, 3), keepdim=True)
        return weights.flatten(1).T.contiguous()


class CellReadout(nn.Module):
    """y_v = bias_v + sum_k coef_vk (weight_v . x_k) / D, a matrix product for every grid cell.

    The cell form of the readout with everything evaluated that does not depend on the image, in
    plain torch: for devices without compiled kernels. "bf16" rounds tokens and weight, "bf16x3"
    multiplies their high and low halves; products and sums are float32 in both.
    """

    bias: torch.Tensor
    places: torch.Tensor

    def __init__(self, head: FoldedFactorTopy) -> None:
        super().__init__()
        self.precision = head.precision
        arrays = (head.space, head.scale, head.layer, head.weight)
        space, scale, layer, weight = map(torch.from_numpy, arrays)
        sampling = reference.sample(space, scale, head.readout_grid, False)
        self.cells = nn.ModuleList(
            _Cell(cell, layer, weight, head.precision) for cell in sampling.cells()
        )
        self.register_buffer("places", torch.argsort(sampling.order))
        self.register_buffer("bias", torch.from_numpy(head.bias))

    def forward(
        self,
        local: torch.Tensor,  # [B,L,D,H,W]
        global_: torch.Tensor,  # [B,L,D]
    ) -> torch.Tensor:  # [B,V]
        tokens = torch.cat([local.flatten(3), global_[..., None]], dim=3).permute(0, 3, 1, 2)
        operands = _halves(tokens, self.precision)
        parts = [local.new_empty(len(local), 0), *(cell(operands) for cell in self.cells)]
        return torch.cat(parts, dim=1)[:, self.places] + self.bias


class _Cell(nn.Module):
    tokens: torch.Tensor
    mix: torch.Tensor

    def __init__(
        self,
        cell: reference.Cell,
        layer: torch.Tensor,  # [V,L]
        weight: torch.Tensor,  # [V,D]
        precision: Precision,
    ) -> None:
        super().__init__()
        mix = cell.coefficients[:, None] * layer[cell.vertices].T / weight.shape[1]  # [S,L,n]
        self.register_buffer("tokens", cell.tokens)
        self.register_buffer("mix", mix.flatten(0, 1))
        self.weight = _Factors(weight[cell.vertices], precision)

    def forward(self, operands: list[torch.Tensor]) -> torch.Tensor:  # [B,n] of [B,P,L,D]
        def dots(tokens: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return tokens[:, self.tokens].flatten(1, 2) @ weight.T  # [B,S*L,n]

        found: torch.Tensor = (self.weight(dots, operands) * self.mix).sum(dim=1)
        return found


class DeviceBlobGPT(nn.Module):
    """BlobGPT's subjects on a device: one latent, and one matrix with the rows of all of them.

    The response is [B,V], V the vertices of all subjects one after another: `columns` says whose.
    """

    def __init__(
        self,
        projection: BlobProjection,
        heads: Mapping[str, FoldedBlobGPT],
        device: torch.device | str,
    ) -> None:
        super().__init__()
        device = _indexed(device)
        self.device, self.layers, self.channels = device, projection.layers, projection.channels
        self.grids, self.class_token = projection.grids, projection.class_token
        stops = np.cumsum([head.V for head in heads.values()]).tolist()
        self.columns = {
            subject: slice(stop - head.V, stop)
            for (subject, head), stop in zip(heads.items(), stops, strict=True)
        }
        self.project, self.embed = _blobgpt_parts(projection, heads, device)

    def forward(self, tokens: Tokens) -> torch.Tensor:  # [B,V]
        _check_tokens(self, tokens)
        if tokens.grids != self.grids:
            raise BrainfastError("tokens", expected=f"grids {self.grids}", got=f"{tokens.grids}")
        wide = tokens.map(torch.Tensor.float)
        with strict_fp32():
            latent = self.project(wide.local, wide.global_ if self.class_token else None)
            response: torch.Tensor = self.embed(latent)
        return response


def _blobgpt_parts(
    projection: BlobProjection, heads: Mapping[str, FoldedBlobGPT], device: torch.device
) -> tuple[Run, Run]:
    """Raw tokens -> latent [B,K], and latent -> response [B,V]."""
    weight = torch.cat([torch.from_numpy(head.weight) for head in heads.values()])
    bias = torch.cat([torch.from_numpy(head.bias) for head in heads.values()])
    embed: Run
    if _on_kernels(vertex_embed_cuda, device):
        plan = CudaVertexEmbedPlan(
            weight.to(device), bias.to(device), precision=projection.precision
        )
        embed = plan.run
    else:
        embed = _Embedding(weight, bias, projection.precision).to(device)
    return _project(projection, device), embed


def _project(projection: BlobProjection, device: torch.device) -> Run:
    """By the compiled kernels where they are usable, else torch, as for the other operators."""
    if len(projection.layers) > PLAN_LAYERS or not _on_kernels(factor_projection_cuda, device):
        return _Projection(projection).to(device)
    filters, maps = (
        [torch.from_numpy(array).to(device) for array in arrays]
        for arrays in (projection.filters, projection.maps)
    )
    bias = torch.from_numpy(projection.latent_bias).to(device)
    return CudaFactorProjectionPlan(filters, maps, bias, precision=projection.precision).run


class _Projection(nn.Module):
    """latent = sum over layers of `factor_projection`, and the bias."""

    bias: torch.Tensor

    def __init__(self, projection: BlobProjection) -> None:
        super().__init__()
        self.precision = projection.precision
        self.filters = nn.ModuleList(
            _Factors(torch.from_numpy(array), self.precision) for array in projection.filters
        )
        self.maps = nn.ParameterList(
            nn.Parameter(torch.from_numpy(array), requires_grad=False) for array in projection.maps
        )
        self.register_buffer("bias", torch.from_numpy(projection.latent_bias))

    def forward(
        self,
        local: Sequence[torch.Tensor],  # [B,C_l,H_l,W_l] a layer
        global_: Sequence[torch.Tensor] | None,  # [B,C_l] a layer, where there are class tokens
    ) -> torch.Tensor:  # [B,K]
        latent = self.bias.expand(len(local[0]), -1)
        sequences = [_sequence(patches) for patches in local]
        if global_ is not None:
            pairs = zip(global_, sequences, strict=True)
            sequences = [torch.cat([first[:, None], rest], dim=1) for first, rest in pairs]
        for tokens, filters, maps in zip(sequences, self.filters, self.maps, strict=True):
            project = partial(factor_projection, maps=maps)
            latent = latent + filters(project, _halves(tokens, self.precision))
        return latent


class _Embedding(nn.Module):
    """response = weight latent + bias by `vertex_embed`."""

    bias: torch.Tensor
    zero: torch.Tensor

    def __init__(
        self,
        weight: torch.Tensor,  # [V,K]
        bias: torch.Tensor,  # [V]
        precision: Precision,
    ) -> None:
        super().__init__()
        self.precision = precision
        self.weight = _Factors(weight, precision)
        self.register_buffer("bias", bias)
        self.register_buffer("zero", torch.zeros_like(bias))

    def forward(self, latent: torch.Tensor) -> torch.Tensor:  # [B,V] of [B,K]
        embed = partial(vertex_embed, bias=self.zero)
        response: torch.Tensor = self.weight(embed, _halves(latent, self.precision))
        return response + self.bias


class _Factors(nn.Module):
    """The constant operand of a product in a precision: itself, rounded, or what takes halves.

    bf16x3 is high high + high low + low high: as float32 holds high + low of the constant, the
    first two are one product.
    """

    def __init__(self, constant: torch.Tensor, precision: Precision) -> None:
        super().__init__()
        parts = _halves(constant, precision)
        if len(parts) == 2:
            parts = [parts[0] + parts[1], parts[0]]
        self.parts = nn.ParameterList(nn.Parameter(part, requires_grad=False) for part in parts)

    def forward(self, product: Product, operands: Sequence[torch.Tensor]) -> torch.Tensor:
        """product(operand, constant), summed over the parts that `_halves` made of the operand."""
        found = [product(*pair) for pair in zip(operands, self.parts, strict=True)]
        return found[0] if len(found) == 1 else found[0] + found[1]


def _halves(tensor: torch.Tensor, precision: Precision) -> list[torch.Tensor]:
    """float32: the tensor, or its bfloat16 rounding, or that and the rounding of what is left."""
    if precision == "fp32":
        return [tensor]
    high = tensor.bfloat16().float()
    return [high] if precision == "bf16" else [high, (tensor - high).bfloat16().float()]


def _readout(head: FoldedFactorTopy, device: torch.device) -> Run:
    """(local, global_) -> response: the compiled kernels where they are usable, else torch."""
    if len(head.bias) and _on_kernels(factor_readout_cuda, device):
        arrays = (head.space, head.layer, head.scale, head.weight, head.bias)
        space, layer, scale, weight, bias = (torch.from_numpy(a).to(device) for a in arrays)
        height, width = head.readout_grid
        plan = factor_readout_cuda.CudaFactorReadoutPlan
        return plan(space, layer, scale, weight, bias, height, width, precision=head.precision).run
    return CellReadout(head).to(device)


def _on_kernels(operator: Any, device: torch.device) -> bool:
    """Whether a device runs an operator's compiled kernels; `operator`: its module in `ops`."""
    return device.type == "cuda" and bool(operator.usable(device))


def _linears(
    matrices: Sequence[Array],  # [D,C_l] a layer
    offsets: Array,  # [L,D]
) -> nn.ModuleList:
    found = nn.ModuleList()
    for matrix, offset in zip(matrices, offsets, strict=True):
        linear = nn.Linear(matrix.shape[1], matrix.shape[0], device="meta")
        linear.weight = nn.Parameter(torch.from_numpy(matrix), requires_grad=False)
        linear.bias = nn.Parameter(torch.from_numpy(offset), requires_grad=False)
        found.append(linear)
    return found


def _sequence(patches: torch.Tensor) -> torch.Tensor:
    """[B,C,H,W] -> [B,T,C], a view of what a transformer gives."""
    return patches.flatten(2).transpose(1, 2)


def _indexed(device: torch.device | str) -> torch.device:
    """The device as its tensors name it: cuda is cuda:0, or the current one."""
    return torch.empty(0, device=device).device


def _check_tokens(head: DeviceFactorTopy | DeviceBlobGPT, tokens: Tokens) -> None:
    if tokens.layers != head.layers or tokens.channels != head.channels:
        raise BrainfastError(
            "tokens",
            expected=f"layers {head.layers} with channels {head.channels}",
            got=f"layers {tokens.layers} with channels {tokens.channels}",
            remedy="use the trunk that this head was trained on",
        )
    for layer, *parts in zip(tokens.layers, tokens.local, tokens.global_, strict=True):
        elsewhere = {part.device for part in parts} - {head.device}
        if elsewhere:
            raise BrainfastError(
                f"tokens of layer {layer}",
                expected=f"on {head.device}, as the head is",
                got=f"on {elsewhere.pop()}",
                remedy=f"move them with tokens.map(lambda array: array.to({str(head.device)!r}))",
            )
