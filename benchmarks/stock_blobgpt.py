"""BlobGPT's head in stock torch, in both orders of the projection's two products."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn

from brainfast.folded_blobgpt import BlobProjection

if TYPE_CHECKING:
    from brainfast.models.blobgpt import BlobGPT

FILTERS, POOL = "filters first", "pool first"
ORDERS = (FILTERS, POOL)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def project(
    tokens: torch.Tensor,  # [B,T,C]
    filters: torch.Tensor,  # [K,C]
    maps: torch.Tensor,  # [K,T]
    order: str,
) -> torch.Tensor:  # [B,K]
    """p[b,k] = sum_t maps[k,t] (filters[k] . tokens[b,t]), as one matrix product and a weighted
    sum: over channels, then tokens, or the other way round."""
    if order == FILTERS:
        return (tokens @ filters.T).mul_(maps.T).sum(1)
    return (maps @ tokens).mul_(filters).sum(2)


def project_grid(
    local: torch.Tensor,  # [B,C,H,W]
    global_: torch.Tensor,  # [B,C]
    filters: torch.Tensor,  # [K,C]
    maps: torch.Tensor,  # [K,H*W+1]
    order: str,
) -> torch.Tensor:  # [B,K]
    """The same of tokens as the trunk's interface gives them, without laying them out anew."""
    pixels = local.flatten(2)
    if order == FILTERS:
        patches = (filters @ pixels).mul_(maps[:, 1:]).sum(2)
    else:
        patches = (maps[:, 1:] @ pixels.transpose(1, 2)).mul_(filters).sum(2)
    return patches + (global_ @ filters.T) * maps[:, 0]


class Projections(nn.Module):
    """Every layer's projection [B,K] in float32, from products in `dtype`.

    grids: tokens come as local [B,C,H,W] of every layer, then global [B,C]; else as [B,T,C] of
    every layer.
    """

    def __init__(
        self,
        filters: Iterable[torch.Tensor],  # [K,C] a layer
        maps: Iterable[torch.Tensor],  # [K,T] a layer
        order: str,
        dtype: torch.dtype,
        *,
        grids: bool,
    ) -> None:
        super().__init__()
        self.order, self.dtype, self.grids = order, dtype, grids
        self.filters, self.maps = (
            nn.ParameterList(constant(matrix, dtype) for matrix in each) for each in (filters, maps)
        )

    def forward(self, *tokens: torch.Tensor) -> list[torch.Tensor]:
        tokens = tuple(token.to(self.dtype) for token in tokens)
        pairs = list(zip(self.filters, self.maps, strict=True))
        layers = len(pairs)
        if not self.grids:
            return [
                project(token, *pair, self.order).float()
                for token, pair in zip(tokens, pairs, strict=True)
            ]
        return [
            project_grid(local, global_, *pair, self.order).float()
            for local, global_, pair in zip(tokens[:layers], tokens[layers:], pairs, strict=True)
        ]


class FoldedProjection(nn.Module):
    """`BlobProjection.run` in stock torch."""

    bias: torch.Tensor

    def __init__(
        self, head: BlobProjection, order: str, dtype: torch.dtype, *, grids: bool
    ) -> None:
        super().__init__()
        filters, maps = (map(torch.from_numpy, each) for each in (head.filters, head.maps))
        self.layers = Projections(filters, maps, order, dtype, grids=grids)
        self.register_buffer("bias", torch.from_numpy(head.latent_bias))

    def forward(self, *tokens: torch.Tensor) -> torch.Tensor:  # [B,K]
        latent: torch.Tensor = torch.stack(self.layers(*tokens)).sum(0) + self.bias
        return latent


class Folded(nn.Module):
    """The folded head in stock torch: one product for the vertices of all subjects."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        projection: FoldedProjection,
        weight: torch.Tensor,  # [S,V,K]
        bias: torch.Tensor,  # [S,V]
    ) -> None:
        super().__init__()
        dtype = projection.layers.dtype
        self.projection, self.subjects = projection, len(bias)
        self.register_buffer("weight", weight.flatten(0, 1).to(dtype))
        self.register_buffer("bias", bias.flatten().to(dtype))

    def forward(self, *tokens: torch.Tensor) -> torch.Tensor:  # [B,S,V]
        latent = self.projection(*tokens).to(self.weight.dtype)
        response = nn.functional.linear(latent, self.weight, self.bias)
        return response.unflatten(1, (self.subjects, -1)).float()


class Unfolded(nn.Module):
    """The head as it was trained, in eval mode; activities of all subjects share one embedding."""

    def __init__(self, model: BlobGPT, order: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = Projections(model.filters, model.maps, order, dtype, grids=True)
        self.norms = deepcopy(model.norms).requires_grad_(False)
        arrays = (model.shared, model.subject_weight, model.subject_bias, model.weight, model.bias)
        self.constants = nn.ParameterList(constant(array, dtype) for array in arrays)

    def forward(self, *tokens: torch.Tensor) -> torch.Tensor:  # [B,S,V]
        shared, subject_weight, subject_bias, weight, bias = self.constants
        normed = [norm(part) for norm, part in zip(self.norms, self.layers(*tokens), strict=True)]
        latent = torch.stack(normed).mean(0).to(weight.dtype)
        own = nn.functional.linear(latent, subject_weight.flatten(0, 1), subject_bias.flatten())
        own = own.unflatten(1, (len(subject_bias), -1))  # [B,S,R]
        activity = own + nn.functional.linear(latent, shared)[:, None]
        return nn.functional.linear(activity, weight, bias).float()


def constant(tensor: torch.Tensor, dtype: torch.dtype) -> nn.Parameter:
    """A parameter without gradient, which shares memory where the dtype is the same."""
    return nn.Parameter(tensor.detach().to(dtype), requires_grad=False)


def bytes_of(module: nn.Module) -> int:
    """Of its parameters and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
