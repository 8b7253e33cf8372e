"""The thread that ranks ahead, so that choosing is looking up."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .availability import Spacing
from .clock import Clock
from .progress import Progress
from .ranking import Ranking, rank
from .trial_table import Seen


class Ranker:
    """Keeps every objective's ranking of a session's progress up to date.

    condition: guards `progress` and `rankings`; whoever changes the progress notifies it.
    rankings, errors: of each objective, the latest that worked, and why the last one failed, if it
    did.
    """

    def __init__(
        self,
        progress: Progress,
        condition: threading.Condition,
        clock: Clock,
        record: Callable[[str, float], None],
    ) -> None:
        models, share = progress.design.models, progress.options.model_share
        self.rankings: list[Ranking | None] = [None] * len(models)
        self.errors: list[Exception | None] = [None] * len(models)
        self._progress, self._condition = progress, condition
        self._clock, self._record = clock, record
        self._priors = [model.prior(share) for model in models]
        self._tried = [-1] * len(models)
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="brainfast-rank", daemon=True)

    @property
    def error(self) -> Exception | None:
        """Why a last ranking failed, of the first objective of which one did."""
        return next(filter(None, self.errors), None)

    def start(self, seconds: float) -> None:
        """Begin, and wait for the first ranking of each; an error of one is raised here."""
        self._thread.start()
        with self._condition:
            self._clock.wait_for(
                self._condition, lambda: self._stopping or min(self._tried) >= 0, seconds
            )
            if self.error is not None:
                raise self.error

    def stop(self) -> None:
        """End the thread after what it is at."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def is_fresh(self, objective: int) -> bool:
        """Whether its ranking is of the present progress; ask with the condition held."""
        ranking = self.rankings[objective]
        return ranking is not None and ranking.version == self._progress.version

    def is_settled(self) -> bool:
        """Whether the present progress was ranked, or will never be, for all; ask likewise."""
        return self._stopping or min(self._tried) >= self._progress.version

    def _run(self) -> None:
        """Work until `stop`; whatever ends it before is told, so that nobody waits for it."""
        try:
            self._work()
        except Exception as problem:
            with self._condition:
                self.errors[:] = [problem] * len(self.errors)
                self._stopping = True
                self._condition.notify_all()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(self.has_work)
                if self._stopping:
                    return
                spacing = self._progress.available.spacing
                pending = spacing.pending() if spacing is not None else []
                objective = self._due()
                version, trials = self._progress.version, self._progress.table.seen()
            if spacing is not None and pending:
                self._count(spacing, pending[0])
                continue
            start = self._clock.monotonic()
            ranking, error = self._rank(objective, trials, version)
            self._record("rank", self._clock.monotonic() - start)
            with self._condition:
                self._tried[objective], self.errors[objective] = version, error
                self.rankings[objective] = ranking or self.rankings[objective]
                self._condition.notify_all()

    def has_work(self) -> bool:
        """Whether the thread has a reason to wake; ask likewise."""
        spacing = self._progress.available.spacing
        uncounted = spacing is not None and bool(spacing.pending())
        return self._stopping or uncounted or not self.is_settled()

    def _count(self, spacing: Spacing, row: int) -> None:
        """Note who lies near an image that was shown, which takes milliseconds of a large pool."""
        near = spacing.near(row)
        with self._condition:
            spacing.count(row, near)

    def _due(self) -> int:
        """The objective that waits longest for a ranking; of several, the next to be served."""
        count, turn = len(self._tried), self._progress.turn
        return min(range(count), key=lambda number: (self._tried[number], (number - turn) % count))

    def _rank(
        self, objective: int, trials: Seen, version: int
    ) -> tuple[Ranking | None, Exception | None]:
        design, options = self._progress.design, self._progress.options
        try:
            prior = self._priors[objective]
            return rank(design, objective, options, prior, trials, version), None
        except Exception as problem:  # whatever it is, the experiment goes on without it
            return None, problem
