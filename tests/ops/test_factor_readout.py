from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brainfast.errors import BrainfastError
from brainfast.ops import factor_readout, reference

NAMES = ("local", "global_", "space", "layer", "scale", "weight", "bias")
SIZES = [  # B V L D H W
    (2, 300, 12, 128, 8, 8),
    (1, 1, 1, 1, 1, 1),
    (3, 37, 40, 17, 5, 3),
    (2, 50, 5, 33, 1, 7),
    (9, 200, 13, 16, 7, 7),
    (2, 40, 3, 512, 2, 2),
    (1, 90, 6, 20, 4, 1),
    (37, 33, 24, 5, 3, 3),
]
sizes = pytest.mark.parametrize("sizes", SIZES, ids=str)
corners = pytest.mark.parametrize("align_corners", [False, True])


def single(case):
    return [t.detach().float().requires_grad_(t.requires_grad) for t in case]


def gradients(function, case, grad_output, **options):
    return torch.autograd.grad(function(*case, **options), case, grad_output)


def rms(tensor):
    return tensor.pow(2).mean().sqrt()


@sizes
@corners
def test_values_match_the_float64_twin(isa, make_case, sizes, align_corners):
    case = make_case(sizes)
    expected = reference.factor_readout(*case, align_corners=align_corners)
    found = factor_readout(*single(case), align_corners=align_corners)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5 * rms(expected - case[-1])


@sizes
@corners
def test_gradients_match_the_float64_twin(isa, make_case, sizes, align_corners):
    case = make_case(sizes, grad=True)
    grad_output = torch.randn(sizes[0], sizes[1], generator=torch.Generator().manual_seed(1))
    expected = gradients(
        reference.factor_readout, case, grad_output.double(), align_corners=align_corners
    )
    found = gradients(factor_readout, single(case), grad_output, align_corners=align_corners)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name


@sizes
@corners
def test_float64_matches_to_its_own_precision(make_case, sizes, align_corners):
    case = make_case(sizes, grad=True)
    grad_output = torch.randn(sizes[0], sizes[1], dtype=torch.float64)
    options = {"align_corners": align_corners}
    expected = gradients(reference.factor_readout, case, grad_output, **options)
    for a, b in zip(gradients(factor_readout, case, grad_output, **options), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@corners
def test_gradcheck(make_case, align_corners):
    case = make_case((2, 11, 3, 5, 3, 2), grad=True)
    assert torch.autograd.gradcheck(partial(factor_readout, align_corners=align_corners), case)


def test_opcheck(make_case):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        case = make_case((2, 9, 3, 4, 3, 3), dtype=dtype, grad=True)
        torch.library.opcheck(torch.ops.brainfast.factor_readout.default, case)
        torch.library.opcheck(
            torch.ops.brainfast.factor_readout.default, case, {"align_corners": True}
        )


def test_compiles_into_a_graph(make_case):
    case = make_case((2, 9, 3, 4, 3, 3))
    compiled = torch.compile(factor_readout, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*case), factor_readout(*case))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(
        *(st.integers(1, top) for top in (4, 40, 14, 20, 5, 5)),
    ),
    align_corners=st.booleans(),
)
def test_any_size(sizes, align_corners):
    images, vertices, layers, channels, height, width = sizes
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (images, layers, channels, height, width),
        (images, layers, channels),
        (vertices, 2),
        (vertices, layers),
        (vertices,),
        (vertices, channels),
        (vertices,),
    ]
    case = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    case = [tensor.float().double().requires_grad_() for tensor in case]
    grad_output = torch.randn(images, vertices, generator=generator).double()
    options = {"align_corners": align_corners}
    expected = gradients(reference.factor_readout, case, grad_output, **options)
    found = gradients(factor_readout, single(case), grad_output.float(), **options)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert (a - b).abs().max() <= 2e-5 * b.abs().max() + 1e-6, name


def test_a_pixel_centre_gives_that_pixel(isa):
    local = torch.arange(12.0).reshape(1, 1, 1, 3, 4)
    row, column = 1, 2
    space = torch.tensor([[(2 * column + 1) / 4 - 1, (2 * row + 1) / 3 - 1]])
    one, zero = torch.ones(1), torch.zeros(1)
    found = factor_readout(
        local, torch.full((1, 1, 1), 100.0), space, one[None], zero, 3 * one[None], one
    )
    assert found.item() == pytest.approx(3 * local[0, 0, 0, row, column].item() + 1, rel=1e-6)


@corners
def test_points_on_the_edges_of_cells(isa, make_case, align_corners):
    case = make_case((2, 289, 3, 5, 8, 8), grad=True)
    steps = torch.arange(-8, 9, dtype=torch.float64) / 8  # pixel borders and centres, exactly
    space = torch.cartesian_prod(steps * 9 / 8, steps * 9 / 8)
    case[2] = space.clone().requires_grad_()
    grad_output = torch.randn(2, 289, generator=torch.Generator().manual_seed(0)).double()
    options = {"align_corners": align_corners}
    expected = gradients(reference.factor_readout, case, grad_output, **options)
    found = gradients(factor_readout, single(case), grad_output.float(), **options)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name


@pytest.mark.parametrize("far", [-3.4e38, -1e10, -2.0, 2.0, 1e10, 3.4e38])
@pytest.mark.parametrize("axis", [0, 1])
def test_far_outside_only_the_global_tokens_are_read(isa, make_case, far, axis):
    case = single(make_case((2, 20, 4, 8, 5, 6), grad=True))
    with torch.no_grad():
        case[2][:, axis] = far
    response = factor_readout(*case)
    local, global_, space, layer, scale, weight, bias = case
    mixed = torch.einsum("bld,vl->bvd", global_, layer) * scale[:, None]
    torch.testing.assert_close(response, (mixed * weight).mean(dim=2) + bias)
    response.sum().backward()
    assert not local.grad.any()
    assert not space.grad.any()
    assert all(torch.isfinite(tensor.grad).all() for tensor in case)


def test_bfloat16_is_accumulated_and_answered_in_float32(isa, make_case):
    case = make_case((3, 60, 5, 32, 8, 8), dtype=torch.bfloat16, grad=True)
    wide = single(case)
    response = factor_readout(*case)
    assert response.dtype == torch.float32
    assert torch.equal(response, factor_readout(*wide))
    response.sum().backward()
    for tensor, grad in zip(
        case, torch.autograd.grad(factor_readout(*wide).sum(), wide), strict=True
    ):
        assert torch.equal(tensor.grad, grad.bfloat16())


def test_half_precision_tokens_go_with_float32_parameters(make_case):
    case = single(make_case((2, 30, 3, 8, 4, 4)))
    mixed = [case[0].bfloat16(), case[1].half(), *case[2:]]
    assert torch.equal(
        factor_readout(*mixed), factor_readout(*(tensor.float() for tensor in mixed))
    )


@pytest.mark.parametrize(("images", "vertices"), [(0, 5), (3, 0), (0, 0)])
def test_no_images_and_no_vertices(isa, make_case, images, vertices):
    case = single(make_case((images, vertices, 4, 6, 3, 3), grad=True))
    response = factor_readout(*case)
    assert response.shape == (images, vertices)
    response.sum().backward()
    for tensor in case:
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


def test_strided_inputs(isa, make_case):
    case = single(make_case((2, 30, 3, 8, 4, 5)))
    expected = factor_readout(*case)
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in case]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(factor_readout(*strided), expected)
    channels_last = case[0].permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(factor_readout(channels_last, *case[1:]), expected)


def test_expanded_gradient(isa, make_case):
    case = single(make_case((2, 30, 3, 8, 4, 5), grad=True))
    expanded = torch.ones(1, 1).expand(2, 30)
    for a, b in zip(
        gradients(factor_readout, case, expanded),
        gradients(factor_readout, case, expanded.contiguous()),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_only_wanted_gradients(isa, make_case):
    full = single(make_case((2, 60, 5, 24, 4, 5), grad=True))
    factor_readout(*full).sum().backward()
    for index, name in enumerate(NAMES):
        case = [tensor.detach().requires_grad_(i == index) for i, tensor in enumerate(full)]
        factor_readout(*case).sum().backward()
        assert torch.equal(case[index].grad, full[index].grad), name


def test_the_same_bits_for_any_number_of_threads(isa, make_case, set_threads):
    case = single(make_case((5, 700, 12, 40, 8, 8), grad=True))
    grad_output = torch.randn(5, 700, generator=torch.Generator().manual_seed(0))
    runs = []
    for threads in (1, 2, 3, 3):
        set_threads(threads)
        runs.append([factor_readout(*case), *gradients(factor_readout, case, grad_output)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_several_python_threads_at_once(isa, make_case):
    cases = [single(make_case((2, 80 + i, 4, 16, 6, 6), grad=True)) for i in range(8)]

    def run(case):
        response = factor_readout(*case)
        return [response, *torch.autograd.grad(response.sum(), case)]

    expected = [run(case) for case in cases]
    with ThreadPoolExecutor(4) as executor:
        for found, wanted in zip(executor.map(run, cases), expected, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def replaced(case, name, tensor):
    index = NAMES.index(name)
    return [*case[:index], tensor, *case[index + 1 :]]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("local", lambda t: t[0], r"local: expected \[B,L,D,H,W\], got shape \[3, 4, 5, 5\]"),
        ("global_", lambda t: t[:, :2], r"global_: expected \[B,L,D\] with L=3"),
        ("space", lambda t: t[:, :1], r"space: expected \[V,2\] with 2=2"),
        ("layer", lambda t: t[:-1], r"layer: expected \[V,L\] with V=6, got shape \[5, 3\]"),
        ("scale", lambda t: t[:, None], r"scale: expected \[V\], got shape \[6, 1\]"),
        ("weight", lambda t: t[:, :2], r"weight: expected \[V,D\] with D=4"),
        ("bias", lambda t: t[:1], r"bias: expected \[V\] with V=6"),
        ("weight", lambda t: t.double(), "weight: expected float32, bfloat16 or float16, got flo"),
        ("local", lambda t: t.double(), "global_: expected float64, as local is, got float32"),
        ("layer", lambda t: t.long(), "layer: expected float32.*got int64"),
        ("scale", lambda t: t.to("meta"), "scale: expected a tensor on cpu, as local is, got one"),
        ("local", lambda t: t[..., :0], "local: expected at least one element along W"),
        ("space", lambda t: t / 0, "space: expected finite sampling points, got NaN or inf"),
    ],
)
def test_a_wrong_argument_is_named(make_case, name, change, words):
    case = single(make_case((2, 6, 3, 4, 5, 5)))
    tensor = case[NAMES.index(name)]
    with pytest.raises(BrainfastError, match=words):
        factor_readout(*replaced(case, name, change(tensor)))
