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


def regularizer_strength(recipe: Recipe, step: int) -> float:
    """0.1 max(0, 1 - step/6000), with the recipe's numbers: the regulariser's weight at `step`."""
    return recipe.regularizer * max(0.0, 1.0 - step / recipe.regularizer_steps)


def factortopy_loss(
    predicted: torch.Tensor,  # [B,V]
    measured: torch.Tensor,  # [B,V]
    selectors: Selectors,
    recipe: Recipe,
    step: int,
) -> torch.Tensor:
    """`weighted_loss` with the strength of `step` -> []."""
    strength = regularizer_strength(recipe, step)
    return weighted_loss(predicted, measured, selectors, recipe, strength or None)


def weighted_loss(
    predicted: torch.Tensor,  # [B,V]
    measured: torch.Tensor,  # [B,V]
    selectors: Selectors,
    recipe: Recipe,
    strength: float | torch.Tensor | None,  # []
) -> torch.Tensor:
    """smooth_l1 + strength (negentropy [+ mean((scale - 0.5)^2)]) -> [].

    Without a strength the regulariser is not computed: times 0 it would not do, since its gradient
    is infinite where a selector has become one-hot. The squared term is the reference code's,
    `recipe.scale_regularizer`; the paper has none.
    Source: Yang et al., Brain Decodes Deep Nets, appendix E.
    """
    loss: torch.Tensor = smooth_l1_loss(predicted, measured, beta=recipe.smooth_l1_beta)
    if strength is None:
        return loss
    regularizer = layer_negentropy(selectors.layer)
    if recipe.scale_regularizer:
        regularizer = regularizer + (selectors.scale - 0.5).square().mean()
    return loss + strength * regularizer
