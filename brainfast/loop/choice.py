"""What a session answers with."""

from __future__ import annotations

from dataclasses import dataclass

from .ranking import Source


@dataclass(frozen=True)
class Choice:
    """The image to show, and how it came about.

    image: id in the pool; trial: number of the choice, from 0; objective: what it is shown for
    score: what the objective is expected to measure (z); uncertainty: standard deviation of that
    measurement, the posterior's and a trial's noise together; value: what the strategy maximised;
    all None for a fallback, which nothing was computed for
    ties: how many candidates shared the value; the lowest row was taken
    source: "fresh", all that was told is in it; "stale", the best so far; "fallback"
    late: not fresh, or after the deadline;  latency_ms: from the call to the decision, or where
    writing it down took until after the deadline, to the end of that
    """

    image: str
    trial: int
    objective: str
    score: float | None
    value: float | None
    uncertainty: float | None
    ties: int
    source: Source
    late: bool
    latency_ms: float
