"""Which candidate is next: pure functions of what was shown and measured so far.

A live session and a replay both call these; nothing here knows a clock, a thread or a file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from .availability import Availability, Tier, blocks
from .belief import Belief, believe
from .design import Design
from .options import RANDOM_FALLBACK, Options
from .posterior import Prior
from .progress import Progress
from .trial_table import Seen

Floats = NDArray[np.float64]
Source = Literal["fresh", "stale", "fallback"]

_RANKING, _FALLBACK = 0, 1  # streams of random numbers


@dataclass(frozen=True, eq=False)
class Ranking:
    """All candidates in order of value: what the strategy wants most, lowest row first in ties.

    belief: from the trials told; digest: of its posterior; mean [N]: the responses that it expects.
    version: of the progress that this ranking is of.
    """

    version: int
    values: Floats  # [N]
    order: NDArray[np.int64]  # [N]
    mean: Floats  # [N]
    belief: Belief
    digest: str


@dataclass(frozen=True)
class Decision:
    """A choice without its time: score and uncertainty in the units of the objective (z)."""

    row: int
    score: float | None
    value: float | None
    uncertainty: float | None
    ties: int
    posterior: str | None


def rank(
    design: Design,
    objective: int,
    options: Options,
    prior: Prior,
    trials: Seen,
    version: int,
) -> Ranking:
    """Values of all candidates for an objective, after some trials, whatever they were chosen for.

    greedy: E;  ucb: E + kappa sd;  thompson: E of a theta drawn from the posterior;  explore: the
    largest gain of log det, log (1 + g sd^2 / noise), where a further trial of an image that was
    measured before brings less (g < 1), D-optimal;  random: uniform. E, sd: mean and standard
    deviation of a candidate's expected response, see `Belief`. For ucb and explore, sd
    counts choices that are still outstanding as measured, so that several of them do not all ask
    the same question (Desautels et al. 2014, GP-BUCB).
    """
    model = design.models[objective]
    z, noisiness = model.z, model.noisiness
    belief = believe(prior, z, noisiness, trials.told(objective, noisiness))
    mean = belief.mean_of(z)
    values = mean
    random = np.random.default_rng([options.seed, _RANKING, len(trials), objective])
    if options.strategy == "random":
        values = random.random(len(design))
    elif options.strategy == "thompson":
        normal: Floats = random.standard_normal((z.shape[1],))
        theta = belief.posterior.draw(normal)
        values = belief.expected(np.asarray(np.einsum("nd,d->n", z, theta)))
    elif options.strategy in ("ucb", "explore"):
        after = belief.awaiting(z, trials.waiting())
        if options.strategy == "explore":
            values = after.variance_of(z) * belief.gains()
        else:
            values = mean + options.kappa * np.sqrt(belief.variance_of(z, after))
    order = np.argsort(-values, kind="stable")
    return Ranking(version, values, order, mean, belief, belief.posterior.digest())


def decide(progress: Progress, objective: int, ranking: Ranking | None, source: Source) -> Decision:
    """The best candidate that may be shown; from the fallback where there is no ranking.

    It walks down the ranking as far as it must, so that its time does not depend on N.
    """
    if ranking is None or source == "fallback":
        return Decision(_fallback(progress, objective), None, None, None, 1, None)
    found = progress.available.first(ranking.order, objective)
    if found is None:
        raise _nothing_left(progress)
    tier, place = found
    row = int(ranking.order[place])
    model = progress.design.models[objective]
    return Decision(
        row=row,
        score=float(ranking.mean[row]),
        value=float(ranking.values[row]),
        uncertainty=float(np.sqrt(ranking.belief.variance_of_next(model.z, row))),
        ties=_ties(progress.available, tier, ranking, place),
        posterior=ranking.digest,
    )


def _ties(available: Availability, tier: Tier, ranking: Ranking, place: int) -> int:
    """How many of a tier share the value of the first of them, which follow it in the order."""
    value, count = ranking.values[ranking.order[place]], 0
    for start, stop in blocks(len(ranking.order), place):
        rows = ranking.order[start:stop]
        same = ranking.values[rows] == value
        count += int(available.admits(tier, rows[same]).sum())
        if not same.all():
            break
    return count


def _fallback(progress: Progress, objective: int) -> int:
    options, available = progress.options, progress.available
    if options.fallback != RANDOM_FALLBACK:
        if available.first(np.arange(len(available)), objective) is None:
            raise _nothing_left(progress)
        return progress.design.rows[options.fallback]
    allowed = available.all(objective)
    if not allowed.any():
        raise _nothing_left(progress)
    random = np.random.default_rng([options.seed, _FALLBACK, len(progress.trials)])
    return int(random.choice(np.flatnonzero(allowed)))


def _nothing_left(progress: Progress) -> BrainfastError:
    options = progress.options
    got = f"all {len(progress.design)} excluded or shown {options.repeats} times"
    remedy = "raise repeats, or give a larger pool"
    if options.min_distance > 0:
        got += f", or nearer than {options.min_distance:g} to one that was shown"
        remedy = "give a smaller min_distance, or a larger pool"
    return BrainfastError("candidates", expected="one that may be shown", got=got, remedy=remedy)
