"""BlobGPT: one feature projection for everybody, one low-dimensional linear map a subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import nn
from torch.nn.functional import linear

from ..card import Side
from ..errors import BrainfastError
from ..folded_blobgpt import GROUP, BlobProjection, FoldedBlobGPT, is_subject_name
from ..ops import factor_projection, reference
from ..tokens import Tokens
from .parameters import as_float32, uniform


class BlobGPTConfig(BaseModel):
    """The options of BlobGPT; the defaults are the report's.

    subjects: their names, in the order of the subject maps; latent: K; components: R, of the PCA
    embedding; dropout: on the raw tokens, in training only; pca_mean: the public code adds the
    mean of the PCA twice in predictions of a subject. grids: height and width of every layer's
    tokens; class_token: whether the trunk has one, which is then pooled as entry 0 of the maps.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    subjects: tuple[str, ...] = Field(min_length=1)
    grids: tuple[tuple[Side, Side], ...] = Field(min_length=1)
    class_token: bool
    latent: int = Field(default=1024, ge=1)
    components: int = Field(default=2048, ge=1)
    dropout: float = Field(default=0.9, ge=0, lt=1)
    pca_mean: Literal["once", "twice"] = "once"

    @property
    def tokens(self) -> tuple[int, ...]:
        """T of every layer: its patches, and the class token."""
        return tuple(height * width + self.class_token for height, width in self.grids)


class BlobGPT(nn.Module):
    """p_l = sum_t map_l[k,t] (filter_l[k] . x_l[t]);  latent = mean_l BatchNorm(p_l);
    response = E (shared(latent) + subject(latent)) + m.

    channels: C_l of every layer; layers: their numbers in the trunk; weight [V,R] and bias [V] are
    E and m, the frozen PCA embedding. Source: Lane et al., the BlobGPT report, Table 1.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        channels: Sequence[int],
        layers: Sequence[int],
        config: BlobGPTConfig,
        weight: torch.Tensor,  # [V,R]
        bias: torch.Tensor,  # [V]
    ) -> None:
        super().__init__()
        _check_construction(channels, layers, config, weight, bias)
        self.config, self.layers = config, tuple(layers)
        # Not among the trained parameters: it is frozen, large, and lies in a file of its own.
        self.register_buffer("weight", weight.float(), persistent=False)
        self.register_buffer("bias", bias.float(), persistent=False)
        latent, components = config.latent, config.components
        self.filters = nn.ParameterList(uniform(latent, c, fan_in=c) for c in channels)
        self.maps = nn.ParameterList(uniform(latent, t, fan_in=t) for t in config.tokens)
        self.norms = nn.ModuleList(nn.BatchNorm1d(latent) for _ in channels)
        self.shared = uniform(components, latent, fan_in=latent)
        subjects = len(config.subjects)
        self.subject_weight = uniform(subjects, components, latent, fan_in=latent)
        self.subject_bias = uniform(subjects, components, fan_in=latent)

    @property
    def V(self) -> int:
        """Number of vertices of the union of all subjects."""
        return len(self.bias)

    @property
    def channels(self) -> tuple[int, ...]:
        """Trunk channels C_l of every layer."""
        return tuple(matrix.shape[1] for matrix in self.filters)

    def subject_index(self, subject: str) -> int:
        """Row of a subject's map; -1 for "group", the prediction without any subject."""
        if subject == GROUP:
            return -1
        if subject not in self.config.subjects:
            known = ", ".join((*self.config.subjects, GROUP))
            raise BrainfastError("subject", expected=f"one of {known}", got=repr(subject))
        return self.config.subjects.index(subject)

    def forward(
        self,
        tokens: Tokens,
        subjects: torch.Tensor,  # [B] int64, rows of the subject maps; -1: the group
    ) -> torch.Tensor:
        """Raw tokens of B images -> response [B,V] in z units."""
        return self.respond(self.latent(self.project(tokens)), subjects)

    def project(self, tokens: Tokens) -> torch.Tensor:
        """Raw tokens of B images -> projections of every layer before normalisation, [L,B,K]."""
        self.check_tokens(tokens)
        parts = zip(self._sequences(tokens), self.filters, self.maps, strict=True)
        return torch.stack([factor_projection(x, filters, maps) for x, filters, maps in parts])

    def latent(self, projections: torch.Tensor) -> torch.Tensor:  # [L,B,K] -> [B,K]
        """mean_l BatchNorm_l(p_l). In training its statistics are those of the batch given."""
        if self.norms[0].training and projections.shape[1] == 1:
            raise BrainfastError(
                "batch",
                expected="2 images or more, for BatchNorm in training",
                got="1",
                remedy="train with a larger batch, or call eval() first",
            )
        normed = [norm(part) for norm, part in zip(self.norms, projections, strict=True)]
        return torch.stack(normed).mean(dim=0)

    def respond(
        self,
        latent: torch.Tensor,  # [B,K]
        subjects: torch.Tensor,  # [B] int64, -1: the group
        vertices: torch.Tensor | None = None,  # [n] int64; all without
    ) -> torch.Tensor:  # [B,V]
        """E (shared + subject) + m; only the maps of subjects that occur are computed."""
        activity = linear(latent, self.shared)
        chosen = torch.unique(subjects).tolist()
        for subject in chosen:
            if subject < 0:
                continue
            rows = (subjects == subject).nonzero().squeeze(1)
            own = linear(latent[rows], self.subject_weight[subject], self.subject_bias[subject])
            activity = activity.index_add(0, rows, own)
        weight, bias = self.weight, self.bias
        if vertices is not None:
            weight, bias = weight[vertices], bias[vertices]
        response = linear(activity, weight, bias)
        if self.config.pca_mean == "twice":
            response = response + (subjects >= 0)[:, None] * bias
        return response

    @torch.no_grad()
    def fold(self) -> BlobProjection:
        """BatchNorm and the layer mean multiplied into the filters: all of the head but the
        subjects."""
        filters, offset = [], torch.zeros(self.config.latent, dtype=torch.float64)
        for norm, matrix in zip(self.norms, self.filters, strict=True):
            assert isinstance(norm, nn.BatchNorm1d)
            assert norm.running_var is not None
            assert norm.running_mean is not None
            gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            share = gain / len(self.filters)
            filters.append(as_float32(matrix.double() * share[:, None]))
            shift = norm.bias.double() / len(self.filters) - share * norm.running_mean.double()
            offset = offset.to(shift.device) + shift
        return BlobProjection(
            filters=tuple(filters),
            maps=tuple(as_float32(matrix) for matrix in self.maps),
            latent_bias=as_float32(offset),
            layers=self.layers,
            grids=self.config.grids,
            class_token=self.config.class_token,
        )

    @torch.no_grad()
    def fold_subject(
        self,
        subject: str,
        vertices: NDArray[np.int64] | None = None,  # [n], rows of E; all without
        projection: BlobProjection | None = None,
    ) -> FoldedBlobGPT:
        """The head of one subject, or "group", as constants: shared, own map and E in one matrix.

        projection: what `fold` gave, where several subjects share it.
        """
        index = self.subject_index(subject)
        rows = slice(None) if vertices is None else torch.from_numpy(vertices)
        basis, mean = self.weight[rows].double(), self.bias[rows].double()
        activity, offset = self.shared.double(), mean
        if index >= 0:
            activity = activity + self.subject_weight[index].double()
            offset = offset + basis @ self.subject_bias[index].double()
            if self.config.pca_mean == "twice":
                offset = offset + mean
        return FoldedBlobGPT(
            projection=self.fold() if projection is None else projection,
            weight=as_float32(basis @ activity),
            bias=as_float32(offset),
        )

    @torch.no_grad()
    def twin_latent(self, tokens: Tokens) -> torch.Tensor:  # [B,K]
        """The latent by plain torch in the dtype of the head: the yardstick, as slow as it is
        readable. The head must be in eval mode, and float64 like the tokens."""
        parts = zip(self._sequences(tokens), self.filters, self.maps, strict=True)
        return self.latent(torch.stack([reference.factor_projection(*part) for part in parts]))

    @torch.no_grad()
    def twin(
        self,
        latent: torch.Tensor,  # [B,K], of `twin_latent`
        subject: str,
        vertices: NDArray[np.int64] | None = None,  # [n]
    ) -> NDArray[np.float64]:  # [B,n]
        """Responses unfolded, from the latent on."""
        subjects = torch.full((len(latent),), self.subject_index(subject))
        chosen = None if vertices is None else torch.from_numpy(vertices)
        response: NDArray[np.float64] = self.respond(latent, subjects, chosen).numpy()
        return response

    def check_tokens(self, tokens: Tokens) -> None:
        """Tokens of another trunk, or of another grid, are a BrainfastError."""
        grids = tuple((int(part.shape[2]), int(part.shape[3])) for part in tokens.local)
        found = (tokens.layers, tokens.channels, grids)
        wanted = (self.layers, self.channels, self.config.grids)
        if found != wanted:
            raise BrainfastError(
                "tokens",
                expected=f"layers, channels and grids {wanted}",
                got=f"{found}",
                remedy="use the trunk that this head was made for, without down-sampling",
            )

    def _sequences(self, tokens: Tokens) -> list[torch.Tensor]:  # [B,T,C] a layer
        return [
            flatten_tokens(local, global_, self.config.class_token)
            for local, global_ in zip(tokens.local, tokens.global_, strict=True)
        ]


def flatten_tokens(
    local: Any,  # [B,C,H,W]
    global_: Any,  # [B,C]
    class_token: bool,
) -> torch.Tensor:  # [B,T,C]
    """Tokens as the trunk has them: the class token, where there is one, then the patches."""
    patches: torch.Tensor = local.flatten(2).transpose(1, 2)
    if not class_token:
        return patches.contiguous()
    return torch.cat([global_[:, None], patches], dim=1)


def _check_construction(
    channels: Sequence[int],
    layers: Sequence[int],
    config: BlobGPTConfig,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> None:
    if not len(channels) == len(layers) == len(config.grids):
        raise BrainfastError(
            "layers",
            expected="one channel count and one grid a layer",
            got=f"{len(layers)} layers, {len(channels)} counts, {len(config.grids)} grids",
        )
    names = config.subjects
    if len(set(names)) < len(names) or not all(map(is_subject_name, names)):
        raise BrainfastError(
            "subjects",
            expected=f"names that differ, of letters, digits, - and _, none {GROUP!r}",
            got=", ".join(names),
            remedy="rename the folders, or pass {name: data}",
        )
    if weight.ndim != 2 or weight.shape[1] != config.components or bias.shape != weight.shape[:1]:
        raise BrainfastError(
            "embedding",
            expected=f"weight [V,{config.components}] and bias [V]",
            got=f"{list(weight.shape)} and {list(bias.shape)}",
            remedy="fit the PCA with as many components as the model has",
        )
