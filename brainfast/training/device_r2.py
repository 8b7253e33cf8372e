"""R2 over batches of responses, summed where the responses are."""

from __future__ import annotations

import torch

from ..errors import BrainfastError


class DeviceR2:
    """R2 = 1 - sum (measured - predicted)^2 / sum (measured - mean)^2 a vertex, batch by batch.

    The sums of `analysis.scores.ScoreAccumulator`, in float64 on the device of the responses; the
    host waits for nothing before `r2`. Batches are merged with the formula of Chan, Golub and
    LeVeque, so neither offsets nor the batch size matter.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = self._spread = self._errors = torch.zeros(0, dtype=torch.float64)
        self._finite = torch.ones((), dtype=torch.bool)

    def update(
        self,
        predicted: torch.Tensor,  # [B,V]
        measured: torch.Tensor,  # [B,V]
    ) -> None:
        """Add a batch."""
        finite = torch.isfinite(predicted).all()
        guess, truth = predicted.double(), measured.double()
        first = truth[0]  # around it a constant vertex stays exactly constant
        mean = first + (truth - first).mean(dim=0)
        spread = (truth - mean).square().sum(dim=0)
        errors = (truth - guess).square().sum(dim=0)
        count = len(truth)
        if self.n == 0:
            self._mean, self._spread, self._errors = mean, spread, errors
            self._finite = finite
        else:
            shift = mean - self._mean
            whole = self.n + count
            self._spread = self._spread + spread + (self.n * count / whole) * shift.square()
            self._errors = self._errors + errors
            self._mean = self._mean + shift * (count / whole)
            self._finite = self._finite & finite
        self.n += count

    def r2(self) -> torch.Tensor:  # [V] float64
        """Of all images so far; NaN where the measurement is constant or holds a NaN.

        Errors: a prediction that was not finite is a BrainfastError.
        """
        if not bool(self._finite):
            raise BrainfastError("predicted", expected="finite values", got="NaN or infinity")
        return 1.0 - self._errors / torch.where(self._spread > 0, self._spread, torch.nan)
