"""What the operators' CUDA forms share, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from brainfast.errors import BrainfastError
from brainfast.machine import ADD_CUDA_KERNELS
from brainfast.ops import cuda_kernels

PLACE = torch.device("cuda:0")


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
    monkeypatch.setattr(cuda_kernels, "_C", SimpleNamespace(Kernels=None, cuda_info=lambda: info))
    assert cuda_kernels.find_problem("Kernels", 0) == words
    assert ADD_CUDA_KERNELS in cuda_kernels.find_problem("Others", 0)


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
