"""Intervals and tests over a few seeds.

Runs of two rows with the same seed share their split and their start, so they are compared seed by seed. With n pairs the exact
sign-flip test cannot give a p-value below 2^(1-n): with five seeds .0625, whatever the numbers are.
"""

import itertools
import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtr, stdtrit

LEVEL = 0.05
MOST_PAIRS = 20  # whose signs are all tried


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean: mean ± t(n - 1) s / sqrt(n); None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, error = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    reach = float(stdtrit(len(values) - 1, 0.5 + confidence / 2)) * error
    return mean - reach, mean + reach


def paired_t(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of Student's paired t test.

    None for fewer than two pairs, and for differences that are all alike and not zero, whose spread is no estimate.
    """
    if len(differences) < 2:
        return None
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation <= 1e-12 * max(map(abs, differences)):
        return 1.0 if mean == 0 else None
    t = mean / (deviation / math.sqrt(len(differences)))
    return 2 * float(stdtr(len(differences) - 1, -abs(t)))


def welch_t(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of Welch's t test, for rows without common seeds; None where one has fewer than two values or both no spread."""
    if min(len(first), len(second)) < 2:
        return None
    errors = [statistics.variance(values) / len(values) for values in (first, second)]
    total = sum(errors)
    if total == 0:
        return 1.0 if first[0] == second[0] else None
    freedom = total**2 / sum(error**2 / (len(values) - 1) for error, values in zip(errors, (first, second), strict=True))
    t = (statistics.fmean(first) - statistics.fmean(second)) / math.sqrt(total)
    return 2 * float(stdtr(freedom, -abs(t)))


def sign_flip(differences: Sequence[float]) -> float | None:
    """Two-sided p-value of the exact sign-flip test of paired differences.

    It is the share of all 2^n ways to give the differences signs whose sum is at least as far from zero as the sum of the
    differences. None for no pair, and for more than 20, whose signs are too many.
    """
    count = len(differences)
    if not 0 < count <= MOST_PAIRS:
        return None
    sums = np.zeros(1)
    for difference in differences:
        sums = np.concatenate([sums + difference, sums - difference])
    bound = abs(math.fsum(differences)) - 1e-12 * math.fsum(map(abs, differences))
    return float((np.abs(sums) >= bound).mean())


def least_sign_flip(count: int) -> float:
    """The least p-value that the sign-flip test can give for so many pairs: 2^(1-n)."""
    return 2.0 ** (1 - count)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p-values that hold for all tests together.

    The i-th smallest of m is multiplied by m - i (from 0), made no smaller than the one before it and at most 1.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    steps = [p_values[place] * (len(p_values) - rank) for rank, place in enumerate(order)]
    adjusted = dict(zip(order, itertools.accumulate(steps, max), strict=True))
    return [min(1.0, adjusted[place]) for place in range(len(p_values))]
