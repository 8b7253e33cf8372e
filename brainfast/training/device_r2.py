"""R2 over batches of responses, summed where the responses are."""

from __future__ import annotations

import torch

from ..errors import BrainfastError


class DeviceR2:
    """R2 = 1 - sum (measured - predicted)^2 / sum (measured - mean)^2 a vertex, batch by batch.

    The sums of `analysis.sums.MaskedSums`, in float64 on the device of the responses; the host
    waits for nothing before `r2`. Batches are merged with the formula of Chan, Golub and LeVeque,
    so neither offsets nor the batch size matter. NaN is a vertex that was not measured.
    """

    def __init__(self) -> None:
        self._count = self._mean = torch.zeros((), dtype=torch.float64)
        self._spread = self._errors = torch.zeros((), dtype=torch.float64)
        self._finite = torch.ones((), dtype=torch.bool)

    def update(
        self,
        predicted: torch.Tensor,  # [B,V]
        measured: torch.Tensor,  # [B,V]
    ) -> None:
        """Add a batch."""
        guess, truth = predicted.double(), measured.double()
        missing = torch.isnan(truth)
        count = (~missing).sum(dim=0, dtype=torch.float64)
        # Around a trial of its own a constant vertex stays exactly constant.
        first = truth.gather(0, missing.int().argmin(dim=0, keepdim=True))
        offsets = torch.where(missing, 0.0, truth - first).sum(dim=0)
        mean = torch.where(count > 0, first[0] + offsets / count.clamp(min=1), 0.0)
        spread = torch.where(missing, 0.0, truth - mean).square().sum(dim=0)
        errors = torch.where(missing, 0.0, truth - guess).square().sum(dim=0)
        total = (self._count + count).clamp(min=1)
        shift = mean - self._mean
        weight = self._count * count / total
        self._spread = self._spread + spread + weight * shift.square()
        self._errors = self._errors + errors
        self._mean = self._mean + shift * (count / total)
        self._count = self._count + count
        self._finite = self._finite & torch.isfinite(predicted).all()

    def r2(self) -> torch.Tensor:  # [V] float64
        """Of all images so far; NaN where the measurement is constant, or that of fewer than 2.

        Errors: a prediction that was not finite is a BrainfastError.
        """
        if not bool(self._finite):
            raise BrainfastError("predicted", expected="finite values", got="NaN or infinity")
        return 1.0 - self._errors / torch.where(self._spread > 0, self._spread, torch.nan)
