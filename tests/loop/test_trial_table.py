"""Columns of trials, against the list of the same trials."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brainfast.loop.measured import Measurement
from brainfast.loop.trial_table import Seen, TrialTable

NOISINESS = np.linspace(0.5, 2.0, 7)
Fate = tuple[int, str, float, float]  # row, status, response, relative noise


def check(seen: Seen, trials: list[Fate], objective: int) -> None:
    told = seen.told(objective, NOISINESS)
    known = [trial for trial in trials if trial[1] == "told"]
    assert len(seen) == len(trials)
    assert told.rows.tolist() == [row for row, *_ in known]
    assert told.response.tolist() == [response + objective for _, _, response, _ in known]
    expected = [(noise + objective) * NOISINESS[row] for row, _, _, noise in known]
    assert told.noise.tolist() == expected
    assert seen.waiting() == [row for row, status, *_ in trials if status == "outstanding"]


@given(st.data())
def test_what_was_seen_is_the_list_of_that_moment(data: st.DataObject) -> None:
    """In whatever order trials are settled, and however many come later."""
    table, trials, moments = TrialTable(2), [], []
    for _ in range(data.draw(st.integers(0, 40))):
        open_ones = [number for number, trial in enumerate(trials) if trial[1] == "outstanding"]
        if not open_ones or data.draw(st.booleans()):
            row = data.draw(st.integers(0, 6))
            table.choose(row)
            trials.append((row, "outstanding", 0.0, 0.0))
        else:
            number = data.draw(st.sampled_from(open_ones))
            if data.draw(st.booleans()):
                value, noise = data.draw(st.floats(-9, 9)), data.draw(st.floats(0.1, 9))
                table.tell(number, [Measurement(value + o, noise + o) for o in range(2)])
                trials[number] = (trials[number][0], "told", value, noise)
            else:
                table.skip(number)
                trials[number] = (trials[number][0], "skipped", 0.0, 0.0)
        moments.append((table.seen(), list(trials)))
    for seen, then in moments:
        for objective in range(2):
            check(seen, then, objective)


@pytest.mark.parametrize("count", [255, 256, 257, 1000])
def test_it_grows_beneath_what_was_seen(count: int) -> None:
    table, trials = TrialTable(1), []
    for number in range(count):
        table.choose(number % 7)
        if number % 2:
            table.tell(number, [Measurement(float(number), 1.0)])
        trials.append((number % 7, "told" if number % 2 else "outstanding", float(number), 1.0))
    before = table.seen()
    for _ in range(count):
        table.choose(0)
    table.tell(0, [Measurement(-1.0, 1.0)])
    check(before, trials, 0)
    assert len(table.seen()) == 2 * count
