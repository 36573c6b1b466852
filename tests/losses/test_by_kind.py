import pytest
import torch

from mtl.losses.bce import BCE
from mtl.losses.by_kind import ByKind
from mtl.losses.pairs import TaskCounts
from mtl.losses.sphereface2 import SphereFace2

COUNTS = TaskCounts(torch.tensor([1.0, 2.0, 1.0, 6.0, 3.0]), torch.tensor([8.0, 7.0, 8.0, 3.0, 6.0]), torch.tensor(0.5))


def balanced(num_tasks: int) -> BCE:
    return BCE(num_tasks, positive_weight="balanced", scale=16.0)


def test_each_kind_costs_and_decides_as_it_would_alone() -> None:
    cosines = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    loss = ByKind(5, num_exclusive=3, classes=SphereFace2, attributes=balanced, attribute_weight=0.25)
    people, attributes = SphereFace2(3), balanced(2)
    of_people, of_attributes = TaskCounts(COUNTS.positives[:3], COUNTS.negatives[:3]), TaskCounts(*_last(COUNTS))
    expected = zip(people.terms(cosines[:, :3], of_people), attributes.terms(cosines[:, 3:], of_attributes), strict=True)
    for result, (first, last) in zip(loss.terms(cosines, COUNTS), expected, strict=True):
        torch.testing.assert_close(result, torch.cat([first, 0.25 * last], 1))
    decided = torch.cat([people.decision(cosines[:, :3]), attributes.decision(cosines[:, 3:])], 1)
    torch.testing.assert_close(loss.decision(cosines), decided)
    assert [name for name, _ in loss.named_parameters()] == ["classes.bias"]


def _last(counts: TaskCounts) -> tuple[torch.Tensor, torch.Tensor]:
    return counts.positives[3:], counts.negatives[3:]


@pytest.mark.parametrize("num_exclusive", [0, 5])
def test_one_kind_alone_is_refused(num_exclusive: int) -> None:
    with pytest.raises(ValueError, match=f"needs classes and attributes.*got {num_exclusive} classes among 5 subtasks"):
        ByKind(5, num_exclusive=num_exclusive, classes=SphereFace2, attributes=BCE)


def test_a_weight_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss.attribute_weight must be > 0, got 0"):
        ByKind(5, num_exclusive=3, classes=SphereFace2, attributes=BCE, attribute_weight=0)
