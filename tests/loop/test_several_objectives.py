"""Several objectives in one session: turns, one set of measurements, each objective's own model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast import Pool, Session
from brainfast.errors import BrainfastError
from brainfast.loop import FoldedObjective, read_log, replay
from brainfast.loop.clock import SystemClock
from brainfast.loop.design_build import build_design
from brainfast.loop.options import Options
from brainfast.loop.progress import Trial
from brainfast.loop.ranking import rank
from brainfast.loop.trial_table import TrialTable
from loop_world import (
    READOUT,
    V,
    at_once,
    betas,
    edited,
    features,
    objective,
    play,
    pool,
    second,
    session,
)

BOTH = ["first - last", "middle"]


def both(**options: Any) -> Session:
    return session(objective=[objective(), second()], **options)


def test_objectives_are_served_in_turn_each_by_its_own_best() -> None:
    with both() as running:
        assert running.objectives == tuple(BOTH)
        shown = [running.next() for _ in range(4)]
    assert [choice.objective for choice in shown] == BOTH * 2
    left = list(range(len(pool())))
    for choice, goal in zip(shown, [objective(), second()] * 2, strict=True):
        scores = features() @ goal.template + goal.offset
        best = max(left, key=scores.tolist().__getitem__)
        assert choice.image == f"image-{best:02d}"
        assert choice.score == pytest.approx(scores[best], abs=1e-5)
        left.remove(best)


def test_an_objective_may_be_asked_for_and_the_others_catch_up() -> None:
    with both() as running:
        asked = [running.next("middle") for _ in range(2)]
        after = [running.next() for _ in range(4)]
        running.skip(asked[0])
        assert running.next().objective == "middle", "a lost trial does not count as one"
    assert [choice.objective for choice in asked] == ["middle"] * 2
    assert [choice.objective for choice in after] == ["first - last"] * 2 + BOTH


@pytest.mark.parametrize("strategy", ["greedy", "ucb", "thompson", "explore"])
def test_every_measurement_teaches_every_model(strategy: Any) -> None:
    """Each ranking is that of one objective alone, given the same trials."""
    ceiling = np.linspace(0.2, 0.7, V)
    with both(strategy=strategy, ceiling=ceiling) as running:
        play(running, 9)
        assert running.wait(30)
        trials = running._progress.trials
        for number, goal in enumerate([objective(), second()]):
            design = build_design(pool(), [goal], ceiling=ceiling)
            alone = [
                replace(trial, objective=0, measurements=trial.measurements[number:][:1])
                for trial in trials
            ]
            assert all(
                trial.measurements == design.measure(betas(running.choices[place]))
                for place, trial in enumerate(alone)
                if trial.measurements
            )
            expected = _ranked(design, strategy, alone)
            mean, sd = running.expected(goal.name)
            assert np.array_equal(mean, expected.mean)
            z = design.models[0].z
            assert np.array_equal(sd, np.sqrt(expected.belief.variance_of_response(z)))


def _ranked(design: Any, strategy: Any, trials: list[Trial]) -> Any:
    prior, table = design.models[0].prior(0.5), TrialTable(1)
    for number, trial in enumerate(trials):
        table.choose(trial.row)
        if trial.measurements:
            table.tell(number, trial.measurements)
    return rank(design, 0, Options(strategy), prior, table.seen(), 0)


@pytest.mark.parametrize("strategy", ["greedy", "ucb", "thompson", "explore", "random"])
def test_replay_reproduces_both_and_resuming_keeps_the_turn(tmp_path: Path, strategy: Any) -> None:
    log = tmp_path / "s.jsonl"
    with both(log=log, strategy=strategy) as running:
        play(running, 7)
        running.next("middle")
        turn = running.objectives[running._progress.turn]
    assert read_log(log).header["objectives"] == BOTH
    with Session.resume(log, pool()) as again:
        assert again.objectives == tuple(BOTH)
        assert again.next().objective == turn
    found = replay(log, pool())
    assert found.difference is None
    assert found.choices == 9


class Interrupted(SystemClock):
    """Something else happens to the session once, while somebody waits for a ranking."""

    meanwhile: Callable[[], Any] | None = None

    def wait_for(
        self, condition: threading.Condition, ready: Callable[[], bool], seconds: float
    ) -> bool:
        act, self.meanwhile = self.meanwhile, None
        if act is not None:
            act()
        return super().wait_for(condition, ready, seconds)


@pytest.mark.parametrize("skipping", [False, True])
def test_the_turn_is_that_after_the_wait(tmp_path: Path, skipping: bool) -> None:
    """Another thread chose or skipped meanwhile: what is served is what a replay will serve."""
    log, clock = tmp_path / "s.jsonl", Interrupted()
    with both(log=log, clock=clock) as running:
        first = running.next()
        assert running.objectives[running._progress.turn] == BOTH[1]
        clock.meanwhile = lambda: running.skip(first) if skipping else running.next(BOTH[1])
        assert running.next().objective == BOTH[0]
    assert replay(log).difference is None


@pytest.mark.parametrize("strategy", ["greedy", "ucb"])
def test_a_log_of_several_threads_is_reproduced(tmp_path: Path, strategy: Any) -> None:
    log = tmp_path / "s.jsonl"
    with both(log=log, strategy=strategy, repeats=20) as running:

        def work() -> None:
            for _ in range(10):
                choice = running.next()
                if choice.trial % 7 == 3:
                    running.skip(choice)
                else:
                    running.tell(choice, betas(choice))

        at_once(work, 3)
    found = replay(log)
    assert found.difference is None
    assert found.choices == 30


@pytest.mark.parametrize(
    ("field", "value", "outcome"),
    [
        ("objective", "middle", "objective"),
        ("asked", "middle", "image|objective"),
        ("asked", "other", "objective of the session"),
        ("objective", "other", "objective"),
    ],
)
def test_another_objective_in_a_log_is_found(
    tmp_path: Path, field: str, value: str, outcome: str
) -> None:
    log = tmp_path / "s.jsonl"
    with both(log=log) as running:
        running.next()

    def change(events: list[dict[str, Any]]) -> None:
        events[1][field] = value

    other = edited(log, tmp_path / "o.jsonl", change)
    if outcome.endswith("session"):
        with pytest.raises(BrainfastError, match=f"line 2: .*{outcome}"):
            replay(other)
        return
    difference = replay(other).difference
    assert difference is not None
    assert (difference.line, difference.field in outcome.split("|")) == (2, True)


def test_one_in_a_list_is_as_one_alone() -> None:
    ends = []
    for goal in (objective(), [objective()]):
        with session(objective=goal, strategy="ucb") as running:
            ends.append([replace(choice, latency_ms=0.0) for choice in play(running, 8)])
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    ("goals", "message"),
    [
        ([objective(), objective()], "first - last: expected objectives of different names"),
        (
            [objective(), FoldedObjective("x", np.ones(3), READOUT[0], 0.0)],
            "objective x: expected 6 vertices, as first - last, got 3",
        ),
        (
            [objective(), FoldedObjective("x", np.ones(V), READOUT[0, :4], 0.0)],
            "objective x: expected 10 features, as first - last, got 4",
        ),
        (
            [replace(objective(), subject="subj01"), replace(second(), subject="subj02")],
            r"objective middle: expected one of subj01 .*got one of subj02",
        ),
    ],
)
def test_objectives_that_do_not_go_together_are_refused(goals: Any, message: str) -> None:
    with pytest.raises(BrainfastError, match=message):
        session(objective=goals)


def test_an_unknown_objective_leaves_the_session_as_it_was() -> None:
    with both() as running:
        for ask in (running.next, running.expected):
            with pytest.raises(BrainfastError, match="'first - last' or 'middle', got 'left'"):
                ask("left")
        assert running.choices == ()


def test_texts_are_folded_each_through_the_engine(
    make_engine: Any, candidates: Path, tmp_path: Path
) -> None:
    made = Pool.build(make_engine("factortopy"), candidates, path=tmp_path / "p", dtype="fp32")
    texts = ["FFA - PPA", "PPA - FFA"]
    best = made.top(texts, 1)
    with Session(made, texts, deadline_ms=60_000) as running:
        for text in texts:
            choice = running.next()
            assert (choice.objective, choice.image) == (text, best[text][0].name)
            assert choice.score == pytest.approx(best[text][0].score, rel=1e-4, abs=1e-5)
