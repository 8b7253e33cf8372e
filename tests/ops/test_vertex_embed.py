from __future__ import annotations

import numpy as np
import pytest
import torch

from brainfast import _C
from brainfast.errors import BrainfastError
from brainfast.ops import reference, vertex_embed

SIZES = [(1, 1, 1), (3, 19, 7), (2, 100, 33), (37, 70, 130), (1, 150, 600)]  # B V K
PATHS = [
    (precision, isa)
    for precision in ("fp32", "bf16", "bf16x3")
    for isa in (*_C.supported_isas(precision), *(["amx-emulated"] * (precision != "fp32")))
]
sizes = pytest.mark.parametrize("sizes", SIZES, ids=str)
paths = pytest.mark.parametrize(("precision", "isa"), PATHS)


def make_case(sizes, *, dtype=torch.float64, grad=False):
    """latent, weight and bias, exact in float32."""
    images, vertices, latent = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    shapes = [(images, latent), (vertices, latent), (vertices,)]
    case = [torch.randn(shape, generator=generator) for shape in shapes]
    return [tensor.to(dtype).requires_grad_(grad) for tensor in case]


def single(case):
    return [t.detach().float().requires_grad_(t.requires_grad) for t in case]


def direct(latent, weight, bias):
    """The definition, vertex by vertex."""
    columns = [(latent * weight[v]).sum(dim=1) + bias[v] for v in range(len(weight))]
    return torch.stack(columns, dim=1)


def gradients(function, case, grad_output):
    return torch.autograd.grad(function(*case), case, grad_output)


@sizes
def test_values_match_float64(isa, sizes):
    case = make_case(sizes)
    expected = direct(*case)
    torch.testing.assert_close(reference.vertex_embed(*case), expected)
    found = vertex_embed(*single(case))
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5 * sizes[2] ** 0.5


@sizes
def test_gradients_match_float64(isa, sizes):
    case = make_case(sizes, grad=True)
    grad_output = torch.randn(sizes[:2], generator=torch.Generator().manual_seed(1))
    expected = gradients(direct, case, grad_output.double())
    for a, b in zip(gradients(vertex_embed, single(case), grad_output), expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    for a, b in zip(gradients(vertex_embed, case, grad_output.double()), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradcheck_and_opcheck():
    assert torch.autograd.gradcheck(vertex_embed, make_case((2, 5, 7), grad=True))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        case = make_case((2, 5, 7), dtype=dtype, grad=True)
        torch.library.opcheck(torch.ops.brainfast.vertex_embed.default, case)


def test_bfloat16_is_accumulated_and_answered_in_float32(isa):
    case = make_case((3, 20, 32), dtype=torch.bfloat16, grad=True)
    wide = single(case)
    response = vertex_embed(*case)
    assert response.dtype == torch.float32
    assert torch.equal(response, vertex_embed(*wide))
    response.sum().backward()
    grads = torch.autograd.grad(vertex_embed(*wide).sum(), wide)
    for tensor, grad in zip(case, grads, strict=True):
        assert torch.equal(tensor.grad, grad.bfloat16())


@pytest.mark.parametrize(("images", "vertices"), [(0, 5), (3, 0), (0, 0)])
def test_no_images_and_no_vertices(isa, images, vertices):
    case = single(make_case((images, vertices, 6), grad=True))
    response = vertex_embed(*case)
    assert response.shape == (images, vertices)
    response.sum().backward()
    assert all(tensor.grad.shape == tensor.shape for tensor in case)
    plan = _C.VertexEmbedPlan(*(t.detach().numpy() for t in case[1:]))
    assert plan.run(case[0].detach().numpy()).shape == (images, vertices)
    assert not plan.adjoint(np.zeros((2, vertices), np.float32)).any()


def test_strided_inputs(isa):
    case = single(make_case((3, 20, 9)))
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in case]
    assert torch.equal(vertex_embed(*strided), vertex_embed(*case))


def test_only_wanted_gradients():
    full = single(make_case((3, 20, 9), grad=True))
    vertex_embed(*full).sum().backward()
    for index in range(3):
        case = [tensor.detach().requires_grad_(i == index) for i, tensor in enumerate(full)]
        vertex_embed(*case).sum().backward()
        assert torch.equal(case[index].grad, full[index].grad)


@paths
@sizes
def test_the_plan_keeps_the_bars(precision, isa, sizes):
    latent, weight, bias = (t.numpy() for t in make_case(sizes, dtype=torch.float32))
    plan = _C.VertexEmbedPlan(weight, bias, isa=isa, precision=precision)
    assert (plan.isa, plan.precision) == (isa, precision)
    assert (plan.vertices, plan.latent) == weight.shape
    expected = latent.astype(np.float64) @ weight.astype(np.float64).T + bias
    error = (plan.run(latent) - expected) / sizes[2] ** 0.5
    if precision == "fp32":
        assert np.abs(error).max() <= 1e-5
    else:
        assert np.sqrt(np.square(error).mean()) <= {"bf16": 5e-3, "bf16x3": 1e-5}[precision]


@paths
def test_the_same_bits_in_any_subset_batch_and_number_of_threads(precision, isa, set_threads):
    latent, weight, bias = (t.numpy() for t in make_case((38, 300, 280), dtype=torch.float32))
    plan = _C.VertexEmbedPlan(weight, bias, isa=isa, precision=precision)
    whole = plan.run(latent)
    for threads in (1, 2, 3):
        set_threads(threads)
        assert np.array_equal(plan.run(latent), whole)
    for images in (1, 2, 7, 17):
        assert np.array_equal(plan.run(latent[:images]), whole[:images])
    for vertices in ([5], [299, 0, 17], np.arange(299, -1, -2), np.arange(40, 101)):
        part = _C.VertexEmbedPlan(weight[vertices], bias[vertices], isa=isa, precision=precision)
        assert np.array_equal(part.run(latent), whole[:, vertices])
        assert np.array_equal(part.run(latent[:1]), whole[:1, vertices])


def test_the_operator_gives_the_bits_of_the_plan(isa):
    case = single(make_case((3, 150, 280)))
    plan = _C.VertexEmbedPlan(case[1].numpy(), case[2].numpy())
    assert np.array_equal(vertex_embed(*case).numpy(), plan.run(case[0].numpy()))


@paths
@sizes
def test_adjoint_is_the_transpose(precision, isa, sizes):
    _, weight, bias = (t.numpy() for t in make_case(sizes, dtype=torch.float32))
    plan = _C.VertexEmbedPlan(weight, bias, isa=isa, precision=precision)
    grad_output = np.random.default_rng(0).standard_normal((14, sizes[1]), dtype=np.float32)
    expected = grad_output.astype(np.float64) @ weight.astype(np.float64)
    found = plan.adjoint(grad_output)
    bar = {"fp32": 1e-5, "bf16": 1e-2, "bf16x3": 2e-5}[precision]
    assert np.abs(found - expected).max() <= bar * np.abs(expected).max()


def test_the_plan_answers_into_a_given_array_and_owns_its_weights():
    latent, weight, bias = (t.numpy() for t in make_case((3, 20, 9), dtype=torch.float32))
    plan = _C.VertexEmbedPlan(weight, bias)
    expected = plan.run(latent)
    weight[:], bias[:] = 0, 0
    out = np.empty((3, 20), np.float32)
    assert plan.run(latent, out=out) is out
    assert np.array_equal(out, expected)


@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        (0, lambda t: t[0], r"latent: expected \[B,K\], got shape \[9\]"),
        (1, lambda t: t[:, :-1], r"weight: expected \[V,K\] with K=9, got shape \[20, 8\]"),
        (2, lambda t: t[:-1], r"bias: expected \[V\] with V=20, got shape \[19\]"),
        (1, lambda t: t.double(), "weight: expected float32.*got float64"),
        (2, lambda t: t.to("meta"), "bias: expected a tensor on cpu"),
    ],
)
def test_bad_input(index, change, words):
    case = single(make_case((3, 20, 9)))
    case[index] = change(case[index])
    with pytest.raises(BrainfastError, match=words):
        vertex_embed(*case)


def test_bad_input_of_the_plan():
    latent, weight, bias = (t.numpy() for t in make_case((3, 20, 9), dtype=torch.float32))
    with pytest.raises(ValueError, match=r"bias: expected shape \[20\], got \[19\]"):
        _C.VertexEmbedPlan(weight, bias[:-1])
    with pytest.raises(ValueError, match="weight: expected at least one entry"):
        _C.VertexEmbedPlan(weight[:, :0], bias)
    plan = _C.VertexEmbedPlan(weight, bias)
    with pytest.raises(ValueError, match=r"latent: expected shape \[3,9\], got \[3,8\]"):
        plan.run(latent[:, :-1].copy())
    with pytest.raises(ValueError, match="latent: expected float32, got float64"):
        plan.run(latent.astype(np.float64))
    with pytest.raises(ValueError, match=r"out: expected shape \[3,20\]"):
        plan.run(latent, out=np.empty((3, 19), np.float32))
    with pytest.raises(ValueError, match=r"grad_output: expected shape \[2,20\]"):
        plan.adjoint(np.zeros((2, 19), np.float32))
