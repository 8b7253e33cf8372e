"""What the operators' CUDA forms share, without a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from brainfast.errors import BrainfastError
from brainfast.machine import ADD_CUDA_KERNELS
from brainfast.ops import (
    cuda_kernels,
    factor_projection_cuda,
    factor_readout_cuda,
    vertex_embed_cuda,
)

PLACE = torch.device("cuda:0")
PLANS = {
    "CudaFactorProjectionPlan": factor_projection_cuda,
    "CudaFactorReadoutPlan": factor_readout_cuda,
    "CudaVertexEmbedPlan": vertex_embed_cuda,
}
ones = torch.ones
ARGUMENTS = {  # of a plan of five rows, and of a run on two images
    "CudaFactorProjectionPlan": (([ones(5, 8)], [ones(5, 3)]), ([ones(2, 3, 8)],)),
    "CudaFactorReadoutPlan": (
        (ones(5, 2), ones(5, 3), ones(5), ones(5, 8), ones(5), 2, 2),
        (ones(2, 3, 8, 2, 2), ones(2, 3, 8)),
    ),
    "CudaVertexEmbedPlan": ((ones(5, 8), ones(5)), (ones(2, 8),)),
}


@pytest.mark.parametrize(
    ("free", "remedy"), [(300, "use batches of at most 3"), (99, "free memory on the GPU")]
)
def test_too_little_memory_names_what_was_asked_for_and_what_fits(monkeypatch, free, remedy):
    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1000))
    with pytest.raises(BrainfastError, match=f"800 bytes on cuda:0, got {free} free.*{remedy}"):
        cuda_kernels.allocate(800, PLACE, images=8)


@pytest.mark.parametrize(
    ("info", "words"),
    [
        ({"problem": "no NVIDIA driver is installed"}, "no NVIDIA driver is installed"),
        ({"problem": "", "devices": [{"problem": ""}], "architectures": "80-real"}, ""),
        (
            {"problem": "", "devices": [{"problem": "too old"}], "architectures": "80-real"},
            "too old; the build has code for 80-real",
        ),
    ],
)
def test_why_the_kernels_cannot_run(monkeypatch, info, words):
    tell_of_device(monkeypatch, 3, info)
    assert cuda_kernels.find_problem("Kernels", 3) == words
    assert ADD_CUDA_KERNELS in cuda_kernels.find_problem("Others", 3)


def tell_of_device(monkeypatch, index, info):
    """The compiled module's answer where it is asked about this device and no other."""

    def cuda_info(only):
        assert only == index
        return info

    monkeypatch.setattr(cuda_kernels, "_C", SimpleNamespace(Kernels=None, cuda_info=cuda_info))


def test_a_full_device_is_an_error_and_no_answer(monkeypatch):
    full = {"problem": "", "devices": [{"problem": "out of memory"}], "architectures": "80-real"}
    tell_of_device(monkeypatch, 3, full)
    with pytest.raises(BrainfastError, match="room for a kernel on cuda:3, got out of memory"):
        cuda_kernels.find_problem("Kernels", 3)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory"),
        RuntimeError("vertex_embed: CUDA says: out of memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_too_little_memory_for_the_check_is_not_remembered(monkeypatch, error):
    outcomes = [error, ""]

    def find_difference(_):
        outcome = outcomes.pop(0)
        if outcome:
            raise outcome
        return outcome

    monkeypatch.setattr(cuda_kernels, "find_problem", lambda *_: "")
    monkeypatch.setattr(vertex_embed_cuda, "_difference", find_difference)
    vertex_embed_cuda.usable.cache_clear()
    with pytest.raises(type(error), match=str(error)):
        vertex_embed_cuda.usable(torch.device("cpu"))
    assert vertex_embed_cuda.usable(torch.device("cpu"))
    vertex_embed_cuda.usable.cache_clear()


def test_a_kernel_that_fails_is_not_used(monkeypatch):
    def find_difference(_):
        raise RuntimeError("vertex_embed: CUDA says: invalid argument\nCompile with ...")

    monkeypatch.setattr(cuda_kernels, "find_problem", lambda *_: "")
    words = "vertex_embed on cpu runs as torch operations: a kernel fails: .*: invalid argument$"
    with pytest.warns(UserWarning, match=words):
        assert not cuda_kernels.check_usable(
            "vertex_embed", "Kernels", torch.device("cpu"), find_difference
        )


@pytest.mark.parametrize("wrong", ["fp32", "bf16x3", "bf16"])
@pytest.mark.parametrize("plan", PLANS)
def test_no_precision_is_used_unchecked(device, monkeypatch, plan, wrong):
    operator = PLANS[plan]

    class Wrong(getattr(operator, plan)):
        """Right in every precision but one."""

        def __init__(self, *arguments, precision="fp32", **options):
            super().__init__(*arguments, precision=precision, **options)
            self.factor = 1.01 if precision == wrong else 1

        def run(self, *arguments):
            return super().run(*arguments) * self.factor

    monkeypatch.setattr(operator, "CHECKED", operator.CHECKED[:1])
    monkeypatch.setattr(operator, plan, Wrong)
    said = operator._difference(torch.device(device))
    assert f" in {wrong} differ from torch's by 0.01" in said


@pytest.mark.parametrize("capturing", [False, True])
@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_stays_until_another_stream_has_read_it(device, monkeypatch, plan, capturing):
    if device != "cpu":
        pytest.skip("with the emulator's streams")
    parameters, tokens = ARGUMENTS[plan]
    made = getattr(PLANS[plan], plan)(*parameters)
    held = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda memory, stream: held.append(stream))
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: "another")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    expected = made.run(*tokens)
    assert held == []
    monkeypatch.setattr(cuda_kernels, "queue", lambda _: {"device": 0, "stream": 16})
    assert torch.equal(made.run(*tokens), expected)
    assert held == ([] if capturing else ["another"])


def test_answers_are_compared_with_the_largest():
    right = torch.tensor([100.0, 1.0])
    assert cuda_kernels.compare(["answers"], [right + 0.009], [right]) == ""
    for wrong in (right + 0.02, right * torch.nan):
        said = cuda_kernels.compare(["answers"], [wrong], [right])
        assert said.startswith("its answers differ from torch's by")


def test_float64_and_other_devices_are_left_to_torch():
    on_gpu = SimpleNamespace(device=PLACE, dtype=torch.float32)
    assert cuda_kernels.may_take(on_gpu)
    assert not cuda_kernels.may_take(SimpleNamespace(device=PLACE, dtype=torch.float64))
    assert not cuda_kernels.may_take(torch.empty(1))


def test_only_bfloat16_goes_as_it_is():
    narrow, single = torch.empty(1, dtype=torch.bfloat16), torch.empty(1)
    assert cuda_kernels.shared_precision(narrow, narrow) == "bf16"
    assert cuda_kernels.shared_precision(narrow, single) == "fp32"
    assert cuda_kernels.shared_dtype(narrow, single.half()) == torch.float32
