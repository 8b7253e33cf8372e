from __future__ import annotations

import pytest
import torch

from brainfast.ops import reference

SIZES = [(2, 100, 5, 6, 4, 3), (1, 1, 1, 1, 1, 1), (3, 40, 2, 3, 1, 6)]


def by_hand(local, global_, space, layer, scale, weight, bias):
    """One vertex, one image at a time, in Python's own numbers."""
    images, layers, channels, height, width = local.shape
    answer = torch.zeros(images, len(bias), dtype=torch.float64)
    for v in range(len(bias)):
        x = ((space[v, 0].item() + 1) * width - 1) / 2
        y = ((space[v, 1].item() + 1) * height - 1) / 2
        for b in range(images):
            total = 0.0
            for d in range(channels):
                for depth in range(layers):
                    interp = sum(
                        (1 - abs(x - column)) * (1 - abs(y - row)) * local[b, depth, d, row, column]
                        for row in range(height)
                        for column in range(width)
                        if abs(x - column) < 1 and abs(y - row) < 1
                    )
                    token = (1 - scale[v]) * interp + scale[v] * global_[b, depth, d]
                    total += weight[v, d] * layer[v, depth] * token
            answer[b, v] = total / channels + bias[v]
    return answer


def test_listing_1_against_loops(make_case):
    case = make_case((2, 12, 2, 3, 4, 3))
    torch.testing.assert_close(reference.factor_readout(*case), by_hand(*case))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_cells_match_listing_1(make_case, sizes, align_corners):
    case = make_case(sizes, grad=True)
    grad_output = torch.randn(sizes[0], sizes[1], dtype=torch.float64)
    options = {"align_corners": align_corners}
    response = reference.factor_readout(*case, **options)
    cells = reference.factor_readout_cells(*case, **options)
    torch.testing.assert_close(cells, response)
    expected = torch.autograd.grad(response, case, grad_output)
    by_autograd = torch.autograd.grad(cells, case, grad_output)
    written_out = reference.factor_readout_cells_backward(
        grad_output, *(tensor.detach() for tensor in case[:-1]), **options
    )
    torch.testing.assert_close(by_autograd, expected)
    torch.testing.assert_close(written_out, expected)


def test_cells_of_no_vertices_and_no_images(make_case):
    for sizes in [(2, 0, 3, 4, 2, 2), (0, 5, 3, 4, 2, 2)]:
        case = make_case(sizes)
        assert reference.factor_readout_cells(*case).shape == sizes[:2]
        grads = reference.factor_readout_cells_backward(torch.zeros(sizes[:2]).double(), *case[:-1])
        assert [grad.shape for grad in grads] == [tensor.shape for tensor in case]


def test_cells_far_outside(make_case):
    case = make_case((2, 5, 3, 4, 2, 2), grad=True)
    with torch.no_grad():
        case[2].fill_(1e30)
    response = reference.factor_readout_cells(*case)
    response.sum().backward()
    assert torch.isfinite(response).all()
    assert not case[0].grad.any()
    assert not case[2].grad.any()
