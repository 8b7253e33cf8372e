from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from brainfast import _C
from brainfast.machine import usable_cores
from brainfast.ops import reference

SIZES = [(2, 300, 12, 128, 8, 8), (1, 1, 1, 1, 1, 1), (3, 37, 40, 17, 5, 3), (19, 50, 5, 33, 1, 7)]


def arrays_of(case):
    return [tensor.float().numpy() for tensor in case]


def plan_of(arrays, **options):
    height, width = arrays[0].shape[3:]
    return _C.FactorReadoutPlan(*arrays[2:], height, width, **options)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("align_corners", [False, True])
def test_run_matches_the_twin(isa, make_case, sizes, align_corners):
    case = make_case(sizes)
    arrays = arrays_of(case)
    plan = plan_of(arrays, align_corners=align_corners)
    expected = reference.factor_readout(*case, align_corners=align_corners).numpy()
    signal = np.sqrt(np.mean((expected - arrays[-1]) ** 2))
    assert plan.isa == isa
    assert np.abs(plan.run(*arrays[:2]) - expected).max() <= 1e-5 * signal


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_adjoint_is_the_transpose_of_run(isa, make_case, sizes):
    case = make_case(sizes, grad=True)
    arrays = arrays_of([tensor.detach() for tensor in case])
    weights = np.random.default_rng(0).standard_normal((4, sizes[1])).astype(np.float32)
    local, global_ = plan_of(arrays).adjoint(weights)
    assert (local.shape, global_.shape) == ((4, *case[0].shape[1:]), (4, *case[1].shape[1:]))
    one = [tensor[:1].expand(4, *tensor.shape[1:]) for tensor in case[:2]]
    one = [tensor.detach().requires_grad_() for tensor in one]
    response = reference.factor_readout(*one, *case[2:])
    for found, wanted in zip(
        (local, global_),
        torch.autograd.grad(response, one, torch.from_numpy(weights).double()),
        strict=True,
    ):
        assert np.abs(found - wanted.numpy()).max() <= 1e-5 * wanted.abs().max().item()


def test_many_images_fall_into_several_blocks(isa, make_case, set_threads):
    case = make_case((70, 90, 12, 128, 4, 4))
    arrays = arrays_of(case)
    plan = plan_of(arrays)
    whole = plan.run(*arrays[:2])
    for threads in (1, 3):
        set_threads(threads)
        assert np.array_equal(plan.run(*arrays[:2]), whole)
    assert np.array_equal(plan.run(arrays[0][33:34].copy(), arrays[1][33:34].copy())[0], whole[33])


def test_out_is_written_in_place(make_case):
    arrays = arrays_of(make_case((3, 20, 4, 8, 5, 5)))
    plan = plan_of(arrays)
    out = np.full((3, 20), np.nan, dtype=np.float32)
    assert plan.run(*arrays[:2], out=out) is out
    assert np.array_equal(out, plan.run(*arrays[:2]))


def test_parameters_are_copied(make_case):
    arrays = [array.copy() for array in arrays_of(make_case((3, 20, 4, 8, 5, 5)))]
    plan = plan_of(arrays)
    expected, transposed = plan.run(*arrays[:2]), plan.adjoint(np.ones((1, 20), np.float32))
    for array in arrays[2:]:
        array.fill(np.nan)
    assert np.array_equal(plan.run(*arrays[:2]), expected)
    assert np.array_equal(plan.adjoint(np.ones((1, 20), np.float32))[0], transposed[0])


def test_facts_of_a_plan(make_case):
    sizes = (1, 33, 4, 8, 5, 6)
    case = make_case(sizes, spread=0.5)  # far from the border: every vertex reads four pixels
    plan = plan_of(arrays_of(case))
    assert (plan.vertices, plan.layers, plan.channels) == sizes[1:4]
    assert (plan.height, plan.width) == sizes[4:]
    assert plan.flops_per_image == 2 * 33 * 5 * 4 * 8
    assert plan.nbytes > 4 * 33 * 8


@pytest.mark.parametrize(("images", "vertices"), [(0, 7), (2, 0), (0, 0)])
def test_no_images_and_no_vertices(isa, make_case, images, vertices):
    arrays = arrays_of(make_case((images, vertices, 3, 4, 2, 2)))
    plan = plan_of(arrays)
    assert plan.run(*arrays[:2]).shape == (images, vertices)
    local, global_ = plan.adjoint(np.ones((2, vertices), np.float32))
    assert np.any(local) == np.any(global_) == (vertices > 0)
    assert plan.adjoint(np.ones((0, vertices), np.float32))[0].shape == (0, 3, 4, 2, 2)


def test_several_threads_share_a_plan(isa, make_case):
    case = make_case((24, 150, 6, 32, 8, 8))
    arrays = arrays_of(case)
    plan = plan_of(arrays)
    expected = plan.run(*arrays[:2])

    def run(image):
        for _ in range(5):
            found = plan.run(arrays[0][image : image + 3], arrays[1][image : image + 3])
            if not np.array_equal(found, expected[image : image + 3]):
                return False
        return True

    with ThreadPoolExecutor(6) as executor:
        assert all(executor.map(run, range(0, 24, 3)))


FORK = """
import os, signal
import numpy as np
from brainfast import _C

rng = np.random.default_rng(0)
f = lambda *shape: rng.standard_normal(shape).astype(np.float32)
_C.set_num_threads(3)
plan = _C.FactorReadoutPlan(f(400, 2), f(400, 4), f(400), f(400, 16), f(400), 6, 6)
local, global_ = f(2, 4, 16, 6, 6), f(2, 4, 16)
expected = plan.run(local, global_)
for _ in range(3):
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        same = all(np.array_equal(plan.run(local, global_), expected) for _ in range(20))
        os._exit(0 if same and _C.num_threads() == 3 else 1)
    assert np.array_equal(plan.run(local, global_), expected)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_too():
    done = python(FORK)
    assert done.returncode == 0, done.stderr


def test_the_environment_sets_the_number_of_threads():
    code = "from brainfast import _C; print(_C.num_threads())"
    assert python(code, BRAINFAST_NUM_THREADS="3").stdout == "3\n"
    for wrong in ("0", "two", "-1", "1.5"):
        done = python(code, BRAINFAST_NUM_THREADS=wrong)
        assert "ValueError: BRAINFAST_NUM_THREADS: expected a whole number" in done.stderr
    assert int(python(code, BRAINFAST_NUM_THREADS="").stdout) == usable_cores()


def test_an_instruction_set_can_be_forced(monkeypatch, make_case):
    arrays = arrays_of(make_case((1, 5, 2, 3, 2, 2)))
    monkeypatch.setenv("BRAINFAST_ISA", "portable")
    assert _C.isa() == "portable" == plan_of(arrays).isa
    monkeypatch.setenv("BRAINFAST_ISA", "mmx")
    with pytest.raises(ValueError, match=r"BRAINFAST_ISA: expected one .*portable.*got 'mmx'"):
        plan_of(arrays)
    monkeypatch.delenv("BRAINFAST_ISA")
    assert _C.isa() == _C.supported_isas()[-1]
    with pytest.raises(ValueError, match="isa: expected one"):
        plan_of(arrays, isa="neon9")


@pytest.mark.parametrize(
    ("index", "change", "words"),
    [
        (2, lambda a: a.astype(np.float64), "space: expected float32, got float64"),
        (2, lambda a: a * np.nan, "space: expected finite sampling points, got .*nan.*vertex 0"),
        (2, lambda a: a[:, :1], r"space: expected shape \[5,2\], got \[5,1\]"),
        (3, lambda a: a[0], r"layer: expected \[V,L\], got shape \[2\]"),
        (3, lambda a: a[:, :0], r"layer: expected at least one layer, got \[5,0\]"),
        (4, lambda a: a[:4], r"scale: expected shape \[5\], got \[4\]"),
        (5, lambda a: np.asfortranarray(a), "weight: expected a contiguous array"),
        (5, lambda a: a[:, :0], "weight: expected at least one channel"),
        (6, lambda a: a.astype(">f4"), "bias: expected float32"),
    ],
)
def test_a_wrong_parameter_is_named(make_case, index, change, words):
    arrays = arrays_of(make_case((1, 5, 2, 3, 2, 2)))
    arrays[index] = change(arrays[index])
    with pytest.raises(ValueError, match=words):
        plan_of(arrays)


def test_a_wrong_grid_is_named(make_case):
    arrays = arrays_of(make_case((1, 5, 2, 3, 2, 2)))
    for height, width in [(0, 2), (2, -1), (1 << 40, 1 << 40)]:
        with pytest.raises(ValueError, match="grid: expected a height and a width from 1"):
            _C.FactorReadoutPlan(*arrays[2:], height, width)


def test_wrong_tokens_are_named(make_case):
    arrays = arrays_of(make_case((2, 5, 2, 3, 2, 2)))
    plan = plan_of(arrays)
    local, global_ = arrays[:2]
    with pytest.raises(ValueError, match=r"local: expected \[B,L,D,H,W\]"):
        plan.run(local[0], global_)
    with pytest.raises(ValueError, match=r"global_: expected shape \[2,2,3\], got \[1,2,3\]"):
        plan.run(local, global_[:1])
    with pytest.raises(ValueError, match="local: expected a contiguous array"):
        plan.run(np.asfortranarray(local), global_)
    with pytest.raises(ValueError, match=r"out: expected shape \[2,5\]"):
        plan.run(local, global_, out=np.empty((2, 4), np.float32))
    frozen = np.empty((2, 5), np.float32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="out: expected a writeable array"):
        plan.run(local, global_, out=frozen)
    with pytest.raises(ValueError, match=r"grad_output: expected shape \[1,5\]"):
        plan.adjoint(np.ones((1, 4), np.float32))


def test_what_the_build_says():
    info = _C.build_info()
    assert "portable" in info["isas"]
    assert set(_C.supported_isas()) <= set(info["isas"])
    cuda = _C.cuda_info()
    assert cuda["compiled"] == info["cuda"].startswith("built with nvcc")
    assert cuda["devices"] or cuda["problem"]
    assert _C.fma_ceiling(0.2) > 0
