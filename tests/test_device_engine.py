"""Images to responses on one device: values, batch sizes, image sizes, precisions, mistakes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from brainfast import device_engine, device_graphs
from brainfast.errors import BrainfastError
from brainfast.tokens import Tokens
from device_parts import (
    SETTINGS,
    SmallTrunk,
    V,
    by_hand,
    check,
    factortopy,
    make,
    need_gpu,
    pictures,
    subjects,
)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda":
        need_gpu()
    return str(request.param)


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


def test_one_subjects_bad_weights_do_not_spoil_anothers_answer(device: str) -> None:
    heads, images = subjects(), pictures(2)
    heads["a"].weight[0, 0] = np.nan
    runner = make(device, heads)
    with pytest.raises(BrainfastError, match="response to image 0: expected finite"):
        runner.predict(images)
    found = runner.predict(images, ["b"])
    check(found[:, runner.head.columns["b"]], by_hand(images, heads["b"]))


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
