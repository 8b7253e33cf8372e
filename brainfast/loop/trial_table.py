"""What a ranking reads of a session's trials, in columns: a ranking reads all of them each time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .belief import Told
from .measured import Measurement

Floats = NDArray[np.float64]

OUTSTANDING, TOLD, SKIPPED = range(3)
_ROOM = 256  # trials, at first


@dataclass(frozen=True, eq=False)
class Seen:
    """The first n trials as they stood at one moment; later ones do not change it.

    rows, status [n]; response, relative_noise [n,O]: what those told measured, of every objective
    """

    rows: NDArray[np.int64]
    status: NDArray[np.int8]
    response: Floats
    relative_noise: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def told(self, objective: int, noisiness: Floats) -> Told:  # [N]
        """Those that were told, for one objective; noisiness of all candidates."""
        told = np.flatnonzero(self.status == TOLD)
        rows = self.rows[told]
        relative = self.relative_noise[told, objective]
        return Told(rows, self.response[told, objective], relative * noisiness[rows])

    def waiting(self) -> list[int]:
        """Rows of those that are outstanding."""
        found: list[int] = self.rows[self.status == OUTSTANDING].tolist()
        return found


class TrialTable:
    """The trials of O objectives, in the order of their choices; each is settled once."""

    def __init__(self, objectives: int) -> None:
        self._count = 0
        self._rows = np.zeros(_ROOM, np.int64)
        self._status = np.zeros(_ROOM, np.int8)
        self._response, self._relative_noise = np.zeros((2, _ROOM, objectives))

    def choose(self, row: int) -> None:
        """One more, outstanding."""
        if self._count == len(self._rows):
            # New arrays: what was seen before goes on reading the old ones.
            self._rows, self._status = _twice(self._rows), _twice(self._status)
            self._response = _twice(self._response)
            self._relative_noise = _twice(self._relative_noise)
        self._rows[self._count] = row
        self._count += 1

    def tell(self, trial: int, measurements: Sequence[Measurement]) -> None:
        """It was measured, by every objective."""
        for objective, measurement in enumerate(measurements):
            self._response[trial, objective] = measurement.response
            self._relative_noise[trial, objective] = measurement.relative_noise
        self._status[trial] = TOLD

    def skip(self, trial: int) -> None:
        """It is lost."""
        self._status[trial] = SKIPPED

    def seen(self) -> Seen:
        """The table as it stands."""
        count = self._count
        return Seen(
            self._rows[:count],
            self._status[:count].copy(),
            self._response[:count],
            self._relative_noise[:count],
        )


def _twice(column: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([column, np.zeros_like(column)])
