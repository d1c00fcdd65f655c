"""Medians with their spread, and ratios of samples that were taken side by side.

The median and the quartiles, since a busy machine only ever adds time, and adds it in bursts. A ratio is formed in each
round and summed up afterwards: what slows a round slows both sides of it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["NOISY", "Summary", "ratio", "summary", "tally"]

NOISY = 0.2
"""Quartiles further apart than this part of the median are marked as noisy in tables."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The median and the lower and upper quartile of `count` samples."""

    median: float
    low: float
    high: float
    count: int

    @property
    def noisy(self) -> bool:
        """The quartiles are far apart."""
        return self.high - self.low > NOISY * abs(self.median)


def summary(samples: Sequence[float]) -> Summary:
    """Sums up at least one sample; of a single one the quartiles are itself.

    Raises:
        ValueError: there is none.
    """
    if not samples:
        raise ValueError("no samples to sum up")
    if len(samples) == 1:
        return Summary(samples[0], samples[0], samples[0], 1)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Summary(median, low, high, len(samples))


def tally(counts: Sequence[float]) -> Summary:
    """The mean of at least one count, with the least and the most: what happens in few rounds is to be seen too."""
    return Summary(statistics.fmean(counts), min(counts), max(counts), len(counts))


def ratio(of: Sequence[float], to: Sequence[float]) -> Summary | None:
    """Sums up of[i] / to[i], the ratios of paired rounds; None where there is no pair or a 0 to divide by."""
    pairs = [a / b for a, b in zip(of, to, strict=False) if b and math.isfinite(a / b)]
    return summary(pairs) if pairs else None
