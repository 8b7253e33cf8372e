"""brainfast::factor_readout as a TensorRT plugin: its shapes, and the launch of our own kernel.

TensorRT copies the kernel's PTX into the engine file, so that no library of ours is needed to run
it. Tokens and weights are multiplied as high and low bfloat16 halves (bf16x3), sums are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from types import GenericAlias, ModuleType
from typing import Any

from ..errors import BrainfastError
from .functions import DOMAIN, READOUT
from .kernel_file import kernel_ptx

INPUTS = (
    *("local", "global_", "weight", "coefficient"),
    *("cell", "corners", "slots", "vertices", "bias"),
)
# Of csrc/kernels/factor_readout_plugin.cuh.
THREADS, ROWS, IMAGES, SHARED_BYTES = 256, 128, 8, 37888
TILE = 16  # what the width of a block must be a multiple of
_SHAPED = ("local", "weight", "cell", "bias")  # of whose shapes a launch is made
_KERNELS = {"INT32": "brainfast_factor_readout_i32", "INT64": "brainfast_factor_readout_i64"}


def register_readout(plugins: ModuleType) -> None:
    """Make `brainfast::factor_readout` known to TensorRT, once: `plugins` is tensorrt.plugin.

    A TensorRT whose plugins cannot bring a kernel of their own is a BrainfastError.
    """
    if not hasattr(plugins, "KernelLaunchParams"):
        raise BrainfastError(
            "tensorrt.plugin",
            expected="plugins that are compiled ahead of time",
            got="a release without them",
            remedy="pip install 'tensorrt>=10.9', or use readout='operators'",
        )
    name = f"{DOMAIN}::{READOUT}"
    if hasattr(getattr(plugins.op, DOMAIN, None), READOUT):
        return
    ptx = kernel_ptx()

    def describe(*inputs: Any) -> Any:
        local, bias = inputs[0], inputs[-1]
        return plugins.from_shape_expr((local.shape_expr[0], bias.shape_expr[0]), local.dtype)

    def choose_types(*_: Any) -> Any:
        types = [*["FP32"] * 4, *["INT64|INT32"] * 4, "FP32", "FP32"]
        return [plugins.AutoTuneCombination(", ".join(types), "LINEAR")]

    def launch(*tensors: Any) -> Any:
        local, weight, cell, bias = (tensors[INPUTS.index(n)] for n in _SHAPED)
        images, layers, channels, height, width = local.shape_expr
        blocks, _, block_vertices = weight.shape_expr
        rows = plugins.cdiv(blocks * block_vertices, ROWS)
        params = plugins.KernelLaunchParams(
            grid_x=rows * plugins.cdiv(images, IMAGES), block_x=THREADS, shared_mem=SHARED_BYTES
        )
        sizes = (images, layers, channels, height * width, blocks, block_vertices)
        numbers = [plugins.SymInt32(size) for size in (*sizes, bias.shape_expr[0])]
        return _KERNELS[cell.dtype.name], ptx, params, plugins.SymIntExprs.from_tuple(numbers)

    tensor = plugins.TensorDesc
    kernel = GenericAlias(tuple, (str, bytes, plugins.KernelLaunchParams, plugins.SymIntExprs))
    plugins.register(name)(_signed(describe, (), tensor, tensor))
    plugins.autotune(name)(_signed(choose_types, ("outputs",)))
    plugins.aot_impl(name)(_signed(launch, ("outputs", "tactic"), returns=kernel))


def _signed(
    function: Callable[..., Any],
    more: Sequence[str],
    tensor: Any = Parameter.empty,
    returns: Any = Parameter.empty,
) -> Callable[..., Any]:
    """The function with the signature that TensorRT reads: the node's inputs by name, then more."""
    kind = Parameter.POSITIONAL_OR_KEYWORD
    found = [Parameter(name, kind, annotation=tensor) for name in INPUTS]
    found += [Parameter(name, kind) for name in more]
    vars(function)["__signature__"] = Signature(found, return_annotation=returns)
    return function
