"""Intervals, tests and corrections, against scipy, statsmodels and hand calculations."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.multitest import multipletests

from mtl.studies.statistics import holm, least_sign_flip, paired_t, sign_flip, t_interval, welch_t

RANDOM = np.random.default_rng(0)
SAMPLES = [RANDOM.normal(0.2, 1, size) for size in (2, 3, 5, 12)]


@pytest.mark.parametrize("values", SAMPLES, ids=len)
def test_the_interval_is_that_of_scipy(values: np.ndarray) -> None:
    expected = scipy.stats.t.interval(0.95, len(values) - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    assert t_interval(values.tolist()) == pytest.approx(expected)


def test_the_interval_of_1_2_3_by_hand() -> None:
    # t(.975, 2) = 4.303; 2 ± 4.303 * 1 / sqrt(3)
    assert t_interval([1, 2, 3]) == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-3)
    assert t_interval([1.0]) is None


@pytest.mark.parametrize("differences", SAMPLES, ids=len)
def test_the_paired_t_test_is_that_of_scipy(differences: np.ndarray) -> None:
    base = RANDOM.normal(size=len(differences))
    assert paired_t(differences.tolist()) == pytest.approx(scipy.stats.ttest_rel(base + differences, base).pvalue)


def test_differences_without_spread_are_not_tested() -> None:
    assert paired_t([0.1, 0.1, 0.1]) is None
    assert paired_t([0.0, 0.0]) == 1.0
    assert paired_t([0.3]) is None


@pytest.mark.parametrize(("first", "second"), [(SAMPLES[1], SAMPLES[2]), (SAMPLES[0], SAMPLES[3])])
def test_welch_is_that_of_scipy(first: np.ndarray, second: np.ndarray) -> None:
    expected = scipy.stats.ttest_ind(first, second, equal_var=False).pvalue
    assert welch_t(first.tolist(), second.tolist()) == pytest.approx(expected)
    assert welch_t([1.0], second.tolist()) is None


@pytest.mark.parametrize("differences", SAMPLES, ids=len)
def test_the_sign_flip_test_is_the_exact_one_of_scipy(differences: np.ndarray) -> None:
    expected = scipy.stats.permutation_test(
        (differences,), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip(differences.tolist()) == pytest.approx(expected.pvalue)


def test_sign_flips_by_hand() -> None:
    # Of +-1 +-2 +-4 the sum 7 is reached in size by (+++) and (---) alone; of 1, 1, -1 every sum is at least 1 in size.
    assert sign_flip([1, 2, 4]) == 0.25
    assert sign_flip([1, 1, -1]) == 1.0
    assert sign_flip([0.1] * 21) is None


@pytest.mark.parametrize("count", [2, 5, 6, 10])
def test_the_sign_flip_test_cannot_go_below_its_least_value(count: int) -> None:
    assert sign_flip([1.0 + 0.01 * place for place in range(count)]) == least_sign_flip(count) == 2.0 ** (1 - count)


def test_five_seeds_cannot_reach_the_level() -> None:
    assert least_sign_flip(5) == 0.0625


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03], [0.5, 0.001, 0.02, 0.02, 0.9], [0.2], []])
def test_holm_is_that_of_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1].tolist() if p_values else []
    assert holm(p_values) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    # .01 * 3, then .03 * 2, then the larger of .04 and .06
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
