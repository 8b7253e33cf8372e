from __future__ import annotations

import numpy as np
import pytest
import torch

from brainfast.errors import BrainfastError
from brainfast.tokens import Tokens, downsample

GRIDS = [(7, 7), (14, 14), (16, 16), (8, 8), (1, 1), (5, 13), (64, 64)]


def make(grids=((14, 14), (7, 5)), channels=(6, 3), images=4) -> Tokens:
    generator = np.random.default_rng(0)
    sizes = list(zip(channels, grids, strict=True))
    local = [generator.standard_normal((images, c, *g)).astype(np.float32) for c, g in sizes]
    global_ = [generator.standard_normal((images, c)).astype(np.float32) for c, _ in sizes]
    return Tokens(local, global_, range(len(sizes)))


def test_sizes_are_read_from_the_arrays():
    tokens = make()
    assert (tokens.B, tokens.L, len(tokens)) == (4, 2, 4)
    assert tokens.channels == (6, 3)
    assert tokens.grids == ((14, 14), (7, 5))
    assert tokens.layers == (0, 1)


@pytest.mark.parametrize("index", [slice(1, 3), [3, 0], np.array([2]), slice(0, 0)])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_indexing_takes_images_of_every_array(index, kind):
    tokens = make()
    chosen = (tokens.map(torch.from_numpy) if kind == "torch" else tokens)[index]
    for got, want in zip(
        (*chosen.local, *chosen.global_), (*tokens.local, *tokens.global_), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(got), want[index])


def test_one_image_keeps_its_axis():
    tokens = make()
    np.testing.assert_array_equal(tokens[-1].local[1], tokens.local[1][3:])
    assert tokens[2].B == 1
    with pytest.raises(IndexError):
        tokens[4]
    assert len(list(tokens)) == 4


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("target", [(8, 8), (3, 9), (1, 1)])
def test_downsample_equals_torch_interpolation(grid, target):
    tokens = make(grids=(grid,), channels=(5,))
    reference = torch.nn.functional.interpolate(
        torch.from_numpy(tokens.local[0]), target, mode="bilinear", align_corners=False
    )
    for form in (tokens, tokens.map(torch.from_numpy)):
        got = downsample(form, target)
        assert np.asarray(got.local[0]).dtype == np.float32
        np.testing.assert_allclose(np.asarray(got.local[0]), reference, atol=1e-6, rtol=0)
        np.testing.assert_array_equal(np.asarray(got.global_[0]), tokens.global_[0])


def test_downsample_of_sixteen_to_eight_is_the_mean_of_four():
    tokens = make(grids=((16, 16),), channels=(2,))
    mean = tokens.local[0].reshape(4, 2, 8, 2, 8, 2).mean((3, 5))
    np.testing.assert_allclose(downsample(tokens).local[0], mean, atol=1e-6)


def test_downsample_reads_transposed_arrays_and_passes_gradients():
    nhwc = torch.randn(2, 14, 14, 3, requires_grad=True)
    tokens = Tokens((nhwc.permute(0, 3, 1, 2),), (torch.zeros(2, 3),), (0,))
    downsample(tokens).local[0].sum().backward()
    assert nhwc.grad is not None
    numpy_form = Tokens((nhwc.detach().numpy().transpose(0, 3, 1, 2),), (np.zeros((2, 3)),), (0,))
    np.testing.assert_allclose(
        downsample(numpy_form).local[0], downsample(tokens).local[0].detach(), atol=1e-6
    )


def test_a_grid_that_fits_is_not_copied():
    tokens = make(grids=((8, 8),), channels=(2,))
    assert downsample(tokens).local[0] is tokens.local[0]


@pytest.mark.parametrize(
    ("local", "global_", "layers"),
    [
        ([], [], ()),
        ([np.zeros((2, 3, 4, 4))], [np.zeros((2, 3))], (0, 1)),
        ([np.zeros((2, 3, 4, 4))], [np.zeros((1, 3))], (0,)),
        ([np.zeros((2, 3, 4, 4))], [np.zeros((2, 4))], (0,)),
        ([np.zeros((2, 3, 4))], [np.zeros((2, 3))], (0,)),
        (
            [np.zeros((2, 3, 4, 4)), np.zeros((1, 3, 4, 4))],
            [np.zeros((2, 3)), np.zeros((1, 3))],
            (0, 1),
        ),
    ],
)
def test_shapes_that_disagree_are_refused(local, global_, layers):
    with pytest.raises(BrainfastError, match="tokens"):
        Tokens(tuple(local), tuple(global_), layers)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_tokens_that_are_not_finite_are_named(value, kind):
    tokens = make()
    tokens.check_finite()
    tokens.global_[1][2, 1] = value
    form = tokens.map(torch.from_numpy) if kind == "torch" else tokens
    with np.errstate(invalid="raise"), pytest.raises(BrainfastError, match=r"global\.1"):
        form.check_finite()


def test_a_bad_grid_is_refused():
    with pytest.raises(BrainfastError, match="grid"):
        downsample(make(), (0, 8))
