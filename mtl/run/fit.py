"""A run from Python: with names as on the command line, or with Python objects, through the same `compose` and `train`."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from mtl.base.types import ImageData
from mtl.data.datamodule import FederatedDataModule
from mtl.data.tensors import check_images, from_tensors
from mtl.learning.learner import Learner
from mtl.metrics.scores import Summary
from mtl.report.page import write_report
from mtl.run.build import build_data
from mtl.run.config import check_name, compose
from mtl.run.learners import build_learner
from mtl.run.load import TrainedRun, load_run
from mtl.run.members import DEFAULTS, PARTIAL, WHOLE
from mtl.run.objects import give, given_names
from mtl.run.options import convert, nearest
from mtl.run.rules import check_rules
from mtl.run.settings import OPTIONS, top_level
from mtl.run.spawn import inside_rank
from mtl.run.train import train

# Defaults that differ from the command line, whose defaults are for the embedded faces.
OF_CLASSES = {"split": "fractions"}
OF_ATTRIBUTES = {"split": "fractions", "subtasks": "attributes", "partition": "iid", "assignment": "all"}


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        run_dir: its directory.
        summary: its metrics, as in `summary.json`.
    """

    run_dir: Path
    summary: Summary

    @functools.cached_property
    def trained(self) -> TrainedRun:
        """The tested model, its objective and its subtasks; raises ValueError as `load_run` does."""
        return load_run(self.run_dir)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the T subtasks."""
        return self.trained.tasks

    def predict(self, images: Any, *, client: int | None = None) -> Tensor:
        """Return the decision scores [N, T] of images; above zero is yes.

        Args:
            images: [N, c, H, W], of the shape and type that the run was trained on.
            client: the client whose model scores, where parts of the model stay on the clients.

        Raises:
            ValueError: the images are of another shape or type.
        """
        run = self.trained if client is None else load_run(self.run_dir, client=client)
        tensor = check_images(images)
        if tuple(tensor.shape[1:]) != run.image_shape or tensor.dtype != run.pixels:
            raise ValueError(
                f"images must be {run.pixels} [N, {', '.join(map(str, run.image_shape))}] as those of the run, got {tensor.dtype} "
                f"{list(tensor.shape)}"
            )
        return run.objective.scores(run.model, tensor)

    def report(self) -> Path:
        """Write `report.html` and `figures/` again, and return the path of the page."""
        return write_report([self.run_dir])


def fit(
    images: Any = None,
    labels: Any = None,
    *,
    tasks: Sequence[str] | None = None,
    split: Any = None,
    clients: int | None = None,
    output_dir: str | Path | None = None,
    options: Sequence[str] = (),
    **choices: Any,
) -> Run:
    """Train, test and report one run, as `mtl train` does, on your images and with your Python objects.

    Args:
        images: uint8 or float [N, c, H, W], a Dataset of (image, label) pairs, or an ImageData; none where `data` names a data set.
        labels: int64 [N], classes: one subtask each, one against the rest; or bool or int8 [N, T], attributes, -1 where unknown.
        tasks: Names of the classes or attributes.
        split: {"train": indices, "test": indices, "val": indices}, or the name of a rule; for your images by default `fractions`: 70 % of
            each class train, 10 % validate, 20 % test.
        clients: Number of clients, `partition.num_clients`.
        output_dir: The run directory; by default a new one below `runs`.
        options: Words of the command line, such as `"partition=dirichlet"` and `"partition.alpha=0.3"`.
        choices: Keys at the top of the configuration. A group takes a member's name, a mapping of options, or an object: `trunk`, `heads`,
            `loss`, `balancer`, `client`, `server` and the others that `mtl.run.adapters.OBJECT_GROUPS` lists.

    Returns:
        The run: its summary, its directory, and its model to predict with.

    Raises:
        ValueError: An argument cannot be used; the message names it, what was expected and what came.
        Diverged: The loss is not finite.
        Interrupted: Ctrl-C; `resume=True` with the same `output_dir` goes on.
    """
    config = configure(images, labels, tasks=tasks, split=split, clients=clients, options=options, **choices)
    if output_dir is not None:
        config.output_dir = str(output_dir)
    with _plain_errors():
        run_dir = Path(config.output_dir).expanduser()
        return Run(run_dir, train(config, run_dir))


def configure(
    images: Any = None,
    labels: Any = None,
    *,
    tasks: Sequence[str] | None = None,
    split: Any = None,
    clients: int | None = None,
    options: Sequence[str] = (),
    **choices: Any,
) -> DictConfig:
    """Compose the configuration that `fit` trains with, where objects are nodes (see `objects`); arguments and errors as in `fit`."""
    if isinstance(options, str):
        raise ValueError(f"options must be a list of words such as ['loss=bce'], got {options!r}")
    data = _data(images, labels, tasks, split)
    if isinstance(split, str):
        choices["split"] = split
    if data is not None:
        if "data" in choices:
            raise ValueError(f"data must be left out where images are given, got {choices['data']!r}")
        choices["data"] = data
    members = {key: value for key, value in choices.items() if key in DEFAULTS and isinstance(value, str)}
    for group, member in members.items():
        _check_member(group, member)
    chosen = {*choices, *(option.lstrip("+").partition("=")[0] for option in options)}
    defaults = {} if data is None else (OF_CLASSES if data.class_names else OF_ATTRIBUTES)
    words = {key: value for key, value in defaults.items() if key not in chosen} | members
    if isinstance(split, Mapping):
        words["split"] = "official"
    with _plain_errors():
        config = compose([*(f"{key}={value}" for key, value in words.items()), *options])
    if isinstance(split, Mapping):
        config.split.val = 0.0  # all images of "train" train
    for key, value in choices.items():
        if key not in members:
            _set(config, key, value)
    if clients is not None:
        if "partition" in given_names(config):
            raise ValueError(f"clients must be left out where partition is an object, which says how many, got {clients}")
        _set(config, "partition", {"num_clients": clients})
    _check_devices(config)
    return config


def lightning_modules(config: DictConfig) -> tuple[Learner, FederatedDataModule]:
    """Build the LightningModule and the data of a configuration, for your own Trainer; no run directory is written.

    An epoch is a round; `config.rounds` of them are a run.

    Raises:
        ValueError: as in `fit`.
    """
    with _plain_errors():
        check_rules(config)
        data = build_data(config)
        learner, steps = build_learner(config, data, Path(config.output_dir).expanduser())
        return learner, FederatedDataModule(data, steps=steps)


def _data(images: Any, labels: Any, tasks: Sequence[str] | None, split: Any) -> ImageData | None:
    if split is not None and not isinstance(split, str | Mapping):
        raise ValueError(
            f"split must be the name of a rule or a mapping of train, val and test to indices, got {type(split).__name__}"
        )
    parts = split if isinstance(split, Mapping) else None
    if images is None or isinstance(images, ImageData):
        for name, value in (("labels", labels), ("tasks", tasks), ("split", parts)):
            if value is not None:
                raise ValueError(f"{name} must be left out where images is {'None' if images is None else 'an ImageData'}")
        return images
    return from_tensors(images, labels, tasks=tasks, split=parts)


def _check_devices(config: DictConfig) -> None:
    objects = given_names(config)
    if objects and config.trainer.devices > 1 and not inside_rank():
        raise ValueError(
            f"trainer.devices must be 1 where objects are given, here {', '.join(objects)}: the processes that it starts do not have them; "
            f"got {config.trainer.devices}. Start the program itself by torchrun"
        )


def _check_member(group: str, member: str) -> None:
    members = (WHOLE if group in WHOLE else PARTIAL)[group]
    if member not in members:
        raise ValueError(f"{group} must be one of {', '.join(members)}, or an object, got {member!r}{nearest(member, members)}")


def _set(config: DictConfig, key: str, value: Any) -> None:
    """Set a key to a value, options of it from a mapping, or a group to an object."""
    check_name(key)
    if isinstance(value, Mapping) and (key in DEFAULTS or key in OPTIONS):
        for name, part in value.items():
            OmegaConf.update(config, f"{key}.{name}", part, force_add=True)
    elif key in DEFAULTS:
        config[key] = give(key, value)
    elif key in OPTIONS:
        raise ValueError(f"{key} must be a mapping of options, got {value!r}")
    else:
        (option,) = (option for option in dataclasses.fields(top_level()) if option.name == key)
        config[key] = convert(str(value) if isinstance(value, Path) else value, option.type, key)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise the error of a part of the run without the one that Hydra wraps around it."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        inner: BaseException = error
        while isinstance(inner, HydraException) and inner.__cause__ is not None:
            inner = inner.__cause__
        if isinstance(inner, HydraException | OmegaConfBaseException):
            raise ValueError(str(inner)) from error
        raise inner from error
