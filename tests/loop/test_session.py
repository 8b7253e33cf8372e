"""Choosing, telling, skipping; lateness with a clock and a scorer that the test holds."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop import Session, journal, read_log, worker
from brainfast.loop.availability import Availability
from brainfast.loop.ranking import rank
from loop_world import (
    READOUT,
    WEIGHTS,
    N,
    TestClock,
    V,
    at_once,
    betas,
    features,
    play,
    pool,
    session,
)

STRATEGIES = ["greedy", "ucb", "thompson", "explore", "random"]
PREDICTED = features() @ (WEIGHTS @ READOUT) + 0.25


class Gate:
    """Lets rankings through when it is open; counts those that wait."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.fail: Exception | None = None

    def __call__(self, *arguments: Any) -> Any:
        assert self.open.wait(30)
        if self.fail is not None:
            raise self.fail
        return rank(*arguments)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate()
    monkeypatch.setattr(worker, "rank", gate)
    yield gate
    gate.open.set()


def test_first_choice_is_the_best_of_the_model() -> None:
    with session() as running:
        choice = running.next()
    best = int(np.argmax(PREDICTED))
    assert choice.image == f"image-{best:02d}"
    assert choice.score == pytest.approx(PREDICTED[best], abs=1e-5)
    assert (choice.source, choice.late, choice.trial, choice.ties) == ("fresh", False, 0, 1)
    assert choice.value == choice.score


def test_every_image_is_shown_once_then_none() -> None:
    with session() as running:
        shown = [running.next().image for _ in range(N)]
        assert len(set(shown)) == N
        assert [int(name[-2:]) for name in shown] == list(np.argsort(-PREDICTED, kind="stable"))
        with pytest.raises(BrainfastError, match="all 24 excluded or shown 1 times"):
            running.next()
        assert len(running.outstanding) == N


def test_ties_are_counted_and_the_lowest_row_is_taken() -> None:
    others = tuple(f"image-{row:02d}" for row in range(N) if row not in (3, 7))
    with session(exclude=others) as running:
        first, second = running.next(), running.next()
    assert (first.image, first.ties) == ("image-03", 2)
    assert (second.image, second.ties) == ("image-07", 1)
    assert first.score == second.score


@pytest.mark.parametrize("strategy", ["ucb", "explore", "thompson"])
def test_equal_images_tie_in_every_strategy_that_looks_at_them(strategy: Any) -> None:
    others = tuple(f"image-{row:02d}" for row in range(N) if row not in (3, 7))
    with session(exclude=others, strategy=strategy) as running:
        assert running.next().ties == 2


def test_repeats_rest_until_they_are_measured() -> None:
    others = tuple(f"image-{row:02d}" for row in range(N) if row not in (3, 4))
    with session(exclude=others, repeats=2) as running:
        first, second = running.next(), running.next()
        assert {first.image, second.image} == {"image-03", "image-04"}
        running.tell(first, betas(first))
        assert running.wait(30)
        assert running.next().image == first.image
        assert running.next().image == second.image, "nothing else is left"
        with pytest.raises(BrainfastError, match="shown 2 times"):
            running.next()


def test_a_skipped_image_may_be_shown_again() -> None:
    with session() as running:
        first = running.next()
        second = running.next()
        running.skip(first)
        assert running.next().image == first.image
        assert second.image != first.image


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_order_of_tells_does_not_matter(strategy: Any) -> None:
    """To the last bit, in every strategy: the posterior is of the set of measurements."""
    ends = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        with session(strategy=strategy) as running:
            choices = []
            for _ in range(4):
                assert running.wait(30)
                choices.append(running.next())
            for index in order:
                running.tell(choices[index], betas(choices[index]))
            assert running.wait(30)
            end = running.next()
            ends.append((end.image, end.score, end.uncertainty))
    assert ends[0] == ends[1]


def test_telling_changes_the_prediction_towards_what_was_measured() -> None:
    with session(ceiling=np.full(V, 0.9)) as running:
        before = running.expected()
        choice = running.next()
        row = int(choice.image[-2:])
        measured = betas(choice) + 4 * np.sign(WEIGHTS)
        running.tell(choice, measured)
        assert running.wait(30)
        after = running.expected()
    assert after[0][row] > before[0][row] + 0.5
    assert after[1][row] < before[1][row]
    assert (after[1] <= before[1] + 1e-12).all()


def test_uncertainty_is_that_of_the_response_and_of_a_trial() -> None:
    with session(ceiling=np.full(V, 0.4)) as running:
        _, sd = running.expected()
        choice = running.next()
        row = int(choice.image[-2:])
        noise = running._progress.design.models[0].noise
    assert choice.uncertainty == pytest.approx(np.hypot(sd[row], np.sqrt(noise)))


def learnable(running: Session) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [N] before any trial, without each image's own error."""
    mean, sd = running.expected()
    return mean, np.sqrt(np.square(sd) - running._progress.design.models[0].prior(0.5).own)


def test_ucb_and_explore_value_what_they_say() -> None:
    with session(strategy="ucb", kappa=2.0) as running:
        mean, sd = learnable(running)
        choice = running.next()
        assert choice.value == pytest.approx((mean + 2 * sd).max())
    with session(strategy="explore") as running:
        _, sd = learnable(running)
        choice = running.next()
        assert choice.value == pytest.approx((sd**2).max())
        assert running.wait(30)
        assert running.next().value < choice.value, "what is outstanding counts as measured"


def test_thompson_and_random_differ_by_seed_alone() -> None:
    for strategy in ("thompson", "random"):
        runs = []
        for seed in (1, 1, 2):
            with session(strategy=strategy, seed=seed) as running:
                runs.append([choice.image for choice in play(running, 8)])
        assert runs[0] == runs[1] != runs[2]


def test_not_ready_at_all_is_the_fallback(gate: Gate) -> None:
    clock = TestClock()
    with session(clock=clock, fallback="image-05", deadline_ms=20) as running:
        before = clock.time
        choice = running.next()
        assert clock.time - before <= 0.020
        assert (choice.image, choice.source, choice.late) == ("image-05", "fallback", True)
        assert choice.score is None
        gate.open.set()


def test_random_fallback_keeps_to_what_may_be_shown(gate: Gate) -> None:
    allowed = {"image-02", "image-09", "image-11"}
    others = tuple(set(pool().ids) - allowed)
    with session(clock=TestClock(), exclude=others) as running:
        assert {running.next().image for _ in range(3)} == allowed
        gate.open.set()


def test_a_fallback_of_a_name_is_free_of_constraints_while_anything_is_left(
    gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not look at all candidates to find that out."""
    monkeypatch.setattr(Availability, "all", None)
    name, others = "image-05", tuple(set(pool().ids) - {"image-02"})
    with session(clock=TestClock(), fallback=name, exclude=others) as running:
        assert [running.next().image for _ in range(2)] == [name, name]
        gate.open.set()
    gate.open.clear()
    with session(clock=TestClock(), fallback=name, exclude=(*others, "image-02")) as running:
        with pytest.raises(BrainfastError, match="one that may be shown"):
            running.next()
        gate.open.set()


def test_not_ready_again_is_the_best_so_far(gate: Gate) -> None:
    gate.open.set()
    clock = TestClock()
    with session(clock=clock) as running:
        with running._condition:
            running._condition.wait_for(lambda: running._ranker.is_fresh(0), 30)
        first, second = running.next(), running.next()
        gate.open.clear()
        running.tell(first, betas(first))
        stale = running.next()
        assert (stale.source, stale.late) == ("stale", True)
        order = np.argsort(-PREDICTED, kind="stable")
        assert stale.image == f"image-{order[2]:02d}", "not one that was shown"
        gate.open.set()
        with running._condition:
            assert running._condition.wait_for(lambda: running._ranker.is_fresh(0), 30)
        running.tell(second, betas(second))


def test_an_answer_after_the_deadline_is_late_even_if_fresh() -> None:
    clock = TestClock()
    with session(clock=clock, deadline_ms=20) as running:
        with running._condition:
            running._condition.wait_for(lambda: running._ranker.is_fresh(0), 30)
        clock.step = 0.03
        choice = running.next()
        clock.step = 0.0
    assert (choice.source, choice.late) == ("fresh", True)
    assert choice.latency_ms >= 30


def test_a_ranking_that_fails_leaves_the_one_before(gate: Gate) -> None:
    gate.open.set()
    with session(deadline_ms=20) as running:
        choice = running.next()
        gate.fail = MemoryError("no room")
        running.tell(choice, betas(choice))
        with running._condition:
            assert running._condition.wait_for(lambda: running._ranker.error, 30)
        late = running.next()
        assert (late.source, late.late) == ("stale", True)
        assert "no room" in str(running.problem)
        assert not running.wait(30)
        gate.fail = None
        running.tell(late, betas(late))
        assert running.wait(30)
        assert running.problem is None
        assert running.next().source == "fresh"


def test_a_first_ranking_that_fails_is_an_error(gate: Gate) -> None:
    gate.open.set()
    gate.fail = MemoryError("no room")
    with pytest.raises(MemoryError):
        session()


def test_told_twice_skipped_and_foreign_choices_are_refused() -> None:
    with session() as running, session(seed=1, strategy="random") as other:
        first, second = running.next(), running.next()
        running.tell(first, betas(first))
        running.skip(second)
        for choice, state in ((first, "told"), (second, "skipped")):
            for act in (lambda c: running.tell(c, betas(c)), running.skip):
                with pytest.raises(BrainfastError, match=f"which was {state} already"):
                    act(choice)
        with pytest.raises(BrainfastError, match="one that this session made"):
            running.skip(other.next())


def test_a_clock_that_goes_back_is_refused_and_nothing_is_lost() -> None:
    clock = TestClock()
    with session(clock=clock) as running:
        choice = running.next()
        clock.time -= 5
        for act in (running.next, lambda: running.skip(choice)):
            with pytest.raises(BrainfastError, match=r"clock: .*went back"):
                act()
        clock.time += 6
        running.tell(choice, betas(choice))


def test_a_closed_session_is_refused() -> None:
    running = session()
    running.close()
    running.close()
    with pytest.raises(BrainfastError, match="closed"):
        running.next()


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    options = {"seed": np.int64(3), "repeats": np.int32(2), "kappa": np.float32(0.5)}
    with session(log=log, deadline_ms=np.float32(5e4), **options) as running:
        running.next()
    header = read_log(log).header
    assert (header["options"]["seed"], header["deadline_ms"]) == (3, 5e4)


def test_many_threads_may_call_at_once() -> None:
    with session(repeats=20) as running:
        choices: list[Any] = []

        def work() -> None:
            for _ in range(20):
                choice = running.next()
                choices.append(choice)
                running.tell(choice, betas(choice))

        at_once(work, 4)
        assert sorted(choice.trial for choice in choices) == list(range(80))
        assert running.outstanding == ()


def test_no_torch_is_imported() -> None:
    code = "import sys, brainfast; brainfast.Session; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_log_that_cannot_be_begun_leaves_no_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = threading.active_count()
    monkeypatch.setattr(journal, "save_design", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        session(log=tmp_path / "s.jsonl")
    assert threading.active_count() == before
