"""LLM-VEM: BlobGPT whose latent is drawn towards a language model's view of the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import nn
from torch.nn.functional import linear, normalize

from .blobgpt import BlobGPT, BlobGPTConfig
from .parameters import uniform


class LlmVemConfig(BlobGPTConfig):
    """BlobGPT's options; text_dim: size of the text embeddings; temperature: of InfoNCE, where it
    is learned from."""

    text_dim: int = Field(ge=1)
    temperature: float = Field(default=0.07, gt=0)


class LlmVem(BlobGPT):
    """BlobGPT with a matrix W [text_dim,K] that takes the latent to the text embedding's space.

    W and the temperature serve in training only: predictions are BlobGPT's.
    Source: Ma et al., LLM-VEM, "Voxel Mapping Block" and "Loss function".
    """

    config: LlmVemConfig

    def __init__(
        self,
        channels: Sequence[int],
        layers: Sequence[int],
        config: LlmVemConfig,
        weight: torch.Tensor,  # [V,R]
        bias: torch.Tensor,  # [V]
    ) -> None:
        super().__init__(channels, layers, config, weight, bias)
        self.text = uniform(config.text_dim, config.latent, fan_in=config.latent)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(config.temperature)))

    def similarities(
        self,
        latent: torch.Tensor,  # [B,K]
        text: torch.Tensor,  # [n,text_dim]
    ) -> torch.Tensor:  # [B,n]
        """cos(W latent, text) / temperature; a zero vector is similar to nothing."""
        seen = normalize(linear(latent, self.text), dim=1)
        return seen @ normalize(text, dim=1).T / self.log_temperature.exp()
