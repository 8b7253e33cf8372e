"""The trunk through torch.compile."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch._inductor.config
import torch._inductor.freezing
from torch._dynamo.utils import counters

from brainfast.errors import BrainfastError
from brainfast.runtimes import CompiledRuntime, TorchRuntime
from small_trunks import arrays, make, pixels_for


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def compiled(request):
    trunk = make("eva02_tiny_patch14_224")
    return trunk, CompiledRuntime(trunk, request.param, "cpu")


def test_the_compiled_trunk_has_the_numbers_of_its_precision(compiled):
    trunk, runtime = compiled
    pixels = pixels_for(trunk)
    got, exact = arrays(runtime(pixels)), arrays(trunk(torch.from_numpy(pixels)))
    plain = arrays(TorchRuntime(trunk, runtime.precision, "cpu")(pixels))
    assert runtime.name == "compile"
    for ours, torchs, true in zip(got, plain, exact, strict=True):
        assert ours.dtype == np.float32
        error, bound = (np.sqrt(np.mean((a - true) ** 2)) / true.std() for a in (ours, torchs))
        if runtime.precision == "fp32":
            np.testing.assert_allclose(ours, true, rtol=0, atol=1e-4 * true.std())
        else:
            assert 0 < error < 1.5 * bound


def test_an_image_has_the_same_tokens_in_every_batch_and_nothing_is_compiled_later(compiled):
    trunk, runtime = compiled
    pixels = pixels_for(trunk, 5)
    whole = arrays(runtime(pixels))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    parts = [arrays(runtime(pixels[rows])) for rows in (slice(0, 1), slice(1, 5))]
    for index, want in enumerate(whole):
        np.testing.assert_array_equal(np.concatenate([p[index] for p in parts]), want)
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        torch.set_num_threads(threads + 1)
        torch.set_float32_matmul_precision("medium")
        with torch.inference_mode():
            got = arrays(runtime(pixels))
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
    for ours, want in zip(got, whole, strict=True):
        bound = 1e-4 if runtime.precision == "fp32" else 0.1
        np.testing.assert_allclose(ours, want, rtol=0, atol=bound * want.std())
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_compiled_runtime_serves_two_threads_at_once(compiled):
    trunk, runtime = compiled
    batches = [pixels_for(trunk, images) for images in (1, 2)]
    wanted = [arrays(runtime(pixels)) for pixels in batches]
    with ThreadPoolExecutor(2) as pool:
        for got, want in zip(pool.map(runtime, 5 * batches), 5 * wanted, strict=True):
            for ours, theirs in zip(arrays(got), want, strict=True):
                np.testing.assert_array_equal(ours, theirs)


def test_compiling_freezes_the_weights_and_leaves_everything_else_alone(monkeypatch):
    trunk = make("resnet18")
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    inputs = []

    def spy(*arguments, **options):
        graph, kept = freeze(*arguments, **options)
        inputs.append(kept)
        return graph, kept

    freeze = torch._inductor.freezing.freeze
    monkeypatch.setattr(torch._inductor.freezing, "freeze", spy)
    CompiledRuntime(trunk, "fp32", "cpu")
    assert [len(kept) for kept in inputs] == [1]  # the pixels: every weight is a constant
    assert not torch._inductor.config.freezing
    for name, value in trunk.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_runtimes_do_not_share_the_compilers_limit():
    trunk = make("resnet18", layers=(0,))
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(3):
            CompiledRuntime(trunk, "fp32", "cpu")(pixels_for(trunk))


def test_a_machine_that_cannot_compile_says_so_in_one_line(monkeypatch):
    trunk = make()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "/no/such/compiler"))
    with pytest.raises(BrainfastError, match=r"C\+\+ compiler.*runtime='torch'") as caught:
        CompiledRuntime(trunk, device="cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(BrainfastError, match="the CPU"):
        CompiledRuntime(trunk, device="cuda")
    with pytest.raises(BrainfastError, match="precision"):
        CompiledRuntime(trunk, "fp16")
