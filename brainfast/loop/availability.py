"""Who may be shown next, by what was shown so far: repeats, rest, categories and distance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .design import Design
from .options import Options

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

BLOCK = 4096  # candidates whose distances are computed at a time, which a cache holds
FIRST = 256  # of a ranking that are looked at; small arrays never let go of Python's lock


class Spacing:
    """Who lies nearer than `least` to another image that was shown.

    places [N,k] float32: see `Design`. An image is shown at once and `counted` later, off the path
    of a choice: between the two, `clear` measures its distance for the few candidates it is asked
    about, with the same result.
    """

    def __init__(self, places: NDArray[np.float32], least: float) -> None:
        self._places, self._least = places, least
        self._near = np.zeros(len(places), dtype=np.int64)  # [N], counted images
        self._shown: Counter[int] = Counter()
        self._counted: dict[int, Rows] = {}  # who is near each counted image

    def show(self, row: int) -> None:
        """An image is shown."""
        self._shown[row] += 1

    def take_back(self, row: int) -> None:
        """It was not, after all."""
        self._shown[row] -= 1
        if self._shown[row] == 0 and row in self._counted:
            self._near[self._counted.pop(row)] -= 1

    def pending(self) -> list[int]:
        """Images that were shown and not counted yet."""
        return [row for row, times in self._shown.items() if times and row not in self._counted]

    def count(self, row: int, near: Mask) -> None:
        """Count an image, given who is near it; one that was taken back meanwhile is left out."""
        if self._shown[row] and row not in self._counted:
            self._counted[row] = np.flatnonzero(near)
            self._near[self._counted[row]] += 1

    def near(self, row: int) -> Mask:  # [N]
        """Who is near an image, which is not near itself."""
        found = np.empty(len(self._places), dtype=bool)
        for start in range(0, len(found), BLOCK):
            part = slice(start, min(start + BLOCK, len(found)))
            found[part] = self._within(part, row)
        found[row] = False
        return found

    def clear(self, rows: Rows) -> Mask:  # [n]
        """Which of these lie near no other image that was shown."""
        found: Mask = self._near[rows] == 0
        for row in self.pending():
            found[found] = ~self._within(rows[found], row) | (rows[found] == row)
        return found

    def _within(self, rows: Rows | slice, row: int) -> Mask:
        gaps = self._places[rows] - self._places[row]
        near: Mask = np.einsum("nk,nk->n", gaps, gaps) < self._least**2
        return near


@dataclass(frozen=True, eq=False)
class Tier:
    """Who is asked before others. categories [C]: those of the fewest choices; None: all.

    rested: without images that still wait for their answer
    """

    rested: bool
    categories: Mask | None


class Availability:
    """What every candidate's appearances so far allow."""

    def __init__(self, design: Design, options: Options) -> None:
        N = len(design)
        self._repeats, self._codes = options.repeats, design.codes
        self._counts = np.zeros(N, dtype=np.int64)  # times shown and not skipped
        self._waiting = np.zeros(N, dtype=np.int64)  # choices that are outstanding
        for image in options.exclude:
            self._counts[design.rows[image]] = np.iinfo(np.int32).max
        # Choices of each category, for each objective: [O,C].
        self._served = np.zeros((len(design.models), len(design.categories)), dtype=np.int64)
        self.spacing: Spacing | None = None
        if design.places is not None:
            self.spacing = Spacing(design.places, options.min_distance)

    def __len__(self) -> int:
        return len(self._counts)

    def choose(self, row: int, objective: int) -> None:
        """A candidate is shown for an objective."""
        self._counts[row] += 1
        self._waiting[row] += 1
        if self._codes is not None:
            self._served[objective, self._codes[row]] += 1
        if self.spacing is not None:
            self.spacing.show(row)

    def settle(self, row: int) -> None:
        """Its answer is there, or given up."""
        self._waiting[row] -= 1

    def take_back(self, row: int, objective: int) -> None:
        """Its answer is lost: it counts as not shown."""
        self._counts[row] -= 1
        if self._codes is not None:
            self._served[objective, self._codes[row]] -= 1
        if self.spacing is not None:
            self.spacing.take_back(row)

    def tiers(self, objective: int) -> Iterator[Tier]:
        """Whom to ask first, and whom where none of those may be shown.

        An image follows itself before it was measured only where all others are used up; a category
        comes only where those of fewer choices have nothing that may be shown.
        """
        for rested in (True, False):
            if self._codes is None:
                yield Tier(rested, None)
                continue
            served = self._served[objective]
            for level in sorted(set(served.tolist())):
                yield Tier(rested, served == level)

    def admits(self, tier: Tier, rows: Rows) -> Mask:  # [n]
        """Which of these may be shown."""
        found = self._counts[rows] < self._repeats
        if tier.rested:
            found &= self._waiting[rows] == 0
        if tier.categories is not None and self._codes is not None:
            found &= tier.categories[self._codes[rows]]
        if self.spacing is not None:
            found[found] = self.spacing.clear(rows[found])
        return found

    def first(self, order: Rows, objective: int) -> tuple[Tier, int] | None:
        """The place in an order of all candidates of the first that may be shown, and its tier."""
        for tier in self.tiers(objective):
            for start, stop in blocks(len(order)):
                found = self.admits(tier, order[start:stop])
                if found.any():
                    return tier, start + int(found.argmax())
        return None

    def all(self, objective: int) -> Mask:  # [N]
        """Everybody who may be shown."""
        rows = np.arange(len(self))
        for tier in self.tiers(objective):
            found = self.admits(tier, rows)
            if found.any():
                return found
        return np.zeros(len(self), dtype=bool)


def blocks(count: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """From `start` on: small ones first, then twice as many each."""
    size = FIRST
    while start < count:
        yield start, min(start + size, count)
        start, size = start + size, 2 * size
