"""A whole session against a simulated subject, at the pace of a scanner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln
from tqdm import tqdm

from ..errors import BrainfastError
from .choice import Choice
from .clock import ExperimentClock
from .session import Session
from .subject import SimulatedSubject

Floats = NDArray[np.float64]

RESPONSE_S = 24.0  # of a haemodynamic response that is looked at
ENOUGH = 0.95  # of its energy: then a beta can be estimated
LOST_BELOW = 0.5  # of its energy recorded
RANDOM_RUNS = 20
SPEED = 20.0  # times the scanner's pace
SHORTEST_TR_S, LONGEST_TR_S = 0.01, 20.0  # some volume sees every response
MOST_VOLUMES = 1_000_000


@dataclass(frozen=True)
class Schedule:
    """The pace of an experiment, in seconds.

    trials: how many, one every `interval_s` and up to `jitter_s` later; tr_s: between volumes, of
    which the share `dropped` never arrives; processing_s: from the last volume needed to the beta
    """

    trials: int = 60
    interval_s: float = 4.0
    jitter_s: float = 0.3
    tr_s: float = 1.6
    dropped: float = 0.02
    processing_s: float = 0.5

    def check(self) -> None:
        """Refuse what is no experiment."""
        wrong = [
            ("trials", f"1 to {MOST_VOLUMES}", 1 <= self.trials <= MOST_VOLUMES),
            ("interval_s", "a finite time above 0", 0 < self.interval_s < math.inf),
            ("jitter_s", "a finite time, 0 or more", 0 <= self.jitter_s < math.inf),
            ("tr_s", f"{SHORTEST_TR_S:g} to {LONGEST_TR_S:g}", self._has_usual_tr()),
            ("dropped", "a share from 0 to below 1", 0 <= self.dropped < 1),
            ("processing_s", "a finite time, 0 or more", 0 <= self.processing_s < math.inf),
        ]
        for name, expected, good in wrong:
            if not good:
                got = repr(getattr(self, name))
                raise BrainfastError(f"schedule: {name}", expected=expected, got=got)
        volumes = (self.trials * self.interval_s + self.jitter_s) / self.tr_s
        if volumes > MOST_VOLUMES:
            raise BrainfastError(
                "schedule", expected=f"at most {MOST_VOLUMES} volumes", got=f"{volumes:g}"
            )

    def _has_usual_tr(self) -> bool:
        return SHORTEST_TR_S <= self.tr_s <= LONGEST_TR_S


def check_enough(schedule: Schedule, candidates: int, repeats: int) -> None:
    """Refuse more trials than candidates can fill; ask before anything is written."""
    if schedule.trials > candidates * repeats:
        raise BrainfastError(
            "trials",
            expected=f"at most {candidates * repeats}, of {candidates} candidates",
            got=str(schedule.trials),
            remedy="give more images, or raise repeats",
        )


@dataclass(frozen=True)
class Arrival:
    """When the beta of a trial is there, and the share of its response that was recorded."""

    seconds: float
    kept: float


@dataclass(frozen=True)
class Played:
    """One trial of a rehearsal. true: noiseless; best: of all that could still be shown.

    measured: the objective's response in the betas, None where the trial was lost
    """

    choice: Choice
    onset_s: float
    true: float
    best: float
    measured: float | None = None

    @property
    def regret(self) -> float:
        """What a better choice would have gained."""
        return self.best - self.true

    @property
    def within(self) -> bool | None:
        """Whether the measurement was within a standard deviation of the prediction."""
        score, sd = self.choice.score, self.choice.uncertainty
        if self.measured is None or score is None or sd is None:
            return None
        return abs(self.measured - score) < sd


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """What happened. random_regret [runs,trials]: of choosing at random, other seeds.

    model_regret [trials]: of the model as it was before the first measurement. Both lose the trials
    that the session lost and may then show their image again. They are None where a constraint or a
    rest between repeats kept the session from images that these would show.
    paced: whether trials came at a real pace, without which nothing can be late
    """

    objective: str
    strategy: str
    deadline_ms: float
    played: tuple[Played, ...]
    random_regret: Floats | None
    model_regret: Floats | None
    stages: Mapping[str, Sequence[float]]
    paced: bool

    @property
    def regret(self) -> Floats:
        """Regret of every trial."""
        return np.array([trial.regret for trial in self.played])

    def _within(self) -> float | None:
        """Share of such measurements; of a calibrated model 0.68."""
        inside = [trial.within for trial in self.played if trial.within is not None]
        return float(np.mean(inside)) if inside else None

    def _late(self) -> float | None:
        late = float(np.mean([trial.choice.late for trial in self.played]))
        return late if self.paced else None

    def summary(self) -> dict[str, Any]:
        """Numbers for a script; times in milliseconds."""
        lost = sum(trial.measured is None for trial in self.played)
        percentiles = {
            name: dict(zip(("p50", "p99"), _milliseconds(seconds), strict=True))
            for name, seconds in self.stages.items()
            if len(seconds)
        }
        return {
            "objective": self.objective,
            "strategy": self.strategy,
            "trials": len(self.played),
            "lost_trials": lost,
            "within_one_sd": self._within(),
            "late_share": self._late(),
            "deadline_ms": self.deadline_ms,
            "mean_regret": float(self.regret.mean()),
            "mean_regret_of_model_alone": _mean(self.model_regret),
            "mean_regret_of_random": _mean(self.random_regret),
            "stages_ms": percentiles,
        }


def double_gamma(seconds: Floats) -> Floats:
    """t^5 e^-t / 5! - t^15 e^-t / (6 * 15!), the canonical haemodynamic response (SPM)."""
    t = np.maximum(seconds, 1e-12)
    peak = np.exp(5 * np.log(t) - t - gammaln(6))
    dip = np.exp(15 * np.log(t) - t - gammaln(16))
    return np.where(seconds > 0, peak - dip / 6, 0.0)


def arrival(onset_s: float, schedule: Schedule, lost: NDArray[np.bool_]) -> Arrival:
    """When the volumes that hold 95 % of a trial's response are there.

    lost: whether each volume of the experiment was dropped; volume k shows the response at k * tr_s
    and is complete a repetition time later, at (k + 1) * tr_s
    """
    end = math.ceil((onset_s + RESPONSE_S) / schedule.tr_s)
    volumes = np.arange(int(onset_s / schedule.tr_s), min(len(lost), end))
    times: Floats = volumes.astype(np.float64) * schedule.tr_s - onset_s
    energy = double_gamma(times) ** 2 * (times < RESPONSE_S)
    running = np.cumsum(energy) / energy.sum()
    needed = slice(0, int(np.searchsorted(running, ENOUGH)) + 1)
    kept = float(energy[needed][~lost[volumes[needed]]].sum() / energy[needed].sum())
    last = int(volumes[needed][-1])
    return Arrival((last + 1) * schedule.tr_s + schedule.processing_s, kept)


def rehearse(
    session: Session,
    subject: SimulatedSubject,
    schedule: Schedule,
    *,
    speed: float = SPEED,
    seed: int = 0,
    progress: bool = False,
) -> Rehearsed:
    """Show, measure and tell at the times of the schedule; `session` is left open.

    speed: 1 keeps the scanner's pace, 20 is twenty times as fast, which leaves the computer a
    twentieth of the time; inf does not wait at all, but for the ranking, which seconds of a real
    pace would have been enough for: then a run depends on its seeds alone. progress: a bar on the
    standard error, where that is a terminal
    """
    schedule.check()
    excluded = len(set(session.options.exclude))
    left = len(subject.world.pool) - excluded
    check_enough(schedule, left, session.options.repeats)
    random = np.random.default_rng([seed, 4])
    onsets = np.arange(schedule.trials) * schedule.interval_s
    onsets = onsets + random.uniform(0.0, schedule.jitter_s, schedule.trials)
    onsets.sort()  # a jitter may be longer than an interval
    volumes = math.ceil((onsets[-1] + 2 * RESPONSE_S) / schedule.tr_s)
    lost = random.random(volumes) < schedule.dropped
    coming = [arrival(float(onset), schedule, lost) for onset in onsets]
    clock, run = ExperimentClock(speed), _Run(session, subject, onsets, coming, random)
    moments = [(float(onset), trial, run.show) for trial, onset in enumerate(onsets)]
    moments += [(there.seconds, trial, run.measure) for trial, there in enumerate(coming)]
    moments.sort(key=lambda entry: entry[:2])
    for moment, trial, act in tqdm(moments, unit="event", disable=None if progress else True):
        clock.sleep_until(moment)
        if math.isinf(speed) and not session.wait():
            raise BrainfastError(
                "ranking", expected="one that ends", got=session.problem or "none in time"
            )
        act(trial)
    session.flush()
    return run.result(seed, paced=math.isfinite(speed))


class _Run:
    """What a rehearsal keeps while it lasts."""

    def __init__(
        self,
        session: Session,
        subject: SimulatedSubject,
        onsets: Floats,  # [trials]
        coming: Sequence[Arrival],
        random: np.random.Generator,
    ) -> None:
        self._session, self._subject, self._random = session, subject, random
        self._onsets, self._coming = onsets, coming
        self._true = subject.objective
        self._rows = {name: row for row, name in enumerate(subject.world.pool.ids)}
        self._played: list[Played] = []
        self._given_back: list[list[int]] = [[]]

    def show(self, trial: int) -> None:
        """A trial's image appears."""
        allowed = self._session.allowed()
        choice = self._session.next()  # an error where none is allowed
        true = float(self._true[self._rows[choice.image]])
        best = float(self._true[allowed].max(initial=true))
        self._played.append(Played(choice, float(self._onsets[trial]), true, best))
        self._given_back.append([])

    def measure(self, trial: int) -> None:
        """A trial's beta arrives, if enough of it was recorded."""
        played, kept = self._played[trial], self._coming[trial].kept
        if kept < LOST_BELOW:
            self._session.skip(played.choice)
            self._given_back[-1].append(trial)
            return
        betas = self._subject.measure(self._rows[played.choice.image], self._random, kept)
        self._session.tell(played.choice, betas)
        weights = self._subject.world.objective.weights
        measured = float(weights.astype(np.float64) @ betas)
        self._played[trial] = replace(played, measured=measured)

    def result(self, seed: int, paced: bool) -> Rehearsed:
        """All of it, and what others would have done where they could have done it."""
        options, random, model = self._session.options, None, None
        bound = options.balance or options.min_distance or options.exclude
        if not bound and options.repeats == 1:
            random, model = self._others(seed)
        return Rehearsed(
            objective=self._subject.world.objective.name,
            strategy=options.strategy,
            deadline_ms=self._session.deadline_ms,
            played=tuple(self._played),
            random_regret=random,
            model_regret=model,
            stages=self._session.stages(),
            paced=paced,
        )

    def _others(self, seed: int) -> tuple[Floats, Floats]:
        """Regret of choosing at random [runs,trials], and of the model alone [trials]."""
        given_back, random = self._given_back[:-1], np.random.default_rng([seed, 5])
        by_chance = chance(len(self._true), random)
        runs = [regrets(self._true, by_chance, given_back) for _ in range(RANDOM_RUNS)]
        by_model = first_by(self._subject.predicted, len(given_back))
        return np.stack(runs), regrets(self._true, by_model, given_back)


Chooser: TypeAlias = Callable[[set[int]], int]  # a row that is not among those shown


def first_by(scores: Floats, trials: int) -> Chooser:  # [N]
    """Chooses the largest score of those left, in an experiment of so many trials."""
    order = np.argsort(-scores, kind="stable")[:trials].tolist()
    return lambda shown: next(row for row in order if row not in shown)


def chance(candidates: int, random: np.random.Generator) -> Chooser:
    """Chooses any of those left, all as likely."""

    def choose(shown: set[int]) -> int:
        while (row := int(random.integers(candidates))) in shown:
            pass
        return row

    return choose


def regrets(
    true: Floats,  # [N]
    choose: Chooser,
    given_back: Sequence[Sequence[int]],
) -> Floats:  # [T]
    """Regret of choosing T times, each against the best that was then left.

    given_back: of every trial, the earlier ones that were lost since the one before it; their
    images may be shown again
    """
    best, shown, rows = first_by(true, len(given_back)), set[int](), list[int]()
    regret = np.empty(len(given_back))
    for trial, lost in enumerate(given_back):
        shown -= {rows[earlier] for earlier in lost}
        row = choose(shown)
        regret[trial] = true[best(shown)] - true[row]
        shown.add(row)
        rows.append(row)
    return regret


def _mean(regret: Floats | None) -> float | None:
    return None if regret is None else float(regret.mean())


def _milliseconds(seconds: Sequence[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(np.asarray(seconds) * 1e3, [50, 99])
    return round(float(p50), 3), round(float(p99), 3)
