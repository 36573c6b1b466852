import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from mtl.balancing.gramian import HeadGeometry, cosines, gramian_of
from mtl.balancing.grouping import group_tasks

# Pairs 0-1 (.9) and 2-3 (.8) are close. Task 4 is as far as .5 from the first pair on average (.7 and .3), .45 from the second (.45, .45),
# though single linkage would join it to the first by .7 and complete linkage to the second by .45.
HAND = torch.tensor(
    [
        [1.0, 0.9, 0.0, 0.1, 0.7],
        [0.9, 1.0, 0.2, 0.1, 0.3],
        [0.0, 0.2, 1.0, 0.8, 0.45],
        [0.1, 0.1, 0.8, 1.0, 0.45],
        [0.7, 0.3, 0.45, 0.45, 1.0],
    ]
)


@pytest.mark.parametrize(
    ("k", "groups"),
    [
        (5, [[0], [1], [2], [3], [4]]),
        (4, [[0, 1], [2], [3], [4]]),
        (3, [[0, 1], [2, 3], [4]]),
        (2, [[0, 1, 4], [2, 3]]),
        (1, [[0, 1, 2, 3, 4]]),
    ],
)
def test_groups_of_a_case_worked_out_by_hand(k: int, groups: list[list[int]]) -> None:
    assert group_tasks(HAND, k) == groups


@given(st.integers(2, 12), st.integers(0, 999), st.data())
@settings(max_examples=60, deadline=None)
def test_groups_are_those_of_scipys_average_linkage(number: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, number))
    rng = torch.Generator().manual_seed(seed)
    cosine, _ = cosines(gramian_of(torch.randn(number, 6, generator=rng, dtype=torch.float64)))
    distances = squareform((1 - cosine).clamp_min(0).fill_diagonal_(0).numpy(), checks=False)
    labels = fcluster(linkage(distances, "average"), k, "maxclust")
    expected = sorted([t for t in range(number) if labels[t] == label] for label in set(labels))
    assert group_tasks(cosine, k) == expected


@given(st.integers(0, 999), st.permutations(range(6)))
@settings(max_examples=20, deadline=None)
def test_groups_do_not_depend_on_the_order(seed: int, order: list[int]) -> None:
    cosine, _ = cosines(gramian_of(torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))))
    groups = group_tasks(cosine[order][:, order], 3)
    assert sorted(sorted(order[task] for task in group) for group in groups) == group_tasks(cosine, 3)


def test_tasks_of_opposed_gradients_are_parted() -> None:
    # Two tasks with one head's direction and the same errors, two with the errors turned around.
    errors = torch.randn(8, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, -1.0, 1.0, -1.0])
    cosine, _ = cosines(HeadGeometry(torch.ones(4, 3), torch.ones(8, 3), cosine=False).gramian(errors))
    assert group_tasks(cosine, 2) == [[0, 2], [1, 3]]


def test_of_equals_the_first_are_joined() -> None:
    assert group_tasks(torch.ones(4, 4), 2) == [[0, 1, 2], [3]]


def test_wrong_input_is_refused() -> None:
    for k in (0, 6):
        with pytest.raises(ValueError, match=rf"k must be in \[1, 5\], got {k}"):
            group_tasks(HAND, k)
    broken = HAND.clone()
    broken[0, 1] = torch.nan
    for wrong in (HAND[:3], HAND + torch.arange(5), broken):
        with pytest.raises(ValueError, match=r"cosines must be a finite symmetric matrix \[T, T\], got"):
            group_tasks(wrong, 1)
