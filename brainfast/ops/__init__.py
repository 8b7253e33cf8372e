"""Torch operators over the compiled kernels, with gradients. `reference` holds readable twins."""

from .factor_projection import factor_projection
from .factor_readout import factor_readout
from .factor_readout_workspace import FactorReadoutWorkspace
from .score_topk import score_topk
from .vertex_embed import vertex_embed

__all__ = [
    "FactorReadoutWorkspace",
    "factor_projection",
    "factor_readout",
    "score_topk",
    "vertex_embed",
]
