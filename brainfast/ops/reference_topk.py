"""The readable twin of `score_topk`, in plain torch, on any device and in any precision."""

from __future__ import annotations

import torch


def score_topk(
    pool: torch.Tensor,  # [N,F]
    templates: torch.Tensor,  # [O,F]
    k: int,
    exclude: torch.Tensor | None = None,  # [N], bool
    scale: torch.Tensor | None = None,  # [N]
) -> tuple[torch.Tensor, torch.Tensor]:  # [O,k], [O,k] int64
    """The k largest of scale[n] pool[n] . templates[o] for every o, and where they are.

    Largest first, equal ones by their index. One that is excluded or not finite is never chosen:
    -inf and index -1 stand in where fewer than k are left. Computed in the templates' dtype.
    """
    scores = templates @ pool.to(templates.dtype).T
    if scale is not None:
        scores = scores * scale.to(templates.dtype)
    out = ~torch.isfinite(scores)
    if exclude is not None:
        out |= exclude
    order = scores.masked_fill(out, -torch.inf).sort(dim=1, descending=True, stable=True)
    best = order.values[:, :k]
    return best, order.indices[:, :k].masked_fill(best == -torch.inf, -1)
