"""The thread that ranks ahead, so that choosing is looking up."""

from __future__ import annotations

import threading
from collections.abc import Callable

from .clock import Clock
from .ranking import Progress, Ranking, rank


class Ranker:
    """Keeps the ranking of a session's progress up to date.

    condition: guards `progress` and `ranking`; whoever changes the progress notifies it.
    error: why the last ranking failed, if it did; the one before stays.
    """

    def __init__(
        self,
        progress: Progress,
        condition: threading.Condition,
        clock: Clock,
        record: Callable[[str, float], None],
    ) -> None:
        self.ranking: Ranking | None = None
        self.error: Exception | None = None
        self._progress, self._condition = progress, condition
        self._clock, self._record = clock, record
        self._prior = progress.design.prior(progress.options.model_share)
        self._tried = -1
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="brainfast-rank", daemon=True)

    def start(self, seconds: float) -> None:
        """Begin, and wait for the first ranking; an error of it is raised here."""
        self._thread.start()
        with self._condition:
            self._clock.wait_for(self._condition, lambda: self._tried >= 0, seconds)
            if self.error is not None:
                raise self.error

    def stop(self) -> None:
        """End the thread after what it is at."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def is_fresh(self) -> bool:
        """Whether the ranking is of the present progress; ask with the condition held."""
        return self.ranking is not None and self.ranking.version == self._progress.version

    def is_settled(self) -> bool:
        """Whether the present progress was ranked, or failed to be; ask likewise."""
        return self._tried >= self._progress.version

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._stopping or self._tried < self._progress.version
                )
                if self._stopping:
                    return
                version, trials = self._progress.version, tuple(self._progress.trials)
            start = self._clock.monotonic()
            ranking, error = None, None
            try:
                ranking = rank(
                    self._progress.design, self._progress.options, self._prior, trials, version
                )
            except Exception as problem:  # whatever it is, the experiment goes on without it
                error = problem
            self._record("rank", self._clock.monotonic() - start)
            with self._condition:
                self._tried, self.error = version, error
                self.ranking = ranking or self.ranking
                self._condition.notify_all()
