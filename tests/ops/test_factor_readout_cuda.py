"""The readout on CUDA: by the emulated kernels on the host, and on a GPU where there is one."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch

from brainfast import _C
from brainfast.errors import BrainfastError
from brainfast.machine import ADD_CUDA_KERNELS
from brainfast.ops import cuda_kernels, factor_readout, factor_readout_cuda, reference
from brainfast.ops.factor_readout_cuda import CudaFactorReadoutPlan

NAMES = ("local", "global_", "space", "layer", "scale", "weight", "bias")
SIZES = [(1, 1, 1, 1, 1, 1), (2, 17, 3, 130, 2, 2), (9, 15, 13, 5, 3, 2), (1, 70, 6, 20, 4, 1)]
FULL_SIZES = [*SIZES, (2, 3000, 12, 128, 8, 8), (8, 500, 40, 17, 5, 3), (33, 130, 5, 512, 1, 7)]
corners = pytest.mark.parametrize("align_corners", [False, True])


def on(device, case, dtype=torch.float32):
    return [t.detach().to(device, dtype).requires_grad_(t.requires_grad) for t in case]


def gradients(function, case, grad_output, **options):
    return torch.autograd.grad(function(*case, **options), case, grad_output)


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def check(found, expected, tolerance, name):
    assert found.dtype == torch.float32
    error = (found.cpu() - expected).abs().max()
    assert error <= tolerance * expected.abs().max() + 1e-6, name


@pytest.mark.parametrize("sizes", FULL_SIZES, ids=str)
@corners
def test_matches_the_float64_twin(device, make_case, sizes, align_corners):
    if device == "cpu" and sizes not in SIZES:
        pytest.skip("too large for the emulator")
    case = make_case(sizes, grad=True)
    grad_output = normal(*sizes[:2])
    options = {"align_corners": align_corners}
    check(
        factor_readout(*on(device, case), **options).detach(),
        reference.factor_readout(*case, **options).detach(),
        *(1e-5, "response"),
    )
    expected = gradients(reference.factor_readout, case, grad_output.double(), **options)
    found = gradients(factor_readout, on(device, case), grad_output.to(device), **options)
    for name, a, b in zip(NAMES, found, expected, strict=True):
        check(a, b, 1e-5, name)


def test_points_on_the_edges_of_cells(device, make_case):
    case = make_case((2, 81, 3, 5, 4, 4), grad=True)
    steps = torch.arange(-4, 5, dtype=torch.float64) / 4  # pixel borders and centres, exactly
    case[2] = torch.cartesian_prod(steps * 5 / 4, steps * 5 / 4).requires_grad_()
    grad_output = normal(2, 81)
    expected = gradients(reference.factor_readout_cells, case, grad_output.double())
    found = gradients(factor_readout, on(device, case), grad_output.to(device))
    for name, a, b in zip(NAMES, found, expected, strict=True):
        check(a, b, 1e-5, name)


def test_bfloat16_is_accumulated_in_float32(device, make_case):
    case = make_case((3, 40, 5, 150, 3, 3), dtype=torch.bfloat16, grad=True)
    wide = [tensor.detach().double().requires_grad_() for tensor in case]
    case = on(device, case, torch.bfloat16)
    response = factor_readout(*case)
    check(response.detach(), reference.factor_readout(*wide).detach(), 1e-5, "response")
    grad_output = normal(3, 40)
    expected = gradients(reference.factor_readout, wide, grad_output.double())
    found = torch.autograd.grad(response, case, grad_output.to(device))
    for name, a, b in zip(NAMES, found, expected, strict=True):
        assert a.dtype == torch.bfloat16
        check(a.float(), b, 2e-2, name)


def test_half_precision_tokens_go_with_float32_parameters(device, make_case):
    case = on(device, make_case((2, 30, 3, 8, 4, 4)))
    mixed = [case[0].bfloat16(), case[1].half(), *case[2:]]
    expected = factor_readout(*(tensor.float() for tensor in mixed))
    assert torch.equal(factor_readout(*mixed), expected)
    mixed = [case[0].bfloat16(), case[1].bfloat16(), *case[2:]]
    expected = factor_readout(*(tensor.float() for tensor in mixed))
    assert torch.equal(factor_readout(*mixed), expected)


@pytest.mark.parametrize(("images", "vertices"), [(0, 5), (3, 0), (0, 0)])
def test_no_images_and_no_vertices(device, make_case, images, vertices):
    case = on(device, make_case((images, vertices, 4, 6, 3, 3), grad=True))
    response = factor_readout(*case)
    assert response.shape == (images, vertices)
    response.sum().backward()
    for tensor in case:
        assert tensor.grad.shape == tensor.shape
        assert not tensor.grad.any()


def test_strided_inputs(device, make_case):
    case = on(device, make_case((2, 30, 3, 8, 4, 5), grad=True))
    expanded = torch.ones(1, 1, device=device).expand(2, 30)
    expected = gradients(factor_readout, case, expanded.contiguous())
    strided = [torch.stack([t.detach(), t.detach()], dim=-1)[..., 0] for t in case]
    assert not any(tensor.is_contiguous() for tensor in strided)
    assert torch.equal(factor_readout(*strided), factor_readout(*case))
    strided = [tensor.requires_grad_() for tensor in strided]
    for a, b in zip(gradients(factor_readout, strided, expanded), expected, strict=True):
        assert torch.equal(a, b)


def test_views_that_begin_between_two_words_of_memory(device, make_case):
    for dtype in (torch.float32, torch.bfloat16):
        case = on(device, make_case((2, 30, 3, 8, 4, 5)), dtype)
        shifted = [torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for t in case]
        assert all(t.data_ptr() % 16 and t.is_contiguous() for t in shifted)
        assert torch.equal(factor_readout(*shifted), factor_readout(*case))
        *parameters, local, global_ = *shifted[2:], *shifted[:2]
        plan, other = (CudaFactorReadoutPlan(*p, 4, 5) for p in (parameters, case[2:]))
        assert torch.equal(plan.run(local, global_), other.run(*case[:2]))


def test_only_wanted_gradients(device, make_case):
    full = on(device, make_case((2, 40, 5, 24, 2, 3), grad=True))
    factor_readout(*full).sum().backward()
    for index, name in enumerate(NAMES):
        case = [tensor.detach().requires_grad_(i == index) for i, tensor in enumerate(full)]
        factor_readout(*case).sum().backward()
        assert torch.equal(case[index].grad, full[index].grad), name


def test_a_point_that_is_not_finite_answers_nan(device, make_case):
    case = on(device, make_case((1, 20, 3, 8, 4, 5)))
    expected = factor_readout(*case)
    case[2][7, 1] = torch.inf
    found = factor_readout(*case)
    assert found[0, 7].isnan()
    others = torch.arange(20, device=device) != 7
    assert torch.equal(found[:, others], expected[:, others])


@pytest.mark.parametrize(
    ("precision", "low", "high"), [("fp32", 0, 1e-6), ("bf16x3", 0, 1e-5), ("bf16", 1e-4, 5e-3)]
)
@pytest.mark.parametrize("images", [1, 2, 9])
def test_plan(device, make_case, precision, low, high, images):
    case = make_case((images, 70, 6, 70, 3, 2))
    expected = reference.factor_readout(*case)
    local, global_, *parameters = on(device, case)
    plan = CudaFactorReadoutPlan(*parameters, 3, 2, precision=precision)
    found = plan.run(local, global_)
    error = (found.cpu() - expected).norm() / (expected - case[-1]).norm()
    assert low <= error <= high
    out = torch.full_like(found, torch.nan)
    assert plan.run(local, global_, out) is out
    assert torch.equal(out, found)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda local, global_, out: (local[:, :2], global_, out), r"local: expected \[2, 3, 8"),
        (lambda local, global_, out: (local, global_[:1], out), r"global_: expected \[2, 3, 8\]"),
        (lambda local, global_, out: (local, global_, out[:, 1:]), r"out: expected \[2, 6\]"),
        (lambda local, global_, out: (local, global_, out.double()), "out: expected contiguous fl"),
        (lambda local, global_, out: (local, global_.to("meta"), out), "one on meta"),
    ],
)
def test_a_plan_names_what_is_wrong(device, make_case, change, words):
    local, global_, *parameters = on(device, make_case((2, 6, 3, 8, 2, 2)))
    plan = CudaFactorReadoutPlan(*parameters, 2, 2)
    out = torch.empty(2, 6, device=device)
    with pytest.raises(BrainfastError, match=words):
        plan.run(*change(local, global_, out))


def test_a_build_without_kernels_says_so_once(monkeypatch, recwarn):
    monkeypatch.setattr(cuda_kernels, "_C", SimpleNamespace())
    place = torch.device("cuda:77")
    assert not factor_readout_cuda.usable(place)
    assert not factor_readout_cuda.usable(place)
    assert [ADD_CUDA_KERNELS in str(w.message) for w in recwarn] == [True]


def test_a_gpu_that_the_build_has_no_code_for_is_named(monkeypatch):
    problem = "no kernel image is available for execution on the device"
    info = {"problem": "", "architectures": "80-real", "devices": [{"problem": problem}]}
    fake = SimpleNamespace(CudaFactorReadout=None, cuda_info=lambda only: info)
    monkeypatch.setattr(cuda_kernels, "_C", fake)
    with pytest.warns(UserWarning, match="no kernel image.*the build has code for 80-real"):
        assert not factor_readout_cuda.usable(torch.device("cuda:0"))
    factor_readout_cuda.usable.cache_clear()


def test_the_kernels_are_those_of_this_build(gpu):
    assert hasattr(_C, "CudaFactorReadout")
    assert factor_readout_cuda.usable(torch.empty(1, device=gpu).device)


def test_mixed_devices_are_refused(gpu, make_case):
    case = on(gpu, make_case((2, 6, 3, 4, 5, 5)))
    with pytest.raises(BrainfastError, match="scale: expected a tensor on cuda:0"):
        factor_readout(*case[:4], case[4].cpu(), *case[5:])


def test_opcheck(gpu, make_case):
    for dtype in (torch.float32, torch.bfloat16):
        case = on(gpu, make_case((2, 9, 3, 4, 3, 3), grad=True), dtype)
        torch.library.opcheck(torch.ops.brainfast.factor_readout.default, case)


def test_under_autocast(gpu, make_case):
    case = on(gpu, make_case((2, 90, 3, 8, 3, 3)))
    expected = factor_readout(*case)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(factor_readout(*case), expected)


def test_compiles_into_a_graph(gpu, make_case):
    case = on(gpu, make_case((2, 90, 3, 8, 3, 3)))
    compiled = torch.compile(factor_readout, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*case), factor_readout(*case))


def test_never_waits_for_the_device(gpu, make_case):
    case = on(gpu, make_case((2, 90, 3, 8, 3, 3), grad=True))
    expected = gradients(factor_readout, case, torch.ones(2, 90, device=gpu))
    grad_output = torch.ones(2, 90, device=gpu)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = gradients(factor_readout, case, grad_output)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_cuda_graph_replays_forward_and_backward(gpu, make_case, capture):
    case = on(gpu, make_case((2, 300, 5, 40, 4, 4), grad=True))
    grad_output = normal(2, 300).to(gpu)
    step = partial(gradients, factor_readout, case, grad_output)
    graph, found = capture(step)
    with torch.no_grad():
        case[2].copy_(case[2].roll(1, 0) * 0.7)  # points move to other cells
        case[0].mul_(-1.5)
    graph.replay()
    for a, b in zip(found, step(), strict=True):
        assert torch.equal(a, b)


def test_streams_of_several_threads(check_streams, gpu, make_case):
    def run(*case):
        answer = factor_readout(*case)
        return [answer, *torch.autograd.grad(answer.sum(), case)]

    check_streams(run, [on(gpu, make_case((2, 400 + i, 4, 16, 6, 6), grad=True)) for i in range(8)])


def test_kernels_that_answer_otherwise_than_torch_are_not_used(device, monkeypatch):
    place = torch.device(device)
    assert factor_readout_cuda._difference(place) == ""
    right = factor_readout_cuda.backward

    def wrong(*arguments, **options):
        grads = right(*arguments, **options)
        grads[5] = grads[5] * 1.01
        return grads

    monkeypatch.setattr(factor_readout_cuda, "backward", wrong)
    monkeypatch.setattr(cuda_kernels, "find_problem", lambda *_: "")
    factor_readout_cuda.usable.cache_clear()
    with pytest.warns(UserWarning, match="gradients of weight in fp32 differ from torch's by 0.01"):
        assert not factor_readout_cuda.usable(place)
    factor_readout_cuda.usable.cache_clear()
