"""The laws of section 5.1 of Li et al., MLSys 2020."""

import math

import pytest
import torch

from mtl.data.synthetic import synthetic


@pytest.fixture(autouse=True)
def one_thread():
    """Hundreds of small products: on a busy machine each would wait milliseconds for a second thread."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def client_means(data) -> torch.Tensor:
    """[C, dimension], where all clients hold equally many samples."""
    return data.images.reshape(int(data.owners.max()) + 1, -1, data.images.shape[1]).mean(1)


def test_shapes_and_owners():
    data = synthetic(num_clients=5, num_classes=4, dimension=7, samples_per_client=11)
    assert data.images.shape == (55, 7, 1, 1)
    assert data.images.dtype == torch.float32
    assert data.owners.tolist() == [client for client in range(5) for _ in range(11)]
    assert data.class_names == ("0", "1", "2", "3")
    assert int(data.classes.max()) < 4
    assert data.attributes.shape == (55, 0)


def test_a_draw_depends_on_seed_and_client_alone():
    few, many = synthetic(num_clients=3), synthetic(num_clients=6)
    assert torch.equal(few.images, many.images[many.owners < 3])
    assert torch.equal(few.classes, many.classes[many.owners < 3])
    assert not torch.equal(few.images[:50], synthetic(num_clients=3, seed=1).images[:50])


def test_inputs_vary_by_the_power_law_within_a_client():
    data = synthetic(num_clients=1, samples_per_client=20000)
    expected = torch.tensor([number**-1.2 for number in range(1, 61)])
    assert torch.allclose(data.images[:, :, 0, 0].var(0) / expected, torch.ones(60), atol=0.06)


def test_beta_is_the_standard_deviation_of_the_clients_centres():
    """Var of mean_j x_j over clients is beta^2 + 1/60, plus a little from the samples: 9.02 for beta = 3, 0.017 for beta = 0."""
    for beta, expected in ((3.0, 9 + 1 / 60), (0.0, 1 / 60)):
        centres = client_means(synthetic(alpha=0, beta=beta, num_clients=400, samples_per_client=50))
        assert float(centres.mean(1).var()) == pytest.approx(expected, rel=0.25)
        assert float(centres[:, 30:].var(1).mean()) == pytest.approx(1, rel=0.05)  # v_k ~ N(B_k, 1)


def test_alpha_moves_all_logits_alike_and_so_no_label():
    low, high = (synthetic(alpha=alpha, samples_per_client=200) for alpha in (0, 2))
    assert torch.equal(low.images, high.images)
    assert (low.classes == high.classes).float().mean() > 0.999


def test_sizes_are_log_normal_above_fifty():
    """Quantiles at -1, 0, 1 standard deviations: 50 + e^2, 50 + e^4, 50 + e^6."""
    sizes = synthetic(num_clients=3000, dimension=1, num_classes=2).owners.bincount().float()
    assert sizes.min() >= 50
    for probability, power in ((0.1587, 2), (0.5, 4), (0.8413, 6)):
        assert float(sizes.quantile(probability)) - 50 == pytest.approx(math.exp(power), rel=0.2)


def label_distance(data) -> float:
    """Mean total variation between the labels of a client and those of all."""
    shares = torch.stack([data.classes[data.owners == client].bincount(minlength=10) / 2000 for client in range(10)])
    return float((shares - shares.mean(0)).abs().sum(1).mean() / 2)


def test_only_iid_clients_share_their_labels():
    assert label_distance(synthetic(iid=True, num_clients=10, samples_per_client=2000)) < 0.05
    assert label_distance(synthetic(alpha=0, beta=0, num_clients=10, samples_per_client=2000)) > 0.3


def test_iid_inputs_are_centred_on_zero():
    means = client_means(synthetic(iid=True, num_clients=10, samples_per_client=2000))
    assert float(means.abs().max()) < 5 / math.sqrt(2000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha must be finite and >= 0, got -1.0"),
        ({"beta": math.inf}, "beta must be finite and >= 0, got inf"),
        ({"beta": math.nan}, "beta must be finite and >= 0, got nan"),
        ({"num_clients": 0}, "num_clients must be >= 1, got 0"),
        ({"num_classes": 1}, "num_classes must be >= 2, got 1"),
        ({"dimension": 0}, "dimension must be >= 1, got 0"),
        ({"samples_per_client": 0}, "samples_per_client must be >= 1, got 0"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic(**options)
