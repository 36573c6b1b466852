"""A small federation that every test can build in milliseconds."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mtl.base import compiling
from mtl.base.types import ImageData, Params
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged
from mtl.data.splits import Split

# The files that take longest, first: two processes that share the files then end together.
LONGEST = (
    "cli/test_sweep.py",
    "run/test_train.py",
    "cli/test_cli.py",
    "studies/test_shipped.py",
    "run/test_fit.py",
    "test_contributing.py",
    "federation/test_algorithm_laws.py",
    "run/test_wandb_run.py",
    "report/test_page.py",
    "test_transfer.py",
    "report/test_figures.py",
    "run/test_ranks.py",
    "learning/test_detection.py",
    "federation/test_personal_models.py",
    "cli/test_search.py",
    "cli/test_experiment_keys.py",
    "studies/test_study.py",
    "edge/test_architecture_export.py",
    "edge/test_face_export.py",
    "federation/test_backends.py",
    "report/test_results.py",
    "federation/test_architectures.py",
    "federation/test_views.py",
    "trained/test_verify.py",
    "federation/test_peers.py",
    "edge/test_quantize.py",
    "run/test_personal.py",
    "edge/test_export.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist would take the files with most tests first, and most tests are quick."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    tests = Path(__file__).parent
    place = {tests / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


def clone(params: Params) -> Params:
    return {name: value.clone() for name, value in params.items()}


def make_images(num_classes: int = 4, per_class: int = 6, size: int = 8, seed: int = 0) -> ImageData:
    """Random pictures with a class each, brighter in a class's own place so that there is something to learn."""
    rng = torch.Generator().manual_seed(seed)
    classes = torch.arange(num_classes).repeat_interleave(per_class)
    images = torch.randint(0, 120, (len(classes), 1, size, size), generator=rng, dtype=torch.uint8)
    for i, c in enumerate(classes.tolist()):
        images[i, 0, c % size] += 120
    attributes = torch.stack([classes % 2, torch.randint(-1, 2, (len(classes),), generator=rng)], 1).to(torch.int8)
    return ImageData(
        name="made",
        images=images,
        classes=classes,
        class_names=tuple(f"c{c}" for c in range(num_classes)),
        attributes=attributes,
        attribute_names=("odd", "some"),
        source="made for the test",
    )


def make_federation(num_clients: int = 2, *, num_classes: int = 4, per_class: int = 6, size: int = 8) -> FederatedData:
    """Client k owns the k-th run of classes; two images a class are for test, the rest for training."""
    images = make_images(num_classes, per_class, size)
    targets = images.classes[:, None] == torch.arange(num_classes)
    place = torch.arange(len(images.classes)) % per_class
    split = Split(torch.nonzero(place >= 2).flatten(), torch.zeros(0, dtype=torch.long), torch.nonzero(place < 2).flatten())
    owned = torch.arange(num_classes).tensor_split(num_clients)
    clients = tuple(split.train[torch.isin(images.classes[split.train], own)] for own in owned)
    positives = torch.stack([targets[client].sum(0) for client in clients])
    return FederatedData(
        name="made",
        tasks=images.class_names,
        images=images.images,
        targets=targets,
        known=torch.ones_like(targets),
        identity=images.classes,
        num_exclusive=num_classes,
        split=split,
        clients=Ragged.of(clients),
        assignment=positives > 0,
        positives=positives,
        negatives=torch.stack([(~targets[client]).sum(0) for client in clients]),
    )


@pytest.fixture
def images() -> ImageData:
    return make_images()


@pytest.fixture
def federation() -> FederatedData:
    return make_federation()


@pytest.fixture
def class_folders(tmp_path: Path) -> Path:
    """Class folders of small pictures, as a user would have them."""
    from PIL import Image

    data = make_images(num_classes=4, per_class=8, size=16)
    for i, (picture, c) in enumerate(zip(data.images, data.classes.tolist(), strict=True)):
        folder = tmp_path / "pictures" / f"c{c}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(folder / f"{i}.png")
    return tmp_path / "pictures"


SLOW_GUARDS = "Guards may run slower on Python 3.13.0. Consider upgrading to Python 3.13.1+."


@pytest.fixture
def python_3_13_0(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every call of torch.export.export warns of slow guards, as there, and that is an error; returns what was captured."""
    seen: list[str] = []
    real = torch.export.export

    def export(module: nn.Module, *arguments: Any, **options: Any) -> Any:
        seen.append(type(module).__name__)
        warnings.warn(SLOW_GUARDS, RuntimeWarning, stacklevel=2)
        return real(module, *arguments, **options)

    monkeypatch.setattr(compiling, "AFFECTED", True)
    monkeypatch.setattr(torch.export, "export", export)
    warnings.filterwarnings("error", message="Guards may run slower")  # before the exception in setup.cfg; pytest undoes it
    return seen
