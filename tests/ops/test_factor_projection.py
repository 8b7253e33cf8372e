from __future__ import annotations

import pytest
import torch

from brainfast.errors import BrainfastError
from brainfast.ops import factor_projection, reference

NAMES = ("tokens", "filters", "maps")
SIZES = [  # B T C K
    (1, 1, 1, 1),
    (3, 2, 7, 3),
    (2, 5, 33, 17),
    (3, 50, 7, 100),
    (1, 257, 192, 17),
    (2, 257, 33, 100),
    (130, 5, 13, 33),
]
sizes = pytest.mark.parametrize("sizes", SIZES, ids=str)


def make_case(sizes, *, dtype=torch.float64, grad=False):
    """tokens, filters and maps, exact in float32."""
    images, tokens, channels, latent = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    shapes = [(images, tokens, channels), (latent, channels), (latent, tokens)]
    case = [torch.randn(shape, generator=generator) for shape in shapes]
    return [tensor.to(dtype).requires_grad_(grad) for tensor in case]


def single(case):
    return [t.detach().float().requires_grad_(t.requires_grad) for t in case]


def direct(tokens, filters, maps):
    """The definition in loops over k, which the twin is not."""
    columns = [(maps[k] * (tokens @ filters[k])).sum(dim=1) for k in range(len(filters))]
    return torch.stack(columns, dim=1)


def gradients(function, case, grad_output):
    return torch.autograd.grad(function(*case), case, grad_output)


def weights_for(sizes):
    return torch.randn(sizes[0], sizes[3], generator=torch.Generator().manual_seed(1))


@sizes
def test_the_twin_is_the_definition(sizes):
    case = make_case(sizes)
    torch.testing.assert_close(reference.factor_projection(*case), direct(*case))


@sizes
def test_the_twins_gradients_are_those_of_autograd(sizes):
    case, grad_output = make_case(sizes, grad=True), weights_for(sizes).double()
    found = reference.factor_projection_backward(grad_output, *(t.detach() for t in case))
    for a, b in zip(found, gradients(direct, case, grad_output), strict=True):
        torch.testing.assert_close(a, b)


@sizes
def test_values_match_the_float64_twin(isa, sizes):
    case = make_case(sizes)
    found = factor_projection(*single(case))
    assert found.dtype == torch.float32
    deviation = (sizes[1] * sizes[2]) ** 0.5  # of a sum of that many products of normal numbers
    expected = reference.factor_projection(*case)
    assert (found - expected).abs().max() <= 1e-5 * deviation


@sizes
def test_gradients_match_the_float64_twin(isa, sizes):
    case, grad_output = make_case(sizes, grad=True), weights_for(sizes)
    expected = gradients(reference.factor_projection, case, grad_output.double())
    found = gradients(factor_projection, single(case), grad_output)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name


@sizes
def test_float64_matches_to_its_own_precision(sizes):
    case, grad_output = make_case(sizes, grad=True), weights_for(sizes).double()
    torch.testing.assert_close(
        factor_projection(*case), reference.factor_projection(*case), rtol=1e-12, atol=1e-11
    )
    expected = gradients(reference.factor_projection, case, grad_output)
    for a, b in zip(gradients(factor_projection, case, grad_output), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-11)


def test_gradcheck():
    assert torch.autograd.gradcheck(factor_projection, make_case((2, 5, 7, 6), grad=True))


def test_opcheck():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        case = make_case((2, 5, 7, 6), dtype=dtype, grad=True)
        torch.library.opcheck(torch.ops.brainfast.factor_projection.default, case)


def test_compiles_into_a_graph():
    case = make_case((2, 5, 7, 6))
    compiled = torch.compile(factor_projection, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*case), factor_projection(*case))


def test_bfloat16_is_accumulated_and_answered_in_float32(isa):
    case = make_case((3, 9, 32, 20), dtype=torch.bfloat16, grad=True)
    wide = single(case)
    latent = factor_projection(*case)
    assert latent.dtype == torch.float32
    assert torch.equal(latent, factor_projection(*wide))
    latent.sum().backward()
    grads = torch.autograd.grad(factor_projection(*wide).sum(), wide)
    for tensor, grad in zip(case, grads, strict=True):
        assert torch.equal(tensor.grad, grad.bfloat16())


def test_half_precision_tokens_go_with_float32_factors():
    tokens, filters, maps = single(make_case((2, 9, 8, 5)))
    assert torch.equal(
        factor_projection(tokens.half(), filters, maps),
        factor_projection(tokens.half().float(), filters, maps),
    )


@pytest.mark.parametrize(("images", "latent"), [(0, 5), (3, 0), (0, 0)])
def test_no_images_and_no_latent(isa, images, latent):
    case = single(make_case((images, 4, 6, latent), grad=True))
    answer = factor_projection(*case)
    assert answer.shape == (images, latent)
    answer.sum().backward()
    for tensor in case:
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


def test_strided_inputs_and_expanded_gradients(isa):
    case = single(make_case((2, 9, 8, 5), grad=True))
    strided = [torch.stack([tensor, tensor], dim=-1)[..., 0] for tensor in case]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(factor_projection(*strided), factor_projection(*case))
    expanded = torch.ones(1, 1).expand(2, 5)
    for a, b in zip(
        gradients(factor_projection, case, expanded),
        gradients(factor_projection, case, expanded.contiguous()),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_only_wanted_gradients(isa):
    full = single(make_case((3, 9, 26, 40), grad=True))
    factor_projection(*full).sum().backward()
    for index, name in enumerate(NAMES):
        case = [tensor.detach().requires_grad_(i == index) for i, tensor in enumerate(full)]
        factor_projection(*case).sum().backward()
        assert torch.equal(case[index].grad, full[index].grad), name


def test_the_same_bits_for_any_number_of_threads(isa, set_threads):
    case, grad_output = single(make_case((3, 30, 40, 200), grad=True)), weights_for((3, 0, 0, 200))
    runs = []
    for threads in (1, 2, 3, 3):
        set_threads(threads)
        runs.append([factor_projection(*case), *gradients(factor_projection, case, grad_output)])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_the_same_bits_for_any_batch(isa):
    tokens, filters, maps = single(make_case((5, 30, 40, 70)))
    together = factor_projection(tokens, filters, maps)
    for image in range(5):
        alone = factor_projection(tokens[image : image + 1], filters, maps)
        assert torch.equal(alone[0], together[image])


def test_a_gradient_step_lowers_the_error():
    tokens, filters, maps = single(make_case((8, 9, 12, 6), grad=True))
    target = factor_projection(tokens.detach(), filters.detach() + 0.1, maps.detach() - 0.1)
    factors = [filters, maps]
    optimizer = torch.optim.SGD(factors, lr=1e-4)
    errors = []
    for _ in range(5):
        error = (factor_projection(tokens.detach(), *factors) - target).pow(2).mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors == sorted(errors, reverse=True)


def spoil(index, change):
    case = single(make_case((2, 9, 8, 5)))
    case[index] = change(case[index])
    return case


@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        (0, lambda t: t[0], r"tokens: expected \[B,T,C\], got shape \[9, 8\]"),
        (1, lambda t: t[:, :-1], r"filters: expected \[K,C\] with C=8, got shape \[5, 7\]"),
        (2, lambda t: t[:, :-1], r"maps: expected \[K,T\] with T=9, got shape \[5, 8\]"),
        (2, lambda t: t[:-1], r"maps: expected \[K,T\] with K=5, got shape \[4, 9\]"),
        (1, lambda t: t.double(), "filters: expected float32.*got float64.*float"),
        (0, lambda t: t.int(), "tokens: expected float32.*got int32"),
        (1, lambda t: t.to("meta"), "filters: expected a tensor on cpu"),
    ],
)
def test_bad_input(index, change, words):
    with pytest.raises(BrainfastError, match=words):
        factor_projection(*spoil(index, change))


@pytest.mark.parametrize("letter", ["T", "C"])
def test_nothing_to_sum_is_refused(letter):
    case = make_case((2, 0 if letter == "T" else 9, 0 if letter == "C" else 8, 5))
    with pytest.raises(BrainfastError, match=f"at least one element along {letter}"):
        factor_projection(*case)
