"""What was shown and measured so far, and who may be shown next."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import BrainfastError
from .availability import Availability
from .design import Design
from .measured import Measurement
from .options import Options
from .trial_table import TrialTable

Status = Literal["outstanding", "told", "skipped"]


@dataclass(frozen=True)
class Trial:
    """One choice and what became of it.

    row: of the candidate; objective: number of the one that it was chosen for; measurements: of
    every objective, once it was told
    """

    row: int
    objective: int = 0
    status: Status = "outstanding"
    measurements: tuple[Measurement, ...] = ()


@dataclass
class Progress:
    """All choices of a session in their order. `version` counts what a ranking depends on."""

    design: Design
    options: Options
    trials: list[Trial] = field(default_factory=list)
    version: int = 0
    available: Availability = field(init=False)
    table: TrialTable = field(init=False)  # of the same trials
    served: list[int] = field(init=False)  # [O], choices that were not skipped

    def __post_init__(self) -> None:
        self.available = Availability(self.design, self.options)
        self.table = TrialTable(len(self.design.models))
        self.served = [0] * len(self.design.models)

    @property
    def turn(self) -> int:
        """The objective that is served next: the one of the fewest choices, the first of those."""
        return self.served.index(min(self.served))

    def choose(self, row: int, objective: int = 0) -> None:
        """A candidate is shown for an objective."""
        self.trials.append(Trial(row, objective))
        self.table.choose(row)
        self.available.choose(row, objective)
        self.served[objective] += 1
        self.version += self.options.follows_choices

    def tell(self, trial: int, measurements: tuple[Measurement, ...]) -> None:
        """Its response is known, to every objective."""
        self._settle(trial, "told", measurements)
        self.table.tell(trial, measurements)
        self.version += 1

    def skip(self, trial: int) -> None:
        """Its response is lost: the image may be shown again."""
        self._settle(trial, "skipped", ())
        self.table.skip(trial)
        lost = self.trials[trial]
        self.available.take_back(lost.row, lost.objective)
        self.served[lost.objective] -= 1
        self.version += self.options.follows_choices

    def _settle(self, trial: int, status: Status, measurements: tuple[Measurement, ...]) -> None:
        old = self.trials[trial]
        self.available.settle(old.row)
        self.trials[trial] = replace(old, status=status, measurements=measurements)

    def outstanding(self, trial: int) -> None:
        """Refuse a trial that is not outstanding, in one line that says what became of it."""
        if not 0 <= trial < len(self.trials):
            got = f"trial {trial}"
        elif self.trials[trial].status != "outstanding":
            got = f"trial {trial}, which was {self.trials[trial].status} already"
        else:
            return
        raise BrainfastError("choice", expected="a choice that is outstanding", got=got)

    def catch_up(self) -> None:
        """Count every image that was shown, as the ranking thread of a session does by and by."""
        spacing = self.available.spacing
        if spacing is None:
            return
        for row in spacing.pending():
            spacing.count(row, spacing.near(row))
