"""The same readout in every form that `bench` compares: ours, the same algebra in stock libraries,
and Listing 1 as it is printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .cells import coefficients, grid_cells
from .folded import PRECISIONS, AlignedTokens, FoldedFactorTopy
from .ops import reference
from .trunk_export import OPSET, quiet_export

Array = NDArray[np.float32]
OURS = "brainfast"  # as a library
TORCH, COMPILED, ONNX_RUNTIME = "PyTorch", "torch.compile", "ONNX Runtime"
LISTING1 = "Listing 1"
CELL_FORM = "cell form"
EXPORTED = "exported node"

Call = Callable[..., Any]  # of a readout: local [B,L,D,H,W], global [B,L,D] -> response [B,V]

# Products of one part stay under a megabyte an image: larger ones leave the cache, and glibc maps
# fresh pages for them on every call.
_PART_BYTES = 1 << 20
# Listing 1 in fp32 holds about five arrays [B,V,L,D] at its peak.
_LISTING1_ARRAYS = 5
_LARGE_BYTES = 1 << 28


@dataclass(frozen=True)
class Form:
    """One way to compute what is compared; of several `variants` only the fastest is reported.

    problem: why it cannot be run here, in which case it has no variants. weight_bytes: of the
    constants that a call reads, where somebody counted.
    """

    name: str
    library: str
    precision: str
    variants: Mapping[str, Call]
    problem: str = ""
    weight_bytes: int | None = None

    @property
    def title(self) -> str:
        return f"{self.name}, {self.library} {self.precision}"


def stock_form(
    name: str,
    library: str,
    precision: str,
    build: Callable[[], Mapping[str, Call]],
    *,
    weight_bytes: int | None = None,
) -> Form:
    """A form whose variants another library builds; where it cannot, the reason is its problem."""
    try:
        return Form(name, library, precision, build(), weight_bytes=weight_bytes)
    except ModuleNotFoundError as error:
        problem = f"{error.name} is not installed"
    except Exception as error:  # exporters and compilers raise whatever they stumble over
        problem = f"does not build ({type(error).__name__})"
    return Form(name, library, precision, {}, problem=problem)


class CellReadout(nn.Module):
    """y = bias + sum_k coefficient_k * (weight/D . X_k), k over 4 corners and the global token
    times L layers: a matrix product for every cell of the token grid.

    Vertices are sorted by the grid cell that they sample, so all vertices of a block read the same
    X [5L,D]. block: vertices of a block, the last block of a cell padded with zeros; None makes
    one block of every cell. Corners outside the grid read a pixel of zeros. dtype: of the operands
    and products; the bias and the response are float32. part_bytes: products of one image that are
    made at a time; None: what stays in a CPU's cache.
    """

    corners: torch.Tensor
    slots: torch.Tensor
    bias: torch.Tensor

    def __init__(
        self,
        head: FoldedFactorTopy,
        block: int | None,
        dtype: torch.dtype = torch.float32,
        *,
        part_bytes: int | None = None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        corners, cell = grid_cells(head)
        coefficient = _with_zero_row(coefficients(head))
        weight = _with_zero_row(head.weight / np.float32(head.weight.shape[1]))
        self.coefficients, self.weights = nn.ParameterList(), nn.ParameterList()
        self.cells = nn.ParameterList()
        parts = list(_parts(cell, block, 4 * coefficient.shape[1], part_bytes or _PART_BYTES))
        for cells, vertices in parts:
            self.cells.append(_constant(cells))
            self.weights.append(_constant(weight[vertices].swapaxes(1, 2), dtype))
            self.coefficients.append(
                _constant(coefficient[vertices].swapaxes(1, 2)[:, :, None], dtype)
            )
        where = np.concatenate([vertices.reshape(-1) for _, vertices in parts])
        slots = np.empty(len(cell) + 1, dtype=np.int64)
        slots[where] = np.arange(len(where))
        self.register_buffer("corners", torch.from_numpy(corners))
        self.register_buffer("slots", torch.from_numpy(slots[: len(cell)]))
        self.register_buffer("bias", torch.from_numpy(head.bias))

    def forward(
        self,
        local: torch.Tensor,  # [B,L,D,H,W]
        global_: torch.Tensor,  # [B,L,D]
    ) -> torch.Tensor:  # [B,V]
        if local.dtype != self.dtype:
            local, global_ = local.to(self.dtype), global_.to(self.dtype)
        images, layers, dim = global_.shape
        pixels = nn.functional.pad(local.flatten(3), (0, 1)).permute(3, 1, 0, 2)
        summary = global_.transpose(0, 1).expand(len(self.corners), 1, -1, -1, -1)
        tokens = torch.cat([pixels[self.corners], summary], dim=1)
        tokens = tokens.reshape(-1, 5 * layers * images, dim)  # [cells,5L*B,D]
        parts = []
        for cells, weight, coefficient in zip(
            self.cells, self.weights, self.coefficients, strict=True
        ):
            product = torch.bmm(tokens[cells], weight)  # [blocks,5L*B,block]
            product = product.view(len(cells), 5 * layers, images, -1).mul_(coefficient)
            parts.append(product.sum(1).transpose(0, 1).flatten(1))  # [B,blocks*block]
        response: torch.Tensor = torch.cat(parts, dim=1)[:, self.slots] + self.bias
        return response


class Listing1(nn.Module):
    """The paper's Listing 1 on constant selectors: grid_sample, then layers, then channels."""

    def __init__(self, head: FoldedFactorTopy) -> None:
        super().__init__()
        arrays = (head.space, head.layer, head.scale, head.weight, head.bias)
        self.constants = nn.ParameterList(_constant(array) for array in arrays)

    def forward(
        self,
        local: torch.Tensor,  # [B,L,D,H,W]
        global_: torch.Tensor,  # [B,L,D]
    ) -> torch.Tensor:  # [B,V]
        response: torch.Tensor = reference.factor_readout(local, global_, *self.constants)
        return response


def brainfast_forms(head: FoldedFactorTopy) -> list[Form]:
    """The compiled head in each of its precisions."""

    def call_of(folded: FoldedFactorTopy) -> Call:
        return lambda local, global_: folded.readout(AlignedTokens(local, global_))

    return [
        Form("compiled head", OURS, precision, {"": call_of(head.with_precision(precision))})
        for precision in PRECISIONS
    ]


def torch_cell_forms(head: FoldedFactorTopy) -> list[Form]:
    """The cell form in eager PyTorch, in fp32 and in bf16."""
    return [
        Form(
            CELL_FORM,
            TORCH,
            precision,
            {
                layout_name(block): torch_call(CellReadout(head, block, dtype))
                for block in layouts(head)
            },
        )
        for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    ]


def onnx_cell_form(head: FoldedFactorTopy, folder: Path, threads: int) -> Form:
    """The cell form, exported, in ONNX Runtime."""

    def build() -> dict[str, Call]:
        return {
            layout_name(block): onnx_call(
                CellReadout(head, block), example(head), folder / f"cell-{block}.onnx", threads
            )
            for block in layouts(head, exported=True)
        }

    return stock_form(CELL_FORM, ONNX_RUNTIME, "fp32", build)


def onnx_node_form(head: FoldedFactorTopy, folder: Path, threads: int) -> Form:
    """The cell form as `brainfast export` writes it: one node, whose function is inlined."""
    from .export.heads import Readout  # and with it pydantic, which a GPU's benchmarks do without

    def build() -> dict[str, Call]:
        module = Readout(head)
        return {"": onnx_call(module, example(head), folder / "node.onnx", threads)}

    return stock_form(EXPORTED, ONNX_RUNTIME, "fp32", build)


def torch_listing1_form(head: FoldedFactorTopy) -> Form:
    """Listing 1 in eager PyTorch."""
    return Form(LISTING1, TORCH, "fp32", {"": torch_call(Listing1(head))})


def onnx_listing1_form(
    head: FoldedFactorTopy, folder: Path, threads: int, largest_batch: int
) -> Form:
    """Listing 1, exported (GridSample), in ONNX Runtime."""
    # An arena would keep gigabytes while the other forms run.
    arena = listing1_bytes(head, largest_batch) < _LARGE_BYTES
    path = folder / "listing1.onnx"

    def build() -> dict[str, Call]:
        return {"": onnx_call(Listing1(head), example(head), path, threads, arena=arena)}

    return stock_form(LISTING1, ONNX_RUNTIME, "fp32", build)


def torch_call(module: Callable[..., torch.Tensor]) -> Call:
    """Run a module on numpy arrays, without autograd."""

    @torch.inference_mode()
    def call(*arrays: Array) -> Array:
        result: Array = module(*map(torch.from_numpy, arrays)).numpy()
        return result

    return call


def onnx_call(
    module: nn.Module,
    examples: Sequence[torch.Tensor],
    path: Path,
    threads: int,
    *,
    arena: bool = True,
) -> Call:
    """Export a module of tensors with a dynamic batch and open it in ONNX Runtime on the CPU."""
    import onnxruntime

    names = [f"input{number}" for number in range(len(examples))]
    export(module, examples, names, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = arena
    # Its threads spin inside a call, as they do by default, but not into its neighbour's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(*arrays: Array) -> Array:
        result: Array = session.run(None, dict(zip(names, arrays, strict=True)))[0]
        return result

    return call


def example(head: FoldedFactorTopy) -> tuple[torch.Tensor, torch.Tensor]:
    """Zeros of the shapes that a readout takes, B=2."""
    layers, dim = head.offset_local.shape
    return torch.zeros(2, layers, dim, *head.readout_grid), torch.zeros(2, layers, dim)


class _Flat(nn.Module):
    """A module whose inputs are one list: what the exporter needs to name any number of them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = self.module(*inputs)
        return result


def export(
    module: nn.Module, examples: Sequence[torch.Tensor], names: Sequence[str], path: Path
) -> None:
    """Write a module as ONNX, opset 20; the first axis of every input is the batch."""
    from .export.onnx import add_functions

    with quiet_export():
        program = torch.onnx.export(
            _Flat(module).eval(),
            (list(examples),),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(names),
            output_names=["response"],
            dynamic_shapes=([{0: torch.export.Dim.DYNAMIC}] * len(examples),),
            verbose=False,
        )
    assert program is not None
    add_functions(program.model, module, OPSET)
    program.save(str(path))


def listing1_bytes(head: FoldedFactorTopy, batch: int) -> int:
    """Memory that Listing 1 needs for its arrays of size [B,V,L,D], estimated."""
    layers, dim = head.offset_local.shape
    needed: int = 4 * _LISTING1_ARRAYS * batch * head.V * layers * dim
    return needed


def _parts(
    cell: NDArray[np.int64], block: int | None, row_bytes: int, part_bytes: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(cells [n], vertices [n,block]) of n equal blocks at a time; V stands for padding."""
    order, counts = np.argsort(cell, kind="stable"), np.bincount(cell)
    members = np.split(order, np.cumsum(counts)[:-1])
    if block is None:
        for number, vertices in enumerate(members):
            yield np.array([number]), vertices[None]
        return
    blocks = -(-counts // block)
    padded = (
        np.pad(vertices, (0, count * block - len(vertices)), constant_values=len(cell))
        for vertices, count in zip(members, blocks, strict=True)
    )
    rows = np.fromiter(chain.from_iterable(padded), dtype=np.int64).reshape(-1, block)
    cells = np.repeat(np.arange(len(counts)), blocks)
    step = max(1, part_bytes // (row_bytes * block))
    for start in range(0, len(rows), step):
        yield cells[start : start + step], rows[start : start + step]


def layouts(head: FoldedFactorTopy, *, exported: bool = False) -> tuple[int | None, ...]:
    """Block sizes worth trying: small ones where cells hold few vertices, else whole cells too.

    exported: not those, which take long to export and are slower than blocks in ONNX Runtime.
    """
    corners, cell = grid_cells(head)
    if len(cell) < 64 * len(corners):
        return 32, 64
    return (64, 128) if exported else (64, 128, None)


def layout_name(block: int | None) -> str:
    """How a table calls a block size."""
    return "blocks of one cell" if block is None else f"blocks of {block}"


def _with_zero_row(array: Array) -> Array:
    return np.concatenate([array, np.zeros((1, *array.shape[1:]), dtype=np.float32)])


def _constant(
    array: NDArray[np.float32] | NDArray[np.int64], dtype: torch.dtype | None = None
) -> nn.Parameter:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return nn.Parameter(tensor.to(dtype or tensor.dtype), requires_grad=False)
