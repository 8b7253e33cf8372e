"""What an objective says in words: "FFA - PPA", "mean(V1v) + 0.5*EBA"; parsed, never evaluated."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import BrainfastError
from .vertex_space import ALIASES, ATLASES, UNIONS, VertexSpace

Value: TypeAlias = float | npt.NDArray[np.float64]  # a number, or weights [V]

_TOKEN = re.compile(
    r"(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[^\W\d][\w.]*(?:-\w[\w.]*)*)"
    r"|(?P<sign>[-+*(),])"
)
_TABLES = {
    name.lower() for name in (*(n for names in ATLASES.values() for n in names), *UNIONS, *ALIASES)
}
_WHOLE = {"all", "lh", "rh"}
_DEEPEST = 50


@dataclass(frozen=True)
class _Token:
    kind: str  # number, name, sign, or end
    text: str
    place: int  # of its first character, from 1


def expression_weights(text: str, space: VertexSpace) -> npt.NDArray[np.float64]:  # [V]
    """Weights [V] of a sum of regions: each name is the mean over that region's vertices.

    Numbers, + - * and parentheses; mean(A, B) is the mean over the vertices of both. Names are
    those of `VertexSpace.roi`, with lh. or rh. before them for one hemisphere. A hyphen belongs to
    the name where that gives a region (FFA-1), else it is a minus (FFA-PPA).

    Errors: BrainfastError that says where, an absent region with those that the subject has.
    """
    value = _Parser(text, space).parse()
    if isinstance(value, float):
        raise BrainfastError("objective", expected="a weighted sum of regions", got=repr(text))
    return value


class _Parser:
    def __init__(self, text: str, space: VertexSpace) -> None:
        self.text, self.space = text, space
        self.known = _TABLES | _WHOLE | {name.lower() for name in space.rois}
        self.at = self.depth = 0
        self.token = self._next()

    def parse(self) -> Value:
        value = self._sum()
        if self.token.kind != "end":
            raise self._error("an operator")
        return value

    def _sum(self) -> Value:
        value = self._product()
        while self.token.text in ("+", "-"):
            sign = self._take()
            other = self._product()
            if isinstance(value, float) != isinstance(other, float):
                raise self._error(
                    "regions on both sides, since a number alone changes no choice", sign
                )
            value = value + other if sign.text == "+" else value - other
        return value

    def _product(self) -> Value:
        value = self._factor()
        while self.token.text == "*":
            sign = self._take()
            other = self._factor()
            if not isinstance(value, float) and not isinstance(other, float):
                raise self._error("a number on one side of a product", sign)
            value = value * other
        return value

    def _factor(self) -> Value:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise self._error(f"at most {_DEEPEST} parentheses and signs in each other")
        value = self._factor_inside()
        self.depth -= 1
        return value

    def _factor_inside(self) -> Value:
        if self.token.text in ("+", "-"):
            sign = self._take()
            value = self._factor()
            return -value if sign.text == "-" else value
        if self.token.kind == "number":
            number = self._take()
            if not np.isfinite(float(number.text)):
                raise self._error("a finite number", number)
            return float(number.text)
        if self.token.text == "(":
            self._take()
            value = self._sum()
            self._expect(")")
            return value
        if self.token.kind != "name":
            raise self._error("a region, a number or a parenthesis")
        name = self._take()
        if name.text.lower() == "mean" and self.token.text == "(":
            return self._mean()
        return self._weights([name])

    def _mean(self) -> Value:
        names: list[_Token] = []
        while not names or self.token.text == ",":
            self._take()
            if self.token.kind != "name":
                raise self._error("the name of a region")
            names.append(self._take())
        self._expect(")")
        return self._weights(names)

    def _weights(self, names: list[_Token]) -> npt.NDArray[np.float64]:
        vertices = np.unique(np.concatenate([self.space.roi(name.text) for name in names]))
        weights = np.zeros(self.space.V)
        weights[vertices] = 1 / max(1, len(vertices))
        return weights

    def _expect(self, sign: str) -> None:
        if self.token.text != sign:
            raise self._error(repr(sign))
        self._take()

    def _take(self) -> _Token:
        taken, self.token = self.token, self._next()
        return taken

    def _next(self) -> _Token:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1
        place = self.at + 1
        if self.at == len(self.text):
            return _Token("end", "", place)
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            wrong = _Token("sign", self.text[self.at], place)
            raise self._error("names of regions, numbers, + - * and parentheses", wrong)
        kind, text = str(found.lastgroup), found.group()
        if kind == "name":
            text = self._cut(text)
        self.at += len(text)
        return _Token(kind, text, place)

    def _cut(self, name: str) -> str:
        """The longest beginning, up to a hyphen, that is a region; else all of it."""
        parts = name.split("-")
        for count in range(len(parts), 0, -1):
            start = "-".join(parts[:count])
            side, _, rest = start.lower().partition(".")
            if (rest if side in ("lh", "rh") and rest else start.lower()) in self.known:
                return start
        return name

    def _error(self, expected: str, token: _Token | None = None) -> BrainfastError:
        token = token or self.token
        what = repr(token.text) if token.text else "the end"
        return BrainfastError(
            "objective",
            expected=expected,
            got=f"{what} at character {token.place} of {self.text!r}",
        )
