"""The bar that a form must clear before it is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import BrainfastError
from ..forms import Form

Bars = Mapping[str, tuple[str, float]]

# By precision of the operands: (what is bounded, bound), in standard deviations of the twin's
# response less its bias.
BARS: Bars = {
    "fp32": ("max", 1e-5),
    "bf16x3": ("rms", 1e-5),
    "bf16": ("rms", 5e-3),
}


@dataclass(frozen=True)
class Errors:
    """Differences to the reference, in standard deviations of what is compared."""

    rms: float
    max: float


def check(
    form: Form,
    found: NDArray[Any],
    expected: NDArray[np.float64],
    spread: float,
    *,
    bars: Bars = BARS,
    what: str = "response",
) -> Errors:
    """Errors of what a form computed, in units of `spread`.

    Beyond the bar of the form's precision, or in another shape, it is a BrainfastError.
    """
    if found.shape != expected.shape:
        raise BrainfastError(
            form.title, expected=f"a {what} {expected.shape}", got=str(found.shape)
        )
    error = (found - expected) / max(spread, float(np.finfo(np.float32).tiny))
    errors = Errors(float(np.sqrt(np.square(error).mean())), float(np.abs(error).max()))
    kind, bar = bars[form.precision]
    measured = errors.rms if kind == "rms" else errors.max
    if not measured <= bar:
        raise BrainfastError(
            form.title,
            expected=f"{kind} error of the {what} to float64 of at most {bar:.0e}",
            got=f"{measured:.1e}",
            remedy="a wrong form is not timed; please report this with the output of doctor",
        )
    return errors


def response_judge(
    expected: NDArray[np.float64],  # [B,V]
    bias: NDArray[np.float32],  # [V]
    bars: Bars = BARS,
) -> Callable[[Form, NDArray[np.float32]], Errors]:
    """Judge of responses [B,V], in standard deviations of the expected one less its bias."""
    spread = float((expected - bias).std())

    def judge(form: Form, found: NDArray[np.float32]) -> Errors:
        return check(form, found, expected, spread, bars=bars)

    return judge
