"""Scores of images under a federation's state, [N, T]: of the global model, or fused from the clients' own."""

import torch
from torch import Tensor
from torch.func import functional_call

from mtl.data.federated_data import FederatedData
from mtl.federation.fusion import check_rule, fit_platt
from mtl.federation.objective import Objective
from mtl.federation.rounds import State
from mtl.models.hard_sharing import HardSharing
from mtl.types import Params


class Inference:
    """rule: `argmax` or `platt`, see `fusion`."""

    def __init__(self, model: HardSharing, objective: Objective, rule: str = "argmax") -> None:
        check_rule(rule)
        self.model, self.objective, self.rule = model, objective, rule

    def scores(self, data: FederatedData, state: State, index: Tensor) -> Tensor:
        """index: int64 [N] into the images; returns decision scores [N, T]."""
        shared = self._model_scores(data, state.params, index) if state.bank.keep == "nothing" else None
        if shared is not None and self.rule == "argmax":
            return shared
        total = torch.zeros(len(index), data.num_tasks, device=data.images.device)
        answers = torch.zeros(data.num_tasks, device=data.images.device)
        for client in range(data.num_clients):
            params, tasks = state.bank.load(client, state.params), data.assignment[client]
            own = shared if shared is not None else self._model_scores(data, params, index)
            if self.rule == "platt":
                own = self._calibrated(data, params, client, own)
            total += torch.where(tasks, own, 0)
            answers += tasks
        return total / answers

    def _calibrated(self, data: FederatedData, params: Params, client: int, scores: Tensor) -> Tensor:
        held = data.clients[client]
        mask = data.known[held] & data.assignment[client]
        scale, offset = fit_platt(self._model_scores(data, params, held), data.targets[held], mask)
        return scores * scale + offset

    def _model_scores(self, data: FederatedData, params: Params, index: Tensor) -> Tensor:
        scores: Tensor = functional_call(
            _Scorer(self.model, self.objective), {f"model.{k}": v for k, v in params.items()}, (data.images[index],)
        )
        return scores


class _Scorer(torch.nn.Module):
    """The scoring of a model as a module, so that its parameters can be swapped for a call."""

    def __init__(self, model: HardSharing, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, images: Tensor) -> Tensor:
        return self.objective.scores(self.model, images)
