"""Greedy model soup: average the checkpoints that make the average better."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

Weights = Mapping[str, torch.Tensor]


def average(ingredients: list[Weights]) -> dict[str, torch.Tensor]:
    """Mean of every floating-point tensor over the ingredients, in float64."""
    first = ingredients[0]
    return {
        name: torch.stack([weights[name].double() for weights in ingredients])
        .mean(dim=0)
        .to(value.dtype)
        for name, value in first.items()
    }


def greedy_soup(
    candidates: Mapping[int, float],  # step -> validation R2
    read: Callable[[int], Weights],
    score: Callable[[Weights], float],
) -> tuple[dict[str, torch.Tensor], tuple[int, ...], float]:
    """Weights, the steps they were averaged from, and their validation R2.

    Checkpoints are tried from the best down; one stays where the average with it scores at least
    as well. Source: Wortsman et al., Model soups, algorithm 1.
    """
    order = sorted(candidates, key=lambda step: (-candidates[step], step))
    steps = [order[0]]
    ingredients = [read(order[0])]
    best = score(ingredients[0])
    for step in order[1:]:
        weights = read(step)
        value = score(average([*ingredients, weights]))
        if value >= best:
            ingredients.append(weights)
            steps.append(step)
            best = value
    return average(ingredients), tuple(steps), best
