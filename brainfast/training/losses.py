"""The loss of FactorTopy and its parts."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import smooth_l1_loss

from ..models.factortopy import Selectors
from .recipes import Recipe


def layer_negentropy(layer: torch.Tensor) -> torch.Tensor:  # [V,L] -> []
    """mean_v sum_l layer log layer / log L: 0 for one-hot selectors, -1 for uniform ones.

    Minimised, it keeps the layer selector undecided while the readout is still learning.
    """
    layers = layer.shape[1]
    if layers == 1:
        return layer.new_zeros(())
    entropy: torch.Tensor = torch.special.entr(layer).sum(dim=1).mean()
    return entropy / -math.log(layers)


def factortopy_loss(
    predicted: torch.Tensor,  # [B,V]
    measured: torch.Tensor,  # [B,V]
    selectors: Selectors,
    recipe: Recipe,
    step: int,
) -> torch.Tensor:
    """smooth_l1 + 0.1 max(0, 1 - step/6000) (negentropy [+ mean((scale - 0.5)^2)]) -> [].

    The squared term is the reference code's, `recipe.scale_regularizer`; the paper has none.
    Source: Yang et al., Brain Decodes Deep Nets, appendix E.
    """
    loss: torch.Tensor = smooth_l1_loss(predicted, measured, beta=recipe.smooth_l1_beta)
    strength = recipe.regularizer * max(0.0, 1.0 - step / recipe.regularizer_steps)
    if strength == 0.0:
        return loss
    regularizer = layer_negentropy(selectors.layer)
    if recipe.scale_regularizer:
        regularizer = regularizer + (selectors.scale - 0.5).square().mean()
    return loss + strength * regularizer
