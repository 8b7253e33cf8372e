"""Training from resident tokens: the same run as one that streams them, its resume and its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brainfast.analysis.scores import ScoreAccumulator
from brainfast.data import Arrays
from brainfast.errors import BrainfastError
from brainfast.models.factortopy import FactorTopy
from brainfast.models.factortopy_config import FactorTopyConfig
from brainfast.resident import ResidentExamples
from brainfast.static_step import StaticStep
from brainfast.tokens import Tokens
from brainfast.training import Recipe, examples, fit
from brainfast.training.device_r2 import DeviceR2
from brainfast.training.examples import Examples, placed
from brainfast.training.trainer import CHECKPOINT, Trainer, working_bytes

STEPS = 7  # of an epoch, no multiple of the steps between two looks
TINY = Recipe(
    name="tiny",
    batch=4,
    steps_per_epoch=STEPS,
    max_epochs=3,
    lr=1e-2,
    selector_lr=1e-2,
    regularizer_steps=10,
    soup=2,
    scale_regularizer=True,
    head={"dim": 4, "grid": (2, 2)},
    trunk={"layers": (0, 1), "size": 32},
)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def few_steps_between_looks(monkeypatch):
    look_often(monkeypatch)


def look_often(patch):
    make = StaticStep.__init__
    patch.setattr(
        StaticStep, "__init__", lambda self, *rest, **options: make(self, *rest, **options, most=3)
    )


def make_data() -> Arrays:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    brightness = images.reshape(40, -1).mean(axis=1, keepdims=True)
    signal_ = (brightness - brightness.mean()) / brightness.std()
    responses = signal_ + rng.normal(size=(40, 12)) * 0.1
    return Arrays(images=images, responses=responses, coordinates=rng.normal(size=(12, 3)) * 30)


def run(work: Path, recipe: Recipe = TINY, *, resident: bool = True, device: str = "cpu"):
    return fit(
        "factortopy",
        make_data(),
        trunk="vit_tiny_patch16_224",
        recipe=recipe,
        pretrained=False,
        work=work,
        device=device,
        resident=resident,
        progress=False,
    )


def same(one, other) -> bool:
    a, b = one.head.state_dict(), other.head.state_dict()
    return all(torch.equal(a[name].cpu(), b[name].cpu()) for name in a)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    return run(tmp_path_factory.mktemp("streamed"), resident=False)


def test_resident_and_streamed_training_are_the_same_run(streamed, tmp_path):
    resident = run(tmp_path)
    assert same(resident, streamed)
    assert resident.history == streamed.history
    assert resident.card.training.soup_steps == streamed.card.training.soup_steps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_trains_as_a_cpu_does(tmp_path, precision):
    if not torch.cuda.is_available():
        if os.environ.get("BRAINFAST_REQUIRE_CUDA") == "1":
            pytest.fail("no GPU that torch sees")
        pytest.skip("no GPU that torch sees")
    recipe = TINY.model_copy(update={"head_precision": precision})
    gpu = run(tmp_path / "gpu", recipe, device="cuda")
    cpu = run(tmp_path / "cpu", recipe)
    losses = [[row["loss"] for row in encoder.history] for encoder in (gpu, cpu)]
    np.testing.assert_allclose(*losses, rtol=1e-3 if precision == "fp32" else 3e-2)
    assert same(run(tmp_path / "again", recipe, device="cuda"), gpu)


def test_a_killed_run_resumes_to_the_same_bits(streamed, tmp_path):
    script = (
        "import os, signal, sys\n"
        "from importlib.util import module_from_spec, spec_from_file_location\n"
        f"spec = spec_from_file_location('tests_static', {__file__!r})\n"
        "tests = module_from_spec(spec)\n"
        "spec.loader.exec_module(tests)\n"
        "tests.look_often(tests.pytest.MonkeyPatch())\n"
        "take = tests.Trainer._take\n"
        "def kill_in_the_second_epoch(self, most):\n"
        "    if self.state.step > tests.STEPS:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return take(self, most)\n"
        "tests.Trainer._take = kill_in_the_second_epoch\n"
        "tests.run(tests.Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (tmp_path / CHECKPOINT).is_file()
    assert same(run(tmp_path), streamed)


@pytest.mark.parametrize("poisoned", [STEPS, STEPS + 1, STEPS + 2])
def test_divergence_names_its_step_and_keeps_the_checkpoint(tmp_path, monkeypatch, poisoned):
    advance = StaticStep._advance
    taken = []

    def poison(self, regularised):
        if len(taken) == poisoned:
            with torch.no_grad():
                self._optimizer.param_groups[0]["params"][0].fill_(float("nan"))
        taken.append(regularised)
        advance(self, regularised)

    monkeypatch.setattr(StaticStep, "_advance", poison)
    with pytest.raises(BrainfastError, match=rf"training step {poisoned}:.*loss of nan") as error:
        run(tmp_path)
    assert f"step {STEPS} is kept" in str(error.value)
    monkeypatch.undo()
    assert run(tmp_path).card.training.steps == 3 * STEPS


def test_a_step_that_is_refused_is_named(tmp_path, monkeypatch):
    respond, taken = FactorTopy.respond, []

    def lose_points(self, tokens, selectors):
        if self.training and torch.is_grad_enabled():
            taken.append(tokens)
        space = selectors.space * (torch.nan if len(taken) > 4 else 1)
        return respond(self, tokens, selectors._replace(space=space))

    monkeypatch.setattr(FactorTopy, "respond", lose_points)
    with pytest.raises(BrainfastError, match=r"training step 4:.*space with NaN"):
        run(tmp_path)


def test_the_regulariser_fades_as_it_does_step_by_step(tmp_path, monkeypatch):
    seen = []
    loop = StaticStep.run

    def watch(self, rows, strengths):
        seen.extend(strengths)
        assert len(rows) == len(strengths) <= 3
        return loop(self, rows, strengths)

    monkeypatch.setattr(StaticStep, "run", watch)
    run(tmp_path)
    expected = [0.1 * max(0.0, 1 - step / 10) for step in range(3 * STEPS)]
    np.testing.assert_allclose(seen, expected, rtol=1e-12)


def made_up(count=9, dtype=torch.bfloat16) -> Examples:
    generator = torch.Generator().manual_seed(0)
    local = [torch.randn(count, 3, 2, 2, generator=generator).to(dtype) for _ in range(2)]
    global_ = [torch.randn(count, 3, generator=generator).to(dtype) for _ in range(2)]
    responses = torch.randn(count, 5, generator=generator).numpy()

    def tokens(rows):
        picked = [[part[list(rows)] for part in parts] for parts in (local, global_)]
        return Tokens(*map(tuple, picked), (0, 1))

    return Examples(tokens, responses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loading_keeps_dtype_bytes_and_numbers(monkeypatch, dtype):
    monkeypatch.setattr(examples, "_CHUNK", 4)
    some = made_up(dtype=dtype)
    there = some.load(CPU)
    assert isinstance(there, ResidentExamples)
    assert len(there) == len(some) == 9
    assert isinstance(there.local, torch.Tensor)  # layers that are alike
    tables = (*there.tables().local, *there.tables().global_, there.responses)
    assert some.nbytes() == sum(table.nbytes for table in tables)
    assert {table.dtype for table in tables[:-1]} == {dtype}
    indices = np.array([8, 0, 3, 3])
    (tokens, measured), (wanted, responses) = (e.batch(indices, CPU) for e in (there, some))
    assert torch.equal(measured, responses)
    for a, b in zip(
        (*tokens.local, *tokens.global_), (*wanted.local, *wanted.global_), strict=True
    ):
        assert a.dtype == b.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("resident", "device", "free", "loaded"),
    [
        ("auto", "cpu", 10**9, False),
        ("auto", "cuda", 10**9, True),
        ("auto", "cuda", 1100, False),
        (True, "cpu", 10**9, True),
        (False, "cuda", 10**9, False),
    ],
)
def test_examples_are_loaded_where_they_fit(monkeypatch, capsys, resident, device, free, loaded):
    some = made_up()
    monkeypatch.setattr(examples, "free_bytes", lambda _: free)
    monkeypatch.setattr(Examples, "load", lambda self, place: "loaded")
    place = SimpleNamespace(type=device, __str__=lambda _: device)
    found = placed(some, "training images", place, resident=resident, reserve=1000, tell=True)
    assert (found == "loaded") == loaded
    told = capsys.readouterr().err
    if device == "cuda" and resident:
        assert "GB of tokens and responses" in told
        assert ("kept there" in told) == loaded


def test_what_is_demanded_and_does_not_fit_is_refused(monkeypatch):
    some = made_up()
    monkeypatch.setattr(examples, "free_bytes", lambda _: some.nbytes() + 99)
    with pytest.raises(BrainfastError, match=f"expected {some.nbytes() + 100:,} bytes.*auto"):
        placed(some, "training images", CPU, resident=True, reserve=100, tell=False)
    with pytest.raises(BrainfastError, match="resident: expected auto, True or False"):
        placed(some, "training images", CPU, resident="yes", reserve=100, tell=False)


def test_working_memory_grows_with_the_vertices():
    options = FactorTopyConfig(dim=16, grid=(2, 2))
    small, large = (FactorTopy(torch.randn(count, 3), (8,), (0,), options) for count in (100, 1100))
    grown = working_bytes(large, 8) - working_bytes(small, 8)
    states = 4 * 1000 * (16 + 1)  # weight, gradient and two moments a row
    assert grown > 4 * (states + 3 * 4 * 128 * 1000)


@pytest.mark.parametrize("batch", [1, 4, 50])
def test_r2_summed_on_the_device_is_that_of_the_scores(batch):
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(50, 6)).astype(np.float32) + 1e4
    measured[:, 1] = 3.0  # constant
    predicted = (measured + rng.normal(size=(50, 6))).astype(np.float32)
    measured[7, 2] = np.nan
    measured[[0, 9]] = np.nan
    measured[:, 4] = np.nan
    measured[1:, 5] = np.nan
    measured[3, 5] = 2.0  # once
    ours, theirs = DeviceR2(), ScoreAccumulator()
    for start in range(0, 50, batch):
        rows = slice(start, start + batch)
        ours.update(torch.from_numpy(predicted[rows]), torch.from_numpy(measured[rows]))
        theirs.update(predicted[rows], measured[rows])
    np.testing.assert_allclose(ours.r2().numpy(), theirs.r2(), rtol=1e-12)
    assert np.isnan(theirs.r2()).tolist() == [False, True, False, False, True, True]
    ours.update(torch.full((1, 6), torch.inf), torch.zeros(1, 6))
    with pytest.raises(BrainfastError, match="predicted: expected finite"):
        ours.r2()


def test_trainer_validates_on_another_device_by_the_sums_there(streamed, tmp_path, monkeypatch):
    run(tmp_path)
    found = {}
    validate = Trainer.validate

    def both(self, some=None):
        there = self.device
        found["cpu"] = validate(self, some)
        self.device = SimpleNamespace(type="other")
        found["other"] = validate(self, some)
        self.device = there
        return found["cpu"]

    monkeypatch.setattr(Trainer, "validate", both)
    run(tmp_path, TINY.model_copy(update={"max_epochs": 4}))
    assert found["other"] == pytest.approx(found["cpu"], rel=1e-12)
