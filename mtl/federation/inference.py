"""Scores of images under a federation's state, [N, T]: of the global model, or fused from the clients' own."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from mtl.base.types import Params
from mtl.data.federated_data import FederatedData
from mtl.federation.fusion import check_rule, fit_platt
from mtl.federation.layout import is_head
from mtl.federation.objective import BATCH, NUMBERS, Objective, images_at_once
from mtl.federation.round import State
from mtl.models.architecture import Representation
from mtl.models.multi_task_model import MultiTaskModel

SCORES = 2**20  # scores of many clients that are held at once
PIXELS = 2**20  # pixels that many clients' whole models look at at once


class Inference:
    """rule: `argmax` or `platt`, see `fusion`."""

    def __init__(self, model: MultiTaskModel, objective: Objective, rule: str = "argmax") -> None:
        check_rule(rule)
        self.model, self.objective, self.rule = model, objective, rule

    @property
    def images_scored_together(self) -> int:
        """How many images in a row have scores that depend on one another: a batch, where it is normalised by its own statistics."""
        return images_at_once(self.model, BATCH) if self.model.local_norms else 1

    @torch.no_grad()
    def scores(self, data: FederatedData, state: State, index: Tensor, *, stacked: bool = False) -> Tensor:
        """index: int64 [N] into the images; stacked: whether the clients' whole models are evaluated side by side; returns decision
        scores [N, T].
        """
        if state.bank.layout.keep == "nothing" and self.rule == "argmax":
            return self._model_scores(state.params, data.images[index])
        total = torch.zeros(len(index), data.num_tasks, device=data.images.device)
        whom = list(range(data.num_clients))
        if self.rule == "argmax":
            # Clients that never trained hold what all start from: one of them answers for all.
            whom = state.bank.trained()
            others = data.assignment.sum(0) - data.assignment[whom].sum(0)
            if others.any():
                total += self._model_scores(state.params, data.images[index]) * others.to(total.device)
        calibrations: dict[int, tuple[Tensor, Tensor]] = {}
        for clients, images, scores in self._client_scores(data, state, index, whom, stacked):
            if self.rule == "platt":
                for client in clients:
                    if client not in calibrations:
                        calibrations[client] = self._calibration(data, state, client)
                fits = [calibrations[client] for client in clients]
                scores = torch.stack([own * scale + offset for own, (scale, offset) in zip(scores, fits, strict=True)])
            tasks = data.assignment[clients].to(total.device)
            total[images] += torch.where(tasks[:, None], scores, 0).sum(0)
        return total / data.assignment.sum(0).to(total.device)

    def _client_scores(
        self, data: FederatedData, state: State, index: Tensor, whom: list[int], stacked: bool
    ) -> Iterator[tuple[list[int], slice, Tensor]]:
        """Some clients after others, with some of the images and their scores [K, images, T] by the clients' own models."""
        images = data.images[index]
        if state.bank.layout.keep == "all":
            at_once = min(len(images), images_at_once(self.model, BATCH))
            size = min(PIXELS // max(images[0].numel() * at_once, 1), NUMBERS // max(self.model.activation_numel * at_once, 1))
            for clients in _blocks(whom, max(size, 1) if stacked else 1):
                params = state.bank.load(clients, {"params": state.params})["params"]
                yield (
                    clients,
                    slice(None),
                    self._stacked("scores", params, images)
                    if len(clients) > 1
                    else self._model_scores(_first(params), images)[None],
                )
            return
        # The trunk is the same everywhere: what it makes of the images is computed once.
        shared = {name: value for name, value in state.params.items() if not is_head(name)}
        heads = {name: value for name, value in state.params.items() if is_head(name)}
        part = max(len(images), 1) if self.model.activation_numel == 1 else images_at_once(self.model, BATCH)
        for start in range(0, len(images), part):
            now = slice(start, start + part)
            views = zip(*(self._features(shared, few) for few in images[now].split(BATCH)), strict=True)
            features = [_join(parts) for parts in views]
            count = len(images[now])
            size = min(SCORES // (count * data.num_tasks), NUMBERS // (count * self.model.activation_numel))
            for clients in _blocks(whom, max(size, 1)):
                own = state.bank.load(clients, {"params": heads})["params"]
                # Heads without parameters are the same everywhere too.
                alike = None if own else self._call("decide", own, features).float().expand(len(clients), -1, -1)
                yield clients, now, self._stacked("decide", own, features) if alike is None else alike

    def _calibration(self, data: FederatedData, state: State, client: int) -> tuple[Tensor, Tensor]:
        held = data.clients[client]
        mask = data.known[held] & data.assignment[client].to(held.device)
        params = state.bank.load([client], {"params": state.params})["params"]
        own = self._model_scores(_first(params), data.images[held])
        return fit_platt(own, data.targets[held], mask)

    def _model_scores(self, params: Params, images: Tensor) -> Tensor:
        scores: Tensor = self._call("scores", params, images)
        return scores

    def _features(self, params: Params, images: Tensor) -> list[Representation]:
        features: list[Representation] = self._call("features", params, images)
        return features

    def _stacked(self, what: str, params: Params, given: Any) -> Tensor:
        """For many clients at once: params [K, ...], and what is given the same for all; returns [K, N, T]."""
        scores: Tensor = vmap(lambda own: self._call(what, own, given))(params)
        return scores.float()

    def _call(self, what: str, params: Params, given: Any) -> Any:
        self.model.eval()
        named = {f"model.{name}": value for name, value in params.items()}
        try:
            return functional_call(_Scorer(self.model, self.objective), named, (what, given))
        finally:
            self.model.train()


class _Scorer(nn.Module):
    """The parts of the scoring of a model as a module, so that its parameters can be swapped for a call."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, what: str, given: Any) -> Any:
        return getattr(self.objective, what)(self.model, given)


def _join(parts: Sequence[Representation]) -> Representation:
    """One representation of all the images of the parts."""
    if isinstance(parts[0], Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return tuple(torch.cat(same) for same in zip(*parts, strict=True))


def _first(params: Params) -> Params:
    return {name: value[0] for name, value in params.items()}


def _blocks(clients: list[int], size: int) -> Iterator[list[int]]:
    return (clients[start : start + size] for start in range(0, len(clients), size))
