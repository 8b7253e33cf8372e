"""A static step against a plain loop, on the CPU and, captured in a graph, on a GPU."""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import smooth_l1_loss

from brainfast.errors import BrainfastError
from brainfast.models.factortopy import FactorTopy
from brainfast.ops import factor_readout_cuda
from brainfast.resident import empty_examples
from brainfast.static_step import StaticStep, StepError
from brainfast.tokens import Tokens

LAYERS, CHANNELS, IMAGES, VERTICES, BATCH = (0, 1, 2), (6, 6, 5), 12, 70, 4
ALIKE = (6, 6, 6)


@dataclass
class Options:
    """Those of FactorTopy, without pydantic."""

    dim: int = 8
    grid: tuple[int, int] = (4, 5)
    bottleneck: str = "shared"
    topology: bool = True
    layer_selector: bool = True
    space_selector: bool = True
    scale_selector: bool = True
    samples: int = 1
    standardize: bool = False


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        if os.environ.get("BRAINFAST_REQUIRE_CUDA") == "1":
            pytest.fail("no GPU that torch sees")
        pytest.skip("no GPU that torch sees")
    return torch.device(request.param)


class Training:
    """A small FactorTopy, its optimiser and its examples on one device, from seed 0."""

    def __init__(self, device, precision="fp32", channels=CHANNELS, **options):
        generator = torch.Generator().manual_seed(0)

        def normal(*shape):
            return torch.randn(*shape, generator=generator)

        torch.manual_seed(0)
        options = Options(**options)
        self.model = FactorTopy(normal(VERTICES, 3), channels, LAYERS, options).to(device)
        self.model.set_head_precision(precision)
        self.device = device
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-2, fused=True, capturable=device.type == "cuda"
        )
        tokens = Tokens(
            tuple(normal(IMAGES, c, *options.grid).bfloat16() for c in channels),
            tuple(normal(IMAGES, c).bfloat16() for c in channels),
            LAYERS,
        )
        self.examples = empty_examples(tokens, IMAGES, VERTICES, device)
        self.examples.responses.copy_(normal(IMAGES, VERTICES))
        room = self.examples.tables()
        pairs = zip(room.local + room.global_, tokens.local + tokens.global_, strict=True)
        for to, part in pairs:
            to.copy_(part)

    def loss(self, rows, strength):
        tokens, measured = self.examples.gather(rows)
        selectors = self.model.selectors()
        loss = smooth_l1_loss(self.model.respond(tokens, selectors), measured, beta=0.1)
        if strength is None:
            return loss
        return loss - strength * torch.special.entr(selectors.layer).sum(dim=1).mean()

    def static(self, **options):
        if self.device.type == "cuda":
            assert factor_readout_cuda.usable(self.examples.device)
        capture = self.device.type == "cuda"
        return StaticStep(
            self.loss, self.optimizer, batch=BATCH, device=self.device, capture=capture, **options
        )

    def plain(self, rows, strengths):
        """The same steps without a static one, each loss awaited."""
        losses = []
        for row, strength in zip(rows, strengths, strict=True):
            rows_there = torch.from_numpy(row).to(self.device)
            loss = self.loss(rows_there, strength or None)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def weights(self):
        return {name: value.cpu().clone() for name, value in self.model.state_dict().items()}


def rows_of(steps, seed=0):
    return np.random.default_rng(seed).integers(0, IMAGES, (steps, BATCH))


def strengths_of(steps):
    """Of a regulariser that has gone by the middle."""
    return [0.1 * max(0.0, 1 - step / (steps // 2)) for step in range(steps)]


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channels": ALIKE},
        {"samples": 2, "bottleneck": "dual"},
        {"topology": False, "standardize": True},
    ],
)
def test_the_steps_are_those_of_a_plain_loop(device, options, precision):
    rows, strengths = rows_of(10), strengths_of(10)
    one, other = Training(device, precision, **options), Training(device, precision, **options)
    found, expected = one.static().run(rows, strengths), other.plain(rows, strengths)
    assert len(set(expected)) == 10
    if device.type == "cpu":
        assert found == expected
        assert same(one.weights(), other.weights())
        return
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    for name, weight in other.weights().items():
        torch.testing.assert_close(one.weights()[name], weight, rtol=1e-2, atol=1e-3, msg=name)


def test_runs_follow_on_each_other_in_the_same_bits(device):
    rows, strengths = rows_of(9), strengths_of(9)
    whole, parts = Training(device), Training(device)
    losses = whole.static().run(rows, strengths)
    step = parts.static(most=4)
    found = []
    for start in range(0, 9, 4):
        found += step.run(rows[start : start + 4], strengths[start : start + 4])
    assert found == losses
    assert same(whole.weights(), parts.weights())


@pytest.mark.parametrize("after", [2, 7])
def test_a_step_made_anew_goes_on_in_the_same_bits(device, after):
    rows, strengths = rows_of(9), strengths_of(9)
    whole, first, second = Training(device), Training(device), Training(device)
    losses = whole.static().run(rows, strengths)
    first.static().run(rows[:after], strengths[:after])
    second.model.load_state_dict(first.model.state_dict())
    for to, of in zip(second.model.parameters(), first.model.parameters(), strict=True):
        state = first.optimizer.state[of]
        second.optimizer.state[to] = {name: value.cpu().to(device) for name, value in state.items()}
    assert second.static().run(rows[after:], strengths[after:]) == losses[after:]
    assert same(whole.weights(), second.weights())


def test_a_one_hot_selector_is_left_alone_once_the_regulariser_has_gone(device):
    training = Training(device, topology=False)
    with torch.no_grad():
        training.model.select_layer.value[:, 0] = 1e4  # layers that underflow to exactly 0
    assert np.isfinite(training.static().run(rows_of(3), [0.0] * 3)).all()
    assert all(weight.isfinite().all() for weight in training.weights().values())


def test_a_loss_that_is_not_finite_comes_back_at_its_step(device):
    training = Training(device)
    training.examples.responses[5] = torch.nan
    rows = np.array([[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]])
    if device.type == "cuda":
        losses = training.static().run(rows, [0.0] * 3)
    else:  # its readout refuses the sampling points that the step before has spoilt
        with pytest.raises(StepError) as error:
            training.static().run(rows, [0.0] * 3)
        losses = error.value.losses
        assert error.value.number == 2
        assert isinstance(error.value.__cause__, BrainfastError)
    assert np.isfinite(losses[0])
    assert np.isnan(losses[1])


class NotRead:
    """In the place of losses that nobody may wait for."""

    def __getitem__(self, _):
        return self

    def tolist(self):
        return []


def test_replays_wait_for_nothing(device):
    if device.type == "cpu":
        pytest.skip("nothing to wait for")
    training = Training(device)
    step = training.static()
    step.run(rows_of(2), [0.1, 0.0])  # captures both graphs
    losses, step._losses = step._losses, NotRead()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.run(rows_of(50), strengths_of(50))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses[:50].isfinite().all()


class RecordedGraph:
    """A CUDA graph's stand-in: what was run in its capture runs when it is replayed."""

    def __init__(self):
        self.body = None

    def pool(self):
        return "pool"

    def replay(self):
        self.body()


def test_capturing_leaves_parameters_and_moments_as_they_were(monkeypatch):
    """The host's part of a capture, with a stand-in for torch.cuda."""
    capturing, pools = [], []

    @contextmanager
    def graph(recorded, pool, stream, capture_error_mode):
        pools.append(pool)
        capturing.append(recorded)
        yield
        capturing.pop()

    advance = StaticStep._advance

    def record(self, regularised):
        if capturing:
            capturing[-1].body = partial(advance, self, regularised)
        else:
            advance(self, regularised)

    stream = SimpleNamespace(wait_stream=lambda _: None)
    fakes = {"Stream": lambda _: stream, "current_stream": lambda: stream, "graph": graph}
    fakes |= {"CUDAGraph": RecordedGraph, "device": nullcontext, "stream": nullcontext}
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(StaticStep, "_advance", record)
    cpu = torch.device("cpu")
    rows, strengths = rows_of(10), strengths_of(10)
    captured, plain = Training(cpu), Training(cpu)
    step = StaticStep(captured.loss, captured.optimizer, batch=BATCH, device=cpu, capture=True)
    found = step.run(rows[:2], strengths[:2]) + step.run(rows[2:], strengths[2:])
    assert found == plain.plain(rows, strengths)
    assert same(captured.weights(), plain.weights())
    assert pools == [None, "pool"]  # one graph with the regulariser, one without


def test_bfloat16_operands_reach_the_readout_on_a_gpu(monkeypatch):
    training = Training(torch.device("cpu"), "bf16")
    model, tokens = training.model, training.examples.gather(torch.arange(4))[0]
    monkeypatch.setattr(FactorTopy, "_trains_on_cpu", lambda self, local: False)
    strict = model(tokens)
    monkeypatch.setattr(
        FactorTopy, "_rounds", lambda self, local: self.training and torch.is_grad_enabled()
    )
    rounded = model(tokens)
    spread = (strict - model.bias).std()
    assert 1e-4 < (rounded - strict).square().mean().sqrt() / spread < 1e-2
    rounded.square().mean().backward()
    assert model.weight.grad.dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(model(tokens), strict)
