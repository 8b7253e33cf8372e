"""Which candidate is next: pure functions of what was shown and measured so far.

A live session and a replay both call these; nothing here knows a clock, a thread or a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from .design import Design
from .options import RANDOM_FALLBACK, Options
from .posterior import Posterior, Prior, fit, narrowed
from .progress import Progress, Trial

Floats = NDArray[np.float64]
Source = Literal["fresh", "stale", "fallback"]

_RANKING, _FALLBACK = 0, 1  # streams of random numbers


@dataclass(frozen=True, eq=False)
class Ranking:
    """All candidates in order of value: what the strategy wants most, lowest row first in ties.

    posterior: from the trials told; mean [N]: the response that it expects. version: of the
    progress that this ranking is of.
    """

    version: int
    values: Floats  # [N]
    order: NDArray[np.int64]  # [N]
    mean: Floats  # [N]
    posterior: Posterior


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
    trials: Sequence[Trial],
    version: int,
) -> Ranking:
    """Values of all candidates for an objective, after some trials, whatever they were chosen for.

    greedy: E;  ucb: E + kappa sd;  thompson: z . theta, theta drawn from the posterior;
    explore: sd^2, the largest gain of log det (1 + sd^2 / noise), D-optimal;  random: uniform.
    E, sd: mean and standard deviation of a candidate's expected response. For ucb and explore, sd
    counts choices that are still outstanding as measured, so that several of them do not all ask
    the same question (Desautels et al. 2014, GP-BUCB).
    """
    model = design.models[objective]
    z = model.z
    told = [trial for trial in trials if trial.measurements]
    rows = [trial.row for trial in told]
    known = [trial.measurements[objective] for trial in told]
    posterior = fit(
        prior,
        z[rows],
        np.array([measurement.response for measurement in known]),
        np.array([measurement.relative_noise for measurement in known]) * model.noisiness[rows],
    )
    mean = posterior.mean_of(z)
    values = mean
    random = np.random.default_rng([options.seed, _RANKING, len(trials), objective])
    if options.strategy == "random":
        values = random.random(len(design))
    elif options.strategy == "thompson":
        normal: Floats = random.standard_normal((z.shape[1],))
        theta = posterior.draw(normal)
        values = np.asarray(np.einsum("nd,d->n", z, theta))
    elif options.strategy in ("ucb", "explore"):
        waiting = [trial.row for trial in trials if trial.status == "outstanding"]
        variance = narrowed(posterior, z[waiting]).variance_of(z)
        explore = options.strategy == "explore"
        values = variance if explore else mean + options.kappa * np.sqrt(variance)
    order = np.argsort(-values, kind="stable")
    return Ranking(version, values, order, mean, posterior)


def decide(progress: Progress, objective: int, ranking: Ranking | None, source: Source) -> Decision:
    """The best candidate that may be shown; from the fallback where there is no ranking."""
    allowed = progress.allowed()
    if not allowed.any():
        raise BrainfastError(
            "candidates",
            expected="one that may be shown",
            got=f"all {len(progress.design)} excluded or shown {progress.options.repeats} times",
            remedy="raise repeats, or give a larger pool",
        )
    if ranking is None or source == "fallback":
        return Decision(_fallback(progress, allowed), None, None, None, 1, None)
    row = int(ranking.order[int(np.argmax(allowed[ranking.order]))])
    value = ranking.values[row]
    model = progress.design.models[objective]
    variance = float(ranking.posterior.variance_of(model.z[row : row + 1])[0])
    noise = ranking.posterior.noise * model.noisiness[row]
    return Decision(
        row=row,
        score=float(ranking.mean[row]),
        value=float(value),
        uncertainty=float(np.sqrt(variance + noise)),
        ties=int((allowed & (ranking.values == value)).sum()),
        posterior=ranking.posterior.digest(),
    )


def _fallback(progress: Progress, allowed: NDArray[np.bool_]) -> int:
    options = progress.options
    if options.fallback != RANDOM_FALLBACK:
        return progress.design.rows[options.fallback]
    random = np.random.default_rng([options.seed, _FALLBACK, len(progress.trials)])
    return int(random.choice(np.flatnonzero(allowed)))
