"""Which candidate is next: pure functions of what was shown and measured so far.

A live session and a replay both call these; nothing here knows a clock, a thread or a file.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from .design import Design
from .measured import Measurement
from .posterior import Posterior, Prior, fit, narrowed

Floats = NDArray[np.float64]
Strategy = Literal["greedy", "ucb", "thompson", "explore", "random"]
N = TypeVar("N", int, float)
Source = Literal["fresh", "stale", "fallback"]
Status = Literal["outstanding", "told", "skipped"]

RANDOM_FALLBACK = "random"
_RANKING, _FALLBACK = 0, 1  # streams of random numbers


def as_number(name: str, given: Any, kind: Callable[[Any], N]) -> N:
    """A plain int or float, from numpy's too."""
    try:
        return kind(given)
    except (TypeError, ValueError) as error:
        raise BrainfastError(name, expected="a number", got=repr(given)) from error


@dataclass(frozen=True)
class Options:
    """How a session chooses; a log's header keeps them all.

    kappa: standard deviations that ucb adds; repeats: how often an image may be shown; fallback:
    the id that is shown where nothing is ready, or "random"; exclude: ids that are never chosen;
    model_share: see `Design.prior`
    """

    strategy: Strategy = "greedy"
    kappa: float = 1.0
    repeats: int = 1
    seed: int = 0
    fallback: str = RANDOM_FALLBACK
    exclude: tuple[str, ...] = ()
    model_share: float = 0.5

    def __post_init__(self) -> None:
        """Numbers of numpy become Python's, which a log can hold."""
        for name in ("repeats", "seed"):
            object.__setattr__(self, name, as_number(name, getattr(self, name), operator.index))
        for name in ("kappa", "model_share"):
            object.__setattr__(self, name, as_number(name, getattr(self, name), float))

    def check(self, design: Design) -> None:
        """Refuse what does not fit together."""
        wrong = [
            ("strategy", ", ".join(get_args(Strategy)), self.strategy in get_args(Strategy)),
            ("kappa", "a finite number, 0 or more", 0 <= self.kappa < np.inf),
            ("repeats", "1 or more", self.repeats >= 1),
            ("seed", "0 or more", self.seed >= 0),
            ("model_share", "above 0 and below 1", 0 < self.model_share < 1),
        ]
        for name, expected, good in wrong:
            if not good:
                raise BrainfastError(name, expected=expected, got=repr(getattr(self, name)))
        fallback = () if self.fallback == RANDOM_FALLBACK else (self.fallback,)
        for image in (*fallback, *self.exclude):
            if image not in design.rows:
                raise BrainfastError(
                    "exclude or fallback", expected="ids of the pool", got=repr(image)
                )

    @property
    def follows_choices(self) -> bool:
        """Whether a choice alone, before it is measured, changes what is best next."""
        return self.strategy != "greedy"


@dataclass(frozen=True)
class Trial:
    """One choice and what became of it; row: of the candidate."""

    row: int
    status: Status = "outstanding"
    measurement: Measurement | None = None


@dataclass
class Progress:
    """All choices of a session in their order. `version` counts what a ranking depends on."""

    design: Design
    options: Options
    trials: list[Trial] = field(default_factory=list)
    version: int = 0
    counts: NDArray[np.int64] = field(init=False)  # [N], times shown and not skipped
    waiting: NDArray[np.int64] = field(init=False)  # [N], choices that are outstanding

    def __post_init__(self) -> None:
        self.counts = np.zeros(len(self.design), dtype=np.int64)
        self.waiting = np.zeros(len(self.design), dtype=np.int64)
        for image in self.options.exclude:
            self.counts[self.design.rows[image]] = np.iinfo(np.int32).max

    def choose(self, row: int) -> None:
        """A candidate is shown."""
        self.trials.append(Trial(row))
        self.counts[row] += 1
        self.waiting[row] += 1
        self.version += self.options.follows_choices

    def tell(self, trial: int, measurement: Measurement) -> None:
        """Its response is known."""
        self._settle(trial, "told", measurement)
        self.version += 1

    def skip(self, trial: int) -> None:
        """Its response is lost: the image may be shown again."""
        self._settle(trial, "skipped", None)
        self.counts[self.trials[trial].row] -= 1
        self.version += self.options.follows_choices

    def _settle(self, trial: int, status: Status, measurement: Measurement | None) -> None:
        old = self.trials[trial]
        self.waiting[old.row] -= 1
        self.trials[trial] = replace(old, status=status, measurement=measurement)

    def outstanding(self, trial: int) -> None:
        """Refuse a trial that is not outstanding, in one line that says what became of it."""
        if not 0 <= trial < len(self.trials):
            got = f"trial {trial}"
        elif self.trials[trial].status != "outstanding":
            got = f"trial {trial}, which was {self.trials[trial].status} already"
        else:
            return
        raise BrainfastError("choice", expected="a choice that is outstanding", got=got)

    def allowed(self) -> NDArray[np.bool_]:
        """Who may be shown [N]: fewer than `repeats` times so far, and not waiting for its answer.

        Where all others are used up, an image may follow itself before it has been measured.
        """
        left = self.counts < self.options.repeats
        rested = left & (self.waiting == 0)
        return rested if rested.any() else left


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
    design: Design, options: Options, prior: Prior, trials: Sequence[Trial], version: int
) -> Ranking:
    """Values of all candidates after some trials.

    greedy: E;  ucb: E + kappa sd;  thompson: z . theta, theta drawn from the posterior;
    explore: sd^2, the largest gain of log det (1 + sd^2 / noise), D-optimal;  random: uniform.
    E, sd: mean and standard deviation of a candidate's expected response. For ucb and explore, sd
    counts choices that are still outstanding as measured, so that several of them do not all ask
    the same question (Desautels et al. 2014, GP-BUCB).
    """
    told = [trial for trial in trials if trial.measurement is not None]
    known = [trial.measurement for trial in told if trial.measurement is not None]
    posterior = fit(
        prior,
        design.z[[trial.row for trial in told]],
        np.array([measurement.response for measurement in known]),
        np.array([measurement.relative_noise for measurement in known]),
    )
    mean = posterior.mean_of(design.z)
    values = mean
    random = np.random.default_rng([options.seed, _RANKING, len(trials)])
    if options.strategy == "random":
        values = random.random(len(design))
    elif options.strategy == "thompson":
        normal: Floats = random.standard_normal((design.z.shape[1],))
        theta = posterior.draw(normal)
        values = np.asarray(np.einsum("nd,d->n", design.z, theta))
    elif options.strategy in ("ucb", "explore"):
        waiting = [trial.row for trial in trials if trial.status == "outstanding"]
        variance = narrowed(posterior, design.z[waiting]).variance_of(design.z)
        explore = options.strategy == "explore"
        values = variance if explore else mean + options.kappa * np.sqrt(variance)
    order = np.argsort(-values, kind="stable")
    return Ranking(version, values, order, mean, posterior)


def decide(progress: Progress, ranking: Ranking | None, source: Source) -> Decision:
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
    variance = float(ranking.posterior.variance_of(progress.design.z[row : row + 1])[0])
    return Decision(
        row=row,
        score=float(ranking.mean[row]),
        value=float(value),
        uncertainty=float(np.sqrt(variance + ranking.posterior.noise)),
        ties=int((allowed & (ranking.values == value)).sum()),
        posterior=ranking.posterior.digest(),
    )


def _fallback(progress: Progress, allowed: NDArray[np.bool_]) -> int:
    options = progress.options
    if options.fallback != RANDOM_FALLBACK:
        return progress.design.rows[options.fallback]
    random = np.random.default_rng([options.seed, _FALLBACK, len(progress.trials)])
    return int(random.choice(np.flatnonzero(allowed)))
