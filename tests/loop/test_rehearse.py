"""A rehearsal: its subject, its haemodynamics, its sums and its picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brainfast.errors import BrainfastError
from brainfast.loop import Session, read_log, replay, worker
from brainfast.loop.clock import ExperimentClock
from brainfast.loop.made_up import made_up_world
from brainfast.loop.rehearsal_plot import plot
from brainfast.loop.rehearse import (
    Rehearsed,
    Schedule,
    arrival,
    chance,
    double_gamma,
    first_by,
    regrets,
    rehearse,
)
from brainfast.loop.subject import SimulatedSubject, World

SCHEDULE = Schedule(trials=30)


@pytest.fixture(scope="module")
def world() -> World:
    return made_up_world("FFA - PPA", candidates=300, seed=1)


def predicted(world: World) -> np.ndarray:
    return world.predict(np.arange(len(world.pool)))


def run(world: World, schedule: Schedule = SCHEDULE, speed: float = math.inf, **options: Any):
    subject = SimulatedSubject(world, seed=1)
    with Session(world.pool, world.objective, ceiling=world.ceiling, **options) as session:
        return rehearse(session, subject, schedule, speed=speed, seed=1)


def test_template_of_the_made_up_world_scores_its_predictions(world: World) -> None:
    features = world.pool.features(np.arange(len(world.pool)))
    scores = features @ world.objective.template + world.objective.offset
    np.testing.assert_allclose(scores, predicted(world) @ world.objective.weights, atol=1e-5)
    np.testing.assert_allclose(SimulatedSubject(world).predicted, scores, atol=1e-5)
    np.testing.assert_allclose(
        predicted(world).var(axis=0), 0.5 * np.asarray(world.ceiling), rtol=1e-3
    )


def test_a_subject_without_error_is_the_model_and_noise(world: World) -> None:
    subject = SimulatedSubject(world, model_error=0.0)
    random = np.random.default_rng(0)
    trials = np.stack([subject.measure(4, random) for _ in range(4000)])
    np.testing.assert_allclose(trials.mean(axis=0), predicted(world)[4], atol=0.07)
    np.testing.assert_allclose(trials.var(axis=0), 1 - np.asarray(world.ceiling), rtol=0.12)
    noise = np.corrcoef((trials - predicted(world)[4]).T)
    same = world.groups[:, None] == world.groups
    np.fill_diagonal(same, False)
    assert noise[same].mean() == pytest.approx(0.2, abs=0.02)
    assert noise[~same & ~np.eye(len(same), dtype=bool)].mean() == pytest.approx(0, abs=0.02)


def test_model_error_is_as_large_as_asked_for(world: World) -> None:
    subject = SimulatedSubject(world, model_error=0.8, seed=3)
    wrong = subject._factors @ subject._loading
    ratio = wrong.std(axis=0) / predicted(world).std(axis=0)
    assert np.median(ratio) == pytest.approx(0.8, rel=0.15)
    expected = (predicted(world) + wrong) @ world.objective.weights
    np.testing.assert_allclose(subject.objective, expected, atol=1e-5)


def test_fewer_volumes_make_more_noise(world: World) -> None:
    subject = SimulatedSubject(world, model_error=0.0)
    half = np.stack([subject.measure(0, np.random.default_rng(i), 0.5) for i in range(500)])
    whole = np.stack([subject.measure(0, np.random.default_rng(i)) for i in range(500)])
    np.testing.assert_allclose(half.std(axis=0) / whole.std(axis=0), math.sqrt(2), rtol=1e-4)


def test_double_gamma_peaks_after_five_seconds_and_undershoots() -> None:
    t = np.arange(0, 30, 0.01)
    values = double_gamma(t)
    assert t[np.argmax(values)] == pytest.approx(5.0, abs=0.05)
    assert 10 < t[np.argmin(values)] < 20
    assert values.sum() * 0.01 == pytest.approx(1 - 1 / 6, abs=0.01)
    assert double_gamma(np.array([-1.0, 0.0])).tolist() == [0.0, 0.0]


def test_betas_arrive_with_their_last_volume() -> None:
    schedule = Schedule(tr_s=1.6, processing_s=0.5)
    lost = np.zeros(40, dtype=bool)
    coming = arrival(8.0, schedule, lost)
    assert coming.kept == 1.0
    assert 8.0 + 6 < coming.seconds < 8.0 + 12
    times = np.arange(40) * 1.6 - 8.0
    energy = double_gamma(times) ** 2 * (times < 24)
    last = next(k for k in range(40) if energy[: k + 1].sum() >= 0.95 * energy.sum())
    assert coming.seconds == pytest.approx((last + 1) * 1.6 + 0.5), "a volume takes a repetition"
    assert (coming.seconds - 0.5) / 1.6 == pytest.approx(round((coming.seconds - 0.5) / 1.6))
    lost[8] = True  # 4.8 s after the onset, at the peak
    assert 0.5 < arrival(8.0, schedule, lost).kept < 0.9
    lost[7:11] = True
    assert arrival(8.0, schedule, lost).kept < 0.1


def test_regrets_by_hand() -> None:
    true = np.array([3.0, 1.0, 2.0])
    worst_first = first_by(np.array([1.0, 2.0, 0.0]), 3)
    np.testing.assert_allclose(regrets(true, worst_first, [[], [], []]), [2.0, 0.0, 0.0])
    np.testing.assert_allclose(regrets(true, first_by(true, 3), [[], [], []]), [0.0, 0.0, 0.0])
    returned = [[], [0], [], [1, 2]]  # shown: row 1, row 1 again, row 0, and both come back
    np.testing.assert_allclose(regrets(true, worst_first, returned), [2.0, 2.0, 0.0, 2.0])


def test_chance_is_as_likely_to_choose_any_that_is_left() -> None:
    choose = chance(5, np.random.default_rng(0))
    rows = np.array([choose({1, 4}) for _ in range(3000)])
    counts = np.bincount(rows, minlength=5)
    assert counts[[1, 4]].tolist() == [0, 0]
    np.testing.assert_allclose(counts[[0, 2, 3]], 1000, atol=120)


@pytest.mark.parametrize("seed", range(3))
def test_where_every_trial_is_lost_the_session_is_the_model_alone(seed: int) -> None:
    world = made_up_world("FFA - PPA", candidates=300, seed=seed)
    subject = SimulatedSubject(world, seed=seed)
    schedule = Schedule(trials=20, dropped=0.9999)
    with Session(world.pool, world.objective, ceiling=world.ceiling) as session:
        found = rehearse(session, subject, schedule, speed=math.inf, seed=seed)
    assert found.summary()["lost_trials"] == 20
    assert found.model_regret is not None
    np.testing.assert_allclose(found.model_regret, found.regret, atol=1e-9)


def test_trials_keep_their_order_where_onsets_vary_by_more_than_an_interval(world: World) -> None:
    found = run(world, Schedule(trials=12, jitter_s=200.0))
    onsets = [trial.onset_s for trial in found.played]
    assert onsets == sorted(onsets)
    assert [trial.choice.trial for trial in found.played] == list(range(12))
    assert found.summary()["lost_trials"] == 0


def test_a_pool_that_is_used_up_is_an_error_of_the_choice(world: World) -> None:
    with pytest.raises(BrainfastError, match="candidates: expected one that may be shown"):
        run(world, min_distance=1.3)


def test_a_session_beats_chance_and_is_reproducible(world: World) -> None:
    first, again = run(world), run(world)
    assert first.summary()["mean_regret"] < 0.6 * first.summary()["mean_regret_of_random"]
    assert [t.choice.image for t in first.played] == [t.choice.image for t in again.played]
    assert (first.regret >= 0).all()
    assert all(trial.choice.source == "fresh" for trial in first.played)
    waiting = [trial for trial in first.played if trial.measured is None]
    assert not waiting


@pytest.mark.parametrize("bound", ["exclude", "min_distance", "repeats"])
def test_nobody_is_compared_who_is_free_of_what_binds_the_session(world: World, bound: str) -> None:
    options = {"exclude": world.pool.ids[:1], "min_distance": 0.1, "repeats": 2}
    found = run(world, Schedule(trials=3), **{bound: options[bound]})
    about = found.summary()
    assert about["mean_regret_of_model_alone"] is about["mean_regret_of_random"] is None
    legend = plot(found).axes[1].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["session, greedy"]


def test_learning_pays_where_the_model_is_wrong() -> None:
    """Over several subjects, so that one lucky run proves nothing."""
    gains = []
    for seed in range(4):
        world = made_up_world("FFA - PPA", candidates=300, seed=seed)
        subject = SimulatedSubject(world, model_error=1.5, seed=seed)
        with Session(world.pool, world.objective, ceiling=world.ceiling) as session:
            found = rehearse(session, subject, Schedule(trials=60), speed=math.inf, seed=seed)
        assert found.model_regret is not None
        gains.append(found.model_regret.mean() - found.regret.mean())
    assert np.mean(gains) > 0.1


def test_dropped_volumes_lose_trials_which_may_come_again(world: World, tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    found = run(world, Schedule(trials=30, dropped=0.5), log=log)
    lost = found.summary()["lost_trials"]
    assert 0 < lost < 30
    events = [event["event"] for event in read_log(log).events]
    assert events.count("skip") == lost
    assert events.count("tell") == 30 - lost
    assert replay(log, world.pool).difference is None


def test_real_time_runs_at_its_speed(world: World) -> None:
    found = run(world, Schedule(trials=4), speed=400.0, deadline_ms=20)
    assert len(found.played) == 4
    clock = ExperimentClock(1000.0)
    clock.sleep_until(20.0)
    assert clock.now() >= 20.0
    endless = ExperimentClock(math.inf)
    endless.sleep_until(1e9)
    assert endless.now() == 1e9


def test_more_trials_than_images_are_refused_before_the_first(world: World, tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    with pytest.raises(BrainfastError, match="trials: expected at most 300, of 300 candidates"):
        run(world, Schedule(trials=301), log=log)
    assert len(read_log(log).events) == 1
    few = tuple(world.pool.ids[:290])
    with pytest.raises(BrainfastError, match="at most 20, of 10 candidates, got 21"):
        run(world, Schedule(trials=21), exclude=few, repeats=2)
    assert len(run(world, Schedule(trials=20), exclude=few, repeats=2).played) == 20


def test_a_ranking_that_fails_ends_a_rehearsal(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, calls = worker.rank, []

    def rank(*given: Any) -> Any:
        calls.append(given)
        if len(calls) > 3:
            raise MemoryError("no room")
        return right(*given)

    monkeypatch.setattr(worker, "rank", rank)
    with pytest.raises(BrainfastError, match=r"ranking: .*no room"):
        run(world)


def test_nothing_is_late_where_nobody_waits(world: World) -> None:
    assert run(world, Schedule(trials=3)).summary()["late_share"] is None
    assert run(world, Schedule(trials=3), speed=500.0).summary()["late_share"] is not None


@pytest.mark.parametrize("speed", [0.0, -1.0, math.nan])
def test_wrong_speeds_are_refused(speed: float) -> None:
    with pytest.raises(BrainfastError, match="speed"):
        ExperimentClock(speed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"trials": 0},
        {"trials": 10**400},
        {"tr_s": 0.0},
        {"tr_s": 1e-9},
        {"tr_s": 20.1},
        {"tr_s": math.nan},
        {"dropped": 1.0},
        {"jitter_s": -1.0},
        {"jitter_s": math.inf},
        {"interval_s": math.inf},
        {"processing_s": math.inf},
    ],
)
def test_wrong_schedules_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BrainfastError, match=f"schedule: {next(iter(wrong))}: expected"):
        Schedule(**wrong).check()


@pytest.mark.parametrize("long", [{"interval_s": 1e300}, {"jitter_s": 1e9}, {"trials": 500_000}])
def test_an_experiment_without_end_is_refused(long: dict[str, Any]) -> None:
    with pytest.raises(BrainfastError, match="schedule: expected at most 1000000 volumes"):
        Schedule(**long).check()


def test_the_slowest_scanner_still_sees_every_response() -> None:
    schedule = Schedule(tr_s=20.0)
    lost = np.zeros(10, dtype=bool)
    for onset in np.linspace(0.0, 40.0, 81):
        coming = arrival(float(onset), schedule, lost)
        assert (coming.kept, coming.seconds < onset + 24 + 20 + 1) == (1.0, True)


def test_summary_is_json_and_the_picture_has_all_panels(world: World, tmp_path: Path) -> None:
    found: Rehearsed = run(world, Schedule(trials=12, dropped=0.5), log=tmp_path / "s.jsonl")
    about = json.loads(json.dumps(found.summary(), allow_nan=False))
    assert set(about["stages_ms"]) == {"choose", "tell", "rank", "write", "sync"}
    figure = plot(found, tmp_path / "run.png")
    assert len(figure.axes) == 3
    with Image.open(tmp_path / "run.png") as picture:
        assert picture.width > 1500
    plot(found, tmp_path / "run.pdf")
    assert (tmp_path / "run.pdf").read_bytes().startswith(b"%PDF")
    plot(found, tmp_path / "run.SVG")
    assert b"<svg" in (tmp_path / "run.SVG").read_bytes()
    with pytest.raises(BrainfastError, match=r"expected a name that ends in .png, .pdf, .svg"):
        plot(found, tmp_path / "run.jpg")
    assert not (tmp_path / "run.jpg").exists()
