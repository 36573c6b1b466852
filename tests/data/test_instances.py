"""Which images of a source a client trains along, and what becomes of the labels."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from mtl.data.federated_data import FederatedData
from mtl.data.instances import add_instances, density_ratio, draw_systematically, left_out_error
from mtl.data.splits import Split
from mtl.data.subtasks import Subtasks, attributes, one_vs_rest
from tests.conftest import make_federation, make_images


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_ratio_of_two_normal_densities_is_found() -> None:
    client, source = 0.7 * draw(400, 1) + 0.5, draw(800, 1, seed=1)
    ratios = density_ratio(client, source, rng())

    def density(x: Tensor, mean: float, deviation: float) -> Tensor:
        return torch.exp(-((x - mean) ** 2) / (2 * deviation**2)) / deviation

    true = (density(source, 0.5, 0.7) / density(source, 0.0, 1.0))[:, 0]
    assert float(torch.corrcoef(torch.stack([ratios, true]))[0, 1]) > 0.97
    assert float(ratios.mean()) == pytest.approx(1, abs=0.1)
    assert float((ratios - true).abs().mean()) < 0.15


def test_one_centre_is_worked_out_by_hand() -> None:
    # One own image at 0, the source at 1, 1 and 3: the median distance is 1, and any one strength gives the same shares.
    ratios = density_ratio(torch.zeros(1, 1), torch.tensor([[1.0], [1.0], [3.0]]), rng())
    kernels = [math.exp(-0.5), math.exp(-0.5), math.exp(-4.5)]
    strength = math.exp(0) / (sum(k * k for k in kernels) / 3 + 1)
    assert ratios.tolist() == pytest.approx([strength * k for k in kernels])


@pytest.mark.parametrize(("n", "m"), [(4, 7), (6, 3)])
def test_leaving_out_is_fitting_without(n: int, m: int) -> None:
    client_kernels, source_kernels, ridge = draw(n, 5).exp(), draw(m, 5, seed=1).exp(), 0.3
    errors = []
    for i in range(min(n, m)):
        client, source = (torch.cat([part[:i], part[i + 1 :]]) for part in (client_kernels, source_kernels))
        gram = sum(torch.outer(row, row) for row in source) / len(source)
        strengths = torch.linalg.inv(gram + ridge * torch.eye(5)) @ (sum(client) / len(client))
        strengths = torch.tensor([max(float(value), 0) for value in strengths], dtype=torch.float64)
        errors.append(float(strengths @ source_kernels[i]) ** 2 / 2 - float(strengths @ client_kernels[i]))
    assert left_out_error(client_kernels, source_kernels, ridge) == pytest.approx(sum(errors) / len(errors))


def test_drawn_shares_are_those_of_the_weights() -> None:
    weights = torch.tensor([0.5, 0.0, 2.0, 1.1, 0.4], dtype=torch.float64)
    shares = 6 * weights / weights.sum()
    starts = [(step + 0.5) / 400 for step in range(400)]
    counts = torch.stack([draw_systematically(weights, 6, start).bincount(minlength=5) for start in starts]).double()
    assert (counts.sum(1) == 6).all()
    assert ((counts - shares).abs() < 1).all()
    assert counts.mean(0).tolist() == pytest.approx(shares.tolist(), abs=0.01)
    # By hand: ends at .75, .75, 3.75, 5.4 and 6, and places at .5, 1.5, ...
    assert draw_systematically(weights, 6, 0.5).tolist() == [0, 2, 2, 2, 3, 4]


def embed(images: Tensor) -> Tensor:
    return images.flatten(1).float() / 255


def with_source(
    data: FederatedData, *, ratio: float = 0.5, disjoint: bool = False, seed: int = 0, subtasks: Subtasks | None = None
) -> FederatedData:
    source = make_images(num_classes=5, per_class=4, seed=9)
    index = torch.arange(len(source)).view(5, 4)[:, 1:].flatten()  # the first of each class is for something else
    source_subtasks = one_vs_rest(source) if subtasks is None else subtasks
    return add_instances(data, source.images, source_subtasks, index, embed=embed, ratio=ratio, disjoint=disjoint, seed=seed)


@pytest.mark.parametrize("disjoint", [False, True])
def test_the_labels_of_each_side_are_its_own(disjoint: bool) -> None:
    data = make_federation()
    both = with_source(data, disjoint=disjoint)
    images, tasks = len(data.images), data.num_tasks
    source = make_images(num_classes=5, per_class=4, seed=9)
    assert both.tasks[:tasks] == data.tasks
    assert both.num_tested == tasks
    assert both.num_source == both.num_tasks - tasks > 0
    assert torch.equal(both.images[:images], data.images)
    assert torch.equal(both.targets[:images, :tasks], data.targets)
    assert torch.equal(both.known[:images, :tasks], data.known)
    assert torch.equal(both.assignment[:, :tasks], data.assignment)
    assert both.split == data.split
    assert not both.targets[:images, tasks:].any()
    assert not both.targets[images:, :tasks].any()
    for corner in (both.known[:images, tasks:], both.known[images:, :tasks]):
        assert corner.all() if disjoint else not corner.any()
    assert both.known[images:, tasks:].all()
    originals = {image.numpy().tobytes(): c for image, c in zip(source.images, source.classes.tolist(), strict=True)}
    for image, labels in zip(both.images[images:], both.targets[images:, tasks:], strict=True):
        named = [name for name, label in zip(both.tasks[tasks:], labels.tolist(), strict=True) if label]
        assert named == [f"source:c{originals[image.numpy().tobytes()]}"]
    held_back = {image.numpy().tobytes() for image in source.images[::4]}
    assert not any(image.numpy().tobytes() in held_back for image in both.images[images:])
    for client, client_images in enumerate(both.clients):
        assert torch.equal(client_images[: data.clients.size(client)], data.clients[client])
        assert len(client_images) == 1.5 * data.clients.size(client)
        counted = (both.targets & both.known)[client_images].sum(0), (~both.targets & both.known)[client_images].sum(0)
        assert torch.equal(both.positives[client], counted[0])
        assert torch.equal(both.negatives[client], counted[1])
        assert torch.equal(both.assignment[client, tasks:], both.positives[client, tasks:] > 0)
    assert both.assignment.any(0).all()


def test_a_client_draws_by_its_own_images_alone() -> None:
    data = make_federation()
    images = data.images.clone()
    images[data.clients[1]] = images[data.clients[1]].flip(0) // 2

    def drawn(both: FederatedData, client: int) -> Tensor:
        return both.images[both.clients[client][data.clients.size(client) :]]

    one, other = with_source(data), with_source(dataclasses.replace(data, images=images))
    assert torch.equal(drawn(one, 0), drawn(other, 0))
    assert not torch.equal(drawn(one, 1), drawn(other, 1))


def test_one_place_for_all_holds_what_all_clients_hold() -> None:
    both = with_source(make_federation())
    whole = both.pooled()
    assert whole.clients[0].tolist() == sorted(both.clients.values.tolist())
    assert torch.equal(whole.positives[0], (both.targets & both.known)[whole.clients[0]].sum(0))
    assert torch.equal(whole.negatives[0], (~both.targets & both.known)[whole.clients[0]].sum(0))
    # Without a source it is what it was: the training images in their order.
    plain = make_federation().pooled()
    assert torch.equal(plain.clients[0], plain.split.train)


def test_images_that_are_likest_are_drawn_most() -> None:
    # Client 0 owns classes 0 and 1, each with a bright row of its own, as have the source's classes of the same names.
    source = make_images(num_classes=5, per_class=4, seed=9)

    def rows(images: Tensor) -> Tensor:
        return images[:, 0].float().mean(-1) - 60

    both = add_instances(
        make_federation(), source.images, one_vs_rest(source), torch.arange(20), embed=rows, ratio=3.0, disjoint=False, seed=0
    )
    names = [name.removeprefix("source:") for name in both.tasks[4:]]
    for client, classes in enumerate((("c0", "c1"), ("c2", "c3"))):
        likest = sum(int(both.positives[client, 4 + names.index(name)]) for name in classes)
        assert likest > 0.6 * both.positives[client, 4:].sum()  # by chance .4


def test_attributes_of_a_source_are_trained_along_too() -> None:
    source = make_images(num_classes=5, per_class=4, seed=9)
    both = with_source(make_federation(), subtasks=attributes(source))
    assert both.tasks[4:] == ("source:odd", "source:some")
    assert not both.known[len(make_federation().images) :, 5].all()  # some labels are unknown, as they were


def test_what_cannot_be_drawn_is_refused() -> None:
    data = make_federation()
    source = make_images(num_classes=5, per_class=4, seed=9)
    options = {"embed": embed, "ratio": 1.0, "disjoint": False, "seed": 0}
    everything = torch.arange(len(source))
    with pytest.raises(ValueError, match=r"transfer.source must have images of \(1, 8, 8\) in torch.uint8, got \(1, 6, 8\)"):
        add_instances(data, source.images[:, :, :6], one_vs_rest(source), everything, **options)  # type: ignore[arg-type]
    nothing = Subtasks(("a",), torch.zeros(20, 1, dtype=torch.bool), torch.ones(20, 1, dtype=torch.bool), num_exclusive=0)
    with pytest.raises(
        ValueError, match=r"transfer.source must have training images that are positives of its subtasks, got none"
    ):
        add_instances(data, source.images, nothing, everything, **options)  # type: ignore[arg-type]
    same = make_images()
    with pytest.raises(ValueError, match="no image of validation or test, and 8 of its training images are of them"):
        add_instances(data, same.images, one_vs_rest(same), torch.arange(24), **options)  # type: ignore[arg-type]
    empty = torch.zeros(0, dtype=torch.long)
    assert add_instances(
        dataclasses.replace(data, split=Split(data.split.train, empty, empty)),
        same.images,
        one_vs_rest(same),
        torch.arange(24),
        **options,  # type: ignore[arg-type]
    ).num_source
