"""The readout in cell form: vertices that sample the same grid cell share a matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import BrainfastError
from .folded import Array, FoldedFactorTopy

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class CellBlocks:
    """y_v = bias_v + sum_k coefficient_k (weight . x_k), k over the 5L tokens of the vertex's cell.

    Vertices are sorted by the grid cell that they sample and cut into G blocks of N; the last block
    of a cell is padded with zeros. All of a block read the same tokens: the L layers at four
    corners of the cell, then the L global ones.
    """

    weight: Array  # [G,D,N], divided by D
    coefficient: Array  # [G,5L,N]
    cell: Integers  # [G], row of `corners`
    corners: Integers  # [cells,4], pixel numbers y*W+x; H*W stands for one outside the grid
    slots: Integers  # [V], where vertex v lies in [G*N]
    vertices: Integers  # [G,N], which vertex lies there; V for padding
    bias: Array  # [V]


def cell_blocks(head: FoldedFactorTopy, block: int = 64) -> CellBlocks:
    """Sort the rows of a head into blocks; of a head with samples, every sample is a row."""
    if block < 16 or block % 16:
        raise BrainfastError("block", expected="a multiple of 16", got=str(block))
    corners, cell = grid_cells(head)
    rows = len(cell)
    vertices, cell_of_block = _fill_blocks(cell, block)
    coefficient = np.concatenate([coefficients(head), np.zeros((1, 5 * len(head.layers)))])
    weight = np.concatenate([head.weight, np.zeros((1, head.weight.shape[1]))])
    weight /= head.weight.shape[1]
    slots = np.empty(rows + 1, dtype=np.int64)
    slots[vertices.reshape(-1)] = np.arange(vertices.size)
    return CellBlocks(
        weight=_across(weight, vertices),
        coefficient=_across(coefficient, vertices),
        cell=cell_of_block,
        corners=corners,
        slots=slots[:rows],
        vertices=vertices,
        bias=head.bias,
    )


def grid_cells(head: FoldedFactorTopy) -> tuple[Integers, Integers]:
    """(corners [cells,4], cell [V]): which pixels the vertices of a cell read, and each one's cell.

    A corner is a pixel's number y*W+x; H*W stands for one outside the grid. Corners go left to
    right, then down.
    """
    height, width = head.readout_grid
    left, top = np.floor(_positions(head)).astype(np.int64).T
    keys, cell = np.unique(top * (width + 2) + left, return_inverse=True)
    first = np.zeros(len(keys), dtype=np.int64)
    first[cell] = np.arange(len(cell))
    x = left[first, None] + np.array([0, 1, 0, 1])
    y = top[first, None] + np.array([0, 0, 1, 1])
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return np.where(inside, y * width + x, height * width), cell


def coefficients(head: FoldedFactorTopy) -> Array:  # [V,5L]
    """What each of the 5L tokens of a vertex's cell is multiplied by, corner by corner."""
    position = _positions(head)
    x, y = (position - np.floor(position)).T
    corner = np.stack([(1 - y) * (1 - x), (1 - y) * x, y * (1 - x), y * x], axis=1)
    share = np.concatenate([corner * (1 - head.scale)[:, None], head.scale[:, None]], axis=1)
    return (share[:, :, None] * head.layer[:, None]).reshape(len(share), -1).astype(np.float32)


def _positions(head: FoldedFactorTopy) -> NDArray[np.float64]:
    """Sampling points [V,2] in pixels; whatever lies further out than the border ring is moved to
    its edge, where it reads zeros all the same."""
    height, width = head.readout_grid
    size = np.array([width, height], dtype=np.float64)
    return np.clip(((head.space.astype(np.float64) + 1) * size - 1) / 2, -1, size)


def _fill_blocks(cell: Integers, block: int) -> tuple[Integers, Integers]:
    """(vertices [G,N], cell [G]); V stands for padding."""
    order, counts = np.argsort(cell, kind="stable"), np.bincount(cell)
    blocks = -(-counts // block)
    start_of_cell = np.cumsum(blocks) - blocks
    place_in_cell = np.arange(len(cell)) - np.repeat(np.cumsum(counts) - counts, counts)
    vertices = np.full(int(blocks.sum()) * block, len(cell), dtype=np.int64)
    vertices[np.repeat(start_of_cell * block, counts) + place_in_cell] = order
    return vertices.reshape(-1, block), np.repeat(np.arange(len(counts)), blocks)


def _across(rows: NDArray[np.floating], vertices: Integers) -> Array:  # [V+1,K], [G,N] -> [G,K,N]
    chosen = rows.astype(np.float32)[vertices]
    return np.ascontiguousarray(chosen.swapaxes(1, 2))
