"""Builders of the learner of each mode from a configuration."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from hydra_zen import instantiate
from omegaconf import DictConfig

from mtl.balancing.weighting import Equal
from mtl.data.client_batches import LocalWork
from mtl.data.federated_data import FederatedData
from mtl.federation.algorithms.contract import Optimizer
from mtl.federation.clients.auto import make_backend
from mtl.federation.clients.balance import make_balance
from mtl.federation.clients.bank import Bank
from mtl.federation.clients.contract import Backend, Training
from mtl.federation.clients.gradients import GradientRule
from mtl.federation.features import cache_features
from mtl.federation.inference import Inference
from mtl.federation.objective import Objective
from mtl.federation.population.fleet import FleetSampling
from mtl.federation.population.population import Population
from mtl.federation.population.sampling import Draws, Sampling
from mtl.federation.population.views import Views, ViewsBackend
from mtl.federation.ranks import Ranks
from mtl.federation.round import Federation
from mtl.federation.schedule import Schedule
from mtl.federation.server import RunContext
from mtl.learning.centralised import CentralisedLearning
from mtl.learning.clients import ClientTest
from mtl.learning.detection import DetectionLearning, SceneTraining
from mtl.learning.federated import FederatedLearning
from mtl.learning.learner import Learner, Reporting
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.transfer import Transfer
from mtl.run.build import build_algorithm, build_layout, build_views, build_workloads
from mtl.run.load import build_start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The parts of a learner, the same in every mode."""

    data: FederatedData
    model: MultiTaskModel
    objective: Objective
    client: Optimizer
    work: LocalWork
    schedule: Schedule
    transfer: Transfer
    views: Views
    sampling: Draws
    reporting: Reporting


def build_learner(config: DictConfig, data: FederatedData, run_dir: Path) -> tuple[Learner, int]:
    """Build the learner of the mode.

    Args:
        config: of the run.
        data: split over its clients.
        run_dir: for the clients' state where it does not fit in memory.

    Returns:
        The learner, and the number of training steps of a round.

    Raises:
        ValueError: options contradict each other or the data.
    """
    parts = build_parts(config, data)
    match config.mode:
        case "centralised":
            return build_centralised(config, parts)
        case "detection":
            return build_detection(config, parts)
        case "single_task":
            return build_single_task(config, parts, run_dir)
    return build_federated(config, parts, run_dir)


def build_parts(config: DictConfig, data: FederatedData) -> Parts:
    """Build the parts of a learner; with `transfer.cache` the data have features of the frozen trunk in place of images."""
    model, objective = build_start(config, data)
    tracking = config.tracking
    reporting = Reporting(config.best_by, tracking.per_task, tracking.log_every, data.image_shape, data.images.dtype)
    transfer = instantiate(config.transfer)
    num_frozen = transfer.freeze(model)
    if transfer.cache:
        data, objective = cache_features(model, num_frozen, objective, data, _device(config))
    client, scales = instantiate(config.client), transfer.scales(model)
    views = build_views(config, data, model, objective)
    return Parts(
        data=data,
        model=model,
        objective=objective,
        client=replace(client, scales=scales) if scales else client,
        work=instantiate(config.work),
        schedule=instantiate(config.schedule),
        transfer=transfer,
        views=views,
        sampling=build_sampling(config, data, objective, views),
        reporting=reporting,
    )


def build_sampling(config: DictConfig, data: FederatedData, objective: Objective, views: Views) -> Draws:
    """Build the sampling of clients: with a fleet, devices that are too slow or unavailable drop out; the algorithm may change it."""
    sampling, fleet, algorithm = instantiate(config.sampling), instantiate(config.fleet), build_algorithm(config).server
    if fleet.mix is None:
        sampling.outcome(
            data.num_clients, seed=config.seed, round=0
        )  # raises where the cohort is larger than the number of clients
        draws: Draws = sampling
        return algorithm.draws(draws)
    workload = views.workload(build_workloads(config, data, views.levels, objective))
    return algorithm.draws(FleetSampling(sampling, fleet, workload, data.assignment, seed=config.seed))


def build_centralised(config: DictConfig, parts: Parts) -> tuple[Learner, int]:
    """Build training on all images in one place, for as many gradient steps as the federation would make."""
    training, steps = _pooled_training(config, parts)
    return CentralisedLearning(training, parts.data.pooled(), parts.schedule, **_pooled_options(config, parts)), steps


def build_detection(config: DictConfig, parts: Parts) -> tuple[Learner, int]:
    """Build centralised training with scenes in every step."""
    training, steps = _pooled_training(config, parts)
    names = ("scenes", "detection", "scene_augmentation")
    scenes = SceneTraining(*(instantiate(config[name]) for name in names))
    options = _pooled_options(config, parts)
    return DetectionLearning(training, parts.data.pooled(), parts.schedule, scenes=scenes, **options), steps


def build_single_task(config: DictConfig, parts: Parts, run_dir: Path) -> tuple[Learner, int]:
    """Build one model for each subtask: a client with all images that trains it alone."""
    training, _ = _pooled_training(config, parts)
    data = parts.data.single_tasks()
    alone = replace(parts, data=data, sampling=Sampling(), views=Views.whole(parts.model, data.num_clients))
    return _federated(config, alone, training, run_dir), 1


def build_federated(config: DictConfig, parts: Parts, run_dir: Path) -> tuple[Learner, int]:
    """Build clients and a server, or, in mode `local`, clients that send nothing."""
    steps, returns = (0, 0) if isinstance(instantiate(config.balancer), Equal) else _count_steps(config, parts)
    rule = _build_rule(config, parts.model, steps_per_round=steps / max(returns, 1), num_rounds=returns / parts.data.num_clients)
    client = build_algorithm(config).client
    training = Training(parts.model, parts.objective, parts.client, parts.work, config.seed, rule, client)
    return _federated(config, parts, training, run_dir), 1


def _federated(config: DictConfig, parts: Parts, training: Training, run_dir: Path) -> Learner:
    data, model, engine = parts.data, parts.model, config.engine
    algorithm, layout = build_algorithm(config), build_layout(config, model, parts.transfer.schedule(model))

    def backend(training: Training) -> Backend:
        name = engine.backend if training.objective.distil is None else "loop"
        return make_backend(name, training, num_rounds=config.rounds, block=engine.block, compile=engine.compile)

    context = RunContext(
        views=parts.views,
        layout=layout,
        params=model.params(),
        objective=parts.objective,
        optimizer=parts.client,
        image_shape=data.image_shape,
        pixels=data.images.dtype,
        seed=config.seed,
        sizes=data.clients.sizes,
        assignment=data.assignment,
    )
    server = replace(instantiate(config.server), algorithm=algorithm.server)
    federation = Federation(
        data=data,
        training=training,
        backend=backend(training) if parts.views.all_whole else ViewsBackend(parts.views, training, backend),
        schedule=parts.schedule,
        population=Population(parts.sampling, parts.views, training.work, config.seed),
        server=server.bind(context),
        layout=layout,
        num_rounds=config.rounds,
    )
    bank = Bank(
        layout,
        training.slots(model.params(), data.num_tasks, layout),
        data.assignment,
        folder=run_dir / "bank",
        memory=engine.bank_memory,
        num_processes=Ranks().count,
    )
    if bank.num_bytes:
        logger.info(
            "state that stays on the clients: %.1f kB a client, %.1f MB when all %d have trained, in %s",
            bank.bytes_per_client / 1e3,
            bank.num_bytes / 1e6,
            data.num_clients,
            f"files in {bank.folder}" if bank.folder else "memory",
        )
    inference = Inference(model, parts.objective, config.fusion)
    test = ClientTest(algorithm.tuning, config.seed, active=config.mode != "single_task")
    return FederatedLearning(model, federation, inference, bank, reporting=parts.reporting, client_test=test)


def _pooled_training(config: DictConfig, parts: Parts) -> tuple[Training, int]:
    """Training with as many gradient steps as all returning clients make in sum, spread evenly over the rounds."""
    total, _ = _count_steps(config, parts)
    steps = max(round(total / config.rounds), 1)
    rule = _build_rule(config, parts.model, steps_per_round=total / config.rounds, num_rounds=config.rounds)
    work = LocalWork(batch_size=parts.work.batch_size, steps=steps)
    return Training(parts.model, parts.objective, parts.client, work, config.seed, rule), steps


def _pooled_options(config: DictConfig, parts: Parts) -> dict[str, Any]:
    frozen = parts.transfer.schedule(parts.model)
    return {"num_rounds": config.rounds, "frozen": frozen, "reporting": parts.reporting}


def _count_steps(config: DictConfig, parts: Parts) -> tuple[int, int]:
    """The number of local steps of the run, and of updates that clients return."""
    data, total, returns = parts.data, 0, 0
    for round in range(config.rounds):
        cohort = parts.sampling.outcome(data.num_clients, seed=config.seed, round=round).returned
        total += sum(parts.work.num_steps(data.clients.size(client)) for client in cohort)
        returns += len(cohort)
    return total, returns


def _build_rule(config: DictConfig, model: MultiTaskModel, *, steps_per_round: float, num_rounds: float) -> GradientRule:
    """The rule that turns the tasks' losses into one update."""
    options = config.balance
    return make_balance(
        instantiate(config.balancer).for_run(steps_per_round=steps_per_round, num_rounds=num_rounds),
        model,
        level=options.level,
        heads=options.heads,
        normalise=options.normalise,
        gradient_scale=options.gradient_scale,
        conflict=options.conflict,
    )


def _device(config: DictConfig) -> torch.device:
    """The compute device, for work before the Trainer exists."""
    return torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator in ("auto", "gpu", "cuda") else "cpu")
