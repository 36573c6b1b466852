"""Own test images follow the training images of their client."""

from dataclasses import replace

import torch

from mtl.data.federated_data import FederatedData
from mtl.data.own_images import own_test_images
from mtl.data.ragged import Ragged
from mtl.data.splits import Split
from tests.conftest import make_federation


def skewed(positives: list[list[int]], per_class: int) -> FederatedData:
    """Clients with so many training images of each class, and `per_class` test images of each class."""
    held, num_classes = torch.tensor(positives), len(positives[0])
    identity = torch.arange(num_classes).repeat_interleave(per_class)
    targets = identity[:, None] == torch.arange(num_classes)
    empty = torch.zeros(0, dtype=torch.long)
    return replace(
        make_federation(),
        tasks=tuple(f"c{t}" for t in range(num_classes)),
        targets=targets,
        known=torch.ones_like(targets),
        identity=identity,
        num_exclusive=num_classes,
        split=Split(empty, empty, torch.arange(len(identity))),
        clients=Ragged.of([empty] * len(positives)),
        assignment=held > 0,
        positives=held,
        negatives=held.sum(1, keepdim=True) - held,
    )


def test_a_client_that_holds_a_class_alone_gets_all_its_test_images() -> None:
    data = skewed([[8, 8, 0, 0], [0, 0, 8, 8]], per_class=5)
    own = own_test_images(data, seed=0)
    assert own[0].tolist() == list(range(10))
    assert own[1].tolist() == list(range(10, 20))


def test_shares_are_those_of_the_training_images_and_no_image_is_dealt_twice_where_they_suffice() -> None:
    data = skewed([[30, 10], [10, 0], [0, 30]], per_class=40)
    own = own_test_images(data, seed=3)
    classes = [torch.bincount(data.identity[images], minlength=2).tolist() for images in own]
    assert classes == [[30, 10], [10, 0], [0, 30]]
    assert sorted(own.values.tolist()) == list(range(80))
    assert own.values.tolist() == own_test_images(data, seed=3).values.tolist()
    assert own.values.tolist() != own_test_images(data, seed=4).values.tolist()


def test_a_thousand_clients_have_about_as_many_own_images_as_there_are_test_images() -> None:
    data = skewed([[5] * 10] * 1000, per_class=100)
    own = own_test_images(data, seed=0)
    assert min(own.sizes) == max(own.sizes) == 10  # one of each class that a client holds
    counts = torch.bincount(own.values, minlength=1000)
    assert 9 <= int(counts.min()) <= int(counts.max()) <= 11


def test_a_client_without_a_class_in_the_test_images_has_none() -> None:
    data = skewed([[5, 0, 0], [0, 5, 5]], per_class=4)
    data = replace(data, split=replace(data.split, test=torch.arange(4, 12)))
    assert own_test_images(data, seed=0).sizes == [0, 8]


def test_attributes_are_dealt_with_those_that_have_them_and_those_that_have_not() -> None:
    data = skewed([[6, 0], [2, 4]], per_class=20)
    targets = torch.stack([torch.arange(40) < 20, torch.arange(40) % 2 == 0], 1)
    data = replace(
        data, num_exclusive=0, targets=targets, identity=torch.full((40,), -1), negatives=torch.tensor([[2, 8], [6, 4]])
    )
    own = own_test_images(data, seed=0)
    assert all(0 < size < 40 for size in own.sizes)
    second = targets[own[1]]
    assert bool(second.any(0).all())
    assert bool((~second).any(0).all())
    assert sum(own.sizes) <= 2 * 40
