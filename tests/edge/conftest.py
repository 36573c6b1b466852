"""Small trained runs that the tests of the way to a device share."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mtl.run.train import train
from mtl.trained.export import Exported, ExportOptions, export_run
from tests.composing import compose
from tests.conftest import make_images
from tests.run.test_train import SMALL

Train = Callable[..., Path]
CENTRALISED = "mode=centralised"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of each of four classes: eight for training, two for validation, two for test."""
    root = tmp_path_factory.mktemp("pictures")
    data = make_images(num_classes=4, per_class=12, size=16)
    for i, (picture, c) in enumerate(zip(data.images, data.classes.tolist(), strict=True)):
        (root / f"c{c}").mkdir(exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(root / f"c{c}" / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Train:
    """A run directory with these overrides, trained once in a session."""
    done: dict[tuple[str, ...], Path] = {}

    def make(*overrides: str) -> Path:
        if overrides not in done:
            done[overrides] = tmp_path_factory.mktemp("runs") / "run"
            own_trunk = any(word.startswith("trunk=") for word in overrides)
            words = [word for word in SMALL if not (own_trunk and word.startswith("trunk."))]
            words += [f"data.root={pictures}", "split.train=8", "rounds=8", "evaluate_every=4"]
            train(compose([*words, *overrides]), done[overrides])
        return done[overrides]

    return make


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, trained: Train) -> Exported:
    """The float file of the centralised run."""
    return export_run(trained(CENTRALISED), out=tmp_path_factory.mktemp("float") / "model.onnx")


@pytest.fixture(scope="session")
def exported_int8(tmp_path_factory: pytest.TempPathFactory, trained: Train) -> Exported:
    """The int8 file of the centralised run."""
    return export_run(trained(CENTRALISED), ExportOptions(int8=True), out=tmp_path_factory.mktemp("int8") / "model.onnx")
