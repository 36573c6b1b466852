"""Small federations, their initial states and orders, for tests."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import torch
from torch import Tensor

from mtl.base.types import Params
from mtl.data.federated_data import FederatedData
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.clients.bank import Bank
from mtl.federation.clients.contract import Backend, Training
from mtl.federation.layout import Frozen, Layout, never_frozen
from mtl.federation.orders import Cohort, Orders
from mtl.federation.population.population import Population
from mtl.federation.population.sampling import Draws, Sampling
from mtl.federation.population.views import Views
from mtl.federation.round import Federation, State
from mtl.federation.schedule import Schedule
from mtl.federation.server import RunContext, Server, ServerStep, mean
from mtl.models.multi_task_model import MultiTaskModel
from tests.conftest import clone


def build_federation(
    data: FederatedData,
    training: Training,
    make: Callable[[Training], Backend],
    *,
    schedule: Schedule | None = None,
    sampling: Draws | None = None,
    server: Server | None = None,
    algorithm: Algorithm | None = None,
    keep: str = "nothing",
    frozen: Frozen = never_frozen,
    views: Views | None = None,
    steps: tuple[ServerStep, ...] | None = None,
    num_rounds: int = 5,
) -> Federation:
    """Return a federation with defaults; `steps` replace those that the server's options make."""
    views = views or Views.whole(training.model, data.num_clients)
    server = server or mean()
    if algorithm is not None:
        keep = keep if algorithm.keep == "nothing" else algorithm.keep
        training, server = replace(training, client=algorithm.client), replace(server, algorithm=algorithm.server)
    params, shape, norms = training.model.params(), data.image_shape, getattr(training.model, "norms", frozenset())
    layout = Layout(keep, frozen, norms)
    context = RunContext(
        views=views,
        layout=layout,
        params=params,
        objective=training.objective,
        optimizer=training.optimizer,
        image_shape=shape,
        pixels=data.images.dtype,
        seed=training.seed,
        sizes=data.clients.sizes,
        assignment=data.assignment,
    )
    server = server.bind(context) if steps is None else replace(replace(server, options=()).bind(context), steps=steps)
    return Federation(
        data=data,
        training=training,
        backend=make(training),
        schedule=schedule or Schedule("constant"),
        population=Population(sampling or Sampling(), views, training.work, training.seed),
        server=server,
        layout=layout,
        num_rounds=num_rounds,
    )


def initial_state(fed: Federation, params: Params | None = None) -> State:
    """Return the state before the first round."""
    start = clone(fed.training.model.params() if params is None else params)
    bank = Bank(fed.layout, fed.training.slots(start, fed.data.num_tasks, fed.layout), fed.data.assignment)
    return State(fed.server.init(start, fed.layout), bank)


def model_with(params: Params) -> MultiTaskModel:
    """Return a stand-in for a model that has these parameters, for code that reads nothing else."""
    return cast(MultiTaskModel, SimpleNamespace(params=lambda: params))


def make_orders(params: Params, tasks: Tensor, sizes: list[int], views: Views | None = None) -> Orders:
    """Return orders for all clients. `tasks` is bool [K, T]; `sizes` are the training images of each."""
    clients = list(range(len(sizes)))
    return Orders(
        cohort=Cohort(0, clients, clients, tasks, sizes, [1] * len(sizes), torch.tensor(sizes, dtype=torch.float64)),
        views=views or Views.whole(model_with(params), len(sizes)),
        slots={"params": params},
        travelling=params,
        broadcast={},
        frozen=frozenset(),
        learning_rate=0.1,
        progress=0.0,
        seed=0,
    )
