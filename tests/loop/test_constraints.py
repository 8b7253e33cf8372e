"""Balanced categories and distances between choices, against choosing by brute force."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfast import Pool, Session
from brainfast.errors import BrainfastError
from brainfast.loop import ArrayCandidates, availability, read_log, replay
from brainfast.loop.availability import Spacing
from brainfast.loop.design_build import build_design
from loop_world import N, betas, features, objective, play, pool, second, session

CATEGORIES = [("face", "house", "word", "face")[row % 4] for row in range(N)]
FAR = 1.2


def sorted_pool(n: int = N) -> ArrayCandidates:
    """Twelve faces, six houses, six words."""
    given = pool(n=n)
    return ArrayCandidates(given.values, given.ids, "model", categories=CATEGORIES[:n])


def distances(candidates: ArrayCandidates) -> np.ndarray:
    """[N,N] between candidates, of all components, which tell all of the features."""
    values = candidates.values.astype(np.float64)
    values = values - values.mean(axis=0)
    values /= np.sqrt(values.var(axis=0).sum())
    return np.linalg.norm(values[:, None] - values[None], axis=2)


def brute_force(scores: np.ndarray, trials: int, balance: bool, far: float) -> list[int]:
    """What should be chosen without any measurement, once each."""
    apart, shown = distances(sorted_pool()), list[int]()
    for _ in range(trials):
        left = [row for row in range(N) if row not in shown]
        left = [row for row in left if not shown or apart[row, shown].min() >= far]
        if balance and left:
            times = {row: sum(CATEGORIES[row] == CATEGORIES[o] for o in shown) for row in left}
            left = [row for row in left if times[row] == min(times.values())]
        if not left:
            return shown
        shown.append(max(left, key=lambda row: (scores[row], -row)))
    return shown


@pytest.mark.parametrize(
    ("balance", "far"), [(True, 0.0), (False, FAR), (True, FAR), (True, 0.8), (False, 0.3)]
)
def test_choices_are_those_of_brute_force(balance: bool, far: float) -> None:
    with session(pool=sorted_pool(), balance=balance, min_distance=far) as running:
        expected = brute_force(running.expected()[0], N, balance, far)
        shown = []
        for place in range(len(expected)):
            assert np.flatnonzero(running.allowed()).tolist().count(expected[place]) == 1
            shown.append(int(running.next().image[-2:]))
        assert shown == expected
        if far:
            assert len(shown) < N
            with pytest.raises(BrainfastError, match=f"or nearer than {far:g} to one") as caught:
                running.next()
            assert "\n" not in str(caught.value)
            assert len(running.choices) == len(expected)
            assert not running.allowed().any()
            running.skip(running.choices[-1])
            assert running.next().image == running.choices[-2].image, "it may come again"


def test_every_objective_is_balanced_on_its_own() -> None:
    """Two objectives in turn would otherwise get two categories each for ever."""
    with session(pool=sorted_pool(), objective=[objective(), second()], balance=True) as running:
        shown = [running.next() for _ in range(12)]
    for goal in running.objectives:
        own = [CATEGORIES[int(c.image[-2:])] for c in shown if c.objective == goal]
        assert sorted(own) == sorted(["face", "house", "word"] * 2)


def test_a_skipped_choice_does_not_count_for_its_category() -> None:
    with session(pool=sorted_pool(), balance=True) as running:
        first = running.next()
        running.skip(first)
        assert running.next().image == first.image


def test_a_category_that_is_used_up_stops_nothing() -> None:
    with session(pool=sorted_pool(), balance=True) as running:
        shown = [CATEGORIES[int(running.next().image[-2:])] for _ in range(N)]
    for end in range(0, 19, 3):
        assert {shown[:end].count(name) for name in ("face", "house", "word")} == {end // 3}
    assert shown[18:] == ["face"] * 6


def test_an_image_may_be_repeated_however_far_others_must_be() -> None:
    others = tuple(f"image-{row:02d}" for row in range(N) if row not in (3, 4, 7))
    with session(exclude=others, repeats=2, min_distance=0.01) as running:
        shown = []
        for _ in range(4):
            choice = running.next()
            running.tell(choice, betas(choice))
            assert running.wait(30)
            shown.append(choice.image)
        assert sorted(shown) == ["image-03"] * 2 + ["image-04"] * 2, "3 and 7 are equal"
        with pytest.raises(BrainfastError, match=r"nearer than 0\.01"):
            running.next()


@pytest.mark.parametrize("strategy", ["greedy", "ucb", "thompson", "explore", "random"])
def test_constraints_are_logged_replayed_and_resumed(tmp_path: Path, strategy: Any) -> None:
    log = tmp_path / "s.jsonl"
    options = {"strategy": strategy, "balance": True, "min_distance": 0.6}
    with session(pool=sorted_pool(), log=log, **options) as running:
        play(running, 9)
    assert read_log(log).header["options"].items() >= options.items()
    with Session.resume(log, sorted_pool()) as again:
        play(again, 3)
        kept = [choice for choice in again.choices if again.status(choice.trial) != "skipped"]
        rows = [int(choice.image[-2:]) for choice in kept]
    assert replay(log).difference is None
    gaps = distances(sorted_pool())[np.ix_(rows, rows)]
    assert gaps[~np.eye(len(rows), dtype=bool)].min() >= 0.6
    kinds = [CATEGORIES[row] for row in rows]
    assert max(map(kinds.count, kinds)) - min(map(kinds.count, kinds)) <= 1


def test_ties_are_those_that_may_be_shown() -> None:
    """Equal images, of which one category may come: all are exactly as good."""
    same = ArrayCandidates(
        np.repeat(features()[:2], [700, 2], axis=0),
        [str(row) for row in range(702)],
        categories=["a"] * 300 + ["b"] * 400 + ["b", "c"],
    )
    with session(pool=same) as running:
        assert running.next().ties in (700, 2)
    with session(pool=same, exclude=("700", "701"), balance=True) as running:
        assert [running.next().ties for _ in range(3)] == [700, 400, 699 - 1]


@given(data=st.data())
def test_it_does_not_matter_when_an_image_is_counted(data: Any) -> None:
    places = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    gaps = np.linalg.norm(places[:, None].astype(np.float64) - places[None], axis=2)
    spacing, shown = Spacing(places, 1.5), list[int]()
    for _ in range(data.draw(st.integers(0, 30))):
        act = data.draw(st.sampled_from(["show", "show", "take back", "count"]))
        if act == "show":
            shown.append(data.draw(st.integers(0, 39)))
            spacing.show(shown[-1])
        elif act == "take back" and shown:
            spacing.take_back(shown.pop(data.draw(st.integers(0, len(shown) - 1))))
        elif act == "count" and spacing.pending():
            row = data.draw(st.sampled_from(spacing.pending()))
            spacing.count(row, spacing.near(row))
    rows = data.draw(st.lists(st.integers(0, 39), min_size=1, unique=True))
    others = [[row for row in set(shown) if row != one] for one in rows]
    expected = [
        not near or gaps[one, near].min() >= 1.5 for one, near in zip(rows, others, strict=True)
    ]
    assert spacing.clear(np.array(rows)).tolist() == expected


def test_taking_back_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It happens while a choice may wait."""
    spacing = Spacing(np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32), 1.5)
    for row in (3, 4):
        spacing.show(row)
        spacing.count(row, spacing.near(row))
    assert not spacing.clear(np.arange(40)).all()
    monkeypatch.setattr(Spacing, "_within", None)
    for row in (3, 4):
        spacing.take_back(row)
    assert spacing.clear(np.arange(40)).all()


def test_a_distance_that_fails_is_told_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def near(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(Spacing, "near", near)
    with session(min_distance=0.1, deadline_ms=20) as running:
        choice = running.next()
        running.tell(choice, betas(choice))
        assert not running.wait(20)
        assert "no room" in str(running.problem)
        assert running.next().source == "stale"


def test_blocks_change_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    places = np.random.default_rng(1).standard_normal((200, 61)).astype(np.float32)
    whole = Spacing(places, 11.0).near(5)
    monkeypatch.setattr(availability, "BLOCK", 7)
    assert np.array_equal(Spacing(places, 11.0).near(5), whole)
    assert 20 < whole.sum() < 180


def test_places_are_those_of_the_features() -> None:
    found = build_design(pool(), [objective()], distances=True).places
    assert found is not None
    between = np.linalg.norm(found[:, None] - found[None], axis=2)
    np.testing.assert_allclose(between, distances(pool()), atol=1e-5)


def test_a_pool_tells_its_categories(make_engine: Any, candidates: Path, tmp_path: Path) -> None:
    made = Pool.build(make_engine("blobgpt"), candidates, path=tmp_path / "p", dtype="fp32")
    made.remove([made.names[0]])
    with Session(made, "FFA", balance=True, deadline_ms=60_000) as running:
        shown = [running.next().image[0] for _ in range(6)]
    assert sorted(shown[:3]) == sorted(shown[3:]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": True}, "of several categories, got 0 of them"),
        ({"min_distance": -1.0}, "min_distance: expected a finite number, 0 or more"),
        ({"min_distance": np.inf}, "min_distance"),
        ({"min_distance": "far"}, "min_distance: expected a number, got 'far'"),
        ({"min_distance": 1.0, "components": 0}, "a component at least"),
    ],
)
def test_constraints_that_cannot_be_kept_are_refused(options: Any, message: str) -> None:
    with pytest.raises(BrainfastError, match=message):
        session(**options)


def test_categories_must_be_one_a_candidate() -> None:
    with pytest.raises(BrainfastError, match="categories: expected 24, or none, got 3"):
        ArrayCandidates(features(), pool().ids, categories=["a", "b", "c"])
