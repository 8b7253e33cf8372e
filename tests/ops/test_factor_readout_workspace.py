"""Training steps on a workspace: values, gradients and bits of every path and both precisions."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from brainfast import _C
from brainfast.errors import BrainfastError
from brainfast.ops import FactorReadoutWorkspace, factor_readout, reference

NAMES = ("local", "global_", "space", "layer", "scale", "weight", "bias")
PATHS = [
    (precision, isa)
    for precision in ("fp32", "bf16")
    for isa in [*_C.supported_isas(precision), *(["amx-emulated"] if precision == "bf16" else [])]
]
# rms error over the rms of the answer. Rounding to bfloat16 moves a number by 2^-9 of it at most;
# of what remains besides tokens and weights, grad_output and its products, one is rounded.
BARS = {"fp32": 2e-6, "bf16": 4e-3}
SIZES = [  # B V L D H W
    (2, 300, 3, 130, 8, 8),
    (8, 300, 13, 33, 8, 8),
    (1, 1, 1, 1, 1, 1),
    (3, 15, 13, 5, 3, 5),
    (2, 17, 3, 33, 3, 5),
    (5, 300, 1, 5, 1, 1),
    (11, 17, 40, 130, 1, 7),
]
paths = pytest.mark.parametrize(("precision", "isa"), PATHS)


def single(case):
    return [tensor.detach().float().requires_grad_() for tensor in case]


def step(workspace, case, grad_output, **options):
    """Response and gradients of one step."""
    response = workspace(*case, **options)
    return [response.detach(), *torch.autograd.grad(response, case, grad_output)]


def twin_step(case, grad_output, precision, **options):
    """The twin's step in float64, on the tokens and weights that a precision multiplies."""
    case = [tensor.detach().clone() for tensor in case]
    if precision == "bf16":
        for index in (0, 1, 5):
            case[index] = case[index].bfloat16().double()
    case = [tensor.requires_grad_() for tensor in case]
    response = reference.factor_readout(*case, **options)
    return [response.detach(), *torch.autograd.grad(response, case, grad_output.double())]


def random_grad(case, seed=1):
    shape = (len(case[0]), len(case[-1]))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def assert_close(found, expected, precision):
    for name, a, b in zip(("response", *NAMES), found, expected, strict=True):
        assert a.dtype == torch.float32
        error = (a.double() - b).norm()
        assert error <= BARS[precision] * b.norm() + 1e-12, f"{name}: {error / b.norm():.1e}"


@paths
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_steps_with_moving_points_match_the_float64_twin(
    make_case, precision, isa, sizes, align_corners
):
    case = make_case(sizes, grad=True)
    workspace = FactorReadoutWorkspace(precision, isa)
    for turn in range(3):
        grad_output = random_grad(case, turn)
        options = {"align_corners": align_corners}
        expected = twin_step(case, grad_output, precision, **options)
        assert_close(step(workspace, single(case), grad_output, **options), expected, precision)
        with torch.no_grad():
            case[2].copy_((0.8 * case[2] + 0.15).float())  # most stay in their cell, some leave it
            case[5].add_(1)


@paths
def test_what_rounding_costs_in_all(make_case, precision, isa):
    case = make_case((8, 300, 12, 128, 8, 8), grad=True)
    grad_output = random_grad(case)
    found = step(FactorReadoutWorkspace(precision, isa), single(case), grad_output)
    for name, a, b in zip(
        ("response", *NAMES), found, twin_step(case, grad_output, "fp32"), strict=True
    ):
        error = (a.double() - b).norm() / b.norm()
        assert error <= (1e-6 if precision == "fp32" else 5e-3), f"{name}: {error:.1e}"


@paths
def test_points_on_the_borders_of_cells(make_case, precision, isa):
    case = make_case((2, 289, 3, 5, 8, 8), grad=True)
    steps = torch.arange(-8, 9, dtype=torch.float64) / 8  # pixel borders and centres, exactly
    case[2] = torch.cartesian_prod(steps * 9 / 8, steps * 9 / 8).requires_grad_()
    grad_output = random_grad(case)
    expected = twin_step(case, grad_output, precision)
    workspace = FactorReadoutWorkspace(precision, isa)
    assert_close(step(workspace, single(case), grad_output), expected, precision)


@paths
def test_bits_depend_on_neither_threads_nor_history(make_case, set_threads, precision, isa):
    used = FactorReadoutWorkspace(precision, isa)
    for images, vertices in ((2, 300), (7, 700), (7, 700), (1, 700), (5, 700)):
        case = single(make_case((images, vertices, 12, 40, 8, 8)))
        with torch.no_grad():
            case[2] += 0.3 * torch.randn(vertices, 2)
        grad_output = random_grad(case)
        runs = []
        for threads in (1, 2, 3):
            set_threads(threads)
            runs.append(step(used, case, grad_output))
            runs.append(step(FactorReadoutWorkspace(precision, isa), case, grad_output))
        assert all(equal(run, runs[0]) for run in runs[1:])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(make_case, precision):
    tokens = single(make_case((4, 200, 5, 24, 6, 6)))
    goal = random_grad(tokens)

    def train(parameters, optimizer, workspace, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (workspace(*tokens[:2], *parameters) - goal).pow(2).mean().backward()
            optimizer.step()

    def start():
        parameters = [tensor.detach().clone().requires_grad_() for tensor in tokens[2:]]
        return parameters, torch.optim.AdamW(parameters, lr=0.05)

    whole, optimizer = start()
    train(whole, optimizer, FactorReadoutWorkspace(precision), 8)
    halved, optimizer = start()
    train(halved, optimizer, FactorReadoutWorkspace(precision), 4)
    train(halved, optimizer, FactorReadoutWorkspace(precision), 4)
    assert equal(whole, halved)
    assert not equal(whole, start()[0])


@paths
def test_only_wanted_gradients(make_case, precision, isa):
    workspace = FactorReadoutWorkspace(precision, isa)
    case = single(make_case((3, 60, 5, 24, 4, 5)))
    grad_output = random_grad(case)
    _, *full = step(workspace, case, grad_output)
    for wanted in ({0}, {1}, {2}, {3}, {4}, {5}, {6}, {5, 6}, {2, 3, 4}, {0, 5}):
        some = [tensor.detach().requires_grad_(i in wanted) for i, tensor in enumerate(case)]
        workspace(*some).backward(grad_output)
        for i, (tensor, grad) in enumerate(zip(some, full, strict=True)):
            assert (tensor.grad is not None) == (i in wanted)
            assert i not in wanted or torch.equal(tensor.grad, grad), NAMES[i]


def test_strided_inputs_and_gradients(make_case):
    workspace = FactorReadoutWorkspace()
    case = single(make_case((2, 30, 3, 8, 4, 5)))
    expected = step(workspace, case, torch.ones(2, 30))
    strided = [torch.stack([t, t], dim=-1).detach()[..., 0].requires_grad_() for t in case]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert equal(step(workspace, strided, torch.ones(1, 1).expand(2, 30)), expected)


@pytest.mark.parametrize(("images", "vertices"), [(0, 5), (3, 0), (0, 0)])
@paths
def test_no_images_and_no_vertices(make_case, precision, isa, images, vertices):
    case = single(make_case((images, vertices, 4, 6, 3, 3)))
    response, *grads = step(
        FactorReadoutWorkspace(precision, isa), case, torch.ones(images, vertices)
    )
    assert response.shape == (images, vertices)
    assert not any(grad.any() for grad in grads)


def test_fp32_answers_as_the_operator_does(make_case):
    case = single(make_case((2, 50, 4, 16, 5, 5)))
    with torch.no_grad():
        response = FactorReadoutWorkspace()(*case)
        assert not response.requires_grad
        torch.testing.assert_close(response, factor_readout(*case))


def test_gradients_are_the_callers_own(make_case):
    workspace = FactorReadoutWorkspace()
    case = single(make_case((2, 40, 3, 8, 4, 4)))
    first = step(workspace, case, torch.ones(2, 40))
    kept = [tensor.clone() for tensor in first]
    step(workspace, case, -torch.ones(2, 40))
    assert equal(first, kept)


def test_a_stale_backward_is_refused_in_one_line(make_case):
    workspace = FactorReadoutWorkspace()
    case = single(make_case((2, 20, 3, 8, 4, 4)))
    stale = workspace(*case)
    fresh = workspace(*case)
    with pytest.raises(BrainfastError, match=r"backward: .*one of an earlier call") as error:
        stale.sum().backward()
    assert "\n" not in str(error.value)
    fresh.sum().backward(retain_graph=True)
    with pytest.raises(BrainfastError, match=r"backward: .*a second one"):
        fresh.sum().backward()


def test_waiting_ends_with_the_backward_or_with_the_graph(make_case):
    workspace = FactorReadoutWorkspace()
    case = single(make_case((2, 20, 3, 8, 4, 4)))
    assert not workspace.waiting
    response = workspace(*case)
    assert workspace.waiting
    response.sum().backward()
    assert not workspace.waiting
    response = workspace(*case)
    del response
    assert not workspace.waiting
    with torch.no_grad():
        workspace(*case)
    assert not workspace.waiting


def test_a_copy_starts_empty(make_case):
    case = single(make_case((2, 20, 3, 8, 4, 4)))
    workspace = FactorReadoutWorkspace("bf16", "portable")
    expected = step(workspace, case, torch.ones(2, 20))
    for twin in (copy.deepcopy(workspace), pickle.loads(pickle.dumps(workspace))):
        assert (twin.precision, twin.isa) == ("bf16", "portable")
        assert equal(step(twin, case, torch.ones(2, 20)), expected)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("local", lambda t: t[0], r"local: expected \[B,L,D,H,W\], got shape"),
        ("layer", lambda t: t[:-1], r"layer: expected \[V,L\] with V=6, got shape \[5, 3\]"),
        ("weight", lambda t: t.double(), "weight: expected float32 on the CPU, got float64"),
        ("local", lambda t: t.bfloat16(), "local: expected float32 on the CPU, got bfloat16"),
        ("scale", lambda t: t.to("meta"), "scale: expected float32 on the CPU, got .* on meta"),
        ("space", lambda t: t / 0, "space: expected finite sampling points"),
    ],
)
def test_a_wrong_argument_is_named_and_does_no_harm(make_case, name, change, words):
    case = single(make_case((2, 6, 3, 4, 5, 5)))
    workspace = FactorReadoutWorkspace()
    expected = step(workspace, case, torch.ones(2, 6))
    wrong = list(case)
    wrong[NAMES.index(name)] = change(case[NAMES.index(name)])
    with pytest.raises(BrainfastError, match=words):
        workspace(*wrong)
    assert equal(step(workspace, case, torch.ones(2, 6)), expected)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bf16x3",), "precision: expected fp32 or bf16, got 'bf16x3'"),
        (("fp32", "sse9"), "isa: expected a path that this machine runs .*got 'sse9'"),
    ],
)
def test_a_wrong_option_is_named(arguments, words):
    with pytest.raises(BrainfastError, match=words):
        FactorReadoutWorkspace(*arguments)


def test_the_compiled_workspace_refuses_what_does_not_fit():
    workspace = _C.FactorReadoutWorkspace(5, 2, 3, 4, 4)
    grad_output = torch.ones(2, 5).numpy()
    with pytest.raises(ValueError, match="backward: expected a forward before it, got none"):
        workspace.backward(grad_output, [None] * 7)
    with pytest.raises(ValueError, match="grid: expected a height and a width"):
        _C.FactorReadoutWorkspace(5, 2, 3, 0, 4)
    with pytest.raises(ValueError, match="vertices: expected 0 or more, got -1"):
        _C.FactorReadoutWorkspace(-1, 2, 3, 4, 4)
