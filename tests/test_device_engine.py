"""Images to responses on one device: buckets, padding, sizes, threads, memory; graphs on a GPU."""

from __future__ import annotations

import gc
import os
import re
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from brainfast import device_engine, device_graphs
from brainfast.device_engine import DeviceRunner, open_head
from brainfast.errors import BrainfastError
from brainfast.folded import FoldedFactorTopy
from brainfast.folded_blobgpt import BlobProjection, FoldedBlobGPT
from brainfast.images import preprocess
from brainfast.tokens import Tokens

LAYERS, C, GRID, D, V = (1, 3), 6, (4, 4), 5, 23
SETTINGS = SimpleNamespace(
    size=(32, 32),
    interpolation="bicubic",
    antialias=True,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)


class SmallTrunk(nn.Module):
    """Two layers of 4 x 4 tokens of images of 32 x 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.patches = nn.Conv2d(3, C, 8, stride=8)
            self.mix = nn.Linear(C, C)
        self.requires_grad_(False)

    def forward(self, pixels: torch.Tensor) -> Tokens:
        first = self.patches(pixels).flatten(2).transpose(1, 2)
        layers = [first, first + self.mix(first).tanh()]
        local = tuple(layer.transpose(1, 2).unflatten(2, GRID) for layer in layers)
        return Tokens(local, tuple(layer.mean(dim=1) for layer in layers), LAYERS)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float32)


def factortopy(precision: Any = "fp32") -> FoldedFactorTopy:
    rng = np.random.default_rng(0)
    return FoldedFactorTopy(
        space=normal(rng, V, 2),
        layer=normal(rng, V, 2),
        scale=rng.uniform(size=V).astype(np.float32),
        weight=normal(rng, V, D),
        bias=normal(rng, V),
        bottleneck_local=(normal(rng, D, C), normal(rng, D, C)),
        bottleneck_global=(normal(rng, D, C), normal(rng, D, C)),
        offset_local=normal(rng, 2, D),
        offset_global=normal(rng, 2, D),
        layers=LAYERS,
        grid=(2, 2),
        precision=precision,
    )


def subjects() -> dict[str, FoldedBlobGPT]:
    rng = np.random.default_rng(0)
    projection = BlobProjection(
        filters=(normal(rng, 7, C), normal(rng, 7, C)),
        maps=(normal(rng, 7, 17), normal(rng, 7, 17)),
        latent_bias=normal(rng, 7),
        layers=LAYERS,
        grids=(GRID, GRID),
        class_token=True,
    )
    return {
        name: FoldedBlobGPT(projection, normal(rng, n, 7), normal(rng, n))
        for name, n in (("a", 9), ("b", 4))
    }


def pictures(count: int, height: int = 41, width: int = 37, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def need_gpu() -> None:
    if not torch.cuda.is_available() and os.environ.get("BRAINFAST_REQUIRE_CUDA") != "1":
        pytest.skip("no GPU that torch sees")


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        need_gpu()
    return str(request.param)


@pytest.fixture
def gpu() -> str:
    need_gpu()
    return "cuda"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the graphs that are made from here on."""
    shapes: list[tuple[int, ...]] = []

    class Recorded(device_graphs.Replay):
        def __init__(self, function: Any, shape: Any, *others: Any) -> None:
            super().__init__(function, shape, *others)
            shapes.append(tuple(shape))

    monkeypatch.setattr(device_engine, "Replay", Recorded)
    return shapes


def make(device: str, head: Any = None, **options: Any) -> DeviceRunner:
    given = {"preprocessing": SETTINGS, "trunk": SmallTrunk()} | options
    module = open_head(factortopy() if head is None else head, device)
    return DeviceRunner(head=module, device=device, **given)


def by_hand(images: Any, head: Any = None, trunk: Any = None, settings: Any = SETTINGS) -> Any:
    """Preprocessing in numpy, the trunk in torch on the CPU, the folded head in numpy."""
    pixels = torch.from_numpy(preprocess(list(images), settings))
    tokens = (trunk or SmallTrunk())(pixels).map(lambda array: array.float().numpy())
    return (head or factortopy()).run(tokens)


def check(found: np.ndarray, expected: np.ndarray, bound: float = 1e-5) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_it_answers_as_host_and_folded_head_do(device: str, count: int) -> None:
    runner, images = make(device), pictures(count)
    first, second = runner.predict(images), runner.predict(list(images))
    check(first, by_hand(images))
    assert np.array_equal(first, second)  # host pixels, then the device's own: the same bits


def test_all_subjects_answer_from_one_graph(device: str, opened: list[Any]) -> None:
    heads, images = subjects(), pictures(3)
    runner = make(device, heads)
    found = runner.predict(images)
    assert len(opened) == 1
    for name, head in heads.items():
        check(found[:, runner.head.columns[name]], by_hand(images, head))
    check(make(device, heads["b"]).predict(images), by_hand(images, heads["b"]))


@pytest.mark.parametrize("precision", ["bf16x3", "bf16"])
def test_the_heads_precision_is_kept(device: str, precision: str) -> None:
    head, images = factortopy(precision), pictures(2)
    found = make(device, head).predict(images)
    check(found, by_hand(images, head), {"bf16x3": 2e-5, "bf16": 1e-2}[precision])
    assert not np.array_equal(found, make(device).predict(images))


def test_a_trunk_in_bf16_has_torchs_autocast_numbers(device: str) -> None:
    images, trunk = pictures(4), SmallTrunk()
    found = make(device, trunk=trunk, trunk_precision="bf16").predict(images)
    assert trunk.mix.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        expected = by_hand(images, trunk=trunk)
    check(found, expected, 2e-2 if device == "cuda" else 1e-5)
    assert np.abs(found - by_hand(images)).max() > 1e-4


def test_the_callers_autocast_changes_nothing(device: str) -> None:
    images = pictures(2)
    expected = make(device).predict(images)
    with torch.autocast(device, torch.bfloat16):
        assert np.array_equal(make(device).predict(images), expected)


def test_batches_are_padded_to_powers_of_two(device: str, opened: list[Any]) -> None:
    runner = make(device)
    runner.predict(pictures(1))
    for count in (1, 2, 3, 4, 5, 8, 7):
        assert runner.predict(pictures(count)).shape == (count, V)
    assert opened == [(1, 3, 32, 32), *((n, 41, 37, 3) for n in (1, 2, 4, 8))]


def test_more_than_the_largest_bucket_is_several(
    device: str, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_engine, "LARGEST", 4)
    images = pictures(11)
    check(make(device).predict(images), by_hand(images))
    assert [shape[0] for shape in opened] == [4]


def test_an_answer_depends_on_no_other_row_and_no_padding(device: str) -> None:
    runner, images = make(device), pictures(4)
    runner.predict(images)
    expected = runner.predict(images)
    for other in (pictures(4, seed=5), np.full_like(images, 255)):
        runner.predict(other)  # leaves its rows behind
        assert np.array_equal(runner.predict(images[:3]), expected[:3])


@pytest.mark.parametrize("source", [(32, 32), (41, 37), (20, 60)])
def test_sizes_are_grouped_and_all_else_is_left_to_the_host(
    device: str, opened: list[Any], source: tuple[int, int]
) -> None:
    runner, images = make(device), pictures(2, *source)
    for _ in range(3):
        check(runner.predict(images), by_hand(images))
    assert opened == [(2, 3, 32, 32), (2, *source, 3)]
    mixed = [pictures(1, *source)[0], pictures(1, 50, 50)[0]]
    check(runner.predict(mixed), by_hand(mixed))
    assert len(opened) == 2


def test_a_resize_that_is_not_exact_is_left_to_the_host(device: str, opened: list[Any]) -> None:
    settings = SimpleNamespace(**vars(SETTINGS) | {"antialias": False})
    runner, images = make(device, preprocessing=settings), pictures(2)
    for _ in range(3):
        check(runner.predict(images), by_hand(images, settings=settings))
    runner.warm_up((2,), sizes=[(41, 37)])
    assert opened == [(2, 3, 32, 32)]


def test_images_too_large_to_stage_are_left_to_the_host(
    device: str, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_engine, "STAGED_BYTES", 2 * 41 * 37 * 3)
    runner = make(device)
    for count in (2, 2, 3):
        check(runner.predict(pictures(count)), by_hand(pictures(count)))
    assert opened == [(2, 3, 32, 32), (2, 41, 37, 3), (4, 3, 32, 32)]


def test_graphs_that_were_not_used_for_long_make_room(
    device: str, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_engine, "GRAPHS", 2)
    monkeypatch.setattr(device_engine, "SIZES", 1)
    runner = make(device)
    runner.warm_up((1, 2), sizes=[])
    for count in (1, 2, 4, 2, 1):
        mixed = [*pictures(count - 1), *pictures(1, 30, 30)]
        check(runner.predict(mixed), by_hand(mixed))
    assert [shape[0] for shape in opened] == [1, 2, 4, 1]


def test_warm_up_leaves_nothing_to_capture(device: str, opened: list[Any]) -> None:
    runner = make(device, slots=2)
    runner.warm_up((1, 4), sizes=[(41, 37)])
    assert len(opened) == 2 * 2 * 2
    check(runner.predict(pictures(1)), by_hand(pictures(1)))
    runner.predict(pictures(3))
    runner.predict([*pictures(2), *pictures(1, 50, 60)])
    runner.warm_up((1, 4), sizes=[(41, 37)])
    assert len(opened) == 8
    runner.warm_up()
    assert opened[8:] == [(1, 32, 32, 3)] * 2


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


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "at least one image"),
        (pictures(2).astype(np.float32), r"images\[0\]: expected uint8 \[H,W,3\]"),
        ([pictures(1)[0], pictures(1)[0, ..., :2]], r"images\[1\].*\[41, 37, 2\]"),
        ([pictures(1)[0, :0]], "at least one pixel"),
        ([pictures(1)[0, 0]], r"\[37, 3\]"),
    ],
)
def test_other_images_are_refused(device: str, images: Any, words: str) -> None:
    with pytest.raises(BrainfastError, match=words):
        make(device).predict(images)


def test_answers_that_are_not_finite_name_the_image(device: str) -> None:
    class Blind(SmallTrunk):
        def forward(self, pixels: torch.Tensor) -> Tokens:
            return super().forward(torch.where(pixels > pixels.amax() - 1e-3, torch.nan, pixels))

    images = pictures(3) // 2
    images[2, 5, 5] = 255
    with pytest.raises(BrainfastError, match="response to image 2: expected finite"):
        make(device, trunk=Blind()).predict(images)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: make("cpu", slots=0), "slots: expected at least 1"),
        (lambda: make("cpu").warm_up((0,)), r"batch_sizes: expected numbers in 1..256, got \[0\]"),
        (lambda: make("cpu").warm_up((257,)), "batch_sizes"),
        (lambda: make("cpu").keep_warm(0), "every_ms: expected above 0"),
    ],
)
def test_bad_choices_are_refused(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(BrainfastError, match=words):
        call()


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
    assert runner.predict(pictures(4)).shape == (4, V)  # it goes on


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


def test_other_errors_pass_through_and_leave_the_slot_free(device: str) -> None:
    class Broken(SmallTrunk):
        broken = True

        def forward(self, pixels: torch.Tensor) -> Tokens:
            if self.broken:
                raise BrainfastError("pixels", expected="others", got="these")
            return super().forward(pixels)

    trunk = Broken().to(device)
    runner = make(device, trunk=trunk)
    with pytest.raises(BrainfastError, match="pixels: expected others"):
        runner.predict(pictures(1))
    trunk.broken = False
    check(runner.predict(pictures(1)), by_hand(pictures(1)))


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
    wait_for(lambda: gc.collect() >= 0 and gone() is None)


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
            busy = torch.randn(2000, 2000, device=gpu)
            busy @ busy
            return runner.predict(case)

    with ThreadPoolExecutor(4) as pool:
        for found, case in zip(pool.map(run, cases), cases, strict=True):
            check(found, by_hand(case))


def test_a_gpu_that_is_full_names_a_batch_that_fits(gpu: str) -> None:
    class Wide(SmallTrunk):
        def forward(self, pixels: torch.Tensor) -> Tokens:
            free, _ = torch.cuda.mem_get_info()
            share = torch.empty(len(pixels) * free // 6, dtype=torch.uint8, device=pixels.device)
            return super().forward(pixels + 0 * share[0])

    with pytest.raises(BrainfastError, match=r"use batches of at most [124]$"):
        make(gpu, trunk=Wide()).predict(pictures(16))
