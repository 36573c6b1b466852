"""Runs from Python: which arguments are taken, what they do, and the errors of those that do not fit."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import mtl
from mtl.balancing.mgda import MGDA
from mtl.data.federated_data import FederatedData
from mtl.federation.aggregators.weighted_mean import WeightedMean
from mtl.federation.algorithms.contract import ClientAlgorithm
from mtl.federation.algorithms.fedavg import FedAvg, fedavg
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.server import mean
from mtl.losses.bce import BCE
from mtl.losses.pairs import PairLoss, TaskCounts
from mtl.models.cnn import ImageShape, small_cnn
from mtl.models.heads import CosineHeads
from mtl.run.build import read_config
from mtl.run.config import compose
from mtl.run.lineage import check_unseen
from mtl.run.objects import _OBJECTS, digests
from mtl.run.train import train
from mtl.trained.export import ExportOptions, export_run
from tests.conftest import make_images

FACES = make_images(num_classes=4, per_class=10, size=16)
QUICK: dict[str, Any] = {
    "clients": 2,
    "rounds": 2,
    "work": {"steps": 2},
    "write_report": False,
    "tracking": {"wandb": "disabled"},
    "trainer": {"accelerator": "cpu"},
    "engine": {"backend": "loop"},
}


class Features(nn.Module):
    """A trunk that is no chain of layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(256, width)

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(self.linear(images.flatten(1)))


class Squares(PairLoss):
    """L+ = (1 - z)^2, L- = (1 + z)^2."""

    def terms(self, logits: Tensor, counts: TaskCounts) -> tuple[Tensor, Tensor]:
        return (1 - logits).square(), (1 + logits).square()


def drawn_trunk(image_shape: ImageShape) -> nn.Module:
    return Features(8)


def quick(**changed: Any) -> dict[str, Any]:
    return QUICK | changed


def seeded(width: int = 8, seed: int = 0) -> Features:
    torch.manual_seed(seed)
    return Features(width)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, mtl; assert 'torch' not in sys.modules; mtl.fit; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'mtl' has no attribute 'fti'"):
        _ = mtl.fti


def test_a_module_trunk_is_trained_from_the_parameters_that_it_has(tmp_path: Path) -> None:
    trunk = seeded()
    before = trunk.linear.weight.clone()
    run = mtl.fit(FACES.images, FACES.classes, trunk=trunk, output_dir=tmp_path / "run", **quick())
    assert (trunk.linear.weight == before).all()
    distance = (run.trained.model.trunk.features.linear.weight - before).abs().mean()
    assert 0 < distance < 0.5 * before.abs().mean()
    assert run.summary["cost/parameters"] == 256 * 8 + 8 + 4 * 8 + 1  # the last is the bias of the default loss
    assert run.predict(FACES.images[:3]).shape == (3, 4)
    assert run.tasks == ("0", "1", "2", "3")


def test_objects_compute_what_their_names_compute(tmp_path: Path) -> None:
    named = mtl.fit(
        FACES,
        output_dir=tmp_path / "named",
        **quick(loss="bce", client={"learning_rate": 0.02}),
        balancer="mgda",
        server="mean",
    )
    objects = mtl.fit(
        FACES,
        output_dir=tmp_path / "objects",
        **quick(loss=BCE, client=LocalSGD(learning_rate=0.02)),
        balancer=MGDA(),
        server=mean(),
        algorithm=fedavg(),
        trunk=small_cnn,
        heads=CosineHeads,
    )
    images = FACES.images[:8]
    assert torch.equal(named.predict(images), objects.predict(images))


def test_fit_is_the_command_line_of_the_same_words(tmp_path: Path) -> None:
    common = ["rounds=1", "work.steps=1", "write_report=false", "tracking.wandb=disabled", "trainer.accelerator=cpu"]
    words = ["data=orl", "split.train=2", "engine.backend=loop", "loss=bce", *common]
    run = mtl.fit(options=words, output_dir=tmp_path / "fit")
    summary = train(compose(words), tmp_path / "train")
    untimed = [name for name in summary if not name.startswith("fit/")]
    assert {name: run.summary[name] for name in untimed} == {name: summary[name] for name in untimed}


def test_modules_as_heads_and_loss_train(tmp_path: Path) -> None:
    heads = nn.Linear(8, 4, bias=False)
    run = mtl.fit(
        FACES.images, FACES.classes, trunk=drawn_trunk, heads=heads, loss=Squares(), output_dir=tmp_path / "run", **quick()
    )
    assert np.isfinite(run.summary["test/auroc"])


@pytest.mark.parametrize("half", [{"algorithm": FedAvg()}, {"algorithm": ClientAlgorithm()}, {"server": WeightedMean()}])
def test_half_an_algorithm_and_an_aggregator_are_completed(tmp_path: Path, half: dict[str, Any]) -> None:
    plain = mtl.fit(FACES, output_dir=tmp_path / "plain", **quick())
    completed = mtl.fit(FACES, **half, output_dir=tmp_path / "completed", **quick())
    assert completed.summary["test/auroc"] == plain.summary["test/auroc"]


def test_attributes_with_unknown_labels_become_subtasks(tmp_path: Path) -> None:
    run = mtl.fit(FACES.images, FACES.attributes, tasks=["odd", "some"], output_dir=tmp_path / "run", **quick())
    assert run.tasks == ("odd", "some")
    config = mtl.configure(FACES.images, FACES.attributes == 1)
    assert config.subtasks._target_.endswith("attributes")


def test_a_dataset_is_what_its_tensors_are() -> None:
    pairs = TensorDataset(FACES.images, FACES.classes)
    config, other = mtl.configure(pairs), mtl.configure(FACES.images, FACES.classes)
    assert config.data == other.data


def test_a_split_of_indices_trains_and_tests_on_exactly_these(tmp_path: Path) -> None:
    train_part, test = torch.arange(0, 40, 2), np.arange(1, 39, 2)
    config = mtl.configure(FACES.images, FACES.classes, split={"train": train_part, "test": test}, **quick())
    _, loaders = mtl.lightning_modules(config)
    data: FederatedData = loaders.federated_data
    assert data.split.train.tolist() == train_part.tolist()
    assert data.split.test.tolist() == test.tolist()
    assert not len(data.split.val)


def test_classes_are_named_by_their_numbers() -> None:
    config = mtl.configure(FACES.images, FACES.classes * 10 - (FACES.classes == 0).long(), clients=2)
    _, loaders = mtl.lightning_modules(config)
    assert loaders.federated_data.tasks == ("10", "20", "30")


def test_an_interrupted_run_with_objects_goes_on_and_another_object_is_refused(tmp_path: Path) -> None:
    def go(out: str, trunk: Any, **changed: Any) -> mtl.Run:
        split = {"train": range(0, 40, 2), "test": range(1, 40, 2)}  # no image chooses a round
        words = quick(split=split, schedule="constant", output_dir=tmp_path / out, checkpoint_every=1, **changed)
        return mtl.fit(FACES.images, FACES.classes, trunk=trunk, **words)

    whole = go("whole", seeded(), rounds=4)
    go("parts", seeded(), rounds=2)
    resumed = go("parts", seeded(), rounds=4, resume=True)
    assert torch.equal(whole.predict(FACES.images), resumed.predict(FACES.images))
    with pytest.raises(ValueError, match=r"another configuration, which differs in trunk.values \(\w+ there, \w+ now\)"):
        go("parts", seeded(seed=1), rounds=4, resume=True)
    with pytest.raises(ValueError, match=r"differs in trunk.code .*, trunk.kind \(Features there, drawn_trunk now\)"):
        go("parts", drawn_trunk, rounds=4, resume=True)
    with pytest.raises(ValueError, match=r"another configuration, which differs in data.values"):
        mtl.fit(
            FACES.images.flip(-1),
            FACES.classes,
            trunk=seeded(),
            split={"train": range(0, 40, 2), "test": range(1, 40, 2)},
            **quick(schedule="constant", output_dir=tmp_path / "parts", rounds=4, resume=True),
        )


def test_a_run_without_its_objects_says_what_must_be_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = mtl.fit(FACES.images, FACES.classes, trunk=seeded(), output_dir=tmp_path / "run", **quick())
    registered = dict(_OBJECTS)
    monkeypatch.setattr("mtl.run.objects._OBJECTS", {})
    with pytest.raises(
        ValueError, match=r"trunk of this run is an object of a Python program, Features, .*give\('trunk', value\)"
    ):
        export_run(run.run_dir, ExportOptions())
    with pytest.raises(ValueError, match="its images were given from Python, and whom they show is not known"):
        check_unseen(run.run_dir, "lfw", "pairs.txt")
    monkeypatch.setattr("mtl.run.objects._OBJECTS", registered)
    export_run(run.run_dir, ExportOptions())
    assert (run.run_dir / "model.onnx").is_file()


def test_the_digest_of_an_object_is_the_same_in_another_process(tmp_path: Path) -> None:
    code = (
        "import torch\nfrom torch import nn\nfrom mtl.run.objects import digests\n"
        "class Own(nn.Module):\n"
        "    def forward(self, x, kinds=('a', 'b')):\n        return x if 'c' in {'a', 'b', 'c', 'd'} else -x\n"
        "torch.manual_seed(0)\nprint(digests(nn.Sequential(Own(), nn.Linear(3, 2))), digests({'a', 'b', 'c'}))\n"
    )
    outputs = {subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout for _ in range(2)}
    assert len(outputs) == 1


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: torch.relu(x), lambda x: torch.tanh(x)),
        (torch.relu, torch.tanh),
        (seeded(seed=0), seeded(seed=1)),
        (nn.Dropout(0.1), nn.Dropout(0.2)),
        (LocalSGD(0.1), LocalSGD(0.2)),
        ([1, "1"], ["1", 1]),
        (np.zeros(4, np.int32), np.zeros(2, np.int64)),
    ],
)
def test_different_objects_have_different_digests(left: Any, right: Any) -> None:
    assert digests(left) != digests(right)
    assert digests(left) == digests(left)


def test_a_function_is_known_by_what_it_closes_over() -> None:
    def make(width: int) -> Any:
        return lambda shape: Features(width)

    assert digests(make(8)) == digests(make(8))
    assert digests(make(8)) != digests(make(9))


def test_batch_norm_is_refused_and_replaced_as_by_name(tmp_path: Path) -> None:
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    with pytest.raises(ValueError, match=r"BatchNorm .* has running statistics that clients cannot share"):
        mtl.fit(FACES.images, FACES.classes, trunk=trunk, output_dir=tmp_path / "refused", **quick())
    run = mtl.fit(FACES.images, FACES.classes, trunk=trunk, norm="group", output_dir=tmp_path / "run", **quick())
    assert np.isfinite(run.summary["test/auroc"])


def test_more_processes_are_refused_where_there_are_objects() -> None:
    with pytest.raises(ValueError, match=r"trainer.devices must be 1 where objects are given, here data: .* got 2"):
        mtl.configure(FACES.images, FACES.classes, trainer={"devices": 2})


NAN = FACES.images.float().clone()
NAN[3, 0, 0, 0] = torch.nan


@pytest.mark.parametrize(
    ("images", "labels", "changed", "message"),
    [
        (FACES.images[:, 0], FACES.classes, {}, r"images must have the shape \[N, c, H, W\], got \[40, 16, 16\]"),
        (FACES.images.long(), FACES.classes, {}, "images must be uint8 in 0..255 or floating point, got int64"),
        (NAN, FACES.classes, {}, "images must be finite, got NaN or infinity in 1 of 40, first in image 3"),
        (FACES.images[:1], FACES.classes[:1], {}, "images must be at least 2, some to train and some to test, got 1"),
        ("faces", FACES.classes, {}, "images must have the shape|images must be a tensor"),
        (FACES.images, None, {}, "labels must be int64 .*, got none"),
        (FACES.images, FACES.classes[:-1], {}, r"labels must be .*, N = 40, got shape \[39\]"),
        (FACES.images, FACES.classes.float(), {}, r"labels must be .*, got float32 \[N\]"),
        (FACES.images, FACES.classes - 2, {}, "labels must be >= 0, or -1 where the class is not known, got -2"),
        (FACES.images, FACES.classes * 0, {}, "labels must hold at least 2 classes, got 1"),
        (FACES.images, FACES.attributes * 2, {}, "labels must be .*, got -?2"),
        (
            FACES.images,
            FACES.attributes,
            {"tasks": ["a"]},
            "tasks must be the names of the 2 columns of labels, at least one, got 1",
        ),
        (FACES.images, FACES.classes, {"tasks": ["a", "b"]}, "labels must be below 2, the number of tasks, got 3"),
        (FACES.images, FACES.classes, {"tasks": ["a", "a", "b", "c"]}, "tasks must have different names"),
        (TensorDataset(FACES.images), None, {}, r"images must be a Dataset of \(image, label\) pairs, got tuple at 0"),
        (
            FACES.images,
            FACES.classes,
            {"split": {"train": [0]}},
            "split must hold the indices of train, test and, if any, val, got train",
        ),
        (FACES.images, FACES.classes, {"split": {"train": [0], "test": [40]}}, r"split.test must be in \[0, 39\], got 40 to 40"),
        (
            FACES.images,
            FACES.classes,
            {"split": {"train": [0, 1], "test": [1]}},
            "split must hold every image once at most, got image 1",
        ),
        (
            FACES.images,
            FACES.classes,
            {"split": {"train": [0, 0], "test": [1]}},
            "split must hold every image once at most, got image 0",
        ),
        (FACES.images, FACES.classes, {"split": 0.8}, "split must be the name of a rule or a mapping .*, got float"),
        (None, FACES.classes, {}, "labels must be left out where images is None"),
        (FACES, None, {"data": "orl"}, "data must be left out where images are given, got 'orl'"),
    ],
)
def test_data_that_do_not_fit_are_refused(images: Any, labels: Any, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mtl.configure(images, labels, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trunk": "smal_cnn"}, "trunk must be one of .*, or an object, got 'smal_cnn'; did you mean small_cnn?"),
        ({"trunk": 3}, r"trunk must be an nn.Module, .*, got 3"),
        ({"loss": nn.BCELoss()}, "loss must be a PairLoss, .*, got an object of BCELoss"),
        ({"balancer": MGDA}, "balancer must be a Balancer such as MGDA.., got the class MGDA"),
        (
            {"client": torch.optim.SGD},
            "client must be an optimiser, an object with learning_rate, init, .*, got the class SGD",
        ),
        ({"server": object()}, "server must be a Server, or an aggregator with collect, got an object of object"),
        ({"fleet": object()}, "fleet must be a name or a mapping of options, got an object of object; objects are taken by data"),
        ({"round": 3}, "unknown option round; did you mean rounds?"),
        ({"rounds": "many"}, "rounds must be a whole number, got 'many'"),
        ({"engine": "loop"}, "engine must be a mapping of options, got 'loop'"),
        ({"options": "loss=bce"}, r"options must be a list of words such as \['loss=bce'\], got 'loss=bce'"),
        ({"options": ["loss=bec"]}, "Could not find 'loss/bec'|In 'train': Could not find"),
        ({"partition": lambda labels, seed: [], "clients": 2}, "clients must be left out where partition is an object"),
    ],
)
def test_choices_that_do_not_fit_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mtl.configure(FACES, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trunk": nn.Conv2d(1, 2, 3)}, r"trunk must give features \[B, h\], got \[2, 2, 14, 14\] for two images"),
        ({"trunk": nn.Linear(3, 2)}, r"trunk must take images \[2, 1, 16, 16\], and Linear raises RuntimeError: "),
        ({"trunk": lambda: Features()}, "trunk must be .*, got a function <lambda>, which takes other arguments: too many"),
        ({"trunk": lambda shape: 3}, "trunk must be an nn.Module, .*, got 3"),
        ({"heads": nn.Linear(128, 3)}, r"heads must give logits \[B, 4\], one for each subtask, got \[2, 3\] for two images"),
        (
            {"heads": nn.Sequential(nn.Linear(128, 5), nn.Linear(5, 4))},
            r"heads.0.weight must have the 4 subtasks as its first axis, .*, got \[5, 128\]",
        ),
        ({"loss": lambda num_tasks: BCE(num_tasks + 1, positive_weight=[1.0] * 5)}, "size of tensor|must give two tensors"),
        ({"work": {"step": 2}}, "unknown option work.step; did you mean steps?"),
        ({"client": {"learning_rate": -1.0}}, "client.learning_rate must be > 0, got -1.0"),
        ({"options": ["partition=sizes", "partition.sizes=[1,1]"], "clients": 3}, "unknown option partition.num_clients"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        mtl.fit(FACES.images, FACES.classes, output_dir=tmp_path / "run", **({"clients": 2, "rounds": 1} | changed))
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_images_of_another_kind_are_not_scored(tmp_path: Path) -> None:
    run = mtl.fit(FACES.images, FACES.classes, trunk=seeded(), output_dir=tmp_path / "run", **quick())
    with pytest.raises(ValueError, match=r"images must be torch.uint8 \[N, 1, 16, 16\] as those of the run, got torch.float32"):
        run.predict(FACES.images.float())
    assert read_config(run.run_dir).trunk.kind == "Features"
