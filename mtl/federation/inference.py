"""Scores of images under a federation's state, [N, T]: by the global model, or fused from the clients' models."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.utils.rnn import pad_sequence

from mtl.base.types import Params
from mtl.data.federated_data import FederatedData
from mtl.federation.fusion import check_rule, fit_platt
from mtl.federation.layout import is_head
from mtl.federation.objective import BATCH, MAX_ACTIVATIONS, Objective, images_at_once
from mtl.federation.round import State
from mtl.models.architecture import Representation
from mtl.models.multi_task_model import MultiTaskModel

MAX_SCORES = 2**20  # scores of many clients that are in memory at once
MAX_PIXELS = 2**20  # pixels that the whole models of many clients read at once


class Inference:
    """Scores images with the state of a federation.

    Args:
        model: the model; its parameters are replaced for each call.
        objective: prepares and scores images.
        rule: `argmax` or `platt`, see `fusion`.

    Raises:
        ValueError: `rule` is unknown.
    """

    def __init__(self, model: MultiTaskModel, objective: Objective, rule: str = "argmax") -> None:
        check_rule(rule)
        self.model, self.objective, self.rule = model, objective, rule

    @property
    def images_scored_together(self) -> int:
        """Number of consecutive images whose scores depend on one another: a batch where it is normalised by its own statistics, else 1."""
        return images_at_once(self.model, BATCH) if self.model.local_norms else 1

    @torch.no_grad()
    def scores(self, data: FederatedData, state: State, index: Tensor, *, stacked: bool = False) -> Tensor:
        """Return the decision scores [N, T] of some images.

        Args:
            data: the federation's data.
            state: the state to score with.
            index: int64 [N], the images.
            stacked: whether the whole models of several clients are evaluated at once.
        """
        if state.bank.layout.keep == "nothing" and self.rule == "argmax":
            return self._model_scores(state.params, data.images[index])
        total = torch.zeros(len(index), data.num_tasks, device=data.images.device)
        scoring = list(range(data.num_clients))
        if self.rule == "argmax":
            # Clients that never trained all have the initial parameters: score with these once.
            scoring = state.bank.trained()
            num_untrained = data.assignment.sum(0) - data.assignment[scoring].sum(0)
            if num_untrained.any():
                total += self._model_scores(state.params, data.images[index]) * num_untrained.to(total.device)
        calibrations: dict[int, tuple[Tensor, Tensor]] = {}
        for clients, images, scores in self._client_scores(data, state, index, scoring, stacked):
            if self.rule == "platt":
                for client in clients:
                    if client not in calibrations:
                        calibrations[client] = self._calibration(data, state, client)
                fits = [calibrations[client] for client in clients]
                scores = torch.stack([raw * scale + offset for raw, (scale, offset) in zip(scores, fits, strict=True)])
            tasks = data.assignment[clients].to(total.device)
            total[images] += torch.where(tasks[:, None], scores, 0).sum(0)
        return total / data.assignment.sum(0).to(total.device)

    def _client_scores(
        self, data: FederatedData, state: State, index: Tensor, scoring: list[int], stacked: bool
    ) -> Iterator[tuple[list[int], slice, Tensor]]:
        """Yield some clients at a time, with a slice of the images and their scores [K, images, T] by these clients' models."""
        images = data.images[index]
        if state.bank.layout.keep in ("all", "norms"):
            at_once = min(len(images), images_at_once(self.model, BATCH))
            activations = self.model.activation_numel * at_once
            size = min(MAX_PIXELS // max(images[0].numel() * at_once, 1), MAX_ACTIVATIONS // max(activations, 1))
            for clients in _blocks(scoring, max(size, 1) if stacked else 1):
                params = state.bank.load(clients, {"params": state.params})["params"]
                yield (
                    clients,
                    slice(None),
                    self._stacked("scores", params, images)
                    if len(clients) > 1
                    else self._model_scores(_first(params), images)[None],
                )
            return
        # All clients have the same trunk: its features are computed once.
        shared = {name: value for name, value in state.params.items() if not is_head(name)}
        heads = {name: value for name, value in state.params.items() if is_head(name)}
        part = max(len(images), 1) if self.model.activation_numel == 1 else images_at_once(self.model, BATCH)
        for start in range(0, len(images), part):
            rows = slice(start, start + part)
            views = zip(*(self._features(shared, batch) for batch in images[rows].split(BATCH)), strict=True)
            features = [_join(parts) for parts in views]
            count = len(images[rows])
            size = min(MAX_SCORES // (count * data.num_tasks), MAX_ACTIVATIONS // (count * self.model.activation_numel))
            for clients in _blocks(scoring, max(size, 1)):
                client_heads = state.bank.load(clients, {"params": heads})["params"]
                if client_heads:
                    yield clients, rows, self._stacked("decide", client_heads, features)
                else:  # heads without parameters are the same for all clients
                    yield clients, rows, self._call("decide", {}, features).float().expand(len(clients), -1, -1)

    @torch.no_grad()
    def own_scores(self, params: Params, images: Tensor, index: Sequence[Tensor], *, stacked: bool = False) -> list[Tensor]:
        """Return the scores of each client's images by its own model, [n_k, T] each.

        Args:
            params: of the clients' models, stacked [K, ...].
            images: stored images.
            index: int64 [n_k], the images of each of the K clients.
            stacked: whether several models are evaluated at once.
        """
        if not stacked or self.model.local_norms:
            models = ({name: value[k] for name, value in params.items()} for k in range(len(index)))
            return [self._model_scores(model, images[rows]) for model, rows in zip(models, index, strict=True)]
        limit = max(min(MAX_PIXELS // images[0].numel(), MAX_ACTIVATIONS // self.model.activation_numel), 1)
        scores: list[list[Tensor]] = [[] for _ in index]
        longest_first = sorted(range(len(index)), key=lambda k: -len(index[k]))
        while longest_first:
            count = min(len(index[longest_first[0]]), limit)
            block, longest_first = longest_first[: limit // max(count, 1)], longest_first[limit // max(count, 1) :]
            place = torch.tensor(block, device=images.device)
            of_block = {name: value[place] for name, value in params.items()}
            # Shorter lists are padded with the first image of the block.
            padded = pad_sequence([index[k] for k in block], batch_first=True, padding_value=int(index[block[0]][0]))
            for part in padded.split(count, 1):
                call = vmap(lambda model, pictures: self._call("scores", model, pictures))
                for k, of_client in zip(block, call(of_block, images[part]), strict=True):
                    scores[k].append(of_client.float())
        return [torch.cat(parts)[: len(rows)] for parts, rows in zip(scores, index, strict=True)]

    def _calibration(self, data: FederatedData, state: State, client: int) -> tuple[Tensor, Tensor]:
        images = data.clients[client]
        mask = data.known[images] & data.assignment[client].to(images.device)
        params = state.bank.load([client], {"params": state.params})["params"]
        scores = self._model_scores(_first(params), data.images[images])
        return fit_platt(scores, data.targets[images], mask)

    def _model_scores(self, params: Params, images: Tensor) -> Tensor:
        scores: Tensor = self._call("scores", params, images)
        return scores

    def _features(self, params: Params, images: Tensor) -> list[Representation]:
        features: list[Representation] = self._call("features", params, images)
        return features

    def _stacked(self, method: str, params: Params, inputs: Any) -> Tensor:
        """Return the scores [K, N, T] by many clients' parameters [K, ...] of the same inputs."""
        scores: Tensor = vmap(lambda client_params: self._call(method, client_params, inputs))(params)
        return scores.float()

    def _call(self, method: str, params: Params, inputs: Any) -> Any:
        """Call a method of the objective with other parameters."""
        self.model.eval()
        named = {f"model.{name}": value for name, value in params.items()}
        try:
            return functional_call(_Scorer(self.model, self.objective), named, (method, inputs))
        finally:
            self.model.train()


class _Scorer(nn.Module):
    """The methods of an objective as a module, so that `functional_call` can replace the model's parameters."""

    def __init__(self, model: MultiTaskModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, method: str, inputs: Any) -> Any:
        """Return `objective.method(model, inputs)`."""
        return getattr(self.objective, method)(self.model, inputs)


def _join(parts: Sequence[Representation]) -> Representation:
    """Concatenate the representations of several batches."""
    if isinstance(parts[0], Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    return tuple(torch.cat(batches) for batches in zip(*parts, strict=True))


def _first(params: Params) -> Params:
    return {name: value[0] for name, value in params.items()}


def _blocks(clients: list[int], size: int) -> Iterator[list[int]]:
    return (clients[start : start + size] for start in range(0, len(clients), size))
