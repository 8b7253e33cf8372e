"""The blocks of the cell form against Listing 1, read as their documentation says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brainfast.bench.made_up import made_up_head
from brainfast.cells import cell_blocks
from brainfast.errors import BrainfastError
from brainfast.folded import FoldedFactorTopy
from brainfast.ops import reference


def make_head(vertices: int = 211, grid: tuple[int, int] = (3, 5)) -> FoldedFactorTopy:
    """Points on the border and beyond it among the others."""
    head = made_up_head(vertices, 3, 20, grid=grid, seed=1)
    space = head.space.copy()
    space[:6] = [(-1, -1), (1, 1), (-3, 0), (0, 40), (1, 0), (0, 0)]
    return replace(head, space=space)


def by_the_book(blocks, local, global_):  # [B,L,D,H,W], [B,L,D]
    """Every vertex for itself, from what the fields are documented to be."""
    images, layers, dim = global_.shape
    pixels = local.reshape(images, layers, dim, -1)
    pixels = np.concatenate([pixels, np.zeros((images, layers, dim, 1))], axis=3)
    out = np.empty((images, len(blocks.bias)))
    for vertex, slot in enumerate(blocks.slots):
        block, place = divmod(slot, blocks.weight.shape[2])
        assert blocks.vertices[block, place] == vertex
        corners = pixels[..., blocks.corners[blocks.cell[block]]]  # [B,L,D,4]
        tokens = np.concatenate([corners, global_[..., None]], axis=3).transpose(0, 3, 1, 2)
        products = tokens.reshape(images, 5 * layers, dim) @ blocks.weight[block, :, place]
        out[:, vertex] = products @ blocks.coefficient[block, :, place] + blocks.bias[vertex]
    return out


@pytest.mark.parametrize("block", [16, 64])
@pytest.mark.parametrize("grid", [(3, 5), (1, 1)])
def test_blocks_are_the_readout(block, grid):
    head = make_head(grid=grid)
    rng = np.random.default_rng(0)
    local, global_ = rng.standard_normal((2, 3, 20, *grid)), rng.standard_normal((2, 3, 20))
    constants = (head.space, head.layer, head.scale, head.weight, head.bias)
    tensors = (torch.from_numpy(array).double() for array in (local, global_, *constants))
    expected = reference.factor_readout(*tensors).numpy()
    found = by_the_book(cell_blocks(head, block), local, global_)
    np.testing.assert_allclose(found, expected, atol=1e-6 * expected.std())


def test_padding_is_zero_and_every_vertex_has_one_place():
    head = make_head()
    blocks = cell_blocks(head, 16)
    assert sorted(blocks.vertices[blocks.vertices < head.V]) == list(range(head.V))
    padding = blocks.vertices == head.V
    assert padding.any()
    assert not blocks.weight.swapaxes(1, 2)[padding].any()
    assert not blocks.coefficient.swapaxes(1, 2)[padding].any()
    counts = np.bincount(blocks.cell)
    assert (np.diff(blocks.cell) >= 0).all()
    assert len(counts) == len(blocks.corners)
    assert {str(getattr(blocks, name).dtype) for name in ("weight", "coefficient", "bias")} == {
        "float32"
    }


@pytest.mark.parametrize("block", [0, 8, 40])
def test_a_width_that_no_tensor_core_takes_is_refused(block):
    with pytest.raises(BrainfastError, match="block: expected a multiple of 16"):
        cell_blocks(make_head(), block)
