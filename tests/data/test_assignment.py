import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl.data import assignment as rules

OWNED = torch.tensor([[3, 0, 0, 1], [0, 2, 0, 0], [0, 0, 4, 0]])


def test_owner_trains_what_it_has_positives_of() -> None:
    assert torch.equal(rules.owner(OWNED, 0), OWNED > 0)


@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 99), st.data())
@settings(max_examples=60, deadline=None)
def test_overlapping_puts_each_task_on_k_clients_evenly(num_clients: int, num_tasks: int, seed: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, num_clients))
    matrix = rules.overlapping(torch.ones(num_clients, num_tasks, dtype=torch.long), seed, clients_per_task=k)
    assert (matrix.sum(0) == k).all()
    load = matrix.sum(1)
    assert load.max() - load.min() <= 1


def test_disjoint_prefers_the_holders_of_positives() -> None:
    matrix = rules.disjoint(OWNED, 0)
    assert (matrix.sum(0) == 1).all()
    assert (matrix <= (OWNED > 0)).all()


def test_random_gives_each_client_k_tasks() -> None:
    matrix = rules.random(torch.ones(50, 30, dtype=torch.long), 2, tasks_per_client=7)
    assert (matrix.sum(1) == 7).all()
    assert len(matrix.unique(dim=0)) > 40


@pytest.mark.parametrize(
    ("assignment", "images", "reason"),
    [
        ([[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 1, 0]], [4, 2, 4], "client 1 trains no subtask"),
        ([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 0, 1]], [4, 2, 4], "subtask c is trained by no client"),
        ([[1, 0, 1, 1], [0, 1, 0, 0], [1, 0, 0, 0]], [4, 2, 4], "subtask c has no training positive"),
        ([[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 1, 0]], [4, 2, 4], "client 1 holds no positive of any"),
        ([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]], [4, 0, 4], "client 1 holds no training image"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_the_reason(assignment: list[list[int]], images: list[int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        rules.check_assignment(torch.tensor(assignment).bool(), OWNED, torch.tensor(images), ("a", "b", "c", "d"))


def test_one_sided_clients_are_valid_where_another_holds_the_positives() -> None:
    rules.check_assignment(rules.all_to_all(OWNED, 0), OWNED, torch.tensor([4, 2, 4]), ("a", "b", "c", "d"))


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"assignment.clients_per_task must be in \[1, 3\]"):
        rules.overlapping(OWNED, 0, clients_per_task=4)
    with pytest.raises(ValueError, match=r"assignment.tasks_per_client must be in \[1, 4\]"):
        rules.random(OWNED, 0, tasks_per_client=5)
