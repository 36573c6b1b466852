"""A model from its configuration, and a trained model from its run directory, without the data.

`model.json`, written when a run starts, holds what a configuration leaves to the data: the shape of an image, the type of its pixels and
the names of the subtasks.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra_zen import instantiate
from omegaconf import DictConfig, OmegaConf

from mtl.data.federated_data import FederatedData
from mtl.edge.distil import Distillation
from mtl.edge.prune import cut_channels, take_shapes
from mtl.federation.objective import Objective
from mtl.federation.personalise import Bank
from mtl.files import write_json
from mtl.learning.checkpoints import read_checkpoint
from mtl.models.cnn import ImageShape
from mtl.models.hard_sharing import HardSharing
from mtl.models.norm import replace_batch_norm
from mtl.seeding import derive_seed
from mtl.types import Params

PIXELS = {"uint8": torch.uint8, "float32": torch.float32}


@dataclass(frozen=True)
class TrainedRun:
    """model: on the CPU, in evaluation mode, with the parameters that the run was tested with: those of the best round where there were
    validation images, else of the last one saved; tasks: T names; own: the places of the subtasks that the model has learned, all of them
    unless it is one client's; pixels: the type of a stored image [c, H, W] of `image_shape`; round: counted from 1; fingerprint: of the
    configuration and the data.
    """

    config: DictConfig
    model: HardSharing
    objective: Objective
    tasks: tuple[str, ...]
    own: tuple[int, ...]
    image_shape: ImageShape
    pixels: torch.dtype
    round: int
    fingerprint: str


def build_model(config: DictConfig, image_shape: ImageShape, num_tasks: int) -> HardSharing:
    """The model at its start, which depends on the seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(config.seed, "model"))
        trunk = replace_batch_norm(instantiate(config.trunk)(image_shape), config.norm)
        heads = instantiate(config.heads)(trunk.width, num_tasks)
        return HardSharing(trunk, heads, instantiate(config.loss)(num_tasks))


def build_start(config: DictConfig, data: FederatedData) -> tuple[HardSharing, Objective]:
    """What training starts from: a new model, or that of the run `start`, its channels cut where `prune` says so; and the objective, with
    a teacher where there is one. Raises ValueError where they do not fit together.
    """
    model, objective = build_model(config, data.image_shape, data.num_tasks), build_objective(config)
    pruning, distilling = instantiate(config.prune), instantiate(config.distil)
    keep = "nothing" if config.mode == "centralised" else "all" if config.mode == "local" else config.keep
    if pruning.kind == "weights" and keep != "nothing":
        raise ValueError(
            f"prune.kind=weights prunes what travels: it needs keep=nothing, got mode={config.mode} keep={config.keep}"
        )
    if config.start:
        state = _fitting("start", config.start, data).model.state_dict()
        take_shapes(model, state)
        try:
            model.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"start must be a run with the same trunk, heads and loss, got {config.start}: {error}") from error
    if pruning.kind == "channels":
        if not config.start:
            raise ValueError(
                "prune.kind=channels needs start, the run whose model is cut: a new model has no channels to choose by"
            )
        cut_channels(model, data.image_shape, pruning.ratio, scope=pruning.scope)
    if distilling.teacher:
        if config.mode != "centralised" and config.engine.backend not in ("auto", "loop"):
            # torch 2.15 crashes on the teacher's convolutions, whose weights are not stacked, inside the stacked step.
            raise ValueError(f"distil.teacher needs engine.backend=loop, or auto, which takes it; got {config.engine.backend}")
        teacher = _fitting("distil.teacher", distilling.teacher, data)
        if teacher.objective.normalise != objective.normalise:
            raise ValueError(f"distil.teacher must be trained with {objective.normalise}, got {teacher.objective.normalise}")
        objective = replace(objective, distil=Distillation(distilling, teacher.model, model))
    return model, objective


def _fitting(name: str, run_dir: str, data: FederatedData) -> TrainedRun:
    """The run that the option `name` says, for other training on `data`."""
    run = load_run(Path(run_dir))
    if run.image_shape != data.image_shape:
        raise ValueError(f"{name} must have been trained on images of {data.image_shape}, got {run.image_shape} of {run_dir}")
    if run.tasks != data.tasks:
        lacks, more = ([t for t in left if t not in right] for left, right in ((data.tasks, run.tasks), (run.tasks, data.tasks)))
        what = [f"it lacks {', '.join(lacks)}"] * bool(lacks) + [f"it has {', '.join(more)} beside"] * bool(more)
        raise ValueError(
            f"{name} must have the same subtasks in the same order, got {run_dir}: {' and '.join(what) or 'another order'}"
        )
    return run


def build_objective(config: DictConfig) -> Objective:
    return Objective(instantiate(config.augmentation), instantiate(config.normalise), config.reduction, config.mirror)


def write_model_facts(run_dir: Path, data: FederatedData) -> None:
    """`model.json` of a run."""
    pixels = next(name for name, kind in PIXELS.items() if kind == data.images.dtype)
    write_json(run_dir / "model.json", {"image_shape": list(data.image_shape), "pixels": pixels, "tasks": list(data.tasks)})


def load_run(run_dir: Path, *, client: int | None = None) -> TrainedRun:
    """The model of a run directory; of one client where parts of it stay on the clients, which then must be named.

    Raises ValueError where there is no run, no checkpoint, or one that is torn, and where `client` is missing, not needed or not one of
    the run's.
    """
    config, facts = read_config(run_dir), _read_facts(run_dir / "model.json")
    channels, height, width = facts["image_shape"]
    image_shape, tasks = (channels, height, width), tuple(facts["tasks"])
    folder = run_dir / "checkpoints"
    path = next((file for name in ("best.ckpt", "last.ckpt") if (file := folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"run directory must hold checkpoints/best.ckpt or checkpoints/last.ckpt, got {run_dir} without them")
    checkpoint = read_checkpoint(path)
    prefix = "model."
    state: Params = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    model = build_model(config, image_shape, len(tasks))
    if config.prune.kind == "channels" or config.start:
        take_shapes(model, state)
    own = tuple(range(len(tasks)))
    keep = "nothing" if config.mode == "centralised" else "all" if config.mode == "local" else config.keep
    if keep != "nothing":
        params = {name: state[name] for name in model.params()}
        own, theirs = _client_params(run_dir, keep, params, checkpoint["bank"], client)
        state |= theirs
    elif client is not None:
        raise ValueError(f"client must be left out where nothing stays on the clients, as in {run_dir}, got {client}")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model of {run_dir / 'config.yaml'}: {error}") from error
    return TrainedRun(
        config=config,
        model=model.eval(),
        objective=build_objective(config),
        tasks=tasks,
        own=own,
        image_shape=image_shape,
        pixels=PIXELS[facts["pixels"]],
        round=int(checkpoint["epoch"]) + 1,
        fingerprint=checkpoint["run"],
    )


def read_config(run_dir: Path) -> DictConfig:
    """The configuration of a run. Raises ValueError where there is none."""
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"run directory must hold config.yaml, got {run_dir} without one")
    try:
        config = OmegaConf.load(path)
    except Exception as error:  # the YAML and OmegaConf errors share no base class below Exception
        raise ValueError(f"{path} must be the configuration of a run, got {type(error).__name__}: {error}") from error
    if not isinstance(config, DictConfig) or "trunk" not in config:
        raise ValueError(f"{path} must be the configuration of a run, with the key trunk, got none")
    return config


def _read_facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
        if not isinstance(facts, dict) or not {"image_shape", "pixels", "tasks"} <= set(facts):
            raise ValueError("not all of image_shape, pixels and tasks")
    except (OSError, ValueError) as error:
        raise ValueError(f"run directory must hold model.json with image_shape, pixels and tasks, got {path}: {error}") from error
    return facts


def _client_params(
    run_dir: Path, keep: str, params: Params, kept: dict[str, Any], client: int | None
) -> tuple[tuple[int, ...], Params]:
    """The subtasks that a client trains, and its own parameters."""
    path = run_dir / "federation.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            assignment = torch.from_numpy(file["assignment"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"run directory must hold federation.npz, which a finished run leaves, got {path}: {error}") from error
    if client is None:
        raise ValueError(f"client must be named, 0 to {len(assignment) - 1}: parts of the model stay on the clients of {run_dir}")
    if not 0 <= client < len(assignment):
        raise ValueError(f"client must be in [0, {len(assignment) - 1}], got {client}")
    bank = Bank(keep, params, assignment)
    bank.load_state_dict(kept)
    own = tuple(assignment[client].nonzero().flatten().tolist())
    return own, {name: value[0] for name, value in bank.load([client], params).items()}
