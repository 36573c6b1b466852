"""The rules on options of asynchronous algorithms, whose clients leave and arrive on the modelled clock; a part of `rules`."""

from collections.abc import Iterator

import torch
from hydra_zen import instantiate
from omegaconf import DictConfig

from mtl.federation.algorithms.algorithm import ServerAlgorithm
from mtl.federation.algorithms.asynchronous import Asynchronous
from mtl.federation.population.sampling import Sampling


def asynchronous_problems(config: DictConfig, server: ServerAlgorithm, name: str, *, has_ensemble: bool) -> Iterator[str]:
    """Yield what contradicts an asynchronous algorithm; nothing for others.

    Args:
        config: a composed configuration.
        server: the server half of its algorithm.
        name: of the algorithm, for errors.
        has_ensemble: whether the server learns from the ensemble of the clients' models.
    """
    if not isinstance(server, Asynchronous):
        return
    if config.fleet.mix is None:
        yield f"{name} needs a fleet, whose modelled seconds say who arrives when: fleet=phones, boards or mix, got none"
    for option in ("deadline", "wait_for"):
        if config.fleet[option] is not None:
            yield f"{name} waits for {server.buffer} arrivals: fleet.{option} must be null, got {config.fleet[option]}"
    sampling = instantiate(config.sampling)
    if type(sampling) is not Sampling or sampling.cohort is not None:
        yield f"{name} draws clients as others arrive: sampling=all and algorithm.concurrency, got sampling {sampling}"
    if has_ensemble:
        yield f"{name} has clients of several versions of the model, of which server=feddf would make one ensemble"
    if config.transfer.unfreeze_every is not None:
        yield f"{name} has clients of several rounds: transfer.unfreeze_every must be null, got {config.transfer.unfreeze_every}"
    # A second training in a round would start without the state that the first one leaves.
    if server.buffer > 1 and config.keep != "nothing":
        yield f"{name} lets a client train twice in a round: it needs keep=nothing or algorithm=fedasync, got keep={config.keep}"
    balancer = instantiate(config.balancer)
    if server.buffer > 1 and (balancer.observes or balancer.init(torch.zeros(2, 2))):
        yield (
            f"{name} lets a client train twice in a round: it needs a balancer without memory or algorithm=fedasync, got "
            f"{type(balancer).__name__}"
        )
