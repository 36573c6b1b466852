"""The rules on options of asynchronous algorithms, whose clients leave and arrive on the modelled clock; a part of `rules`."""

from collections.abc import Iterator

import torch
from hydra_zen import instantiate
from omegaconf import DictConfig

from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.asynchronous import Asynchronous
from mtl.federation.population.sampling import Sampling


def asynchronous_problems(config: DictConfig, algorithm: Algorithm, name: str, *, has_ensemble: bool) -> Iterator[str]:
    """Yield what contradicts an asynchronous algorithm; nothing for others.

    Args:
        config: a composed configuration.
        algorithm: of the configuration.
        name: of the algorithm, for errors.
        has_ensemble: whether the server learns from the ensemble of the clients' models.
    """
    server = algorithm.server
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
    if server.buffer == 1:
        return
    # A second training in a round would start without the state that the first one leaves.
    twice = f"{name} lets a client train twice in a round, and no state may stay on it (algorithm=fedasync may have some):"
    if config.keep != "nothing":
        yield f"{twice} keep must be nothing, got {config.keep}"
    balancer = instantiate(config.balancer)
    if balancer.observes or balancer.init(torch.zeros(2, 2)):
        yield f"{twice} balancer must be one without memory, got {type(balancer).__name__}"
    if algorithm.client.keeps:
        yield f"{twice} the algorithm's client half must keep nothing, got {', '.join(algorithm.client.keeps)}"
