"""Readable twins of BlobGPT's operators, in plain torch, on any device and in any precision."""

from __future__ import annotations

import torch


def factor_projection(
    tokens: torch.Tensor,  # [B,T,C]
    filters: torch.Tensor,  # [K,C]
    maps: torch.Tensor,  # [K,T]
) -> torch.Tensor:  # [B,K]
    """p[b,k] = sum_t maps[k,t] (filters[k] . tokens[b,t]).

    All of one dtype. Differentiable. Source: BlobGPT, "Feature projection".
    """
    filtered = torch.einsum("btc,kc->btk", tokens, filters)
    return torch.einsum("btk,kt->bk", filtered, maps)


def factor_projection_backward(
    grad_output: torch.Tensor,  # [B,K]
    tokens: torch.Tensor,  # [B,T,C]
    filters: torch.Tensor,  # [K,C]
    maps: torch.Tensor,  # [K,T]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `factor_projection` in the order of its arguments.

    Written out, because an operator's kernel runs below autograd.
    """
    mixed = torch.einsum("bk,kt->btk", grad_output, maps)
    filtered = torch.einsum("btc,kc->btk", tokens, filters)
    return (
        mixed @ filters,
        torch.einsum("btk,btc->kc", mixed, tokens),
        torch.einsum("bk,btk->kt", grad_output, filtered),
    )


def vertex_embed(
    latent: torch.Tensor,  # [B,K]
    weight: torch.Tensor,  # [V,K]
    bias: torch.Tensor,  # [V]
) -> torch.Tensor:  # [B,V]
    """y[b,v] = weight[v] . latent[b] + bias[v].

    All of one dtype. Differentiable. Source: BlobGPT, "PCA fMRI activity embedding".
    """
    return latent @ weight.T + bias
