"""Batches on their way through one device: padding, threads, memory, idle GPUs; graphs on a GPU."""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from brainfast import device_graphs
from brainfast.errors import BrainfastError
from brainfast.tokens import Tokens
from device_parts import SmallTrunk, by_hand, check, factortopy, make, need_gpu, pictures, subjects


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        need_gpu()
    return str(request.param)


@pytest.fixture
def gpu() -> str:
    need_gpu()
    return "cuda"


def test_an_answer_depends_on_no_other_row_and_no_padding(device: str) -> None:
    runner, images = make(device), pictures(4)
    runner.predict(images)
    expected = runner.predict(images)
    for other in (pictures(4, seed=5), np.full_like(images, 255)):
        runner.predict(other)  # leaves its rows behind
        assert np.array_equal(runner.predict(images[:3]), expected[:3])


@pytest.mark.parametrize("slots", [1, 3])
def test_threads_get_their_own_answers(device: str, slots: int) -> None:
    runner = make(device, slots=slots)
    cases = [pictures(1 + seed % 5, 41 - seed % 2, 37, seed) for seed in range(24)]
    expected = [by_hand(case) for case in cases]
    with ThreadPoolExecutor(6) as pool:
        for found, wanted in zip(pool.map(runner.predict, cases), expected, strict=True):
            check(found, wanted)


def test_two_warm_ups_at_once_do_not_wait_for_one_another(device: str) -> None:
    runner = make(device, slots=2)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(runner.warm_up, (1, 2)) for _ in range(4)]
        for job in jobs:
            job.result(timeout=60)


def test_several_runners_share_a_trunk(device: str) -> None:
    trunk = SmallTrunk().to(device)
    runners = [make(device, head, trunk=trunk) for head in (factortopy(), subjects())]
    assert {id(runner._trunk) for runner in runners} == {id(trunk)}
    images = pictures(2)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(runner.predict, images) for runner in runners for _ in range(3)]
    check(jobs[0].result(), by_hand(images))
    assert np.array_equal(jobs[4].result(), jobs[5].result())


class Hungry(SmallTrunk):
    """A trunk that only so many images fit through."""

    fits = 4

    def forward(self, pixels: torch.Tensor) -> Tokens:
        if len(pixels) > self.fits:
            raise torch.OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 3.50 GiB. GPU 0 ..."
            )
        return super().forward(pixels)


def test_too_large_a_batch_names_the_bytes_and_one_that_fits(device: str) -> None:
    runner = make(device, trunk=Hungry())
    with pytest.raises(BrainfastError) as error:
        runner.predict(pictures(13))
    text = str(error.value)
    assert re.search(r"batch of 16: expected 3.50 GiB more, got [\d,]+ bytes free", text), text
    assert text.endswith("use batches of at most 4")
    check(runner.predict(pictures(4)), by_hand(pictures(4)))  # it goes on


def test_no_memory_for_one_image_is_told(device: str) -> None:
    trunk = Hungry()
    trunk.fits = 0
    with pytest.raises(BrainfastError, match="free memory on the device"):
        make(device, trunk=trunk).predict(pictures(2))


def test_an_operator_out_of_memory_is_told_the_same_way(device: str) -> None:
    class Scratch(SmallTrunk):
        def forward(self, pixels: torch.Tensor) -> Tokens:
            if len(pixels) > 1:
                raise BrainfastError("memory", expected="77 bytes", got="5 free") from (
                    torch.OutOfMemoryError("none left")
                )
            return super().forward(pixels)

    with pytest.raises(BrainfastError, match=r"expected 77 bytes more.*batches of at most 1"):
        make(device, trunk=Scratch()).predict(pictures(4))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_kept_warm_it_replays_its_smallest_graph_when_idle(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed: list[int] = []
    original = device_graphs.Replay.replay

    def count(self: device_graphs.Replay) -> None:
        original(self)
        replayed.append(self.batch)

    monkeypatch.setattr(device_graphs.Replay, "replay", count)
    runner = make(device)
    runner.keep_warm(1)
    runner.warm_up((4, 2), sizes=[])
    wait_for(lambda: len(replayed) >= 3)
    images = pictures(3)
    check(runner.predict(images), by_hand(images))
    runner.keep_warm(None)
    wait_for(lambda: not any("_keep_warm" in t.name for t in threading.enumerate()))
    before = len(replayed)
    runner.predict(images)
    assert set(replayed) == {2}
    assert len(replayed) == before


def test_a_call_on_its_way_is_not_replayed_over(device: str) -> None:
    runner = make(device)
    slot = runner._slots.get()
    runner.replay_idle(0)  # returns at once: no slot is free
    runner._slots.put(slot)


def test_keeping_warm_keeps_no_runner_alive() -> None:
    runner = make("cpu")
    runner.keep_warm(1)
    gone = weakref.ref(runner)
    del runner
    wait_for(lambda: gone() is None)


def test_a_graph_replays_what_the_trunk_and_head_answer_eagerly(gpu: str) -> None:
    runner, images = make(gpu, slots=2), pictures(6)
    runner.warm_up((8,), sizes=[(41, 37)])
    replay = runner._slots.queue[0].replays[8, (41, 37)]
    assert replay._graph is not None
    eager = replay._function(torch.from_numpy(pictures(8)).to(gpu)).cpu().numpy()
    assert np.array_equal(runner.predict(pictures(8)[:6]), eager[:6])
    check(runner.predict(images), by_hand(images))


def test_streams_of_several_threads(gpu: str) -> None:
    runner = make(gpu, slots=2)
    cases = [pictures(3, seed=seed) for seed in range(12)]

    def run(case: np.ndarray) -> np.ndarray:
        with torch.cuda.stream(torch.cuda.Stream()):
            busy = torch.ones(2000, 2000, device=gpu)
            busy @ busy
            return runner.predict(case)

    with ThreadPoolExecutor(4) as pool:
        for found, case in zip(pool.map(run, cases), cases, strict=True):
            check(found, by_hand(case))


def test_a_gpu_that_is_full_names_a_batch_that_fits(gpu: str) -> None:
    class Wide(SmallTrunk):
        free, _ = torch.cuda.mem_get_info()

        def forward(self, pixels: torch.Tensor) -> Tokens:
            share = torch.empty(
                len(pixels) * self.free // 6, dtype=torch.uint8, device=pixels.device
            )
            return super().forward(pixels + 0 * share[0])

    with pytest.raises(BrainfastError, match=r"use batches of at most [124]$"):
        make(gpu, trunk=Wide()).predict(pictures(16))
