from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch

from brainfast import packed_linear
from brainfast.packed_linear import PackedLinear, can_pack, packed
from brainfast.runtimes import TorchRuntime, place_trunk
from small_trunks import FAMILIES, arrays, make, pixels_for

pytestmark = pytest.mark.skipif(not can_pack(), reason="no products of bf16 in oneDNN here")


@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
@pytest.mark.parametrize(("shape", "K", "N"), [((1,), 3, 1), ((2, 5), 48, 40), ((1, 197), 65, 33)])
@pytest.mark.parametrize("bias", [True, False])
def test_products_of_bf16_with_sums_in_fp32(shape, K, N, bias, gelu):
    torch.manual_seed(0)
    linear = torch.nn.Linear(K, N, bias=bias)
    x = torch.randn(*shape, K)
    got = PackedLinear(linear, 7, gelu)(x)
    exact = x.bfloat16().double() @ linear.weight.detach().bfloat16().double().T
    if bias:
        exact += linear.bias.detach().bfloat16().double()
    if gelu is not None:
        exact = torch.nn.functional.gelu(exact, approximate=gelu)
    assert (got.dtype, got.shape) == (torch.bfloat16, (*shape, N))
    torch.testing.assert_close(got.double(), exact, rtol=2.0**-8, atol=2.0**-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_packed_trunk_is_as_exact_as_autocast(name):
    trunk = make(name)
    pixels = torch.from_numpy(pixels_for(trunk))
    with torch.no_grad():
        exact = trunk(pixels)
        plain, ours = place_trunk(trunk, torch.device("cpu"), "bf16"), TorchRuntime(trunk, "bf16")
        assert bool(of_type(ours.trunk)) == bool(of_type(trunk, torch.nn.Linear))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            usual = plain(pixels).map(lambda array: array.float())
    for got, want, true in zip(
        arrays(ours(pixels.numpy())), arrays(usual), arrays(exact), strict=True
    ):
        assert 0 < rms(got - true) < 1.1 * rms(want - true)


def test_what_a_model_multiplies_itself_is_left_alone():
    packed_layers = of_type(TorchRuntime(make("eva02_tiny_patch14_224"), "bf16").trunk)
    plain = of_type(TorchRuntime(make("eva02_tiny_patch14_224"), "bf16").trunk, torch.nn.Linear)
    assert packed_layers
    assert {name.rsplit(".", 1)[1] for name in plain} == {"qkv"}  # it adds biases of its own there


def test_only_the_layers_that_a_pass_calls_are_packed():
    trunk = make()  # as deep as block 2 of 12
    names = of_type(TorchRuntime(trunk, "bf16").trunk)
    assert {int(name.split(".")[2]) for name in names} == {0, 1, 2}
    assert len(names) == 3 * 4


def test_only_a_gelu_that_is_one_is_fused():
    for activation, expected in (
        (torch.nn.GELU, "none"),
        (lambda: torch.nn.GELU(approximate="tanh"), "tanh"),
        (torch.nn.ReLU, None),
        (timm.layers.QuickGELU, None),
    ):
        mlp = timm.layers.Mlp(8, 16, act_layer=activation)
        assert packed_linear._gelu_of(mlp) == expected


def test_layers_that_stand_in_two_places_or_are_listened_to_are_left_alone():
    trunk, heard = make(), []
    blocks = trunk.model.blocks
    blocks[1].mlp = blocks[0].mlp
    blocks[1].attn.proj = blocks[0].attn.proj
    blocks[2].mlp.fc1.register_forward_hook(lambda *_: heard.append("fc1"))
    blocks[2].attn.qkv.register_forward_pre_hook(lambda *_: heard.append("qkv"))
    blocks[0].mlp.act.register_forward_hook(lambda *_: heard.append("act"))
    runtime, pixels = TorchRuntime(trunk, "bf16"), pixels_for(trunk)
    plain = of_type(runtime.trunk, torch.nn.Linear)
    called = {name.removeprefix("model.blocks.") for name in plain if int(name.split(".")[2]) < 3}
    assert called == {"0.attn.proj", "2.mlp.fc1", "2.attn.qkv"}
    heard.clear()
    got = runtime(pixels)
    assert set(heard) == {"act", "fc1", "qkv"}
    assert rms(arrays(got)[1] - arrays(trunk(torch.from_numpy(pixels)))[1]) < 0.02


def test_a_packed_trunk_is_copied_and_packed_again():
    trunk, pixels = make(), pixels_for(make())
    first = TorchRuntime(trunk, "bf16")
    for other in (TorchRuntime(first.trunk, "bf16"), TorchRuntime(copy.deepcopy(trunk), "bf16")):
        for got, want in zip(arrays(other(pixels)), arrays(first(pixels)), strict=True):
            np.testing.assert_array_equal(got, want)


def test_a_trunk_that_is_not_a_copy_stays_as_it_is():
    trunk = place_trunk(make(), torch.device("cpu"), "bf16")
    assert of_type(packed(trunk, own=False))
    assert not of_type(trunk)
    assert of_type(packed(trunk, own=True))
    assert of_type(trunk)


def test_a_machine_that_cannot_keeps_the_trunk(monkeypatch):
    trunk = make()
    monkeypatch.setattr(packed_linear, "can_pack", lambda: False)
    runtime = TorchRuntime(trunk, "bf16", "cpu")
    assert not of_type(runtime.trunk)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        want = trunk(torch.from_numpy(pixels_for(trunk))).map(lambda array: array.float())
    for got, expected in zip(arrays(runtime(pixels_for(trunk))), arrays(want), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("wrong", ["another", "raises", "missing"])
def test_operators_that_answer_otherwise_are_not_used(monkeypatch, wrong):
    class Operators:
        _is_mkldnn_bf16_supported = staticmethod(lambda: True)
        _reorder_linear_weight = staticmethod(lambda weight, rows: weight)

        @staticmethod
        def _linear_pointwise(x, weight, bias, *_):
            if wrong == "raises":
                raise RuntimeError("other arguments")
            return x @ weight.T  # without its bias

    if wrong == "missing":
        del Operators._linear_pointwise
    monkeypatch.setattr(torch.ops, "mkldnn", Operators)
    packed_linear.can_pack.cache_clear()
    try:
        assert not packed_linear.can_pack()
    finally:
        packed_linear.can_pack.cache_clear()


def test_asking_draws_no_random_numbers_and_minds_no_setting_of_the_caller():
    before, usual = torch.get_rng_state(), torch.get_default_dtype()
    try:
        for dtype in (torch.float32, torch.float64):
            torch.set_default_dtype(dtype)
            for enabled in (False, True):
                packed_linear.can_pack.cache_clear()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                    assert packed_linear.can_pack()
    finally:
        torch.set_default_dtype(usual)
    assert torch.equal(torch.get_rng_state(), before)


def of_type(trunk, kind=PackedLinear) -> list[str]:
    return [name for name, layer in trunk.named_modules() if type(layer) is kind]


def rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array))))
