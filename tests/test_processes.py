"""Forked children, and engines in several threads: the same numbers as one after another."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from brainfast import _C
from brainfast.data import Arrays
from brainfast.engine import Engine
from brainfast.training import Recipe, fit

RECIPE = Recipe(
    name="tiny",
    batch=4,
    steps_per_epoch=2,
    max_epochs=1,
    lr=1e-2,
    soup=0,
    head={"dim": 16, "grid": (2, 2), "standardize": True},
    trunk={"layers": (0, 2), "size": 32},
)
V, L, D, SIDE, B = 700, 3, 16, 4, 2


@pytest.fixture
def three_threads():
    before = _C.num_threads()
    _C.set_num_threads(3)
    yield
    _C.set_num_threads(before)


def make_plan() -> tuple[_C.FactorReadoutPlan, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    space = rng.uniform(-1, 1, (V, 2)).astype(np.float32)
    plan = _C.FactorReadoutPlan(space, normal(V, L), normal(V), normal(V, D), normal(V), SIDE, SIDE)
    return plan, (normal(B, L, D, SIDE, SIDE), normal(B, L, D))


def answer_in_child(queue: multiprocessing.Queue, plan, tokens) -> None:
    queue.put(np.asarray(plan.run(*tokens)))


@pytest.mark.usefixtures("three_threads")
def test_a_fork_after_first_use_gives_the_same_answer() -> None:
    plan, tokens = make_plan()
    wanted = np.asarray(plan.run(*tokens))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.write(write, bytes([np.array_equal(plan.run(*tokens), wanted), _C.num_threads()]))
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    said = os.read(read, 2)
    os.close(read)
    assert os.waitpid(child, 0)[1] == 0
    assert said == bytes([1, 3])
    np.testing.assert_array_equal(plan.run(*tokens), wanted)  # the parent's pool goes on


@pytest.mark.usefixtures("three_threads")
def test_a_forked_worker_of_multiprocessing_gives_the_same_answer() -> None:
    plan, tokens = make_plan()
    wanted = np.asarray(plan.run(*tokens))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    workers = [context.Process(target=answer_in_child, args=(queue, plan, tokens)) for _ in "ab"]
    for worker in workers:
        worker.start()
    for _ in workers:
        np.testing.assert_array_equal(queue.get(timeout=60), wanted)
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0


@pytest.mark.usefixtures("three_threads")
def test_a_fork_while_another_thread_runs_a_plan() -> None:
    plan, tokens = make_plan()
    wanted = np.asarray(plan.run(*tokens))
    with ThreadPoolExecutor(1) as pool:
        busy = [pool.submit(plan.run, *tokens) for _ in range(200)]
        for _ in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0 if np.array_equal(plan.run(*tokens), wanted) else 1)
            assert os.waitpid(child, 0)[1] == 0
        for done in busy:
            np.testing.assert_array_equal(done.result(), wanted)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models of other numbers, each with an exported trunk."""
    made = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        data = Arrays(
            images=rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8),
            responses=rng.normal(size=(40, 300)).astype(np.float32),
            coordinates=rng.normal(size=(300, 3)) * 30,
        )
        work = tmp_path_factory.mktemp("work")
        encoder = fit(
            "factortopy",
            data,
            trunk="vit_tiny_patch16_224",
            recipe=RECIPE,
            pretrained=False,
            work=work,
            progress=False,
            device="cpu",
            seed=seed,
        )
        made.append(encoder.save(work / "model", onnx=True))
    return made


@pytest.mark.parametrize(
    ("runtime", "precision", "trunk_precision"),
    [("torch", "fp32", "fp32"), ("torch", "bf16", "bf16"), ("onnx", "bf16x3", "fp32")],
)
def test_two_engines_at_once_give_the_bits_of_one_after_another(
    folders: list[Path], runtime: str, precision: str, trunk_precision: str
) -> None:
    engines = [
        Engine.load(
            folder,
            runtime=runtime,
            device="cpu",
            precision=precision,
            trunk_precision=trunk_precision,
            threads=1,
        )
        for folder in folders
    ]
    images = np.random.default_rng(5).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    before = torch.backends.mkldnn.matmul.fp32_precision
    wanted = [engine.predict(images).values for engine in engines]
    assert not np.array_equal(*wanted)
    with ThreadPoolExecutor(2) as pool:
        runs = [
            (pool.submit(engine.predict, images), want)
            for _ in range(8)
            for engine, want in zip(engines, wanted, strict=True)
        ]
    for done, want in runs:
        np.testing.assert_array_equal(done.result().values, want)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
