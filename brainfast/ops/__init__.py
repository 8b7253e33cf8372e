"""Torch operators over the compiled kernels, with gradients. `reference` holds readable twins."""

from .factor_readout import factor_readout
from .factor_readout_workspace import FactorReadoutWorkspace

__all__ = ["FactorReadoutWorkspace", "factor_readout"]
