"""Loads the trained model of a run directory, and builds the model that a run starts from."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra_zen import instantiate
from omegaconf import DictConfig

from mtl.base.types import Params, Slots
from mtl.data.federated_data import FederatedData
from mtl.edge.distil import Distillation, Distilling
from mtl.edge.prune import cut_channels, take_shapes
from mtl.federation.clients.bank import Bank
from mtl.federation.layout import Layout
from mtl.federation.objective import Objective
from mtl.learning.checkpoints import read_checkpoint
from mtl.models.cnn import ImageShape, Trunk
from mtl.models.multi_task_model import MultiTaskModel
from mtl.models.peers import Peers
from mtl.models.transfer import Transfer
from mtl.models.weights import CHECKPOINTS
from mtl.run.build import build_model, build_objective, read_config
from mtl.run.objects import require


@dataclass(frozen=True)
class TrainedRun:
    """A trained model with what is needed to use it.

    Attributes:
        config: of the run.
        model: on the CPU, in evaluation mode, with the parameters of the best round where one was selected, else of the last one saved.
        objective: from images to scores.
        tasks: T names.
        num_exclusive: as in `Subtasks`.
        trained_tasks: indices of the tested subtasks whose heads are trained; none where heads stay on the clients and no client is named.
        image_shape: (c, H, W) of a stored image.
        pixels: data type of a stored image.
        checkpoint: the file that was read.
        round: number of rounds after which it was written.
        fingerprint: of the configuration and the data.
    """

    config: DictConfig
    model: MultiTaskModel
    objective: Objective
    tasks: tuple[str, ...]
    num_exclusive: int
    trained_tasks: tuple[int, ...]
    image_shape: ImageShape
    pixels: torch.dtype
    checkpoint: Path
    round: int
    fingerprint: str


def load_run(run_dir: Path, *, client: int | None = None) -> TrainedRun:
    """Load the model of a run directory.

    Args:
        run_dir: the directory.
        client: the client whose model is loaded, where parts of it or a model of its own stay on the client.

    Raises:
        ValueError: there is no run or no undamaged checkpoint, `client` is not one of the run's or not needed, or the trunk stays on the
            clients and none is named.
    """
    config = read_config(run_dir)
    require(config, "trunk", "heads", "architecture", "loss", "augmentation", "normalise")
    files = [run_dir / name for name in CHECKPOINTS if (run_dir / name).is_file()]
    if not files:
        raise ValueError(f"run directory must hold {' or '.join(CHECKPOINTS)}, got {run_dir} with neither")
    checkpoint = read_checkpoint(files[0])
    channels, height, width = checkpoint["image_shape"]
    image_shape, tasks = (channels, height, width), tuple(checkpoint["tasks"])
    state: Params = {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}
    num_exclusive = int(checkpoint["num_exclusive"])
    model = untrained(config, image_shape, tasks, num_exclusive)
    if config.start or config.prune.kind == "channels":
        take_shapes(model, state)
    tested = len(tasks) - checkpoint["num_source"]
    trained_tasks = tuple(range(tested))
    keep, answers = _kept(checkpoint, files[0])
    mixed, own = isinstance(model.trunk, Peers), keep != "nothing" or answers != "params"
    if client is not None and not own and not mixed:
        raise ValueError(f"client must be left out where nothing stays on the clients, as in {run_dir}, got {client}")
    if client is not None and own:
        params = {name: state[name] for name in model.params()}
        slots = {"params": params} | ({} if answers == "params" else {answers: params})
        rows = _client_rows(run_dir, Layout(keep, norms=model.norms), slots, checkpoint["bank"], client)
        trained_tasks = tuple(task for task in rows.tasks_of(client) if task < tested)
        state |= {name: value[0] for name, value in rows.load([client], slots)[answers].items()}
    elif client is None and keep in ("all", "norms"):
        raise ValueError(f"run {run_dir} has one trunk for each client: the argument client must name one")
    elif client is None and keep == "heads":
        trained_tasks = ()
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{files[0]} does not fit the model of {run_dir / 'config.yaml'}: {error}") from error
    if isinstance(model.trunk, Peers):
        name = model.trunk.chosen if client is None else str(_client_arrays(run_dir, client, "trunks")[client])
        model = model.with_trunk(model.trunk.peer(name))
    return TrainedRun(
        config=config,
        model=model.eval(),
        objective=build_objective(config),
        tasks=tasks,
        num_exclusive=num_exclusive,
        trained_tasks=trained_tasks,
        image_shape=image_shape,
        pixels=getattr(torch, checkpoint["pixels"]),
        checkpoint=files[0],
        round=int(checkpoint["epoch"]) + 1,
        fingerprint=checkpoint["run"],
    )


def untrained(config: DictConfig, image_shape: ImageShape, tasks: tuple[str, ...], num_exclusive: int) -> MultiTaskModel:
    """Build the model with random parameters of the run's seed, without the weights that the run may have started from."""
    config = config.copy()
    config.weights = None
    return build_model(config, image_shape, tasks, num_exclusive)


def build_start(config: DictConfig, data: FederatedData) -> tuple[MultiTaskModel, Objective]:
    """Build what training starts from.

    Args:
        config: of the run.
        data: of the run.

    Returns:
        A new model or that of the run `start`, with channels cut where `prune` asks for it; and the objective, with a teacher if any.

    Raises:
        ValueError: model, `start`, teacher and data do not fit together.
    """
    pruning, distilling = instantiate(config.prune), instantiate(config.distil)
    model, objective = build_model(config, data.image_shape, data.tasks, data.num_exclusive), build_objective(config)
    if config.start:
        state = _fitting("start", config.start, data).model.state_dict()
        take_shapes(model, state)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"start must be a run with the same trunk, heads and loss, got {config.start}: {error}") from error
    if pruning.kind == "channels":
        cut_channels(model, data.image_shape, pruning.ratio, scope=pruning.scope)
    if distilling.teacher:
        objective = replace(objective, distil=_distillation(config, model, objective, data))
    transfer = instantiate(config.transfer)
    if transfer.relations:
        objective = replace(objective, distil=_relations(transfer, model))
    objective.inputs(data.images[:1])  # refuses images that do not fit
    return model, objective


def _distillation(config: DictConfig, student: MultiTaskModel, objective: Objective, data: FederatedData) -> Distillation:
    options = instantiate(config.distil)
    teacher = _fitting("distil.teacher", options.teacher, data)
    if teacher.objective.normalise != objective.normalise:
        raise ValueError(f"distil.teacher must be trained with {objective.normalise}, got {teacher.objective.normalise}")
    return Distillation(options, teacher.model, student)


def _relations(transfer: Transfer, model: MultiTaskModel) -> Distillation:
    """The source trunk, which is the model's at its start, as a teacher of relations alone."""
    assert isinstance(model.trunk, Trunk)  # by the rules
    options = Distilling(hard=1.0, soft=0.0, distance=transfer.distance, angle=transfer.angle)
    return Distillation(options, copy.deepcopy(model.trunk), model)


def _fitting(name: str, run_dir: str, data: FederatedData) -> TrainedRun:
    """Load the run that the option `name` names, for further training on `data`."""
    run = load_run(Path(run_dir).expanduser())
    if run.image_shape != data.image_shape:
        raise ValueError(f"{name} must have been trained on images of {data.image_shape}, got {run.image_shape} of {run_dir}")
    if run.tasks != data.tasks:
        lacks, more = ([t for t in left if t not in right] for left, right in ((data.tasks, run.tasks), (run.tasks, data.tasks)))
        what = [f"it lacks {', '.join(lacks)}"] * bool(lacks) + [f"it also has {', '.join(more)}"] * bool(more)
        raise ValueError(
            f"{name} must have the same subtasks in the same order, got {run_dir}: {' and '.join(what) or 'another order'}"
        )
    if not run.trained_tasks:
        raise ValueError(f"{name} must have one head for all of a subtask, and in {run_dir} the heads stay on the clients")
    return run


def _client_arrays(run_dir: Path, client: int, *names: str) -> np.ndarray[Any, Any]:
    """Arrays of `federation.npz` with one row per client, concatenated to [C, ...]; absent ones are left out.

    Raises:
        ValueError: there is no such file, or `client` is not one of the run's.
    """
    path = run_dir / "federation.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = np.concatenate([file[name] for name in names if name in file], -1)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"run directory must hold federation.npz, which a finished run leaves, got {path}: {error}") from error
    if not 0 <= client < len(arrays):
        raise ValueError(f"client must be in [0, {len(arrays) - 1}], got {client}")
    return arrays


def _kept(checkpoint: dict[str, Any], file: Path) -> tuple[str, str]:
    """What stays on the clients, see `Layout`, and the slot whose model answers for one."""
    if "bank" not in checkpoint:  # trained in one place
        return "nothing", "params"
    if "kept" not in checkpoint:
        raise ValueError(f"{file} must say what stays on the clients, and an earlier version of mtl wrote it: train again")
    return checkpoint["kept"]["keep"], checkpoint["kept"]["answers"]


def _client_rows(run_dir: Path, layout: Layout, slots: Slots, bank: dict[str, Any], client: int) -> Bank:
    """Those slots of the clients that are given, as the checkpoint has them."""
    rows = Bank(layout, slots, torch.from_numpy(_client_arrays(run_dir, client, "assignment", "source_assignment")))
    rows.load_state_dict({key: value for key, value in bank.items() if key == "clients" or key.partition("/")[0] in slots})
    return rows
