"""Torch operators over the compiled kernels, with gradients. `reference` holds readable twins."""

from .factor_readout import factor_readout

__all__ = ["factor_readout"]
