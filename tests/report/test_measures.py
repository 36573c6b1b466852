"""Confusions, score ranges and bins against values worked out by hand."""

from dataclasses import replace

import numpy as np

from mtl.report.measures import count_confusions, measure_score_ranges, sum_bins
from mtl.report.run_files import Predictions


def make_predictions(scores: list[list[float]], identity: list[int]) -> Predictions:
    array = np.array(scores, dtype=np.float32)
    targets = np.array(identity)[:, None] == np.arange(array.shape[1])
    tasks = tuple(f"t{index}" for index in range(array.shape[1]))
    return Predictions(array, targets, np.ones_like(targets), tasks, np.array(identity), len(tasks))


def test_equal_highest_scores_share_a_confusion() -> None:
    predictions = make_predictions([[1.0, 1.0], [1.0, 1.0], [0.0, np.inf]], [0, 1, 1])
    np.testing.assert_array_equal(count_confusions([predictions]), [[0.5, 0.5], [0.5, 1.5]])


def test_confusions_count_the_highest_score_and_skip_unknown_identities_and_nan() -> None:
    scores = [[2.0, 1.0], [0.0, 3.0], [np.nan, -5.0], [9.0, 0.0]]
    predictions = make_predictions(scores, [0, 0, 1, -1])
    np.testing.assert_array_equal(count_confusions([predictions]), [[1, 1], [0, 0]])
    np.testing.assert_array_equal(count_confusions([predictions, predictions]), [[2, 2], [0, 0]])


def test_confusions_are_of_the_tasks_that_exclude_one_another() -> None:
    predictions = replace(make_predictions([[2.0, 1.0, 9.0], [0.0, 3.0, 9.0]], [0, 0]), num_exclusive=2)
    np.testing.assert_array_equal(count_confusions([predictions]), [[1, 1], [0, 0]])


def test_without_identities_there_are_no_confusions() -> None:
    assert count_confusions([make_predictions([[1.0, 2.0]], [-1])]) is None
    assert count_confusions([]) is None


def test_score_ranges_are_the_deciles_of_known_scores() -> None:
    scores = [[float(value)] for value in range(11)] + [[-1.0], [100.0]]
    predictions = make_predictions(scores, [0] * 11 + [-1, -1])
    predictions.known[-1] = False
    ranges = measure_score_ranges([predictions], 0)
    assert ranges is not None
    np.testing.assert_allclose(ranges[0], [1.0, 5.0, 9.0])
    np.testing.assert_allclose(ranges[1], [-1.0, -1.0, -1.0])


def test_a_task_without_positives_has_no_score_ranges() -> None:
    assert measure_score_ranges([make_predictions([[1.0, 2.0]], [0])], 1) is None


def test_bins_sum_neighbours_and_lose_nothing() -> None:
    np.testing.assert_array_equal(sum_bins(np.arange(16).reshape(4, 4), 2, 2), [[0 + 1 + 4 + 5, 18], [42, 50]])
    values = np.random.default_rng(0).integers(0, 9, (103, 61))
    assert sum_bins(values, 48, 60).shape == (48, 60)
    assert sum_bins(values, 48, 60).sum() == values.sum()
    np.testing.assert_array_equal(sum_bins(values, 200, 200), values)
