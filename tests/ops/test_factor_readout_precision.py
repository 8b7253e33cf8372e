"""Operands of the readout's plan in bfloat16: every path against the twin on rounded operands."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from brainfast import _C
from brainfast.ops import reference

PRECISIONS = ("bf16", "bf16x3")
PATHS = [
    (precision, isa)
    for precision in PRECISIONS
    for isa in [*_C.supported_isas(precision), "amx-emulated"]
]
# (rms, largest) error in standard deviations of the response less its bias, against float64.
BUDGETS = {"bf16": (5e-3, 3e-2), "bf16x3": (1e-5, 1e-4)}
SIZES = [  # B V L D H W
    (2, 300, 12, 128, 8, 8),
    (1, 1, 1, 1, 1, 1),
    (3, 37, 40, 31, 1, 7),
    (2, 500, 5, 130, 8, 8),
    (5, 15, 12, 33, 1, 1),
    (9, 16, 13, 33, 8, 8),
    (2, 17, 5, 512, 1, 7),
    (3, 64, 40, 130, 2, 2),
    (11, 90, 1, 31, 5, 4),
    (1, 900, 3, 32, 1, 1),  # more vertices in a cell than a task takes
]
paths = pytest.mark.parametrize(("precision", "isa"), PATHS)


def arrays_of(case):
    return [tensor.float().numpy() for tensor in case]


def plan_of(arrays, precision, **options):
    return _C.FactorReadoutPlan(*arrays[2:], *arrays[0].shape[3:], precision=precision, **options)


def operand(tensor, precision):
    """What a precision multiplies, by torch's own rounding."""
    high = tensor.float().bfloat16()
    if precision == "bf16":
        return high.double()
    return high.double() + (tensor.float() - high.float()).bfloat16().double()


def twin(case, precision, **options):
    local, global_, space, layer, scale, weight, bias = case
    local, global_, weight = (operand(t, precision) for t in (local, global_, weight))
    response = reference.factor_readout(
        local, global_, space, layer, scale, weight, bias, **options
    )
    return response.numpy()


def signal(response, case):
    return max(np.sqrt(np.mean((response - case[-1].numpy()) ** 2)), 1e-12)


@paths
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_run_matches_the_twin_on_rounded_operands(make_case, precision, isa, sizes, align_corners):
    case = make_case(sizes)
    arrays = arrays_of(case)
    plan = plan_of(arrays, precision, isa=isa, align_corners=align_corners)
    assert (plan.isa, plan.precision) == (isa, precision)
    expected = twin(case, precision, align_corners=align_corners)
    # Tiles leave out low x low; float32 sums are the rest.
    tolerance = 5e-5 if (precision, isa[:3]) == ("bf16x3", "amx") else 1e-5
    error = np.abs(plan.run(*arrays[:2]) - expected).max()
    assert error <= tolerance * signal(expected, case)


@paths
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sizes", [(8, 400, 12, 128, 8, 8), (4, 300, 40, 33, 5, 3)], ids=str)
def test_the_error_stays_in_its_budget(precision, isa, seed, sizes):
    images, vertices, layers, channels, height, width = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float32).double()

    case = [
        normal(images, layers, channels, height, width),
        normal(images, layers, channels),
        torch.rand(vertices, 2, generator=generator).double() * 2 - 1,
        torch.softmax(2 * normal(vertices, layers), dim=1).float().double(),
        torch.sigmoid(normal(vertices)).float().double(),
        normal(vertices, channels),
        normal(vertices),
    ]
    arrays = arrays_of(case)
    exact = reference.factor_readout(*case).numpy()
    error = plan_of(arrays, precision, isa=isa).run(*arrays[:2]) - exact
    rms, largest = np.sqrt(np.mean(error**2)), np.abs(error).max()
    bar, bound = BUDGETS[precision]
    assert rms <= bar * signal(exact, case)
    assert largest <= bound * signal(exact, case)
    if precision == "bf16":
        assert rms > 1e-4 * signal(exact, case)  # else nothing was rounded


@paths
def test_rounding_is_to_nearest_even_and_keeps_what_is_not_finite(precision, isa):
    halfway = np.array([1 + 2**-8, 1 + 3 * 2**-8, -(1 + 2**-8), 1 + 2**-8 + 2**-20, 1e38, 0, -0.0])
    values = halfway.astype(np.float32)
    one = np.ones((1, 1), np.float32)
    plan = _C.FactorReadoutPlan(
        np.zeros((1, 2), np.float32),
        one,
        one[0],
        one,
        0 * one[0],
        1,
        1,
        isa=isa,
        precision=precision,
    )

    def run(numbers):
        tokens = np.asarray(numbers, np.float32).reshape(-1, 1, 1)
        return plan.run(np.zeros((len(tokens), 1, 1, 1, 1), np.float32), tokens)[:, 0]

    expected = operand(torch.from_numpy(values), precision).float().numpy()
    assert np.array_equal(run(values), expected)
    assert np.isnan(run([np.nan, -np.float32(np.nan)])).all()
    filled = np.array([0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(run(filled)).all()


@paths
def test_adjoint_is_the_transpose_with_the_weights_of_run(make_case, precision, isa):
    case = make_case((3, 300, 13, 33, 5, 4))
    arrays = arrays_of(case)
    plan = plan_of(arrays, precision, isa=isa)
    objectives = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)
    local, global_ = plan.adjoint(objectives)
    ones = [torch.zeros(4, *t.shape[1:], dtype=torch.float64, requires_grad=True) for t in case[:2]]
    parameters = [*case[2:5], operand(case[5], precision), case[6]]
    response = reference.factor_readout(*ones, *parameters)
    wanted = torch.autograd.grad(response, ones, torch.from_numpy(objectives).double())
    for found, right in zip((local, global_), wanted, strict=True):
        assert np.abs(found - right.numpy()).max() <= 1e-5 * right.abs().max().item()


@paths
def test_the_same_bits_for_any_threads_and_any_batch(make_case, set_threads, precision, isa):
    case = make_case((35, 120, 12, 40, 3, 3))
    arrays = arrays_of(case)
    plan = plan_of(arrays, precision, isa=isa)
    whole = plan.run(*arrays[:2])
    for threads in (1, 2, 3):
        set_threads(threads)
        assert np.array_equal(plan.run(*arrays[:2]), whole)
        assert np.array_equal(plan_of(arrays, precision, isa=isa).run(*arrays[:2]), whole)
    one = plan.run(arrays[0][33:34].copy(), arrays[1][33:34].copy())
    assert np.array_equal(one[0], whole[33])


@paths
@pytest.mark.parametrize(("images", "vertices"), [(0, 7), (2, 0), (0, 0)])
def test_no_images_and_no_vertices(make_case, precision, isa, images, vertices):
    arrays = arrays_of(make_case((images, vertices, 3, 4, 2, 2)))
    plan = plan_of(arrays, precision, isa=isa)
    assert plan.run(*arrays[:2]).shape == (images, vertices)
    local, global_ = plan.adjoint(np.ones((2, vertices), np.float32))
    assert np.any(local) == np.any(global_) == (vertices > 0)


@paths
def test_parameters_are_copied(make_case, precision, isa):
    arrays = [array.copy() for array in arrays_of(make_case((3, 20, 4, 8, 5, 5)))]
    plan = plan_of(arrays, precision, isa=isa)
    expected, transposed = plan.run(*arrays[:2]), plan.adjoint(np.ones((1, 20), np.float32))
    for array in arrays[2:]:
        array.fill(np.nan)
    gc.collect()
    assert np.array_equal(plan.run(*arrays[:2]), expected)
    assert np.array_equal(plan.adjoint(np.ones((1, 20), np.float32))[0], transposed[0])


@paths
def test_two_plans_in_two_threads_at_once(make_case, precision, isa):
    cases = [arrays_of(make_case((6, 150 + 7 * i, 6, 32, 8, 8))) for i in range(2)]
    plans = [plan_of(arrays, precision, isa=isa) for arrays in cases]
    expected = [plan.run(*arrays[:2]) for plan, arrays in zip(plans, cases, strict=True)]

    def run(index):
        arrays, plan = cases[index % 2], plans[index % 2]
        return all(np.array_equal(plan.run(*arrays[:2]), expected[index % 2]) for _ in range(10))

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(run, range(4)))


def test_weights_take_half_the_memory(make_case):
    arrays = arrays_of(make_case((1, 4000, 2, 128, 4, 4)))
    weights = arrays[5].nbytes
    saved = plan_of(arrays, "fp32").nbytes - plan_of(arrays, "bf16", isa="amx-emulated").nbytes
    assert 0.4 * weights < saved < 0.6 * weights


@pytest.mark.parametrize("wrong", ["fp16", "", "BF16", "bf16 "])
def test_an_unknown_precision_is_named(make_case, wrong):
    arrays = arrays_of(make_case((1, 5, 2, 3, 2, 2)))
    words = f"^precision: expected fp32, bf16 or bf16x3, got '{wrong}'$"
    for call in (lambda: plan_of(arrays, wrong), lambda: _C.isa(wrong)):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(ValueError, match=words):
        _C.supported_isas(wrong)


def test_a_forced_path_is_the_widest_that_a_precision_has(make_case, monkeypatch):
    arrays = arrays_of(make_case((1, 5, 2, 3, 2, 2)))
    ladder = _C.supported_isas("bf16")
    for index, name in enumerate(ladder):
        monkeypatch.setenv("BRAINFAST_ISA", name)
        for precision in ("fp32", *PRECISIONS):
            allowed = [path for path in _C.supported_isas(precision) if path in ladder[: index + 1]]
            assert _C.isa(precision) == allowed[-1] == plan_of(arrays, precision).isa
    monkeypatch.setenv("BRAINFAST_ISA", "amx-emulated")
    assert {_C.isa(precision) for precision in PRECISIONS} == {"amx-emulated"}
    assert _C.isa() == _C.supported_isas()[-1]


def test_the_emulated_path_is_never_chosen_by_itself():
    for precision in ("fp32", *PRECISIONS):
        assert "amx-emulated" not in _C.supported_isas(precision)
        assert set(_C.supported_isas()) <= set(_C.supported_isas("bf16"))
    assert "amx-emulated" not in _C.build_info()["isas"]


FORK = """
import os, signal
import numpy as np
from brainfast import _C

rng = np.random.default_rng(0)
f = lambda *shape: rng.standard_normal(shape).astype(np.float32)
_C.set_num_threads(3)
parameters = f(400, 2), f(400, 4), f(400), f(400, 16), f(400)
local, global_ = f(2, 4, 16, 6, 6), f(2, 4, 16)
for isa in [*_C.supported_isas("bf16")[-2:], "amx-emulated"]:
    plan = _C.FactorReadoutPlan(*parameters, 6, 6, isa=isa, precision="bf16")
    expected = plan.run(local, global_)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        same = all(np.array_equal(plan.run(local, global_), expected) for _ in range(20))
        os._exit(0 if same else 1)
    assert np.array_equal(plan.run(local, global_), expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_too():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
