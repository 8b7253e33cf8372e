"""A made-up BlobGPT whose numbers have the sizes of a trained one's, and tokens for it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from brainfast.models.blobgpt import BlobGPT, BlobGPTConfig, flatten_tokens
from brainfast.tokens import Tokens
from cases import Case

Array = NDArray[np.float32]


def made_up_blobgpt(case: Case) -> BlobGPT:
    """In eval mode: statistics of BatchNorm that fit standard normal tokens, an embedding that
    keeps the variance of its input."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    config = BlobGPTConfig(
        subjects=tuple(f"subj{number:02d}" for number in range(1, case.S + 1)),
        grids=((case.raw, case.raw),) * case.L,
        class_token=True,
        latent=case.K,
        components=case.R,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BlobGPT(
            [case.C] * case.L,
            range(case.L),
            config,
            normal(case.V, case.R) / case.R**0.5,
            0.1 * normal(case.V),
        )
    with torch.no_grad():
        for norm, filters, maps in zip(model.norms, model.filters, model.maps, strict=True):
            norm.running_var.copy_(filters.square().sum(1) * maps.square().sum(1))
            norm.running_mean.copy_(0.1 * normal(case.K))
            norm.weight.copy_(1 + 0.1 * normal(case.K))
            norm.bias.copy_(0.1 * normal(case.K))
    return model.eval()


def raw_tokens(case: Case, batch: int) -> tuple[Array, ...]:
    """Standard normal tokens as a trunk gives them: [B,C,H,W] of every layer, then [B,C]."""
    rng = np.random.default_rng(batch)
    local = rng.standard_normal((case.L, batch, case.C, case.raw, case.raw), np.float32)
    return *local, *rng.standard_normal((case.L, batch, case.C), np.float32)


def sequences(tokens: tuple[Array, ...]) -> tuple[Array, ...]:
    """The same tokens as [B,T,C] of every layer, the class token first."""
    layers = len(tokens) // 2
    pairs = zip(tokens[:layers], tokens[layers:], strict=True)
    return tuple(
        flatten_tokens(torch.from_numpy(local), torch.from_numpy(global_), True).numpy()
        for local, global_ in pairs
    )


def as_tokens(arrays: tuple[Array, ...]) -> Tokens:
    """Those of `raw_tokens` as `BlobGPT` and the folded heads take them."""
    layers = len(arrays) // 2
    return Tokens(arrays[:layers], arrays[layers:], tuple(range(layers)))


def float64_latent(model: BlobGPT, tokens: tuple[Array, ...]) -> NDArray[np.float64]:  # [B,K]
    """Projection, BatchNorm and mean in float64, unfolded."""
    double = blobgpt_in_float64(model)
    tensors = as_tokens(tokens).map(lambda array: torch.from_numpy(array).double())
    latent: NDArray[np.float64] = double.twin_latent(tensors).numpy()
    return latent


def blobgpt_in_float64(model: BlobGPT) -> BlobGPT:
    """A copy without the embedding, which few references need and which is large."""
    empty = torch.zeros(1, model.config.components), torch.zeros(1)
    double = BlobGPT(model.channels, model.layers, model.config, *empty)
    double.load_state_dict(model.state_dict())
    return double.double().eval()
