"""Folded heads as torch modules: what an exported graph computes from the trunk's tokens on.

Inside an export a compiled head is one node, see `functions`; outside it is its twin in torch, so
that the graph can be run where no ONNX runtime has its precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from ..cells import CellBlocks, cell_blocks
from ..folded import FoldedFactorTopy
from ..folded_blobgpt import BlobProjection, FoldedBlobGPT
from ..models.blobgpt import flatten_tokens
from ..ops import reference
from ..tokens import Tokens
from .functions import EMBED, PROJECTION, READOUT, node, readout_function


class FactorTopyHead(nn.Module):
    """Raw tokens -> the response [B,V], or the scores [B,O] of objectives on it."""

    def __init__(self, head: FoldedFactorTopy, weights: NDArray[np.float32] | None) -> None:
        super().__init__()
        self.align = Align(head)
        self.readout = Readout(head) if weights is None else FactorTopyScores(head, weights)

    def forward(self, tokens: Tokens) -> tuple[torch.Tensor, ...]:
        """One output."""
        return (self.readout(*self.align(tokens)),)


class BlobGPTHead(nn.Module):
    """Raw tokens -> the response [B,V_s] or the scores [B,O] of every subject, by one latent."""

    def __init__(
        self,
        heads: Mapping[str, FoldedBlobGPT],
        weights: Mapping[str, NDArray[np.float32]] | None,
    ) -> None:
        super().__init__()
        self.project = Projection(next(iter(heads.values())).projection)
        self.readouts = nn.ModuleList(
            VertexEmbed(head.weight, head.bias) if weights is None else _scores(head, weights[name])
            for name, head in heads.items()
        )

    def forward(self, tokens: Tokens) -> tuple[torch.Tensor, ...]:
        """One output a subject."""
        latent = self.project(tokens)
        return tuple(readout(latent) for readout in self.readouts)


class Align(nn.Module):
    """local_l = bottleneck_l resample(x_l) + offset_l, and the same for the global tokens."""

    def __init__(self, head: FoldedFactorTopy) -> None:
        super().__init__()
        self.grid, self.pool_space = head.grid, head.pool_space
        self.local = _constants(head.bottleneck_local)
        self.global_ = _constants(matrix.T for matrix in head.bottleneck_global)
        self.offset_local = _constants(offset[:, None] for offset in head.offset_local)
        self.offset_global = _constant(head.offset_global)

    def forward(
        self,
        tokens: Tokens,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B,L,D,H,W], [B,L,D]
        local = [
            matrix @ self._resample(part).flatten(2) + offset
            for part, matrix, offset in zip(
                tokens.local, self.local, self.offset_local, strict=True
            )
        ]
        products = [x @ matrix for x, matrix in zip(tokens.global_, self.global_, strict=True)]
        grid = (1, 1) if self.pool_space else self.grid
        aligned = torch.stack(local, dim=1)
        aligned = aligned.reshape(*aligned.shape[:3], *grid)
        return aligned, torch.stack(products, dim=1) + self.offset_global

    def _resample(self, local: torch.Tensor) -> torch.Tensor:  # [B,C,h,w] -> [B,C,H,W]
        if local.shape[2:] != self.grid:
            local = functional.interpolate(
                local, size=self.grid, mode="bilinear", align_corners=False
            )
        return local.mean(dim=(2, 3), keepdim=True) if self.pool_space else local


class Readout(nn.Module):
    """The node factor_readout: aligned tokens -> response [B,V]. Samples of a vertex are summed."""

    weight: torch.Tensor
    coefficient: torch.Tensor
    cell: torch.Tensor
    corners: torch.Tensor
    slots: torch.Tensor
    vertices: torch.Tensor
    bias: torch.Tensor

    def __init__(self, head: FoldedFactorTopy) -> None:
        super().__init__()
        self.samples = head.samples
        blocks = cell_blocks(head)
        for name in CellBlocks.__dataclass_fields__:
            self.register_buffer(name, torch.from_numpy(getattr(blocks, name)))

    def forward(
        self,
        local: torch.Tensor,  # [B,L,D,H,W]
        global_: torch.Tensor,  # [B,L,D]
    ) -> torch.Tensor:  # [B,V]
        if torch.onnx.is_in_onnx_export():
            constants = [getattr(self, name) for name in CellBlocks.__dataclass_fields__]
            response = node(READOUT, [local, global_, *constants], len(self.bias))
        else:
            response = self._twin(local, global_)
        if self.samples == 1:
            return response
        return response.reshape(-1, len(self.bias) // self.samples, self.samples).sum(dim=2)

    def function(self, opset: int) -> onnx.FunctionProto:
        """What the node does, in standard operators."""
        blocks, dim, width = self.weight.shape
        return readout_function(
            blocks=blocks,
            width=width,
            cells=len(self.corners),
            layers=self.coefficient.shape[1] // 5,
            dim=dim,
            opset=opset,
        )

    def _twin(self, local: torch.Tensor, global_: torch.Tensor) -> torch.Tensor:
        pixels = functional.pad(local.flatten(3), (0, 1)).permute(3, 1, 0, 2)  # [H*W+1,L,B,D]
        summary = global_.transpose(0, 1).expand(len(self.corners), 1, -1, -1, -1)
        tokens = torch.cat([pixels[self.corners], summary], dim=1).flatten(1, 2)
        product = torch.einsum("gkbd,gdn->gkbn", tokens[self.cell], self.weight)
        rows = (product * self.coefficient[:, :, None]).sum(dim=1)  # [G,B,N]
        response: torch.Tensor = rows.transpose(0, 1).flatten(1)[:, self.slots] + self.bias
        return response


class FactorTopyScores(nn.Module):
    """score [B,O] = tokens . template + offset; no vertex is touched."""

    def __init__(
        self,
        head: FoldedFactorTopy,
        weights: NDArray[np.float32],  # [O,V]
    ) -> None:
        super().__init__()
        template = head.template(weights)
        self.template = _constant(template.tokens.flat().T)
        self.offset = _constant(template.offset)

    def forward(
        self,
        local: torch.Tensor,  # [B,L,D,H,W]
        global_: torch.Tensor,  # [B,L,D]
    ) -> torch.Tensor:  # [B,O]
        flat = torch.cat([local.flatten(1), global_.flatten(1)], dim=1)
        return flat @ self.template + self.offset


class Projection(nn.Module):
    """The nodes factor_projection, one a layer: raw tokens -> latent [B,K]."""

    def __init__(self, head: BlobProjection) -> None:
        super().__init__()
        self.class_token = head.class_token
        self.filters, self.maps = _constants(head.filters), _constants(head.maps)
        self.bias = _constant(head.latent_bias)

    def forward(self, tokens: Tokens) -> torch.Tensor:  # [B,K]
        latent: torch.Tensor = self.bias
        for local, global_, *constants in zip(
            tokens.local, tokens.global_, self.filters, self.maps, strict=True
        ):
            sequence = flatten_tokens(local, global_, self.class_token)
            if torch.onnx.is_in_onnx_export():
                part = node(PROJECTION, [sequence, *constants], len(self.bias))
            else:
                part = reference.factor_projection(sequence, *constants)
            latent = latent + part
        return latent


class VertexEmbed(nn.Module):
    """The node vertex_embed: response [B,V] = weight latent + bias."""

    def __init__(
        self,
        weight: NDArray[np.float32],  # [V,K]
        bias: NDArray[np.float32],  # [V]
    ) -> None:
        super().__init__()
        self.weight, self.bias = _constant(weight), _constant(bias)

    def forward(
        self,
        latent: torch.Tensor,  # [B,K]
    ) -> torch.Tensor:  # [B,V]
        if torch.onnx.is_in_onnx_export():
            return node(EMBED, [latent, self.weight, self.bias], len(self.bias))
        return reference.vertex_embed(latent, self.weight, self.bias)


def _scores(head: FoldedBlobGPT, weights: NDArray[np.float32]) -> nn.Module:
    """Objectives [O,V] folded onto the latent are an embedding with O rows."""
    template = head.template(weights)
    return VertexEmbed(template.latent.values, template.offset)


def _constants(arrays: Iterable[NDArray[np.float32]]) -> nn.ParameterList:
    return nn.ParameterList(_constant(array) for array in arrays)


def _constant(array: NDArray[np.float32]) -> nn.Parameter:
    return nn.Parameter(torch.from_numpy(np.ascontiguousarray(array)), requires_grad=False)
