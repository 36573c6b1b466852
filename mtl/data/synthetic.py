"""Synthetic(alpha, beta): federated classification whose difference between clients has two dials.

Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.1. For client k

    y = argmax softmax(W_k^T x + b_k),   W_k, b_k ~ N(u_k, 1),   u_k ~ N(0, alpha)
    x ~ N(v_k, Sigma),   Sigma_jj = j^-1.2,   v_k ~ N(B_k, 1),   B_k ~ N(0, beta)

with u_k and B_k one number per client: alpha is how far the clients' models differ, beta how far their inputs do. Client k holds
50 + floor(exp(N(4, 2))) samples. Alpha = beta = 0 is still not iid, as each client draws its own W_k, b_k and v_k; with `iid` all
clients share one W, b ~ N(0, 1), and v_k = 0. As published, u_k moves the logits of all classes alike, so that alpha changes W_k
and b_k but not the labels: what tells Synthetic(0, 0) from Synthetic(1, 1) is beta.

The paper leaves open whether the second argument of N is a variance; as in the authors' generate_synthetic.py, alpha, beta and
the 2 of the log-normal are standard deviations, and Sigma is a covariance. Departures: the draws are torch's; client k's data
depend on (seed, k) alone, not on how many clients there are; and the split into training and test samples is left to the caller.
"""

import math

import torch

from mtl.base.seeding import generator
from mtl.base.types import ImageData
from mtl.data.images import no_attributes


def synthetic(
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    iid: bool = False,
    num_clients: int = 30,
    num_classes: int = 10,
    dimension: int = 60,
    samples_per_client: int | None = None,
    seed: int = 0,
) -> ImageData:
    """Synthetic(alpha, beta) of FedProx: vectors whose classes and inputs differ from client to client (Li et al. 2020).

    images: float32 [N, dimension, 1, 1]; owners: the client of each sample.

    Args:
        alpha: how far the clients' models differ.
        beta: how far their inputs differ.
        iid: the paper's Synthetic-IID; alpha and beta play no part.
        num_clients: clients.
        num_classes: classes.
        dimension: numbers in a vector.
        samples_per_client: None draws the paper's log-normal sizes.
        seed: seed of the data.
    """
    for field, dial in (("alpha", alpha), ("beta", beta)):
        if not 0 <= dial < math.inf:
            raise ValueError(f"{field} must be finite and >= 0, got {dial}")
    counts = {"num_clients": (num_clients, 1), "num_classes": (num_classes, 2), "dimension": (dimension, 1)}
    _check_counts(counts | ({} if samples_per_client is None else {"samples_per_client": (samples_per_client, 1)}))
    deviation = torch.arange(1, dimension + 1) ** -0.6
    shared = generator(seed, "synthetic/shared")
    shared_weight, shared_bias = torch.randn(dimension, num_classes, generator=shared), torch.randn(num_classes, generator=shared)
    inputs, classes, sizes = [], [], []
    for client in range(num_clients):
        draw = generator(seed, "synthetic/client", client=client)
        model_mean, input_mean = torch.randn(2, generator=draw) * torch.tensor([alpha, beta])
        weight = model_mean + torch.randn(dimension, num_classes, generator=draw)
        bias = model_mean + torch.randn(num_classes, generator=draw)
        centre = input_mean + torch.randn(dimension, generator=draw)
        size = 50 + int(torch.exp(4 + 2 * torch.randn((), generator=draw)))
        if iid:
            weight, bias, centre = shared_weight, shared_bias, torch.zeros(dimension)
        x = centre + deviation * torch.randn(samples_per_client or size, dimension, generator=draw)
        inputs.append(x)
        classes.append((x @ weight + bias).argmax(1))
        sizes.append(len(x))
    images = torch.cat(inputs)[:, :, None, None]
    dials = "iid" if iid else f"alpha={alpha}, beta={beta}"
    return ImageData(
        name="synthetic",
        images=images,
        classes=torch.cat(classes),
        class_names=tuple(str(number) for number in range(num_classes)),
        attributes=no_attributes(len(images)),
        attribute_names=(),
        source=f"drawn: {dials}, seed {seed}",
        owners=torch.arange(num_clients).repeat_interleave(torch.tensor(sizes)),
    )


def _check_counts(counts: dict[str, tuple[int, int]]) -> None:
    """Raise ValueError for a count below the least one, by option."""
    for field, (count, least) in counts.items():
        if count < least:
            raise ValueError(f"{field} must be >= {least}, got {count}")
