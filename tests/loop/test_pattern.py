"""Target patterns in a session: unbiased responses, their noise, choosing, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from brainfast import Pool, Session
from brainfast.errors import BrainfastError
from brainfast.loop import ArrayCandidates, pattern, replay
from brainfast.loop.folding import fold_pattern
from brainfast.loop.pattern import FoldedPattern, PatternReading
from brainfast.pool_fill import flat_template, unflatten
from brainfast.target_pattern import TargetPattern
from loop_world import edited

V, N = 30, 60
CEILING = np.random.default_rng(3).uniform(0.1, 0.5, V)


def target(seed: int = 2) -> np.ndarray:
    """Three vertices are not known."""
    values = np.random.default_rng(seed).standard_normal(V)
    values[[4, 9, 21]] = np.nan
    return values


@pytest.fixture
def make_engine(make_engine: Any) -> Any:
    """The toy engine, which then has a name for its model."""

    def make(kind: str) -> Any:
        engine = make_engine(kind)
        engine.card.model_hash = "toy"
        return engine

    return make


def world(engine: Any, seed: int = 0) -> tuple[ArrayCandidates, np.ndarray]:
    """Candidates and the responses [N,V] that the engine predicts, of the size of z-scores."""
    rows, _ = flat_template(engine.template(np.ones((1, V), np.float32)))
    values = np.random.default_rng(seed).standard_normal((N, rows.shape[1])).astype(np.float32)
    predicted = engine.head.readout(unflatten(engine.head, values))
    return ArrayCandidates(values, [f"{n:02d}" for n in range(N)]), predicted.astype(np.float64)


def noises(
    count: int, correlation: float, seed: int = 0, ceiling: np.ndarray = CEILING
) -> np.ndarray:
    """Noise [count,V] of the ceilings' size, of one correlation between all vertices."""
    random = np.random.default_rng(seed)
    common, own = random.standard_normal((count, 1)), random.standard_normal((count, len(ceiling)))
    mixed = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    return (np.sqrt(1 - ceiling) * mixed).astype(np.float32)


def reading(engine: Any, kind: Any, share: float = 0.999) -> PatternReading:
    candidates, _ = world(engine)
    folded = fold_pattern(TargetPattern(target(), kind), engine)
    return folded.reading(candidates.values.astype(np.float64), 1 - CEILING, share)


def responses(of: PatternReading, betas: np.ndarray) -> np.ndarray:
    return np.array([of.measure(row.astype(np.float32)).response for row in betas])


@pytest.mark.parametrize("correlation", [0.0, 0.2])
def test_squared_error_is_unbiased_whatever_the_noise(make_engine: Any, correlation: float) -> None:
    """The simulated subject's mean score is that of its noiseless response."""
    true = np.random.default_rng(5).standard_normal(V)
    found = responses(
        reading(make_engine("blobgpt"), "squared error"), true + noises(40_000, correlation)
    )
    expected = -np.nanmean(np.square(true - target()))
    error = found.std() / np.sqrt(len(found))
    assert error < 0.01
    assert found.mean() == pytest.approx(expected, abs=4 * error)
    known = np.isfinite(target())
    assert (1 - CEILING)[known].mean() > 40 * error, "what an uncorrected score would miss"


def test_squared_error_with_missing_vertices_is_unbiased_over_those_there(make_engine: Any) -> None:
    true = np.random.default_rng(5).standard_normal(V)
    betas = true + noises(20_000, 0.0)
    betas[:, 10:20] = np.nan
    found = responses(reading(make_engine("blobgpt"), "squared error"), betas)
    there = np.isfinite(target()) & np.isfinite(betas[0])
    expected = -np.mean(np.square(true - target())[there])
    assert found.mean() == pytest.approx(expected, abs=4 * found.std() / np.sqrt(len(found)))
    one = reading(make_engine("blobgpt"), "squared error").measure(betas[0].astype(np.float32))
    assert one.relative_noise == pytest.approx(27 / 17)


def test_variance_of_a_squared_error_is_that_of_its_trials(make_engine: Any) -> None:
    """On average, of noise that all vertices share."""
    engine = make_engine("blobgpt")
    _, predicted = world(engine)
    of, gaps = reading(engine, "squared error"), predicted - np.nan_to_num(target())
    expected, found, known = [], [], np.isfinite(target())
    for row in range(N):
        found.append(responses(of, predicted[row] + noises(500, 0.2, row)).var())
        expected.append(of.variance_of(np.array([-np.mean(np.square(gaps[row][known]))]))[0])
    assert np.mean(expected) == pytest.approx(np.mean(found), rel=0.1)
    assert np.corrcoef(expected, found)[0, 1] > 0.5
    near = target()
    near[~np.isfinite(near)] = 0.0
    least = responses(of, near + noises(20_000, 0.2)).var()
    assert of.variance_of(np.zeros(1))[0] == pytest.approx(least, rel=0.05)


@pytest.mark.parametrize("correlates", [False, True])
def test_variance_does_not_grow_with_the_vertices(correlates: bool) -> None:
    """Of 500 vertices too, noise that all share is lost where the weights add up to little."""
    random = np.random.default_rng(4)
    ceiling, goal = random.uniform(0.1, 0.5, 500), random.standard_normal(500)
    predicted = random.standard_normal((40, 500))
    head = SimpleNamespace(readout=lambda latent: latent.values)
    folded = FoldedPattern("wide", goal, correlates, head, None, 500)  # type: ignore[arg-type]
    of = folded.reading(predicted, 1 - ceiling, 0.9999)
    found = [
        responses(of, true + noises(150, 0.2, row, ceiling)).var()
        for row, true in enumerate(predicted)
    ]
    scores = -np.square(predicted - goal).mean(axis=1)
    assert of.variance_of(scores).mean() == pytest.approx(np.mean(found), rel=0.1)


@pytest.mark.parametrize("kind", ["correlation", "squared error"])
def test_few_responses_are_held_at_a_time(
    make_engine: Any, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("factortopy")
    made, _ = world(engine)
    folded = fold_pattern(TargetPattern(target(), kind), engine)
    whole, held, head = folded.scores(made.values), list[int](), type(folded.head)
    right = head.readout

    def readout(self: Any, aligned: Any) -> Any:
        response = right(self, aligned)
        held.append(response.size)
        return response

    monkeypatch.setattr(head, "readout", readout)
    monkeypatch.setattr(pattern, "CHUNK_NUMBERS", 200)
    np.testing.assert_allclose(folded.scores(made.values), whole, rtol=1e-5, atol=1e-6)
    assert len(held) == -(-N // (200 // 27))
    folded.reading(made.values.astype(np.float64), 1 - CEILING, 0.5)
    assert max(held) <= 200


def test_a_correlation_is_freed_of_what_noise_takes(make_engine: Any) -> None:
    """Over responses of the pool's size; without the correction it is too small by a quarter."""
    engine = make_engine("blobgpt")
    _, predicted = world(engine)
    predicted = predicted * 0.35
    folded = fold_pattern(TargetPattern(target(), "correlation"), engine)
    head = replace(folded.head, weight=folded.head.weight * 0.35, bias=folded.head.bias * 0.35)
    candidates, _ = world(engine)
    sample = candidates.values.astype(np.float64)
    of = replace(folded, head=head).reading(sample, 1 - CEILING, 0.9999)
    known = np.isfinite(target())
    true = np.array([np.corrcoef(row[known], target()[known])[0, 1] for row in predicted])
    found = np.array(
        [responses(of, row + noises(1500, 0.2, n)).mean() for n, row in enumerate(predicted)]
    )
    slope = float(true @ found / (true @ true))
    assert of.gain > 1.2
    assert slope == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("head", ["blobgpt", "factortopy"])
@pytest.mark.parametrize("kind", ["correlation", "squared error"])
def test_a_session_begins_with_the_best_of_the_pool(
    make_engine: Any, candidates: Path, tmp_path: Path, head: str, kind: Any
) -> None:
    made = Pool.build(make_engine(head), candidates, path=tmp_path / "p", dtype="fp32")
    pattern = TargetPattern(target(), kind, ["FFA", "V1v"])
    best = made.top(pattern, 3)[kind]
    with Session(made, pattern, deadline_ms=60_000) as running:
        shown = [running.next() for _ in range(3)]
    assert [choice.image for choice in shown] == [one.name for one in best]
    np.testing.assert_allclose(
        [choice.score for choice in shown], [one.score for one in best], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["correlation", "squared error"])
def test_a_session_learns_what_the_model_gets_wrong(make_engine: Any, kind: Any) -> None:
    """Its subject prefers one direction of the features more than the model knows."""
    engine = make_engine("blobgpt")
    made, predicted = world(engine)
    wrong = 2.0 * np.outer(made.values[:, 0], np.random.default_rng(8).standard_normal(V))
    true = predicted + wrong
    known = np.isfinite(target())
    gap = (true - target())[:, known]
    if kind == "correlation":
        score = np.array([np.corrcoef(row[known], target()[known])[0, 1] for row in true])
    else:
        score = -np.square(gap).mean(axis=1)
    with Session(
        made, TargetPattern(target(), kind), engine=engine, ceiling=CEILING, strategy="random",
        deadline_ms=60_000.0,
    ) as running:  # fmt: skip
        before = running.expected()[0]
        for noise in noises(40, 0.2):
            choice = running.next()
            running.tell(choice, true[int(choice.image)] + noise)
        assert running.wait(30)
        after = running.expected()[0]
    left = [int(name) for name in made.ids if name not in {c.image for c in running.choices}]
    errors = [np.square(guess - score)[left].mean() for guess in (before, after)]
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("kind", ["correlation", "squared error"])
def test_a_pattern_among_objectives_is_replayed_and_resumed(
    make_engine: Any, tmp_path: Path, kind: Any
) -> None:
    engine, log = make_engine("factortopy"), tmp_path / "s.jsonl"
    made, predicted = world(engine)
    other = TargetPattern(target(7), kind)
    goals = [TargetPattern(target(), kind), "FFA", other]
    with Session(made, goals, engine=engine, log=log, strategy="ucb", deadline_ms=6e4) as running:
        assert running.objectives == (kind, "FFA", f"{kind} 2")
        for noise in noises(6, 0.2):
            assert running.wait(30)
            choice = running.next()
            running.tell(choice, predicted[int(choice.image)] + noise)
    with Session.resume(log, made) as again:
        last = again.choices[-1]
        betas = predicted[int(last.image)] + noise
        assert again.has_told(last.trial, betas)
        assert not again.has_told(last.trial, betas + 0.1)
        again.next()
    assert replay(log).difference is None

    def change(events: list[dict[str, Any]]) -> None:
        told = next(event for event in events if event["event"] == "tell")
        told["response"][2] += 1e-9

    difference = replay(edited(log, tmp_path / "o.jsonl", change)).difference
    assert difference is not None
    assert difference.field == "response"


def test_uncertainty_knows_that_better_candidates_are_quieter(make_engine: Any) -> None:
    engine = make_engine("blobgpt")
    made, _ = world(engine)
    pattern = TargetPattern(target(), "squared error")
    with Session(made, pattern, engine=engine, ceiling=CEILING, deadline_ms=6e4) as running:
        model = running._progress.design.models[0]
        assert model.noisiness[int(running.next().image)] == model.noisiness.min() < 0.9


@pytest.mark.parametrize(
    ("betas", "message"),
    [
        (np.where(np.arange(V) < 20, np.nan, 0.0), "half of the pattern's vertices"),
        (np.zeros(V + 1), r"betas \[30\]"),
    ],
)
def test_too_few_betas_leave_the_session_as_it_was(
    make_engine: Any, betas: np.ndarray, message: str
) -> None:
    engine = make_engine("blobgpt")
    made, _ = world(engine)
    with Session(made, TargetPattern(target()), engine=engine, deadline_ms=6e4) as running:
        choice = running.next()
        with pytest.raises(BrainfastError, match=message):
            running.tell(choice, betas)
        assert running.outstanding == (choice,)


def test_a_response_that_is_the_same_everywhere_correlates_with_nothing(make_engine: Any) -> None:
    assert (
        reading(make_engine("blobgpt"), "correlation").measure(np.ones(V, np.float32)).response == 0
    )


def test_what_cannot_follow_a_pattern_is_refused(
    make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    engine = make_engine("blobgpt")
    made, _ = world(engine)
    with pytest.raises(BrainfastError, match="give engine="):
        Session(made, TargetPattern(target()))
    small = Pool.build(engine, candidates, path=tmp_path / "s", project=["FFA"])
    with pytest.raises(BrainfastError, match=r"pool of all features.*without a projection"):
        Session(small, TargetPattern(target()))
    for wrong, message in [
        (TargetPattern(np.zeros(V - 1)), "30 responses"),
        (TargetPattern(np.ones(V)), "of one value"),
        (TargetPattern(target(), "cosine"), "'correlation' or 'squared error'"),  # type: ignore[arg-type]
    ]:
        with pytest.raises(BrainfastError, match=message):
            Session(made, wrong, engine=engine)
