from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from brainfast import _C
from brainfast.ops import reference

SIZES = [  # B, D, target grid, (C, H, W) a layer
    (1, 128, (8, 8), [(192, 16, 16), (767, 14, 14)]),
    (3, 9, (8, 8), [(1, 7, 7), (5, 64, 64), (192, 1, 1), (5, 8, 8)]),
    (2, 1, (5, 4), [(5, 9, 3), (7, 5, 4)]),
    (13, 17, (3, 3), [(129, 5, 100), (3, 3, 5)]),
    (1, 128, (14, 14), [(5, 16, 16), (5, 3, 2)]),
    (2, 40, (1, 1), [(33, 3, 3)]),
    (1, 9, (40, 1), [(4, 90, 2)]),
    (1, 9, (1, 70), [(4, 2, 66)]),
]


@dataclass
class Case:
    local: list[np.ndarray]
    global_: list[np.ndarray]
    parameters: list
    grid: tuple[int, int]

    def plan(self, **options):
        return _C.AlignTokensPlan(*self.parameters, self.grid, **options)

    def run(self, **options):
        return self.plan(**options).run(self.local, self.global_)

    def twin(self, **options):
        arguments = [
            [torch.from_numpy(array).double() for array in argument]
            if isinstance(argument, list)
            else torch.from_numpy(argument).double()
            for argument in (self.local, self.global_, *self.parameters)
        ]
        found = reference.align_tokens(*arguments, self.grid, **options)
        return tuple(tensor.numpy() for tensor in found)


def make_case(sizes) -> Case:
    images, channels, grid, layers = sizes
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    matrices = [
        [normal(channels, layer[0]) / np.float32(np.sqrt(layer[0])) for layer in layers]
        for _ in range(2)
    ]
    offsets = [normal(len(layers), channels) for _ in range(2)]
    return Case(
        [normal(images, *layer) for layer in layers],
        [normal(images, layer[0]) for layer in layers],
        [*matrices, *offsets],
        grid,
    )


def assert_close(found, wanted):
    for part, expected in zip(found, wanted, strict=True):
        assert part.shape == expected.shape
        assert part.dtype == np.float32
        deviation = np.sqrt(np.mean(expected**2))
        assert np.abs(part - expected).max() <= 1e-5 * deviation


def assert_same_bits(found, wanted):
    for part, expected in zip(found, wanted, strict=True):
        assert np.array_equal(part, expected)


@pytest.mark.parametrize("pool_space", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_run_matches_the_twin(isa, sizes, pool_space):
    case = make_case(sizes)
    assert case.plan().isa == isa
    assert_close(case.run(pool_space=pool_space), case.twin(pool_space=pool_space))


def test_twin_by_hand():
    local, global_ = [torch.arange(16.0).reshape(1, 1, 4, 4)], [torch.tensor([[3.0]])]
    matrix, offset = [torch.tensor([[2.0], [-1.0]])], torch.tensor([[0.5, 0.0]])
    found = reference.align_tokens(local, global_, matrix, matrix, offset, offset, (2, 2))
    mean = torch.tensor([[2.5, 4.5], [10.5, 12.5]])  # of four pixels each
    assert torch.equal(found[0], torch.stack([2 * mean + 0.5, -mean])[None, None])
    assert torch.equal(found[1], torch.tensor([[[6.5, -3.0]]]))


@pytest.mark.parametrize("pool_space", [False, True])
@pytest.mark.parametrize("sizes", SIZES[:4], ids=str)
def test_any_number_of_threads_gives_the_same_bits(isa, set_threads, sizes, pool_space):
    case = make_case(sizes)
    set_threads(1)
    wanted = case.run(pool_space=pool_space)
    for threads in (2, 3, 7):
        set_threads(threads)
        assert_same_bits(case.run(pool_space=pool_space), wanted)


@pytest.mark.parametrize("pool_space", [False, True])
def test_an_image_does_not_depend_on_its_batch(isa, pool_space):
    case = make_case((13, 70, (8, 8), [(140, 16, 16), (9, 7, 7)]))
    plan = case.plan(pool_space=pool_space)
    whole = plan.run(case.local, case.global_)
    for image in (0, 5, 12):
        one = slice(image, image + 1)
        found = plan.run([a[one] for a in case.local], [a[one] for a in case.global_])
        assert_same_bits(found, [part[one] for part in whole])


def test_no_images(isa):
    case = make_case((0, 9, (8, 8), [(5, 16, 16), (3, 7, 7)]))
    local, global_ = case.run()
    assert local.shape == (0, 2, 9, 8, 8)
    assert global_.shape == (0, 2, 9)
    assert case.run(pool_space=True)[0].shape == (0, 2, 9, 1, 1)


def test_strided_arrays_are_taken(isa):
    case = make_case(SIZES[0])
    wanted = case.run()
    case.local = [np.asfortranarray(array) for array in case.local]
    case.global_ = [np.repeat(array, 2, axis=1)[:, ::2] for array in case.global_]
    matrices, more, *offsets = case.parameters
    turned = [[np.asfortranarray(m) for m in ms] for ms in (matrices, more)]
    case.parameters = [*turned, *(np.asfortranarray(offset) for offset in offsets)]
    assert not case.local[0].flags.c_contiguous
    assert_same_bits(case.run(), wanted)


def test_out_is_written_in_place():
    case = make_case(SIZES[1])
    plan = case.plan()
    wanted = plan.run(case.local, case.global_)
    out = tuple(np.full_like(part, np.nan) for part in wanted)
    found = plan.run(case.local, case.global_, out=out)
    assert found[0] is out[0]
    assert found[1] is out[1]
    assert_same_bits(out, wanted)


def test_parameters_are_copied():
    case = make_case(SIZES[1])
    plan = case.plan()
    wanted = plan.run(case.local, case.global_)
    for parameter in case.parameters:
        for array in parameter:
            array.fill(np.nan)
    assert_same_bits(plan.run(case.local, case.global_), wanted)


def test_facts_of_a_plan():
    plan = make_case(SIZES[1]).plan(isa="portable")
    assert (plan.layers, plan.channels, plan.grid) == (4, 9, (8, 8))
    assert plan.trunk_channels == [1, 5, 192, 5]
    assert (plan.pool_space, plan.isa) == (False, "portable")
    assert plan.flops_per_image == 2 * 203 * 9 * 65
    assert plan.nbytes >= 2 * 4 * 203 * 9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pool_space", [False, True])
def test_every_token_is_looked_at(isa, pool_space, value):
    case = make_case((2, 9, (8, 8), [(33, 16, 16), (5, 50, 70), (5, 7, 7), (20, 8, 8)]))
    plan = case.plan(pool_space=pool_space)
    rng = np.random.default_rng(1)
    for name, arrays in (("local", case.local), ("global_", case.global_)):
        for layer, array in enumerate(arrays):
            for place in (0, array.size - 1, rng.integers(array.size)):
                right = array.flat[place]
                array.flat[place] = value
                with pytest.raises(ValueError, match=rf"^{name}\[{layer}\]: .*finite"):
                    plan.run(case.local, case.global_)
                array.flat[place] = right
    plan.run(case.local, case.global_)


def test_large_numbers_are_finite():
    case = make_case((1, 3, (8, 8), [(2, 16, 16)]))
    case.local[0][:] = 1e38
    assert np.isfinite(case.plan().run(case.local, case.global_)[1]).all()


def test_several_threads_share_a_plan(isa):
    case = make_case((12, 40, (8, 8), [(130, 16, 16), (6, 7, 7)]))
    plan = case.plan()
    wanted = plan.run(case.local, case.global_)

    def same(image):
        part = slice(image, image + 2)
        found = plan.run([a[part] for a in case.local], [a[part] for a in case.global_])
        return all(np.array_equal(f, w[part]) for f, w in zip(found, wanted, strict=True))

    with ThreadPoolExecutor(5) as executor:
        assert all(executor.map(same, [0, 2, 4, 6, 8, 10] * 3))


def test_a_forked_child_aligns():
    code = (
        "import os, numpy as np\n"
        "from brainfast import _C\n"
        "_C.set_num_threads(2)\n"
        "ones = np.ones((1, 4, 9, 9), np.float32), np.ones((1, 4), np.float32)\n"
        "matrix, offset = np.ones((3, 4), np.float32), np.zeros((1, 3), np.float32)\n"
        "plan = _C.AlignTokensPlan([matrix], [matrix], offset, offset, (8, 8))\n"
        "run = lambda: plan.run([ones[0]], [ones[1]])[0]\n"
        "wanted = run()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if np.array_equal(run(), wanted) else 1)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=dict(os.environ))


ONE = (2, 3, (8, 8), [(4, 9, 9), (5, 7, 7)])


def wide(array):
    return array.astype(np.float64)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda c: c.local.pop(), "local: expected a list of 2"),
        (lambda c: c.global_.pop(), "global_: expected a list of 2"),
        (lambda c: c.local.__setitem__(1, wide(c.local[1])), r"local\[1\]: expected float32"),
        (lambda c: c.local.__setitem__(0, c.local[0][0]), r"local\[0\]: expected \[B,C,H,W\]"),
        (lambda c: c.local.__setitem__(1, c.local[1][:1]), r"local\[1\]: expected shape \[2,5,7"),
        (lambda c: c.local.__setitem__(1, c.local[1][:, :4]), r"local\[1\]: expected shape \[2,5"),
        (lambda c: c.local.__setitem__(1, c.local[1][:, :, :0]), r"local\[1\]: expected a height"),
        (lambda c: c.global_.__setitem__(0, c.global_[0][:, :2]), r"global_\[0\]: expected shape"),
    ],
)
def test_bad_tokens_are_refused_in_one_line(spoil, said):
    case = make_case(ONE)
    plan = case.plan()
    spoil(case)
    with pytest.raises(ValueError, match=f"^{said}") as error:
        plan.run(case.local, case.global_)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (0, [], "bottleneck_local: expected at least one layer"),
        (1, [np.ones((3, 4), np.float32)], "bottleneck_global: expected a list of 2"),
        (0, [np.ones((3, 4), np.float32), np.ones(5, np.float32)], r"bottleneck_local\[1\]: exp"),
        (0, [np.ones((2, 4), np.float32)] * 2, r"bottleneck_local\[0\]: expected shape \[3,4\]"),
        (0, [np.ones((3, 0), np.float32)] * 2, r"bottleneck_local\[0\]: expected at least one"),
        (1, [np.ones((3, 9), np.float32)] * 2, r"bottleneck_global\[0\]: expected shape \[3,4\]"),
        (2, np.ones((2, 3)), "offset_local: expected float32"),
        (2, np.ones((2, 0), np.float32), "offset_local: expected at least one channel"),
        (3, np.ones((1, 3), np.float32), r"offset_global: expected shape \[2,3\]"),
    ],
)
def test_bad_parameters_are_refused_in_one_line(place, value, said):
    case = make_case(ONE)
    case.parameters[place] = value
    with pytest.raises(ValueError, match=f"^{said}") as error:
        case.plan()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("grid", [(0, 8), (8, -1), (1 << 11, 1 << 11)])
def test_a_bad_grid_is_refused(grid):
    case = make_case(ONE)
    with pytest.raises(ValueError, match=r"^grid: "):
        _C.AlignTokensPlan(*case.parameters, grid)


def test_a_bad_isa_and_a_bad_out_are_refused():
    case = make_case(ONE)
    with pytest.raises(ValueError, match=r"^isa: .*abacus"):
        case.plan(isa="abacus")
    plan = case.plan()
    local, global_ = plan.run(case.local, case.global_)
    with pytest.raises(ValueError, match=r"^out\[1\]: expected shape"):
        plan.run(case.local, case.global_, out=(local, global_[:1]))
    local.flags.writeable = False
    with pytest.raises(ValueError, match=r"^out\[0\]: expected a writeable array"):
        plan.run(case.local, case.global_, out=(local, global_))
