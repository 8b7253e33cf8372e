"""A histogram of latencies with its quantiles."""

from __future__ import annotations

from typing import Any

import numpy as np

PER_DECADE = 10
# From 0.1 ms to 10 s; what is below or above counts in the first or last bin.
EDGES_MS: list[float] = np.round(10 ** (np.arange(5 * PER_DECADE + 1) / PER_DECADE - 1), 6).tolist()
KEPT = 10_000
FEWEST = 100  # latencies that tell a p99: of fewer it would be the slowest


class Latencies:
    """Counts over logarithmic bins, and quantiles of the latest 10,000."""

    def __init__(self) -> None:
        self.count = self.late = 0
        self._counts = np.zeros(len(EDGES_MS) - 1, dtype=np.int64)
        self._latest = np.zeros(KEPT)

    def add(self, latency_ms: float, late: bool = False) -> None:
        """One more."""
        place = int(np.searchsorted(EDGES_MS, latency_ms, side="right")) - 1
        self._counts[min(max(place, 0), len(self._counts) - 1)] += 1
        self._latest[self.count % KEPT] = latency_ms
        self.count += 1
        self.late += late

    def summary(self) -> dict[str, Any]:
        """count, late, counts of the bins, and p50 and p99 (ms), each a latency that was seen.

        None where there is none, and p99 where there are fewer than 100.
        """
        p50 = p99 = None
        if self.count:
            seen = self._latest[: self.count]
            p50, p99 = np.percentile(seen, (50, 99), method="higher").tolist()
        if self.count < FEWEST:
            p99 = None
        counts = self._counts.tolist()
        return {"count": self.count, "late": self.late, "counts": counts, "p50": p50, "p99": p99}
