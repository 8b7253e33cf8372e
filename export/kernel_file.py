"""The readout's kernel for TensorRT, as the build left it. Torch-free."""

from __future__ import annotations

from pathlib import Path

from .. import _C
from ..errors import BrainfastError
from ..machine import ADD_CUDA_KERNELS

PTX_FILE = "factor_readout.ptx"  # beside brainfast._C


def kernel_ptx() -> bytes:
    """The readout's kernel as PTX for compute capability 8.0 and later."""
    path = Path(_C.__file__).with_name(PTX_FILE)
    if not path.is_file():
        raise BrainfastError(
            PTX_FILE,
            expected="the kernel that a build with nvcc puts beside brainfast._C",
            got="a build without it",
            remedy=f"in the source folder: {ADD_CUDA_KERNELS}; or use readout='operators'",
        )
    return path.read_bytes()
