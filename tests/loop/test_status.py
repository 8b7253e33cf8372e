"""What became of each choice, so that whoever asks twice can be answered the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brainfast.errors import BrainfastError
from brainfast.loop import Session
from loop_world import WEIGHTS, betas, session


def test_choices_tell_what_became_of_them_after_a_resumption_too(tmp_path: Path) -> None:
    log = tmp_path / "s.jsonl"
    with session(log=log) as running:
        shown = tuple(running.next() for _ in range(3))
        running.tell(shown[0], betas(shown[0]))
        running.skip(shown[1])
        states = _known(running, shown)
    with Session.resume(log) as again:
        assert _known(again, shown) == states
        again.next()
        assert len(again.choices) == 4


def _known(running: Session, shown: tuple[Any, ...]) -> list[str]:
    assert running.choices == shown
    same = betas(shown[0])
    told, blank, other = same.copy(), same.copy(), same.copy()
    blank[2] = np.nan  # of weight 0
    other[0] = np.nextafter(other[0] + 1, 9)
    assert running.has_told(0, told)
    assert running.has_told(0, told.astype(np.float64).tolist())
    assert running.has_told(0, blank)
    assert not running.has_told(0, other)
    assert not any(running.has_told(trial, betas(shown[trial])) for trial in (1, 2))
    with pytest.raises(BrainfastError, match=r"betas \[6\]"):
        running.has_told(0, np.zeros(9))
    states = [running.status(trial) for trial in range(3)]
    assert states == ["told", "skipped", "outstanding"]
    assert running.responses(0) == pytest.approx((float(WEIGHTS @ same),))
    assert running.responses(1) == running.responses(2) == ()
    return states


@pytest.mark.parametrize("trial", [1, -1])
def test_a_trial_that_was_not_chosen_has_no_status(trial: int) -> None:
    with session() as running:
        choice = running.next()
        asks = running.status, running.responses, lambda n: running.has_told(n, betas(choice))
        for ask in asks:
            with pytest.raises(BrainfastError, match=f"one of the 1 choices, got {trial}"):
                ask(trial)
