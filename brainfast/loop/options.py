"""How a session chooses."""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import numpy as np

from ..errors import BrainfastError

Strategy = Literal["greedy", "ucb", "thompson", "explore", "random"]
N = TypeVar("N", int, float)

RANDOM_FALLBACK = "random"


def as_number(name: str, given: Any, kind: Callable[[Any], N]) -> N:
    """A plain int or float, from numpy's too."""
    try:
        return kind(given)
    except (TypeError, ValueError) as error:
        raise BrainfastError(name, expected="a number", got=repr(given)) from error


def as_ids(given: Any) -> tuple[str, ...]:
    """Ids of candidates to leave out, of any collection of texts but one text alone."""
    good = isinstance(given, Iterable) and not isinstance(given, str | bytes)
    ids = tuple(given) if good else ()
    if not good or not all(isinstance(image, str) for image in ids):
        raise BrainfastError("exclude", expected="a list of ids", got=repr(given)[:60])
    return ids


@dataclass(frozen=True)
class Options:
    """How a session chooses; a log's header keeps them all.

    kappa: standard deviations that ucb adds; repeats: how often an image may be shown; fallback:
    the id that is shown where nothing is ready, whatever the other options say of it, or "random",
    of those that may be shown; exclude: ids that are not chosen otherwise; model_share: see
    `ObjectiveModel.prior`
    balance: for every objective, the next category is one with the fewest choices so far, of those
    that have a candidate left; min_distance: between any two images, in the pool's components
    (`Design.places`)
    """

    strategy: Strategy = "greedy"
    kappa: float = 1.0
    repeats: int = 1
    seed: int = 0
    fallback: str = RANDOM_FALLBACK
    exclude: tuple[str, ...] = ()
    model_share: float = 0.5
    balance: bool = False
    min_distance: float = 0.0

    def __post_init__(self) -> None:
        """Numbers of numpy become Python's, which a log can hold."""
        for name in ("repeats", "seed"):
            object.__setattr__(self, name, as_number(name, getattr(self, name), operator.index))
        for name in ("kappa", "model_share", "min_distance"):
            object.__setattr__(self, name, as_number(name, getattr(self, name), float))
        object.__setattr__(self, "balance", bool(self.balance))

    def check(self, ids: Collection[str]) -> None:
        """Refuse what does not fit together; ids: of the candidates."""
        wrong = [
            ("strategy", ", ".join(get_args(Strategy)), self.strategy in get_args(Strategy)),
            ("kappa", "a finite number, 0 or more", 0 <= self.kappa < np.inf),
            ("repeats", "1 or more", self.repeats >= 1),
            ("seed", "0 or more", self.seed >= 0),
            ("min_distance", "a finite number, 0 or more", 0 <= self.min_distance < np.inf),
            ("model_share", "above 0 and below 1", 0 < self.model_share < 1),
        ]
        for name, expected, good in wrong:
            if not good:
                raise BrainfastError(name, expected=expected, got=repr(getattr(self, name)))
        fallback = () if self.fallback == RANDOM_FALLBACK else (self.fallback,)
        known = frozenset(ids)
        for image in (*fallback, *self.exclude):
            if image not in known:
                raise BrainfastError(
                    "exclude or fallback", expected="ids of the pool", got=repr(image)
                )

    @property
    def follows_choices(self) -> bool:
        """Whether a choice alone, before it is measured, changes what is best next."""
        return self.strategy != "greedy"
