"""Losses of models of several subjects, written for a share of a batch."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from .group_recipes import Alignment


def masked_squared_error(
    predicted: torch.Tensor,  # [B,V]
    measured: torch.Tensor,  # [B,V]
    present: torch.Tensor,  # [B,V] bool
) -> torch.Tensor:
    """sum over present vertices of (predicted - measured)^2 -> []; divide by their number.

    A vertex that a subject lacks has neither loss nor gradient, whatever stands in `measured`.
    """
    error = torch.where(present, predicted - measured, 0.0)
    return error.square().sum()


def info_nce(
    similarities: torch.Tensor,  # [B,B], of image b (row) to text b' (column), over temperature
    image: torch.Tensor,  # [B] int64, the same number for the same image
    alignment: Alignment,
) -> torch.Tensor:
    """-log(sum over the image's own texts of exp(s) / sum over all texts of exp(s)) -> [].

    An image that several subjects saw comes more than once in a batch: each of its copies is a
    match, so that it is not pushed away from itself. Without such copies this is InfoNCE as in
    van den Oord et al., eq. 4. direction: see `Alignment`.
    """
    same = image[:, None] == image[None, :]
    if not bool((same.sum(dim=1) > 1).any()):
        target = torch.arange(len(image), device=similarities.device)
        to_text = cross_entropy(similarities, target)
        to_image = cross_entropy(similarities.T, target)
    else:
        to_text, to_image = _matched(similarities, same), _matched(similarities.T, same)
    if alignment.direction == "image_to_text":
        return to_text
    if alignment.direction == "text_to_image":
        return to_image
    return (to_text + to_image) / 2


def _matched(similarities: torch.Tensor, same: torch.Tensor) -> torch.Tensor:  # [B,B], [B,B]
    matches = similarities.masked_fill(~same, -torch.inf).logsumexp(dim=1)
    return (similarities.logsumexp(dim=1) - matches).mean()
