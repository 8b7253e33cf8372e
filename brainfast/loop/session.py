"""A session: which image next, within a deadline, from what has been measured so far."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from .candidates import check_candidates
from .choice import Choice
from .clock import Clock, SystemClock
from .design_build import build_design
from .folding import as_candidates, folded
from .journal import Journal
from .log import encode_betas, read_log
from .measured import Measurement, Space, as_columns, betas_of, check_betas
from .options import Options, Strategy, as_ids, as_number
from .origin import first_line, origin_of
from .posterior import MAX_COLUMNS
from .progress import Progress, Status, Trial
from .ranking import Source, decide
from .replay import Restored, restore
from .versions import versions
from .worker import Ranker

if TYPE_CHECKING:
    from ..engine import Engine

READY_S = 600.0  # for the first ranking, before any deadline counts
WAIT_SHARE = 0.6  # of the deadline; the rest is for looking up and writing down
STAGES = ("choose", "tell", "rank", "write", "sync")
STAGES_KEPT = 100_000


class Session:
    """Chooses the next image of a running experiment, again and again.

    pool: a `Pool` opened with its engine, or `Candidates` such as `ArrayCandidates`
    objective: "FFA - PPA" or what else `Objective` takes, or a `TargetPattern` (`PatternReading`
    tells what is learnt of it); of `Candidates`, `engine` is what their features are of, or give a
    `FoldedObjective`. Of a list of several, every measurement teaches the models of all, and `next`
    serves them in turn
    deadline_ms: of `next`; strategy, kappa, repeats, seed, fallback, exclude, model_share, balance,
    min_distance: see `Options`
    ceiling [V]: noise ceilings of single trials as fractions, which set the noise; without them it
    is estimated from what is told; components: see `build_design`
    log: a new JSONL file; one line an event, and `<log>.design.safetensors` beside it

    The order of all candidates is computed ahead, on a thread of its own, after each event that
    changes it; `next` takes the first that may be shown. Methods may be called from any thread.
    One session follows one subject: for several, make one each, on the same pool.

    space: whose betas it takes. Raises BrainfastError for what cannot work, before the first trial.
    """

    def __init__(
        self,
        pool: Any,
        objective: Any,
        *,
        engine: Engine | None = None,
        deadline_ms: float = 20.0,
        strategy: Strategy = "greedy",
        kappa: float = 1.0,
        repeats: int = 1,
        seed: int = 0,
        fallback: str = "random",
        exclude: Sequence[str] = (),
        ceiling: NDArray[np.floating[Any]] | None = None,  # [V]
        model_share: float = 0.5,
        balance: bool = False,
        min_distance: float = 0.0,
        components: int = MAX_COLUMNS - 2,
        log: str | Path | None = None,
        clock: Clock | None = None,
    ) -> None:
        candidates = as_candidates(pool, engine)
        goals = folded(objective, candidates, engine)
        excluded = as_ids(exclude)
        options = Options(
            strategy, kappa, repeats, seed, fallback, excluded, model_share, balance, min_distance
        )
        options.check(check_candidates(candidates))
        deadline_ms = as_number("deadline_ms", deadline_ms, float)
        if not 0 < deadline_ms < 1e6:
            bounds = "above 0 and below 1,000,000"
            raise BrainfastError("deadline_ms", expected=bounds, got=str(deadline_ms))
        design = build_design(
            candidates,
            goals,
            components=components,
            ceiling=ceiling,
            model_share=options.model_share,
            seed=options.seed,
            balance=options.balance,
            distances=options.min_distance > 0,
        )
        self._start(Progress(design, options), deadline_ms, clock or SystemClock())
        self.space = Space(goals[0].space_hash, goals[0].subject)
        with self._closed_by_errors():
            if log is not None:
                origin = origin_of(candidates, self.space)
                self._journal.begin(
                    Path(log), design, first_line(design, options, deadline_ms, origin)
                )
            self._ranker.start(READY_S)

    @classmethod
    def resume(cls, log: str | Path, pool: Any = None, *, clock: Clock | None = None) -> Session:
        """Go on with the session of a log, exactly where it ended; a torn last line is dropped.

        pool: checked against the log where it is given; the log has all that is needed.
        `outstanding` gives the choices that still wait for their answer, `dropped_bytes` the torn.
        """
        file = read_log(log, betas=False)
        restored = restore(file, pool)
        session = cls.__new__(cls)
        session._start(restored.progress, restored.deadline_ms, clock or SystemClock())
        session._restore_choices(restored)
        session.space = restored.space
        session.dropped_bytes = file.torn
        with session._closed_by_errors():
            about = {"dropped_bytes": file.torn, "versions": versions()}
            session._journal.go_on(file, {"event": "resumed", **about})
            session._ranker.start(READY_S)
        return session

    def next(self, objective: str | None = None) -> Choice:
        """The image to show now, within the deadline.

        objective: the name of one of several; without, the one that has been served least, the
        first of those. What is not ready by then is late: the best so far, or the fallback where
        there is none. It never waits longer and never raises for that. A pool that is used up, a
        clock that goes back and a disk that refuses the log are a BrainfastError, and the session
        is as before.
        """
        start = self._clock.monotonic()
        with self._condition:
            self._journal.check_open()
            self._clock.wait_for(
                self._condition,
                lambda: self._ranker.is_fresh(self._number(objective)),
                WAIT_SHARE * self.deadline_ms / 1e3 - (self._clock.monotonic() - start),
            )
            number = self._number(objective)  # others may have had their turn meanwhile
            fresh = self._ranker.is_fresh(number)
            ranking = self._ranker.rankings[number]
            source: Source = "fresh" if fresh else "stale" if ranking else "fallback"
            decision = decide(self._progress, number, ranking, source)
            latency_ms = (self._clock.monotonic() - start) * 1e3
            choice = Choice(
                image=self._progress.design.ids[decision.row],
                trial=len(self._progress.trials),
                objective=self.objectives[number],
                score=decision.score,
                value=decision.value,
                uncertainty=decision.uncertainty,
                ties=decision.ties,
                source=source,
                late=source != "fresh" or latency_ms > self.deadline_ms,
                latency_ms=latency_ms,
            )
            about = {
                "asked": objective,
                "posterior": decision.posterior,
                "version": ranking.version if ranking else None,
                "problem": self.problem,
            }
            self._journal.append({"event": "choice", **asdict(choice), **about})
            self._progress.choose(decision.row, number)
            self._choices.append(choice)
            choice = self._overrun(choice, start)
            if self._ranker.has_work():
                self._condition.notify_all()
        self._record("choose", self._clock.monotonic() - start)
        return choice

    def tell(self, choice: Choice, measured: Any, *, subject: str | None = None) -> None:
        """What was measured for a choice: z-scored betas [V] in the engine's vertices.

        Or a `Response` to one image, whose vertices and subject are then compared with the
        session's; so is `subject` where it is given. NaN where nothing was measured. Late, in any
        order, with others outstanding. A choice that was told or skipped before, betas of others
        or of another length, infinities, and NaN at more than half of a region are a
        BrainfastError, and the session is as before.
        """
        start = self._clock.monotonic()
        betas, measurements = self._measured(measured, subject)
        text = encode_betas(betas)
        with self._condition:
            self._journal.check_open()
            self._check_own(choice)
            about = {"trial": choice.trial, "image": choice.image, **as_columns(measurements)}
            line = {"event": "tell", **about, "V": len(betas), "measured": text}
            self._journal.append(line)
            self._progress.tell(choice.trial, measurements)
            self._condition.notify_all()
        self._record("tell", self._clock.monotonic() - start)

    def skip(self, choice: Choice) -> None:
        """Give up the measurement of a choice; its image may be shown again."""
        with self._condition:
            self._journal.check_open()
            self._check_own(choice)
            self._journal.append({"event": "skip", "trial": choice.trial, "image": choice.image})
            self._progress.skip(choice.trial)
            self._condition.notify_all()

    def has_told(self, trial: int, measured: Any, *, subject: str | None = None) -> bool:
        """Whether these betas were told for a trial before, so that telling them again is no news.

        They are taken as `tell` takes them, and refused as there. Betas that differ only where no
        objective has a weight are the same to a session.
        """
        _, measurements = self._measured(measured, subject)
        with self._condition:
            return self._trial(trial).measurements == measurements

    def status(self, trial: int) -> Status:
        """What became of a choice: "outstanding", "told" or "skipped"."""
        with self._condition:
            return self._trial(trial).status

    def responses(self, trial: int) -> tuple[float, ...]:
        """What was measured of every objective in a trial, z; empty until it was told."""
        with self._condition:
            return tuple(m.response for m in self._trial(trial).measurements)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """All choices in order, those from before a resumption too: the number is the trial."""
        with self._condition:
            return tuple(self._choices)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names of what it chooses for."""
        return self._progress.design.names

    @property
    def options(self) -> Options:
        """How it chooses."""
        return self._progress.options

    @property
    def problem(self) -> str | None:
        """Why the latest ranking failed, if it did: choices are stale until one works."""
        return None if self._ranker.error is None else repr(self._ranker.error)

    def allowed(self, objective: str | None = None) -> NDArray[np.bool_]:
        """Which candidates `next` may choose [N], for an objective or the one whose turn it is."""
        with self._condition:
            return self._progress.available.all(self._number(objective))

    @property
    def outstanding(self) -> tuple[Choice, ...]:
        """Choices that were neither told nor skipped, oldest first."""
        with self._condition:
            pairs = zip(self._choices, self._progress.trials, strict=True)
            return tuple(choice for choice, trial in pairs if trial.status == "outstanding")

    def stages(self) -> dict[str, tuple[float, ...]]:
        """Seconds of the latest calls: choose, tell, rank, and of every log line, write and sync.

        choose and tell are whole calls, the writing of their line included; rank and sync run on
        threads of their own.
        """
        return {name: tuple(seconds) for name, seconds in self._stages.items()}

    def expected(
        self, objective: str | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation [N] of every candidate's expected response, as last ranked.

        Without the noise of a trial, with each image's own error. objective: a name; of several,
        the first without.
        """
        number = 0 if objective is None else self._progress.design.objective(objective)
        with self._condition:
            ranking = self._ranker.rankings[number]
        if ranking is None:
            raise BrainfastError("session", expected="a first ranking", got="none yet")
        variance = ranking.belief.variance_of_response(self._progress.design.models[number].z)
        return ranking.mean, np.sqrt(variance)

    def wait(self, seconds: float = READY_S) -> bool:
        """Wait until everything told is in the rankings of all objectives; whether it is.

        False at once where one of them failed: `problem` tells why.
        """
        with self._condition:
            self._clock.wait_for(self._condition, self._ranker.is_settled, seconds)
            return all(map(self._ranker.is_fresh, range(len(self.objectives))))

    def flush(self) -> None:
        """Return when every line of the log is on the disk."""
        self._journal.flush()

    def close(self) -> None:
        """Stop the threads; the log is synced first."""
        self._ranker.stop()
        with self._condition:
            self._journal.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self, progress: Progress, deadline_ms: float, clock: Clock) -> None:
        self.deadline_ms, self.dropped_bytes = deadline_ms, 0
        self._progress, self._clock = progress, clock
        self._condition = threading.Condition()
        self._choices: list[Choice] = []
        self._stages = {name: deque[float](maxlen=STAGES_KEPT) for name in STAGES}
        self._journal = Journal(clock, self._record)
        self._ranker = Ranker(progress, self._condition, clock, self._record)

    @contextmanager
    def _closed_by_errors(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._ranker.stop()
            self._journal.take_back()
            raise

    def _number(self, objective: str | None) -> int:
        """Of the objective that is served: the one asked for, or the one whose turn it is."""
        if objective is None:
            return self._progress.turn
        return self._progress.design.objective(objective)

    def _overrun(self, choice: Choice, start: float) -> Choice:
        """The choice, told to be late where writing it down took until after the deadline."""
        latency_ms = (self._clock.monotonic() - start) * 1e3
        if not choice.latency_ms <= self.deadline_ms < latency_ms:
            return choice
        choice = replace(choice, late=True, latency_ms=latency_ms)
        self._choices[-1] = choice
        about = {"trial": choice.trial, "late": True, "latency_ms": latency_ms}
        with suppress(BrainfastError):  # the choice is in the log: the next call tells of the disk
            self._journal.append({"event": "overrun", **about})
        return choice

    def _record(self, stage: str, seconds: float) -> None:
        self._stages[stage].append(seconds)

    def _measured(
        self, measured: Any, subject: str | None
    ) -> tuple[NDArray[np.float32], tuple[Measurement, ...]]:
        design = self._progress.design
        betas = check_betas(betas_of(measured, subject, self.space), design.V)
        return betas, design.measure(betas)

    def _trial(self, trial: Any) -> Trial:
        trials = self._progress.trials
        if not (isinstance(trial, int | np.integer) and 0 <= trial < len(trials)):
            raise BrainfastError(
                "trial", expected=f"the number of one of the {len(trials)} choices", got=repr(trial)
            )
        return trials[trial]

    def _check_own(self, choice: Choice) -> None:
        made = isinstance(choice, Choice)
        if not (made and choice in self._choices[choice.trial : choice.trial + 1]):
            got = repr(choice.image if made else choice)[:60]
            raise BrainfastError("choice", expected="one that this session made", got=got)
        self._progress.outstanding(choice.trial)

    def _restore_choices(self, restored: Restored) -> None:
        names = Choice.__dataclass_fields__
        for event in restored.choices:
            self._choices.append(Choice(**{name: event[name] for name in names}))
