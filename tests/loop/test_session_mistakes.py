"""What a user may get wrong is one line, and the session is as before."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop import ArrayCandidates, Session
from loop_world import V, betas, pool, session


@pytest.mark.parametrize("wrong", ["image-00", None, 0])
def test_what_is_no_choice_is_refused(wrong: Any) -> None:
    with session() as running:
        choice = running.next()
        for act in (lambda c: running.tell(c, betas(choice)), running.skip):
            with pytest.raises(BrainfastError, match=f"that this session made, got {wrong!r}"):
                act(wrong)
        assert running.outstanding == (choice,)


@pytest.mark.parametrize("wrong", ["a", None, 0.0, 1, -1])
def test_what_is_no_trial_is_refused(wrong: Any) -> None:
    with session() as running:
        running.next()
        for ask in (running.status, running.responses, lambda t: running.has_told(t, np.zeros(V))):
            with pytest.raises(BrainfastError, match=f"one of the 1 choices, got {wrong!r}"):
                ask(wrong)
        assert running.status(np.int64(0)) == "outstanding"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros(9), r"betas \[6\]"),
        (np.full(V, np.nan), "NaN at all"),
        (np.full(V, np.inf), "6 infinite"),
        ([[1], [1, 2]], r"betas \[6\].*got rows of several lengths"),
    ],
)
def test_wrong_betas_leave_the_session_as_it_was(wrong: np.ndarray, message: str) -> None:
    with session() as running:
        choice = running.next()
        with pytest.raises(BrainfastError, match=message):
            running.tell(choice, wrong)
        assert running.outstanding == (choice,)
        running.tell(choice, betas(choice))
        assert running.outstanding == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "best"}, "strategy: expected greedy, ucb"),
        ({"kappa": -1.0}, "kappa"),
        ({"repeats": 0}, "repeats"),
        ({"seed": -1}, "seed"),
        ({"model_share": 1.0}, "model_share"),
        ({"seed": 0.5}, "seed: expected a number, got 0.5"),
        ({"deadline_ms": "soon"}, "deadline_ms: expected a number, got 'soon'"),
        ({"fallback": "nobody"}, "ids of the pool, got 'nobody'"),
        ({"exclude": ["nobody"]}, "ids of the pool"),
        ({"exclude": 5}, "exclude: expected a list of ids, got 5"),
        ({"exclude": "image-05"}, "exclude: expected a list of ids, got 'image-05'"),
        ({"exclude": [5]}, r"exclude: expected a list of ids, got \[5\]"),
        ({"deadline_ms": 0.0}, "deadline_ms: expected above 0 and below 1,000,000, got 0.0"),
        ({"deadline_ms": 1e9}, "deadline_ms: expected above 0 and below 1,000,000, got 1000000000"),
        ({"components": 64}, "components"),
        ({"ceiling": np.ones(3)}, "ceiling"),
        ({"pool": ArrayCandidates(np.zeros((0, 10), np.float32), [])}, "at least one candidate"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    before = threading.active_count()
    with pytest.raises(BrainfastError, match=message):
        session(**options)
    assert threading.active_count() == before


def test_regions_need_an_engine() -> None:
    with pytest.raises(BrainfastError, match="give engine="):
        Session(pool(), "FFA - PPA")


def test_a_place_that_takes_no_log_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = [
        (tmp_path, r"a new file, got a folder; give .*run\.jsonl"),
        (tmp_path / "file", r"there already; Session\.resume"),
        (tmp_path / "file" / "run.jsonl", "File exists; choose a folder|Not a directory; choose"),
        (tmp_path / ("x" * 300), "name too long; choose a file"),
    ]
    for place, message in places:
        with pytest.raises(BrainfastError, match=message) as caught:
            session(log=place)
        assert "\n" not in str(caught.value)
