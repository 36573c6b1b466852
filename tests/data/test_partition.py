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
    "dirichlet_clients": lambda y, seed, c: rules.dirichlet_clients(y, seed, num_clients=c, alpha=0.3),
    "shards": lambda y, seed, c: rules.shards(y, seed, num_clients=c, shards_per_client=2),
    "sizes": lambda y, seed, c: rules.sizes(y, seed, sizes=[1] * (c - 1) + [len(y) - c + 1]),
    "log_normal_labels": lambda y, seed, c: rules.log_normal_labels(y.repeat(2 * c), seed, num_clients=c, min_images=1),
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
    if name == "sizes" and num_clients > len(y):
        return
    if name == "log_normal_labels":
        if not 2 <= num_labels <= num_clients + 1:
            return  # see the tests of its errors below
        y = y.repeat(2 * num_clients)
    elif num_clients > len(y) or (name == "by_class" and num_labels < num_clients):
        with pytest.raises(ValueError, match=r"partition\.num_clients"):
            RULES[name](y, seed, num_clients)
        return
    if name == "shards" and 2 * num_clients > len(y):
        return
    parts = RULES[name](torch.tensor(labels), seed, num_clients)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(y)))
    assert len(parts) == num_clients
    assert all(len(part) for part in parts)
    for part, again in zip(parts, RULES[name](torch.tensor(labels), seed, num_clients), strict=True):
        assert torch.equal(part, again)


def test_iid_sizes_differ_by_at_most_one() -> None:
    sizes = [len(part) for part in rules.iid(torch.zeros(29), 0, num_clients=8)]
    assert sorted(sizes) == [3, 3, 3, 4, 4, 4, 4, 4]


def test_by_class_keeps_a_class_on_one_client() -> None:
    y = torch.arange(40).repeat_interleave(5)
    parts = rules.by_class(y, 3, num_clients=8)
    assert [len(y[part].unique()) for part in parts] == [5] * 8
    assert [len(part) for part in parts] == [25] * 8


def test_shards_are_dealt_at_random() -> None:
    # McMahan et al. 2017 with 100 clients, 10 classes and k = 2. Two shards differ in class with probability 180/199, so about 90 clients
    # draw one of 45 pairs: 45 (1 - (1 - 90/100/45)^100) = 39 different ones are expected; a circle of classes would have 10 at most.
    y = torch.arange(10).repeat_interleave(60)
    clients = [tuple(sorted(set(y[part].tolist()))) for part in rules.shards(y, 0, num_clients=100)]
    assert {len(part) for part in rules.shards(y, 0, num_clients=100)} == {6}
    assert {len(classes) for classes in clients} == {1, 2}
    assert 32 <= len({classes for classes in clients if len(classes) == 2}) <= 45
    assert clients != [tuple(sorted(set(y[part].tolist()))) for part in rules.shards(y, 1, num_clients=100)]


def test_a_shard_is_of_one_class_and_its_images_are_drawn_at_random() -> None:
    y = torch.arange(4).repeat(50)
    first, other = (rules.shards(y, seed, num_clients=4, shards_per_client=1) for seed in (0, 1))
    assert [len(y[part].unique()) for part in first] == [1] * 4
    halves = [
        set(map(tuple, (part.tolist() for part in rules.shards(y, seed, num_clients=8, shards_per_client=1)))) for seed in (0, 1)
    ]
    assert not halves[0] & halves[1]
    assert {tuple(part.tolist()) for part in first} == {tuple(part.tolist()) for part in other}


def test_sizes_are_those_given_and_shares_are_of_all_images() -> None:
    y = torch.zeros(100)
    parts = rules.sizes(y, 0, sizes=[50, 20, 5])
    assert [len(part) for part in parts] == [50, 20, 5]
    assert len(torch.cat(parts).unique()) == 75
    assert [len(part) for part in rules.sizes(y, 0, sizes=[0.5, 0.3, 0.2])] == [50, 30, 20]
    assert not torch.equal(parts[0], rules.sizes(y, 1, sizes=[50, 20, 5])[0])


@pytest.mark.parametrize("alpha", [1e-4, 1e-5, 1e-100])
def test_dirichlet_with_a_tiny_alpha_gives_each_class_to_one_client(alpha: float) -> None:
    # Of n draws of Gamma(a), a -> 0, one is larger than all others by any factor: the proportions are one-hot, at a place that is uniform.
    y = torch.arange(8).repeat_interleave(100)
    owners = []
    for seed in range(12):
        counts = torch.stack([y[part].bincount(minlength=8) for part in rules.dirichlet(y, seed, num_clients=8, alpha=alpha)])
        assert (counts.max(0).values >= 93).all()  # seven images at most go to clients that were left empty
        owners.append(counts.argmax(0))
    assert torch.stack(owners).flatten().bincount(minlength=8).min() >= 2  # of 12 expected each


def test_clients_by_dirichlet_are_equal_in_size_and_have_the_mixtures_of_the_paper() -> None:
    # Hsu et al.: q ~ Dir(alpha p), here of two classes with p = (1/4, 3/4) and alpha = 4: Beta(1, 3), mean 1/4, variance 3/80. Few clients
    # of many images, so that none runs out of a class; counts of n = 40 drawn by q add (n - 1)/n of it and mean (1 - mean)/n.
    y = torch.tensor([0, 1, 1, 1]).repeat(1000)
    share = torch.tensor([float((y[part] == 0).sum()) / 40 for seed in range(30) for part in _first(y, seed)])
    assert share.mean() == pytest.approx(0.25, abs=4 * (0.05 / len(share)) ** 0.5)
    assert share.var() == pytest.approx(3 / 80 + (0.25 * 0.75 - 3 / 80) / 40, rel=0.15)


def _first(y: Tensor, seed: int) -> list[Tensor]:
    parts = rules.dirichlet_clients(y, seed, num_clients=100, alpha=4.0)
    assert {len(part) for part in parts} == {40}
    return parts[:40]


def test_clients_by_dirichlet_follow_alpha_from_one_class_to_all() -> None:
    y = torch.arange(5).repeat_interleave(200)
    for alpha in (1e-6, 1e-100):
        counts = torch.stack(
            [y[part].bincount(minlength=5) for part in rules.dirichlet_clients(y, 0, num_clients=10, alpha=alpha)]
        )
        assert (counts.sum(1) == 100).all()
        assert (counts.max(1).values == 100).all()  # two clients use up a class, exactly
    counts = torch.stack([y[part].bincount(minlength=5) for part in rules.dirichlet_clients(y, 0, num_clients=2, alpha=1e6)])
    assert (counts - 100).abs().max() < 40  # 500 draws from the five classes have a standard deviation of 9


def test_label_limited_clients_have_k_classes_each_in_log_normal_amounts() -> None:
    y = torch.arange(10).repeat_interleave(20_000)
    parts = rules.log_normal_labels(y, 0, num_clients=200, sigma=1.0, min_images=5)
    counts = torch.stack([y[part].bincount(minlength=10) for part in parts])
    assert ((counts > 0).sum(1) == 2).all()
    assert counts[counts > 0].min() >= 5
    assert (counts.sum(0) == 20_000).all()
    for class_counts in counts.T:
        assert (class_counts > 0).sum() == 40  # as the authors have it: l = (user + j) % 10, j = 0, 1
    logs = [(class_counts[class_counts > 0] - 5).clamp_min(1).double().log() for class_counts in counts.T]
    assert torch.cat([values - values.mean() for values in logs]).std() == pytest.approx(1.0, rel=0.12)
    pairs = {tuple(row.nonzero().flatten().tolist()) for row in counts}
    assert len(pairs) == 10  # a circle
    assert pairs != {tuple(sorted((c, (c + 1) % 10))) for c in range(10)}  # in an order of its own


def test_label_limited_clients_with_sigma_zero_share_evenly() -> None:
    y = torch.arange(6).repeat_interleave(60)
    parts = rules.log_normal_labels(y, 3, num_clients=12, classes_per_client=3, sigma=0.0)
    assert [y[part].bincount(minlength=6).sort().values.tolist() for part in parts] == [[0, 0, 0, 10, 10, 10]] * 12


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
        (
            lambda: rules.dirichlet(torch.zeros(9), 0, num_clients=2, alpha=0.0),
            r"partition.alpha must be in \[1e-200, inf\), got 0.0",
        ),
        (
            lambda: rules.dirichlet(torch.zeros(9), 0, num_clients=2, min_images=5),
            r"partition.min_images must be in \[1, 4\], got 5",
        ),
        (
            lambda: rules.dirichlet_clients(torch.zeros(9), 0, alpha=float("inf")),
            r"partition.alpha must be in \[1e-200, inf\), got inf",
        ),
        (
            lambda: rules.shards(torch.arange(10), 0, num_clients=2, shards_per_client=6),
            r"shards_per_client must be in \[1, 5\], got 6",
        ),
        (lambda: rules.sizes(torch.zeros(9), 0, sizes=[5, 5]), "at most the 9 training images, got 10"),
        (lambda: rules.sizes(torch.zeros(9), 0, sizes=[5, 0]), r"a number > 0 for each client, got \[5, 0\]"),
        (lambda: rules.sizes(torch.zeros(9), 0, sizes=[0.5, 0.4]), r"shares that add up to 1, got \[0.5, 0.4\]"),
        (lambda: rules.sizes(torch.zeros(9), 0, sizes=[0.99, 0.01]), "leave each client an image of 9"),
        (
            lambda: rules.log_normal_labels(torch.arange(9), 0, num_clients=2),
            "at least the 9 classes, or images would be on no client",
        ),
        (lambda: rules.log_normal_labels(torch.arange(2), 0, num_clients=2, classes_per_client=3), r"in \[1, 2\], got 3"),
        (
            lambda: rules.log_normal_labels(torch.arange(2), 0, num_clients=2),
            "asks for 10 images of class [01] for its 2 clients, and it",
        ),
        (lambda: rules.log_normal_labels(torch.arange(2), 0, num_clients=2, sigma=-1.0), "partition.sigma must be >= 0"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
