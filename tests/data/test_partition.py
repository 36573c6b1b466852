from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtl.data import partition as rules

RULES: dict[str, Callable[[Tensor, int, int], rules.Partition]] = {
    "iid": lambda y, seed, c: rules.iid(y, seed, num_clients=c),
    "by_class": lambda y, seed, c: rules.by_class(y, seed, num_clients=c),
    "dirichlet": lambda y, seed, c: rules.dirichlet(y, seed, num_clients=c, alpha=0.05),
    "shards": lambda y, seed, c: rules.shards(y, seed, num_clients=c, classes_per_client=2),
    "quantity_skew": lambda y, seed, c: rules.quantity_skew(y, seed, num_clients=c, sigma=2.0),
}


@pytest.mark.parametrize("name", RULES)
@given(labels=st.lists(st.integers(-1, 6), min_size=1, max_size=80), num_clients=st.integers(1, 12), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_every_image_is_on_exactly_one_client_and_none_is_empty(
    name: str, labels: list[int], num_clients: int, seed: int
) -> None:
    y = torch.tensor(labels)
    num_labels = len(y.unique())
    if num_clients > len(y) or (name == "by_class" and num_labels < num_clients):
        with pytest.raises(ValueError, match=r"partition\.num_clients"):
            RULES[name](y, seed, num_clients)
        return
    if name == "shards" and (num_labels < 2 or 2 * num_clients != num_labels):
        return  # with more slots than labels a small label may not go round: see the tests of shards below
    parts = RULES[name](y, seed, num_clients)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(y)))
    assert len(parts) == num_clients
    assert all(len(part) for part in parts)
    for part, again in zip(parts, RULES[name](y, seed, num_clients), strict=True):
        assert torch.equal(part, again)


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(part) for part in rules.iid(torch.zeros(29), 0, num_clients=8)]
    assert sorted(sizes) == [3, 3, 3, 4, 4, 4, 4, 4]


def test_by_class_keeps_a_class_on_one_client() -> None:
    y = torch.arange(40).repeat_interleave(5)
    parts = rules.by_class(y, 3, num_clients=8)
    assert [len(y[part].unique()) for part in parts] == [5] * 8
    assert [len(part) for part in parts] == [25] * 8


def test_shards_give_k_classes_to_each_client() -> None:
    y = torch.arange(10).repeat_interleave(50)
    parts = rules.shards(y, 1, num_clients=20, classes_per_client=3)
    assert [len(y[part].unique()) for part in parts] == [3] * 20
    assert max(len(part) for part in parts) - min(len(part) for part in parts) <= 9


def test_dirichlet_share_of_the_first_client_has_the_mean_and_variance_of_a_beta() -> None:
    # With two clients and alpha = .5 the share is Beta(.5, .5): mean 1/2, variance 1/8.
    y = torch.zeros(2000, dtype=torch.long)
    share = torch.tensor([len(rules.dirichlet(y, seed, num_clients=2, alpha=0.5)[0]) / 2000 for seed in range(400)])
    assert share.mean() == pytest.approx(0.5, abs=4 * (0.125 / 400) ** 0.5)
    assert share.var() == pytest.approx(0.125, rel=0.15)


def test_dirichlet_with_a_large_alpha_is_even() -> None:
    y = torch.arange(4).repeat_interleave(100)
    counts = torch.stack([y[part].bincount(minlength=4) for part in rules.dirichlet(y, 0, num_clients=4, alpha=1e6)])
    assert (counts - 25).abs().max() <= 1


def test_min_images_is_kept_where_the_draw_leaves_clients_poor() -> None:
    sizes = [len(part) for part in rules.dirichlet(torch.zeros(60), 0, num_clients=20, alpha=1e-3, min_images=3)]
    assert min(sizes) == 3
    assert sum(sizes) == 60


def test_quantity_skew_is_log_normal() -> None:
    sizes = torch.tensor([float(len(p)) for p in rules.quantity_skew(torch.zeros(200_000), 0, num_clients=500, sigma=1.0)])
    assert (sizes - 1).log().std() == pytest.approx(1.0, rel=0.12)


def test_per_label_makes_a_client_of_each_label() -> None:
    parts = rules.per_label(torch.tensor([7, 3, 7, 3, 3]), 0)
    assert [part.tolist() for part in parts] == [[1, 3, 4], [0, 2]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rules.iid(torch.zeros(3), 0, num_clients=4), r"partition.num_clients must be in \[1, 3\].*got 4"),
        (lambda: rules.by_class(torch.tensor([0, 0, 1]), 0, num_clients=3), "at most the 2 classes"),
        (lambda: rules.dirichlet(torch.zeros(9), 0, num_clients=2, alpha=0.0), "partition.alpha must be > 0, got 0.0"),
        (
            lambda: rules.dirichlet(torch.zeros(9), 0, num_clients=2, min_images=5),
            r"partition.min_images must be in \[1, 4\], got 5",
        ),
        (lambda: rules.shards(torch.arange(10), 0, num_clients=2, classes_per_client=2), "images would be on no client"),
        (lambda: rules.shards(torch.arange(10), 0, num_clients=2, classes_per_client=11), r"in \[1, 10\], got 11"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
