"""Engines on a device: `predict` by the runner, all else in numpy, golden answers on that way."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from brainfast.data import Arrays
from brainfast.device_engine import DeviceRunner
from brainfast.encoder import Encoder
from brainfast.engine import Engine
from brainfast.errors import BrainfastError
from brainfast.files import load_tensors, save_tensors
from brainfast.group_encoder import GroupEncoder
from brainfast.group_engine import GroupEngine
from brainfast.runtimes import TorchRuntime
from brainfast.training import Recipe, fit

RECIPE = Recipe(
    name="tiny",
    batch=4,
    steps_per_epoch=2,
    max_epochs=1,
    lr=1e-2,
    soup=0,
    head={"dim": 8, "grid": (2, 2), "standardize": True},
    trunk={"layers": (0, 2), "size": 32},
)
IMAGES = np.random.default_rng(5).integers(0, 255, (5, 40, 30, 3), dtype=np.uint8)


@pytest.fixture(params=["cpu", "cuda"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A GPU where there is one; the CPU in its place, on the same way but for the graphs."""
    if request.param == "cpu":
        monkeypatch.setattr(TorchRuntime, "on_gpu", True)
    elif not torch.cuda.is_available() and os.environ.get("BRAINFAST_REQUIRE_CUDA") != "1":
        pytest.skip("no GPU that torch sees")
    return str(request.param)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    rng = np.random.default_rng(0)
    data = Arrays(
        images=rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8),
        responses=rng.normal(size=(40, 90)).astype(np.float32),
        coordinates=rng.normal(size=(90, 3)) * 30,
        rois={"EBA": np.arange(90) % 3 == 0},
    )
    return fit(
        "factortopy",
        data,
        trunk="vit_tiny_patch16_224",
        recipe=RECIPE,
        pretrained=False,
        work=tmp_path_factory.mktemp("work"),
        progress=False,
        device="cpu",
    )


@pytest.fixture(scope="module")
def group(fit_tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> GroupEncoder:
    found: GroupEncoder = fit_tiny(tmp_path_factory.mktemp("group"), {"steps": 4})
    return found


@pytest.fixture(scope="module")
def folder(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.save(tmp_path_factory.mktemp("model") / "one")


@pytest.fixture(scope="module")
def group_folder(group: GroupEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return group.save(tmp_path_factory.mktemp("model") / "group")


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images every call of a runner had, from here on."""
    counts: list[int] = []
    original = DeviceRunner.predict

    def count(self: DeviceRunner, images: Any, *subjects: Any) -> Any:
        counts.append(len(images))
        return original(self, images, *subjects)

    monkeypatch.setattr(DeviceRunner, "predict", count)
    return counts


def check(found: np.ndarray, expected: np.ndarray, bound: float = 1e-4) -> None:
    assert np.abs(found - expected).max() <= bound * expected.std()


def test_predict_stays_on_the_device(
    device: str, encoder: Encoder, folder: Path, batches: list[int], tmp_path: Path
) -> None:
    expected = encoder.respond(IMAGES).values
    engines = encoder.compile(device=device), Engine.load(folder, device=device)
    assert batches == [len(encoder.golden.images)] * 2
    for engine in engines:
        batches.clear()
        check(engine.predict(IMAGES).values, expected)
        check(engine.predict(IMAGES, batch_size=2).values, expected)
        assert batches == [5, 2, 2, 1]
        check(engine.take("EBA").predict(IMAGES).values, expected[:, ::3])
    Image.fromarray(IMAGES[0]).save(tmp_path / "one.png")
    mixed = [tmp_path / "one.png", IMAGES[1], Image.fromarray(IMAGES[2]), IMAGES[3, :20]]
    check(engine.predict(mixed).values[:3], expected[:3])


def test_all_else_is_in_numpy(device: str, encoder: Encoder, batches: list[int]) -> None:
    engine = encoder.compile(device=device)
    batches.clear()
    tokens = engine.tokens(IMAGES)
    assert isinstance(tokens.local[0], np.ndarray)
    expected = engine.head.run(tokens)
    parts = engine.contributions(IMAGES)
    check(parts.sum(axis=1) + engine.head.bias, expected)
    template = engine.template(np.ones((1, 90), dtype=np.float32))
    check(template.score(engine.head.align(tokens)), expected.sum(axis=1, keepdims=True))
    assert batches == []
    check(engine.predict(IMAGES).values, expected)


@pytest.mark.parametrize(("precision", "trunk_precision"), [("bf16", "fp32"), ("bf16x3", "bf16")])
def test_precisions_are_those_asked_for(
    device: str, folder: Path, precision: Any, trunk_precision: Any
) -> None:
    options = {"precision": precision, "trunk_precision": trunk_precision}
    engine = Engine.load(folder, device=device, **options)
    found, expected = engine.predict(IMAGES).values, engine.head.run(engine.tokens(IMAGES))
    check(found, expected, 2e-2 if "bf16" in (precision, trunk_precision) else 1e-4)
    assert not np.array_equal(found, Engine.load(folder, device=device).predict(IMAGES).values)
    assert f"head {precision}, trunk torch {trunk_precision}, {device}" in repr(engine)


def test_golden_answers_are_checked_on_the_way_that_is_used(
    device: str, folder: Path, group_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DeviceRunner.predict
    monkeypatch.setattr(DeviceRunner, "predict", lambda *given: original(*given) * 1.1)
    for load in (
        lambda: Engine.load(folder, device=device),
        lambda: GroupEngine.load(group_folder, device=device),
    ):
        with pytest.raises(BrainfastError, match="golden responses within"):
            load()


def test_a_damaged_head_does_not_pass(device: str, encoder: Encoder, tmp_path: Path) -> None:
    folder = encoder.save(tmp_path / "model")
    arrays = load_tensors(folder / "folded.safetensors")
    save_tensors(folder / "folded.safetensors", arrays | {"bias": arrays["bias"] + 1})
    with pytest.raises(BrainfastError, match="golden"):
        Engine.load(folder, device=device)


def test_subjects_answer_from_one_pass(
    device: str, group: GroupEncoder, group_folder: Path, batches: list[int]
) -> None:
    engine = GroupEngine.load(group_folder, device=device)
    assert len(batches) == 1
    found = engine.predict(IMAGES)
    assert len(batches) == 2
    assert list(found) == ["a", "b", "c"]
    for name, response in found.items():
        assert response.space == group.space_of(name)
        check(response.values, group.respond(IMAGES, name).values)
    some = engine.predict(IMAGES, subjects=["c", "a"], batch_size=3)
    assert list(some) == ["c", "a"]
    check(some["c"].values, found["c"].values, 1e-5)
    alone = Engine.load(group_folder, subject="group", device=device)
    check(alone.predict(IMAGES).values, group.respond(IMAGES, "group").values)
    check(engine.of("b").predict(IMAGES).values, found["b"].values, 1e-5)
    check(engine.take("V1v").predict(IMAGES)["b"].values, found["b"].values[:, :5], 1e-5)
    compiled = group.compile(subjects=["b", "group"], device=device)
    check(compiled.predict(IMAGES)["b"].values, found["b"].values, 1e-5)
    assert device in repr(engine)


def test_warm_up_opens_what_it_is_told(
    device: str, folder: Path, group_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = Engine.load(folder, device=device), GroupEngine.load(group_folder, device=device)
    opened: list[Any] = []
    original = DeviceRunner._attempt

    def record(self: DeviceRunner, slot: Any, *key: Any) -> Any:
        opened.append(key)
        return original(self, slot, *key)

    monkeypatch.setattr(DeviceRunner, "_attempt", record)
    for engine in engines:
        opened.clear()
        engine.warm_up((1, 16), sizes=[(40, 30)])
        assert opened == [(1, None), (16, None), (1, (40, 30)), (16, (40, 30))]
        engine.predict(IMAGES[:1])
        engine.predict(np.repeat(IMAGES, 3, axis=0))
        assert len(opened) == 4
        engine.keep_warm(1000)
        engine.keep_warm(None)


def test_an_engine_on_the_cpu_has_no_runner(encoder: Encoder, batches: list[int]) -> None:
    engine = encoder.compile(device="cpu")
    engine.warm_up((1, 3))
    check(engine.predict(IMAGES).values, encoder.respond(IMAGES).values)
    assert batches == []
    assert "trunk torch fp32, cpu" in repr(engine)
    with pytest.raises(BrainfastError, match="keep_warm: expected an engine on a GPU, got cpu"):
        engine.keep_warm()
