import numpy as np
import pytest
import torch

from mtl.losses.bce import BCE
from mtl.losses.class_balanced import ClassBalanced, effective_number_weights
from mtl.losses.pairs import TaskCounts


def counts(*pairs: tuple[int, int]) -> TaskCounts:
    positives, negatives = torch.tensor(pairs, dtype=torch.float32).T
    return TaskCounts(positives, negatives)


def test_weights_by_hand() -> None:
    # beta = 1/2: one label is 1 effective label, two are 1.5; 1 : 2/3 scaled to sum to 2 is 1.2 : 0.8.
    positive, negative = ClassBalanced(1, beta=0.5).terms(torch.tensor([[0.3]]), counts((1, 2)))
    plain = BCE(1).terms(torch.tensor([[0.3]]), counts((1, 2)))
    torch.testing.assert_close(positive, 1.2 * plain[0])
    torch.testing.assert_close(negative, 0.8 * plain[1])


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999, 0.9999999])
def test_weights_agree_with_the_formula_in_double_precision(beta: float) -> None:
    pairs = [(1, 3), (40, 40000), (70000, 2), (9, 9)]
    numbers = np.array(pairs, dtype=np.float64)
    # As the authors compute them.
    expected = (1 - beta) / (1 - np.power(beta, numbers))
    expected = expected / expected.sum(1, keepdims=True) * 2
    log_beta = ClassBalanced(4, beta=beta).log_beta
    result = torch.stack(effective_number_weights(counts(*pairs), log_beta), 1)
    assert result.numpy() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.999])
def test_where_a_kind_is_missing_both_weigh_one(beta: float) -> None:
    log_beta = ClassBalanced(3, beta=beta).log_beta
    for weight in effective_number_weights(counts((5, 0), (0, 5), (0, 0)), log_beta):
        assert weight.tolist() == [1, 1, 1]


def test_beta_must_be_below_one() -> None:
    with pytest.raises(ValueError, match=r"loss.beta must be a number in \[0, 1\), got 1.0"):
        ClassBalanced(2, beta=1.0)
