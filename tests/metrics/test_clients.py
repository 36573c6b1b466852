"""The accuracy of clients by hand."""

import math

import pytest
import torch

from mtl.metrics.clients import client_accuracy, summarise_clients

SCORES = torch.tensor([[2.0, 1.0, 9.0], [1.0, 2.0, 9.0], [1.0, 2.0, 9.0], [-1.0, 5.0, 1.0], [1.0, 5.0, -1.0]])
IDENTITY = torch.tensor([0, 0, 2, 2, 0])
TARGETS = IDENTITY[:, None] == torch.arange(3)
OWNER = torch.tensor([0, 0, 0, 1, 1])
TASKS = torch.tensor([[True, True, False], [False, False, True], [True, True, True]])


def test_a_client_of_several_classes_chooses_among_these_and_one_of_a_single_class_says_yes_or_no() -> None:
    found = client_accuracy(SCORES, TARGETS, torch.ones_like(TARGETS), IDENTITY, OWNER, TASKS, 3)
    # Client 0 is right on the first of two images of its classes; client 1 says yes to a 2 and no to a 0.
    assert found[:2].tolist() == [0.5, 1.0]
    assert math.isnan(found[2])


def test_unknown_labels_of_attributes_do_not_count() -> None:
    known = torch.ones_like(TARGETS)
    known[3, 2] = False
    scores = SCORES.clone()
    scores[3, 2] = -1.0
    found = client_accuracy(scores, TARGETS, known, torch.full((5,), -1), OWNER, TASKS, 0)
    assert found[1] == 1.0
    assert found[0] == pytest.approx(2 / 6)  # yes to both subtasks: one of two is right on two images, none on the third


def test_mean_worst_tenth_and_worst_client() -> None:
    accuracy = torch.tensor([*[0.9] * 18, 0.1, 0.3, torch.nan], dtype=torch.float64)
    expected = {"accuracy": (18 * 0.9 + 0.4) / 20, "worst_tenth_accuracy": 0.2, "worst_client_accuracy": 0.1}
    assert summarise_clients(accuracy) == pytest.approx(expected)
    assert set(summarise_clients(accuracy[-1:]).values()) == {None}
