"""FedRep (Collins et al., ICML 2021): a client first trains its heads with the trunk fixed, then the trunk with the heads fixed.

    h_i <- h_i - rate (gradient of f_i(x, h_i) by h_i)      in the first steps of a round; h_i stays on the client
    y <- y - rate (gradient of f_i(y, h_i) by y)            in the others; y is sent and averaged

`head_share` of a client's local steps, rounded, are head steps: 10 epochs of 11 with the authors' code on two classes a client, 10 of 15 on
five. Departures from that code (github.com/lgcollins/FedRep): what is fixed does not move at all, where its one optimiser lets it drift by
momentum and weight decay; heads have `client.head_scale` of the learning rate, as always here. The simulation computes all gradients in
every step, and drops those of what is fixed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mtl.base.types import Params, Slots
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.algorithms.contract import STEPS, ClientAlgorithm, Optimizer
from mtl.federation.algorithms.fedavg import FedAvg
from mtl.federation.layout import is_head

HEADS, PHASE = "heads", "phase"


@dataclass(frozen=True)
class HeadsThenTrunk(ClientAlgorithm):
    """The client half of FedRep.

    Args:
        head_share: share of a client's local steps that train the heads, in [0, 1].

    Raises:
        ValueError: `head_share` is out of its range.
    """

    head_share: float
    reads = (STEPS,)

    def __post_init__(self) -> None:
        if not 0 <= self.head_share <= 1:
            raise ValueError(f"algorithm.head_share must be in [0, 1], got {self.head_share}")

    def init(self, slots: Slots, optimizer: Optimizer) -> Slots:
        """See `ClientAlgorithm`: heads and trunk have a state each."""
        heads, trunk = split_heads(slots["params"])
        phase = {"done": torch.zeros_like(slots[STEPS]["count"])}
        return {HEADS: optimizer.init(heads), "params": optimizer.init(trunk), PHASE: phase}

    def step(
        self, slots: Slots, state: Slots, gradients: Callable[[Params], Params], optimizer: Optimizer, learning_rate: Tensor
    ) -> None:
        """See `ClientAlgorithm`."""
        grads, done = gradients(slots["params"]), state[PHASE]["done"]
        on_heads = done < torch.floor(self.head_share * slots[STEPS]["count"] + 0.5)
        heads, trunk = split_heads(slots["params"])
        for params, part_state, moves in ((heads, state[HEADS], on_heads), (trunk, state["params"], ~on_heads)):
            if params:
                before = [value.clone() for value in (*params.values(), *part_state.values())]
                optimizer.step(params, grads, part_state, learning_rate)
                # Clients of a stack may be in different phases: what is fixed on a client gets its values back.
                for value, old in zip((*params.values(), *part_state.values()), before, strict=True):
                    value.copy_(torch.where(moves.view(moves.shape + (1,) * (value.dim() - moves.dim())), value, old))
        done += 1


def split_heads(params: Params) -> tuple[Params, Params]:
    """Return the heads and the rest."""
    heads = {name: value for name, value in params.items() if is_head(name)}
    return heads, {name: value for name, value in params.items() if name not in heads}


def fedrep(head_share: float = 0.5, learning_rate: float = 1.0, momentum: float = 0.0) -> Algorithm:
    """FedRep: heads stay on the clients, which train them first and then the trunk (Collins et al. 2021).

    Args:
        head_share: share of a client's local steps in a round that train its heads
        learning_rate: factor of the mean update
        momentum: momentum over the rounds
    """
    return Algorithm(FedAvg(learning_rate, momentum), HeadsThenTrunk(head_share), keep="heads")
