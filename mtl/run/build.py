"""Builders of what a configuration describes: data, model, widths, objective, and the work of a round."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra_zen import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from mtl.base.seeding import derive_seed
from mtl.data.federated_data import FederatedData, federate
from mtl.data.instances import add_instances
from mtl.devices.fleet import deal_out, training_memory
from mtl.devices.ledger import Workload
from mtl.devices.widths import Level, narrow
from mtl.federation.algorithms.algorithm import Algorithm
from mtl.federation.layout import Frozen, Layout, never_frozen
from mtl.federation.objective import Objective
from mtl.federation.population.views import Views, largest_that_fit
from mtl.federation.workload import client_workload, training_cost
from mtl.losses.by_kind import ByKind
from mtl.models.architecture import Parts
from mtl.models.centre import map_layers, map_stride
from mtl.models.cnn import ImageShape, Trunk
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.norm import replace_batch_norm
from mtl.models.peers import Peers
from mtl.models.transfer import Transfer
from mtl.models.weights import CHECKPOINTS, load_weights
from mtl.run.identity import digest, fingerprint
from mtl.run.objects import require

logger = logging.getLogger(__name__)


def build_data(config: DictConfig) -> FederatedData:
    """Read the images, make the subtasks, split, partition and assign; add source images with `transfer.source`."""
    require(config, "data", "subtasks", "split", "partition", "assignment")
    images = instantiate(config.data)
    subtasks, split = instantiate(config.subtasks)(images), instantiate(config.split)(images, config.seed)
    data = federate(
        images,
        *instantiate(config.known_labels)(subtasks, split, config.seed),
        partition=instantiate(config.partition),
        partition_by=config.partition_by,
        assignment=instantiate(config.assignment),
        seed=config.seed,
        pooled=config.mode in ("centralised", "detection", "single_task"),
    )
    transfer = instantiate(config.transfer)
    if transfer.source is None:
        return data
    return _with_source(config, transfer, read_config(Path(transfer.source).expanduser()), data)


def read_config(run_dir: Path) -> DictConfig:
    """Read the configuration of a run; raises ValueError where there is none or it is damaged."""
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise ValueError(f"run directory must hold config.yaml, got {run_dir} without one")
    try:
        config = OmegaConf.load(file)
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(config, DictConfig) or "trunk" not in config:
        raise ValueError(f"{file} is damaged: expected the configuration of a run")
    return config


def data_fingerprint(config: DictConfig, data: FederatedData) -> str:
    """Return the fingerprint of the configuration, the images and their labels, by which a checkpoint is recognised as this run's."""
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return fingerprint(plain, data_digest(data).encode())


def data_digest(data: FederatedData) -> str:
    """Return the digest of the images and their labels."""
    return digest(*(_bytes(part) for part in (data.images, data.targets, data.known)))


def files_fingerprint(config: DictConfig, *further: Tensor) -> str:
    """Return the fingerprint of the files and runs that the configuration names, by their content, and of further data."""
    names = (config.weights, config.start, config.distil.teacher, config.fleet.profiles)
    contents = (_content(name) if isinstance(name, str) else b"" for name in names)
    return digest(*contents, *(_bytes(part) for part in further))


def _content(name: str) -> bytes:
    """The content of a run's checkpoint or of a file; the name itself where there is neither."""
    path = Path(name).expanduser()
    file = next((path / checkpoint for checkpoint in CHECKPOINTS if (path / checkpoint).is_file()), path)
    return file.read_bytes() if file.is_file() else name.encode()


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, not copied where it is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def build_model(config: DictConfig, image_shape: ImageShape, tasks: tuple[str, ...], num_exclusive: int) -> MultiTaskModel:
    """Build the model before training, which depends only on its options, the seed and the file of `weights`.

    Args:
        config: of the run.
        image_shape: (c, H, W).
        tasks: names of the subtasks.
        num_exclusive: as in `Subtasks`.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "model"))
        parts = Parts(
            make_trunk=lambda: _make_trunk(config, image_shape),
            make_heads=lambda width: instantiate(config.heads)(width, len(tasks)),
            trunk_name=config.trunk._target_.rpartition(".")[2],
            tasks=tasks,
            image_shape=image_shape,
        )
        trunk, heads = instantiate(config.architecture)(parts)
        make_loss, detector = instantiate(config.loss), None
        loss = make_loss(len(tasks), num_exclusive=num_exclusive) if make_loss.func is ByKind else make_loss(len(tasks))
        if config.mode == "detection":
            channels, _ = map_stride(map_layers(trunk), image_shape[0])
            detector = instantiate(config.detector)(channels)
        return MultiTaskModel(trunk, heads, loss, detector)


def build_objective(config: DictConfig) -> Objective:
    """Build the objective: augmentation, normalisation and the reduction of the loss."""
    return Objective(instantiate(config.augmentation), instantiate(config.normalise), config.reduction, config.mirror)


def build_views(config: DictConfig, data: FederatedData, model: MultiTaskModel, objective: Objective) -> Views:
    """Build the part of the model that each client trains: the whole, a width or an architecture.

    Raises:
        ValueError: the shares do not fit the clients, or trunk=peers is inside of another architecture.
    """
    widths, fleet, trunk = instantiate(config.widths), instantiate(config.fleet), model.trunk
    if isinstance(trunk, Peers):
        levels = [Level(1.0, model.with_trunk(trunk.alone(name)), {}, name) for name in trunk.names]
        option, shares = "trunk.shares", trunk.dealt
    elif len(widths.levels) > 1:
        levels = [narrow(model, data.image_shape, ratio, scale=widths.scale) for ratio in widths.levels]
        option, shares = "widths.shares", widths.shares
    elif any(isinstance(part, Peers) for part in model.modules()):
        raise ValueError("trunk=peers needs architecture=hard_sharing, a model with one trunk")
    else:
        return Views.whole(model, data.num_clients)
    if shares is not None:
        of = deal_out(option, shares, data.num_clients, seed=config.seed, purpose="widths")
    else:
        of = largest_that_fit(
            build_workloads(config, data, levels, objective), training_memory(*fleet.assign(data.num_clients, seed=config.seed))
        )
    counts = torch.bincount(of, minlength=len(levels)).tolist()
    parts = (f"{n} clients train {level.name.replace('_', ' ')}" for n, level in zip(counts, levels, strict=True))
    logger.info("models: %s", ", ".join(parts))
    if not counts[0] and isinstance(trunk, Peers):
        logger.warning("no client trains trunk %s, that of the server", trunk.names[0])
    elif not counts[0]:
        logger.warning(
            "no client trains the whole width: the channels beyond %g of the width stay untrained", levels[int(of.min())].ratio
        )
    return Views(levels, of)


def build_workloads(config: DictConfig, data: FederatedData, levels: Sequence[Level], objective: Objective) -> list[Workload]:
    """Return, for each level, the work of a round on each client if all clients were at that level."""
    optimizer, work, algorithm = instantiate(config.client), instantiate(config.work), build_algorithm(config)
    costs = [training_cost(level.model, objective, optimizer, work, data, client=algorithm.client) for level in levels]
    return [
        client_workload(
            cost,
            level.model.params(),
            layout=build_layout(config, level.model),
            work=work,
            data=data,
            slots_down=1 + len(algorithm.server.sends),
            slots_up=1 + len(algorithm.client.sends),
        )
        for cost, level in zip(costs, levels, strict=True)
    ]


def build_algorithm(config: DictConfig) -> Algorithm:
    """Build the federated algorithm; a server half alone has FedAvg's clients."""
    algorithm = instantiate(config.algorithm)
    return algorithm if isinstance(algorithm, Algorithm) else Algorithm(algorithm)


def build_layout(config: DictConfig, model: MultiTaskModel, frozen: Frozen = never_frozen) -> Layout:
    """Build the layout of a run; raises ValueError where norm layers shall stay on the clients and there are none."""
    layout = Layout(resolve_keep(config), frozen, model.norms)
    if layout.keep == "norms" and not model.norms:
        raise ValueError(
            "keep=norms and algorithm=fedbn need a trunk with norm layers, such as small_cnn, or norm=group; got one without"
        )
    return layout


def resolve_keep(config: DictConfig) -> str:
    """Return what stays on the clients in the mode and with the algorithm of a run: nothing, heads, norms or all."""
    match config.mode:
        case "centralised" | "detection":
            return "nothing"
        case "local" | "single_task":
            return "all"
    keep: str = config.keep
    algorithm = build_algorithm(config)
    return keep if algorithm.keep == "nothing" else algorithm.keep


def _with_source(config: DictConfig, transfer: Transfer, source_config: DictConfig, data: FederatedData) -> FederatedData:
    """`data` with training images of another run, read in the size and with the channels of `data`."""
    channels, *size = data.image_shape
    form = {"image_size": size, "grey": channels == 1}
    source_config.data.update({name: value for name, value in form.items() if name in source_config.data})
    source = instantiate(source_config.data)
    images = source.images.expand(-1, channels, -1, -1) if source.images.shape[1] == 1 else source.images
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "model"))
        start = MultiTaskModel(_make_trunk(config, data.image_shape), nn.Identity(), nn.Identity())
    objective = build_objective(config)
    return add_instances(
        data,
        images,
        instantiate(source_config.subtasks)(source),
        instantiate(source_config.split)(source, source_config.seed).train,
        embed=lambda pictures: objective.embed(start, pictures),
        ratio=transfer.ratio,
        disjoint=transfer.disjoint,
        seed=config.seed,
    )


def _make_trunk(config: DictConfig, image_shape: ImageShape) -> Trunk:
    trunk: Trunk = instantiate(config.trunk)(image_shape)
    replace_batch_norm(trunk, config.norm)
    if config.weights is not None:
        load_weights(trunk, config.weights)
    return trunk
