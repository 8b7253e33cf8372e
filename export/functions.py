"""The head's nodes of an exported file: their names, and what they do in standard ONNX operators.

A node of domain `brainfast` is one call of a compiled head. TensorRT maps it to a plugin; every
other runtime replaces it by the body of the function of that name, which travels in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

DOMAIN = "brainfast"
VERSION = 1
READOUT, PROJECTION, EMBED = "factor_readout", "factor_projection", "vertex_embed"
# By these TensorRT's parser finds the plugin.
ATTRIBUTES: dict[str, Any] = {"plugin_namespace": DOMAIN, "plugin_version": str(VERSION)}

# Products of one part stay under a megabyte an image: larger ones leave the cache, and glibc maps
# fresh pages for them on every call.
PART_BYTES = 1 << 20


def node(name: str, inputs: Sequence[torch.Tensor], columns: int) -> torch.Tensor:
    """A node `brainfast::name` in the graph that is being exported: float32 [B,columns]."""
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}",
        inputs,
        ATTRIBUTES,
        dtype=torch.float32,
        shape=(inputs[0].shape[0], columns),
        version=VERSION,
    )


def readout_function(
    *,
    blocks: int,  # G
    width: int,  # N
    cells: int,
    layers: int,  # L
    dim: int,  # D
    opset: int,
) -> onnx.FunctionProto:
    """response_v = bias_v + sum_k coefficient_k (weight_v . x_k): a matrix product for every block.

    Inputs: local [B,L,D,H,W], global_ [B,L,D], then those of `CellBlocks` by their names. The body
    is made for one head, because blocks are multiplied in parts that stay in the cache.
    """
    body = _Body(opset)
    flat = body.add("Reshape", "local", body.ints(0, 0, 0, -1))  # [B,L,D,H*W]
    padded = body.add("Pad", flat, body.ints(0, 0, 0, 0, 0, 0, 0, 1))
    pixels = body.add("Transpose", padded, perm=[3, 1, 0, 2])  # [H*W+1,L,B,D]
    near = body.add("Gather", pixels, "corners", axis=0)  # [cells,4,L,B,D]
    summary = body.add("Transpose", "global_", perm=[1, 0, 2])
    summary = body.add("Unsqueeze", summary, body.ints(0, 1))
    summary = body.add("Expand", summary, body.ints(cells, 1, 1, 1, 1))
    tokens = body.add("Concat", near, summary, axis=1)
    tokens = body.add("Reshape", tokens, body.ints(cells, -1, dim))  # [cells,5L*B,D]
    step = max(1, PART_BYTES // (4 * 5 * layers * width))
    parts = []
    for start in range(0, blocks, step):
        span = body.ints(start), body.ints(min(start + step, blocks)), body.ints(0)
        cell, weight, coefficient = (
            body.add("Slice", name, *span) for name in ("cell", "weight", "coefficient")
        )
        read = body.add("Gather", tokens, cell, axis=0)
        product = body.add("MatMul", read, weight)  # [n,5L*B,N]
        product = body.add("Reshape", product, body.ints(0, 5 * layers, -1, width))
        coefficient = body.add("Unsqueeze", coefficient, body.ints(2))
        product = body.add("Mul", product, coefficient)
        parts.append(body.add("ReduceSum", product, body.ints(1), keepdims=0))  # [n,B,N]
    rows = body.add("Concat", *parts, axis=0)
    rows = body.add("Transpose", rows, perm=[1, 0, 2])
    rows = body.add("Reshape", rows, body.ints(0, -1))  # [B,G*N]
    chosen = body.add("Gather", rows, "slots", axis=1)
    body.end("Add", chosen, "bias", output="response")
    inputs = "local global_ weight coefficient cell corners slots vertices bias"
    return body.function(READOUT, inputs.split(), "response")


def projection_function(opset: int) -> onnx.FunctionProto:
    """latent [B,K] = sum_t map[k,t] (filter[k] . tokens[t]): tokens [B,T,C], filters [K,C],
    maps [K,T]."""
    body = _Body(opset)
    columns = body.add("Transpose", "filters", perm=[1, 0])
    product = body.add("MatMul", "tokens", columns)  # [B,T,K]
    weights = body.add("Transpose", "maps", perm=[1, 0])
    product = body.add("Mul", product, weights)
    body.end("ReduceSum", product, body.ints(1), output="latent", keepdims=0)
    return body.function(PROJECTION, ["tokens", "filters", "maps"], "latent")


def embed_function(opset: int) -> onnx.FunctionProto:
    """response [B,V] = weight latent + bias: latent [B,K], weight [V,K], bias [V]."""
    body = _Body(opset)
    body.end("Gemm", "latent", "weight", "bias", output="response", transB=1)
    return body.function(EMBED, ["latent", "weight", "bias"], "response")


@dataclass
class _Body:
    """Nodes of a function under construction; every result has a name of its own."""

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[tuple[int, ...], str] = field(default_factory=dict)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append an operator; gives the name of its result."""
        name = f"{op.lower()}_{len(self.nodes)}"
        self.end(op, *inputs, output=name, **attributes)
        return name

    def end(self, op: str, *inputs: str, output: str, **attributes: Any) -> None:
        """Append an operator whose result is called `output`."""
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))

    def ints(self, *values: int) -> str:
        """The name of an int64 constant."""
        if values not in self.constants:
            tensor = numpy_helper.from_array(np.array(values, dtype=np.int64))
            self.constants[values] = self.add("Constant", value=tensor)
        return self.constants[values]

    def function(self, name: str, inputs: Sequence[str], output: str) -> onnx.FunctionProto:
        """The function `brainfast::name` with the attributes of its node."""
        return helper.make_function(
            DOMAIN,
            name,
            inputs,
            [output],
            self.nodes,
            [helper.make_opsetid("", self.opset)],
            attribute_protos=[helper.make_attribute(*item) for item in ATTRIBUTES.items()],
        )
