"""Transfer in whole runs: frozen parts are neither trained nor sent, the same in every backend and after a resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mtl.data.client_batches import LocalWork
from mtl.data.transforms import Normalise
from mtl.edge.distil import angles, distances
from mtl.federation.algorithms.fedavg import fedavg
from mtl.federation.algorithms.local_sgd import LocalSGD
from mtl.federation.clients.contract import Training
from mtl.federation.clients.loop import LoopBackend
from mtl.federation.clients.stacked import StackedBackend
from mtl.federation.layout import is_head
from mtl.federation.objective import Objective
from mtl.federation.round import State, run_round
from mtl.federation.schedule import Schedule
from mtl.learning.checkpoints import read_checkpoint
from mtl.losses.pairs import TaskCounts
from mtl.models.transfer import Transfer
from mtl.report.page import write_report
from mtl.run.build import build_data
from mtl.run.load import build_start, load_run
from mtl.run.train import train
from tests.conftest import make_images
from tests.federation.small_federations import build_federation, initial_state
from tests.federation.test_backends import FACES, assert_close, model_of, uneven
from tests.run.test_train import kill_after, numbers, small, without_time

TWO_STAGES = ["trunk.channels=[8]", "trunk.width=8"]  # the convolution and the embedding


def rounds_of(make: Any, keep: str, transfer: Transfer, *, rounds: int = 4) -> tuple[list[State], list[int], list[int]]:
    data = uneven([5, 1, 7, 3], 1)
    model = model_of("groupnorm", data, torch.float64)
    transfer.freeze(model)
    client = LocalSGD(learning_rate=0.02, scales=transfer.scales(model))
    training = Training(model, Objective(FACES, Normalise()), client, LocalWork(batch_size=3), 0)
    frozen = transfer.schedule(model)
    algorithm = fedavg(momentum=0.5)
    federation = build_federation(data, training, make, schedule=Schedule(), algorithm=algorithm, keep=keep, frozen=frozen)
    states = [initial_state(federation)]
    sent, received = [], []
    for r in range(rounds):
        state, log = run_round(federation, states[-1], r)
        states.append(state)
        sent.append(log.bytes_up)
        received.append(log.bytes_down)
    return states, sent, received


@pytest.mark.parametrize("keep", ["nothing", "heads", "all"])
@pytest.mark.parametrize(
    "transfer", [Transfer(unfreeze_every=2, decay=0.5), Transfer(trained=1, unfreeze_every=1), Transfer(trained=0)]
)
def test_loop_and_stacked_agree(keep: str, transfer: Transfer) -> None:
    loop, *_ = rounds_of(LoopBackend, keep, transfer)
    stacked, *_ = rounds_of(StackedBackend, keep, transfer)
    assert_close(loop[-1], stacked[-1], 1e-10)


@pytest.mark.parametrize("make", [LoopBackend, StackedBackend])
def test_what_rests_does_not_move_and_is_not_sent(make: Any) -> None:
    states, sent, received = rounds_of(make, "nothing", Transfer(unfreeze_every=1))
    data = uneven([5, 1, 7, 3], 1)
    params = states[0].params
    # Round 1: the heads alone; round 2: the embedding too; from round 3 on everything.
    groups = [[name for name in params if name.startswith(f"trunk.features.{i}.")] for i in (0, 1, 4)]
    assert all(groups)
    moving = [[], groups[2], [*groups[2], *groups[0], *groups[1]], [*groups[2], *groups[0], *groups[1]]]
    for number, names in enumerate(moving):
        before, after = states[number].params, states[number + 1].params
        for name in params:
            moved = not torch.equal(before[name], after[name])
            assert moved == (name in names or is_head(name) or name.startswith("loss.")), (number, name)
        shared = sum(params[name].numel() for name in params if name in names or name.startswith("loss."))
        head = sum(params[name][0].numel() for name in params if is_head(name))
        assert sent[number] == received[number] == 8 * (4 * shared + int(data.assignment.sum()) * head)


def test_rates_scale_the_steps_of_their_parameters() -> None:
    # Without momentum and over one step of one round, the update is the rate times the gradient.
    whole, *_ = rounds_of(LoopBackend, "nothing", Transfer(), rounds=1)
    scaled, *_ = rounds_of(LoopBackend, "nothing", Transfer(decay=0.25), rounds=1)
    client = {name: (s[1].params[name] - s[0].params[name]).norm() for s in (whole,) for name in s[0].params}
    slower = {name: (s[1].params[name] - s[0].params[name]).norm() for s in (scaled,) for name in s[0].params}
    for name, value in client.items():
        factor = 0.25 if name.startswith("trunk.features.0") or name.startswith("trunk.features.1") else 1.0
        assert float(slower[name] / value) == pytest.approx(factor, rel=0.2), name


@pytest.mark.parametrize("mode", ["federated", "centralised", "local"])
def test_a_resumed_run_unfreezes_as_one_never_interrupted(class_folders: Path, tmp_path: Path, mode: str) -> None:
    config = small(
        class_folders,
        f"mode={mode}",
        "transfer=parameters",
        "transfer.unfreeze_every=2",
        "rounds=6",
        "algorithm=fedavgm",
        *TWO_STAGES,
    )
    whole = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=3)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(whole)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


@pytest.mark.parametrize(("mode", "backend"), [("federated", "loop"), ("federated", "vmap"), ("centralised", "loop")])
@pytest.mark.parametrize("trained", [0, 1])
def test_cached_features_change_nothing(class_folders: Path, tmp_path: Path, mode: str, backend: str, trained: int) -> None:
    words = [f"mode={mode}", "transfer=features", f"transfer.trained={trained}", "augmentation=none", "mirror=false", *TWO_STAGES]
    fresh = train(small(class_folders, *words), tmp_path / "fresh")
    cached = train(small(class_folders, *words, "transfer.cache=true", f"engine.backend={backend}"), tmp_path / "cached")
    with np.load(tmp_path / "fresh" / "predictions.npz") as one, np.load(tmp_path / "cached" / "predictions.npz") as other:
        assert other["scores"] == pytest.approx(one["scores"], abs=1e-4)
    assert cached["fit/samples"] == fresh["fit/samples"]
    if mode == "federated":
        assert cached["fit/bytes_up"] == fresh["fit/bytes_up"]
    # The whole trunk is in the checkpoint, and scores pictures.
    models = [load_run(tmp_path / name).model for name in ("fresh", "cached")]
    pictures = torch.rand(2, 1, 16, 16)
    assert torch.allclose(models[0](pictures), models[1](pictures), atol=1e-4)


def test_features_send_the_heads_alone(class_folders: Path, tmp_path: Path) -> None:
    summary = train(small(class_folders, "transfer=features", *TWO_STAGES), tmp_path / "run")
    # Two clients with two heads of eight numbers each, and the loss's bias, four rounds.
    assert summary["fit/bytes_up"] == summary["fit/bytes_down"] == 4 * 2 * 4 * (2 * 8 + 1)


def test_caching_pictures_that_change_is_refused(class_folders: Path, tmp_path: Path) -> None:
    for word, message in (("mirror=true", "mirror=true"), ("augmentation=flip", "augmentation that changes them")):
        fixed = {"mirror": "mirror=false", "augmentation": "augmentation=none"} | {word.partition("=")[0]: word}
        with pytest.raises(ValueError, match=rf"transfer.cache=true needs pictures that never change.*{message}"):
            train(small(class_folders, "transfer=features", "transfer.cache=true", *fixed.values()), tmp_path / "run")
    words = ["transfer=features", "transfer.cache=true", "transfer.trained=2", "mirror=false", "augmentation=none", *TWO_STAGES]
    with pytest.raises(ValueError, match=r"transfer.cache=true needs frozen stages"):
        train(small(class_folders, *words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_starts_from_the_trunk_of_another(class_folders: Path, tmp_path: Path) -> None:
    train(small(class_folders), tmp_path / "first")
    best = read_checkpoint(tmp_path / "first" / "checkpoints" / "best.ckpt")["state_dict"]
    for weights in (tmp_path / "first", tmp_path / "first" / "checkpoints" / "best.ckpt"):
        run_dir = tmp_path / f"second-{weights.name}"
        train(small(class_folders, f"weights={weights}", "transfer=features", "loss=bce", "heads=linear"), run_dir)
        second = read_checkpoint(run_dir / "checkpoints" / "last.ckpt")["state_dict"]
        names = [name for name in best if name.startswith("model.trunk.")]
        assert names
        assert all(torch.equal(best[name], second[name]) for name in names)
    with pytest.raises(ValueError, match=r"must fit the trunk, and .* features.4.weight is of shape \[8, 512\] instead of"):
        train(small(class_folders, f"weights={tmp_path / 'first'}", "trunk.width=16"), tmp_path / "third")
    train(small(class_folders, "mode=local"), tmp_path / "local")
    with pytest.raises(ValueError, match="must have one trunk for all, and in that run each client keeps its own"):
        train(small(class_folders, f"weights={tmp_path / 'local'}"), tmp_path / "fourth")


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of other pictures of four other classes."""
    root = tmp_path_factory.mktemp("others")
    data = make_images(num_classes=4, per_class=8, size=16, seed=1)
    for i, (picture, c) in enumerate(zip(data.images, data.classes.tolist(), strict=True)):
        (root / f"p{c}").mkdir(exist_ok=True)
        Image.fromarray(picture[0].numpy()).save(root / f"p{c}" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def source(others: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on them."""
    run_dir = tmp_path_factory.mktemp("source") / "run"
    train(small(others), run_dir)
    return run_dir


ALONG = ("transfer=instances", "transfer.ratio=.5")


def test_the_relations_of_the_source_trunk_are_no_loss_at_its_own_place(class_folders: Path, source: Path) -> None:
    weights, data = f"weights={source}", build_data(small(class_folders))
    _, objective = build_start(small(class_folders, weights, "transfer=relations"), data)
    model, plain = build_start(small(class_folders, weights), data)
    inputs, labels = torch.randn(6, 1, 16, 16), torch.ones(6, 4, dtype=torch.bool)
    seen = (inputs, labels, labels, labels[:, 0], TaskCounts(torch.ones(4), torch.ones(4)))
    with torch.no_grad():
        assert torch.allclose(objective.losses(model, *seen).tasks, plain.losses(model, *seen).tasks, atol=1e-5)
        for parameter in model.trunk.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        features = model.trunk(inputs), load_run(source).model.trunk(inputs)
        more = distances(*features, labels[:, 0]) + 2 * angles(*features, labels[:, 0])
        added = (objective.losses(model, *seen).tasks - plain.losses(model, *seen).tasks).sum()
    assert float(more) > 0.01
    assert float(added) == pytest.approx(float(more), rel=1e-3)


@pytest.mark.parametrize("mode", ["federated", "centralised"])
def test_relations_are_kept_in_training(class_folders: Path, tmp_path: Path, source: Path, mode: str) -> None:
    words = [f"mode={mode}", f"weights={source}", "tracking.wandb=disabled"]
    sent = {}
    for name, transfer in (("free", []), ("kept", ["transfer=relations"])):
        sent[name] = train(small(class_folders, *words, *transfer), tmp_path / name)["fit/bytes_up"]
    assert sent["kept"] == sent["free"]  # the teacher is what all start from, and does not travel again
    inputs = Normalise()(build_data(small(class_folders)).images[::2].float() / 255)
    everybody = torch.ones(len(inputs), dtype=torch.bool)
    with torch.no_grad():
        first, free, kept = (load_run(run).model.trunk(inputs) for run in (source, tmp_path / "free", tmp_path / "kept"))
        for part in (distances, angles):
            assert part(kept, first, everybody) < part(free, first, everybody)


@pytest.mark.parametrize("mode", ["federated", "centralised", "local"])
def test_instances_are_trained_along_and_never_tested(class_folders: Path, tmp_path: Path, source: Path, mode: str) -> None:
    words = [f"mode={mode}", f"weights={source}", *ALONG, f"transfer.source={source}"]
    config = small(class_folders, *words, "tracking.per_task=true")
    data = build_data(config)
    run_dir = tmp_path / "run"
    summary = train(config, run_dir)
    assert 0 < data.num_source <= 4
    assert not [name for name in summary if "source" in name]
    assert not [row for row in numbers(run_dir) if "source" in row[1]]
    with np.load(run_dir / "predictions.npz") as file:
        assert file["scores"].shape == file["targets"].shape == file["known"].shape == (8, 4)
        assert file["tasks"].tolist() == ["c0", "c1", "c2", "c3"]
        best = file["scores"].argmax(1) == file["identity"]
        assert summary["test/rank1"] == pytest.approx(best.mean())
    with np.load(run_dir / "federation.npz") as file:
        assert file["positives"].shape == file["assignment"].shape == (2, 4)
        assert file["source_assignment"].shape == (2, data.num_source)
        assert file["images"].tolist() == [12, 12]
    run = load_run(run_dir, client=1 if mode == "local" else None)
    assert len(run.tasks) == 4 + data.num_source
    assert set(run.trained_tasks) == (
        {0, 1, 2, 3} if mode != "local" else set(data.assignment[1, :4].nonzero().flatten().tolist())
    )
    if mode == "centralised":
        assert summary["fit/bytes_up"] == 16 * 16 * 16  # the source's pictures are everywhere
    if mode == "federated":
        params = run.model.params()
        shared = sum(value.numel() for name, value in params.items() if not is_head(name))
        assert summary["fit/bytes_up"] == 4 * 4 * (2 * shared + 8 * int(data.assignment.sum()))
        assert "4 tasks and 24 training images on 2 clients" in write_report([run_dir]).read_text()


def test_calibration_is_of_what_is_tested(class_folders: Path, tmp_path: Path, source: Path) -> None:
    words = [f"weights={source}", *ALONG, f"transfer.source={source}", "keep=heads"]
    sent = [train(small(class_folders, *words, *more), tmp_path / f"run{i}") for i, more in enumerate(([], ["fusion=platt"]))]
    # Two numbers for each of four subtasks, after rounds two and four.
    assert (sent[1]["fit/bytes_up"] or 0) - (sent[0]["fit/bytes_up"] or 0) == 2 * 2 * 4 * 4


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_resumed_instances_are_the_same(class_folders: Path, tmp_path: Path, source: Path, backend: str) -> None:
    config = small(
        class_folders,
        *(f"weights={source}", *ALONG, f"transfer.source={source}", "transfer.disjoint=true"),
        *(f"engine.backend={backend}", "keep=heads", "rounds=5"),
    )
    whole = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(whole)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def test_features_and_instances_go_together(class_folders: Path, tmp_path: Path, source: Path) -> None:
    words = [f"weights={source}", *ALONG, f"transfer.source={source}", "transfer.trained=0", "mirror=false", "augmentation=none"]
    data = build_data(small(class_folders, *words))
    summary = train(small(class_folders, *words, "transfer.cache=true"), tmp_path / "run")
    # The heads of eight numbers that each client trains, and the loss's bias, four rounds.
    assert summary["fit/bytes_up"] == 4 * 4 * (8 * int(data.assignment.sum()) + 2)


def test_the_source_comes_in_the_size_and_colours_of_the_target(
    class_folders: Path, tmp_path: Path, others: Path, source: Path
) -> None:
    words = [f"transfer.source={source}", *ALONG, "data.image_size=[12,10]", "data.grey=false"]
    train(small(others, "data.image_size=[12,10]", "data.grey=false", "rounds=1"), tmp_path / "colour")
    data = build_data(small(class_folders, *words, f"weights={tmp_path / 'colour'}"))
    assert data.images.shape[1:] == (3, 12, 10)
    assert data.num_source


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["transfer=relations", "weights=null"],
            "transfer.angle keep the relations of a source trunk: weights must say which, got null",
        ),
        (
            ["transfer=relations", "engine.backend=vmap"],
            "transfer.angle need engine.backend=loop, or auto, which takes it; got vmap",
        ),
        (["transfer=relations", "balancer=mgda"], "a teacher .*transfer.angle.* needs balancer=equal"),
        (["transfer=relations", "distil.teacher=x"], "x"),
        (
            ["transfer=relations", "transfer.trained=1", "transfer.cache=true", "augmentation=none", "mirror=false", *TWO_STAGES],
            "transfer.angle need the images: transfer.cache must be false, got true",
        ),
        (
            ["transfer=relations", "architecture=grouped", "architecture.groups=2"],
            "transfer.angle need an architecture with one trunk",
        ),
        (
            [*ALONG, "transfer.source=SOURCE", "weights=null"],
            "transfer.source compares images .*: weights must say which, got null",
        ),
        (
            [*ALONG, "transfer.source=SOURCE", "mode=single_task"],
            "transfer.source adds subtasks, and mode=single_task trains one alone",
        ),
        (
            [*ALONG, "transfer.source=SOURCE", "loss=by_kind"],
            "transfer.source adds people after all other subtasks, and loss=by_kind takes what comes last for attributes",
        ),
        ([*ALONG, "transfer.source=/nowhere"], "run directory must hold config.yaml, got /nowhere without one"),
        ([*ALONG], "transfer.source"),
    ],
)
def test_what_transfer_lacks_is_said(
    class_folders: Path, tmp_path: Path, source: Path, overrides: list[str], message: str
) -> None:
    words = [word.replace("SOURCE", str(source)) for word in overrides]
    weights = [] if any(word.startswith("weights=") for word in words) else [f"weights={source}"]
    with pytest.raises(Exception, match=message):
        train(small(class_folders, *weights, *words), tmp_path / "run")
    assert not (tmp_path / "run").exists()
