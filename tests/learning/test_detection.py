"""Runs that find faces and train subtasks in one trunk."""

import csv
import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra_zen import instantiate
from omegaconf import DictConfig
from PIL import Image
from torch import Tensor

from mtl.base.seeding import random_uniform
from mtl.base.types import Params
from mtl.data.scenes import TEST, SceneSet
from mtl.federation.clients.contract import Training
from mtl.learning.detection import DetectionLearning, SceneTraining
from mtl.learning.learner import Learner
from mtl.losses.by_kind import ByKind
from mtl.run.build import build_data
from mtl.run.config import compose
from mtl.run.learners import build_learner
from mtl.run.load import load_run
from mtl.run.named_experiments import experiments_folder
from mtl.run.rules import check_rules
from mtl.run.train import train
from tests.run.test_train import kill_after, numbers, without_time

TINY = [
    "+experiment=detect",
    "scenes.scenes=[16,0,6]",
    "scenes.people=4",
    "scenes.image_size=[64,64]",
    "scenes.face_height=[24,40]",
    "scenes.max_faces=2",
    "data.image_size=[28,23]",
    "trunk.channels=[8,8]",
    "trunk.width=8",
    "detector.width=8",
    "detection.batch_size=3",
    "work.steps=3",
    "rounds=4",
    "evaluate_every=2",
    "checkpoint_every=1",
    "tracking.wandb=disabled",
    "write_report=false",
    "trainer.accelerator=cpu",
]


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    return compose([*TINY, *overrides], experiments=experiments_folder())


def tiny(*overrides: str) -> DictConfig:
    return _composed(overrides).copy()


def build(config: DictConfig) -> DetectionLearning:
    check_rules(config)
    learner, _ = build_learner(config, build_data(config), Path("unused"))
    assert isinstance(learner, DetectionLearning)
    return learner


def losses(learner: DetectionLearning, step: int = 0) -> Tensor:
    """Of a step of the first round."""
    learner.train()
    learner.on_train_epoch_start()
    return learner.step_losses(learner.batch_of(step)).tasks


def gradients(*overrides: str) -> Params:
    """What the first step gives to the optimiser."""
    learner = build(tiny(*overrides))
    learner.train()
    learner.on_train_epoch_start()
    return learner.step.gradients(learner.moving, learner.memory, learner.batch_of(0), {}).grads


@functools.cache
def gradients_of_each() -> tuple[Tensor, list[Params]]:
    """The losses of the first step and, by plain autograd, the gradients of each."""
    learner = build(tiny())
    each, params = losses(learner), dict(learner.model.named_parameters())
    grads = [torch.autograd.grad(one, list(params.values()), retain_graph=True, materialize_grads=True) for one in each]
    return each.detach(), [dict(zip(params, some, strict=True)) for some in grads]


def test_a_run_directory_holds_everything_and_both_kinds_of_losses(tmp_path: Path) -> None:
    summary = train(tiny(), tmp_path / "run")
    expected = {"config.yaml", "environment.json", "metrics.csv", "summary.json", "checkpoints", "predictions.npz"}
    assert expected <= {path.name for path in (tmp_path / "run").iterdir()}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    for name in ("ap50", "found", "named", "rank1", "auroc"):
        assert 0 <= summary[f"test/{name}"] <= 1  # type: ignore[operator]
    with (tmp_path / "run" / "metrics.csv").open() as file:
        by_name = {(row["round"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    for term in ("heatmap", "offset", "size"):
        assert by_name["3", f"train/{term}/positive"] > 0
    assert by_name["3", "train/heatmap/negative"] > 0
    assert by_name["3", "train/offset/negative"] == 0
    parts = [value for (round, name), value in by_name.items() if round == "3" and name.count("/") == 2]
    assert by_name["3", "train/loss"] == pytest.approx(sum(parts), rel=1e-5)
    assert {"monitor/ap50", "monitor/named"} <= {name for _, name in by_name}


def test_a_resumed_run_ends_as_one_never_interrupted(tmp_path: Path) -> None:
    config = tiny("rounds=5")
    whole = train(config, tmp_path / "whole")
    kill_after(config, tmp_path / "cut", rounds=2)
    config.resume = True
    assert without_time(train(config, tmp_path / "cut")) == without_time(whole)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def test_the_losses_are_one_vector_of_subtasks_and_terms_and_reach_both_parts() -> None:
    learner = build(tiny())
    vector = losses(learner)
    assert vector.shape == (5,)
    assert learner.balanced[-1] == "detection"
    trunk = [value for name, value in learner.model.named_parameters() if name.startswith("trunk.features.0")]
    for part in (vector[:4], vector[4:]):
        gradients = torch.autograd.grad(part.sum(), trunk, retain_graph=True)
        assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)


def test_without_a_balancer_the_losses_are_summed() -> None:
    _, each = gradients_of_each()
    for name, gradient in gradients().items():
        assert torch.allclose(gradient, sum(grads[name] for grads in each), atol=1e-6), name  # type: ignore[arg-type]


def test_detection_has_a_weight_of_its_own_in_trunk_and_detector() -> None:
    weights = (1.0, 0.5, 2.0, 1.0, 3.0)
    _, each = gradients_of_each()
    joint = gradients("balancer=fixed", f"balancer.weights={list(weights)}", "balance.normalise=none")
    for name, gradient in joint.items():
        expected = sum(weight * grads[name] for weight, grads in zip(weights, each, strict=True))
        assert torch.allclose(gradient, expected, atol=1e-6), name  # type: ignore[arg-type]
    assert {name.partition(".")[0] for name in joint} >= {"trunk", "heads", "detector"}


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "graddrop"])
def test_a_balancer_works_on_the_exact_gradients_of_the_trunk(name: str) -> None:
    values, each = gradients_of_each()
    rows = torch.stack(
        [torch.cat([value.flatten() for key, value in grads.items() if key.startswith("trunk.")]) for grads in each]
    )
    learner = build(tiny())
    learner.on_train_epoch_start()
    key, method = learner.batch_of(0).draw_key, instantiate(compose([f"balancer={name}"]).balancer)
    place = torch.arange(math.prod(method.draw_shape(*rows.shape)), dtype=torch.int32)
    draw = random_uniform(key[None], place).view(method.draw_shape(*rows.shape))
    direction, _, _ = method.combine(method.init(rows), values, rows, torch.ones(5, dtype=torch.bool), draw)
    grads = gradients(f"balancer={name}", "balance.normalise=none")
    moved = torch.cat([value.flatten() for key, value in grads.items() if key.startswith("trunk.")])
    assert torch.allclose(moved, direction, atol=1e-5)


def test_a_trunk_that_rests_leaves_the_balancer_nothing_to_compare() -> None:
    grads = gradients("balancer=mgda", "transfer.unfreeze_every=2")
    assert {name.partition(".")[0] for name in grads} == {"heads", "loss", "detector"}


def test_tasks_that_read_other_pictures_are_not_compared_by_their_features() -> None:
    with pytest.raises(ValueError, match=r"balance\.level must be parameters: the tasks do not read the same features"):
        build(tiny("balancer=mgda", "balance.level=representation"))


def test_detection_is_on_the_map_of_conflicts_of_a_balanced_run(tmp_path: Path) -> None:
    train(tiny("balancer=famo", "balance.conflict=true", "write_report=true", "rounds=2"), tmp_path)
    with np.load(tmp_path / "conflict.npz") as file:
        assert file["tasks"].tolist() == ["s1", "s2", "s3", "s4", "detection"]
        assert file["steps"].tolist() == (6 * (1 - np.eye(5))).tolist()
    assert (tmp_path / "figures" / "conflict.png").is_file()


def test_people_attributes_and_detection_share_one_trunk(tmp_path: Path) -> None:
    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    lists: tuple[list[str], list[str]] = ([], [])
    for number in range(18):
        Image.new("RGB", (23, 28), (13 * number, 60, 90)).save(base / "img_align_celeba" / f"{number:06}.jpg")
        lists[0].append(f"{number:06}.jpg {number % 3}")
        lists[1].append(f"{number:06}.jpg {1 if number % 2 else -1} {1 if number < 9 else -1}")
    (base / "identity_CelebA.txt").write_text("\n".join(lists[0]) + "\n")
    (base / "list_attr_celeba.txt").write_text("18\nMale Young\n" + "\n".join(lists[1]) + "\n")
    words = ["data=celeba", f"data.root={tmp_path}", "data.grey=true", "subtasks=classes_and_attributes", "split=fractions"]
    words += ["loss=by_kind", "loss.attributes.scale=16", "split.val=0", "split.test=0.34", "balancer=uw"]
    config = tiny(*words, "rounds=1", "evaluate_every=1", "write_report=true")
    summary = train(config, tmp_path / "run")
    assert {f"test/{name}" for name in ("rank1", "2/auroc", "Male/auroc", "Young/auroc", "attributes_auroc", "ap50")} <= set(
        summary
    )
    assert "test/named" not in summary  # the scenes show other people
    assert summary["cost/flops_training"] > 0  # type: ignore[operator]
    # Grey scenes of 64x64: two convolutions of stride 2 to 8 channels; the pyramid of width 8 on 16x16, 8x8 and 4x4.
    separable = 8 * 9 + 8 * 8  # of a place: each channel alone, and across them
    trunk = 32 * 32 * 8 * 9 + 16 * 16 * 8 * 8 * 9
    pyramid = 256 * 64 + (64 + 16) * separable + 16 * separable + (64 + 256) * separable + 256 * 8 * 5
    assert summary["cost/flops_scene"] == 2 * (trunk + pyramid)
    # A face of 28x23 and its mirror image: 14x12, 7x6, an embedding of 8, and five heads.
    assert summary["cost/flops_forward"] == 2 * 2 * (14 * 12 * 8 * 9 + 7 * 6 * 8 * 8 * 9 + 7 * 6 * 8 * 8 + 8 * 5)
    with np.load(tmp_path / "run" / "predictions.npz") as file:
        assert (file["tasks"].tolist(), int(file["num_exclusive"])) == (["0", "1", "2", "Male", "Young"], 3)
    assert (tmp_path / "run" / "report.html").is_file()
    loss = load_run(tmp_path / "run").model.loss
    assert isinstance(loss, ByKind)
    assert loss.num_exclusive == 3


def test_the_cost_of_a_step_grows_with_its_scenes() -> None:
    costs = [build(tiny(f"detection.batch_size={scenes}")).training_cost() for scenes in (1, 2, 4)]
    forward = [cost.step.forward.fixed for cost in costs]
    # At stride 2 and 4 of 64 x 64 grey pixels the trunk's two convolutions of 3 x 3 alone: 1 to 8 channels, 8 to 8.
    assert forward[1] - forward[0] > 2 * 9 * 8 * (32 * 32 + 8 * 16 * 16)
    assert forward[2] - forward[1] == 2 * (forward[1] - forward[0])
    assert len({cost.step.forward.per_image for cost in costs}) == 1


def test_features_in_place_of_pictures_are_refused() -> None:
    # The experiment sets scale and shift, and augmentation=none leaves them.
    still = ("augmentation=none", "augmentation.scale=0", "augmentation.shift=0", "mirror=false")
    with pytest.raises(ValueError, match="mode=detection trains on scenes too"):
        build(tiny("transfer=features", "transfer.cache=true", *still))


def test_a_run_is_loaded_with_its_detector(tmp_path: Path) -> None:
    summary = train(tiny("rounds=1", "evaluate_every=1"), tmp_path / "run")
    with np.load(tmp_path / "run" / "detection.npz") as file:
        sure = file["scores"] >= file["confidence"]
        assert file["hits"][sure].sum() / file["num_faces"] == summary["test/found"]
        assert len(file["images"]) == 6
    learner = build(tiny())
    learner.model.load_state_dict(load_run(tmp_path / "run").model.state_dict())
    learner.eval()
    metrics = learner.evaluate_scenes(learner.scenes.part(TEST))
    assert {name: summary[f"test/{name}"] for name in metrics} == metrics


def test_a_step_is_a_function_of_seed_round_and_step() -> None:
    first, again, other = (losses(build(tiny(f"seed={seed}")), step=1) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, losses(build(tiny()), step=2))


def test_true_boxes_found_score_full_marks() -> None:
    learner = build(tiny())
    scenes = learner.scenes

    def perfect(images: Tensor, **_: object) -> object:
        from mtl.faces.finder import Faces

        start = next(i for i in range(len(scenes)) if torch.equal(images[0], scenes.images[i].float() / 255))
        truth = [scenes.boxes[i, : scenes.counts[i]] for i in range(start, start + len(images))]
        return [Faces(boxes, torch.ones(len(boxes))) for boxes in truth]

    learner.finder.find = perfect  # type: ignore[assignment, method-assign]
    metrics = learner.evaluate_scenes(scenes.part(2))
    assert (metrics["ap50"], metrics["found"], metrics["precision"]) == (1.0, 1.0, 1.0)
    shown = learner.detections()
    faces = int(scenes.counts[scenes.part(2)].sum())
    assert (int(shown["num_faces"]), int(shown["hits"].sum()), len(shown["hits"])) == (faces, faces, faces)
    assert np.array_equal(shown["found_boxes"], shown["true_boxes"])
    assert shown["found_place"].tolist() == list(range(len(shown["true_boxes"])))
    assert np.array_equal(shown["images"], scenes.images[scenes.part(2)].numpy())


def test_average_precision_is_the_value_worked_out_by_hand() -> None:
    # Two true faces; found, by falling score: one right, one wrong, one right. Precision 1 up to recall 1/2, 2/3 from there to 1: of
    # COCO's 101 recalls 51 lie at or below one half.
    from torchmetrics.detection import MeanAveragePrecision

    from mtl.faces.finder import Faces
    from mtl.learning.scene_evaluation import _as_coco

    truth = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
    detected = torch.tensor([[0.0, 0, 10, 10], [40.0, 0, 50, 10], [20.0, 0, 30, 10]])
    metric = MeanAveragePrecision(iou_thresholds=[0.5], backend="faster_coco_eval")
    metric.update([_as_coco(Faces(detected, torch.tensor([0.9, 0.8, 0.7])))], [_as_coco(Faces(truth, torch.ones(2)))])
    assert float(metric.compute()["map_50"]) == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-6)


def test_scenes_that_do_not_fit_the_data_are_refused() -> None:
    with pytest.raises(ValueError, match="scenes must hold validation scenes, as data do, got none in orl_scenes"):
        build(tiny("split.val=0.2"))
    learner = build(tiny())
    colour = SceneSet(**{**learner.scenes.__dict__, "images": learner.scenes.images.expand(-1, 3, -1, -1)})
    training = Training(learner.model, learner.objective, learner.optimizer, learner.work, 0)
    scenes = SceneTraining(colour, learner.options, learner.augmentation)
    with pytest.raises(ValueError, match="as many channels as the pictures of data, got 3 and 1"):
        DetectionLearning(training, learner.federated_data, learner.schedule, scenes=scenes, num_rounds=1)


def test_the_best_round_is_chosen_by_the_faces_named_in_validation_scenes(tmp_path: Path) -> None:
    summary = train(tiny("scenes.scenes=[16,5,6]", "scenes.photographs=[5,2,3]"), tmp_path / "run")
    assert summary["fit/best_round"] in (2, 4)
    learner: Learner = build(tiny("scenes.scenes=[16,5,6]", "scenes.photographs=[5,2,3]"))
    assert learner.chosen_by == "val/named"
    with (tmp_path / "run" / "metrics.csv").open() as file:
        logged = {(row["round"], row["metric"]): float(row["value"]) for row in csv.DictReader(file)}
    round = str(summary["fit/best_round"])
    for name in ("named", "ap50", "found", "precision", "auroc"):
        assert summary[f"val/best_{name}"] == logged.get((round, f"val/{name}"))


def test_the_best_round_is_chosen_by_the_metric_that_is_asked_for(tmp_path: Path) -> None:
    words = ("scenes.scenes=[16,5,6]", "scenes.photographs=[5,2,3]", "rounds=3", "evaluate_every=1", "best_by=balanced_accuracy")
    summary = train(tiny(*words), tmp_path / "run")
    with (tmp_path / "run" / "metrics.csv").open() as file:
        of_rounds = [float(row["value"]) for row in csv.DictReader(file) if row["metric"] == "val/balanced_accuracy"]
    assert summary["fit/best_round"] == 1 + of_rounds.index(max(of_rounds))


def test_a_metric_that_validation_has_not_is_refused_and_so_is_one_without_validation(tmp_path: Path) -> None:
    words = ("scenes.scenes=[16,5,6]", "scenes.photographs=[5,2,3]", "evaluate_every=1", "best_by=nonsense")
    with pytest.raises(ValueError, match=r"best_by must be one of .*ap50.*, got nonsense"):
        train(tiny(*words), tmp_path / "run")
    with pytest.raises(ValueError, match="best_by=ap50 needs validation images to choose by, and split leaves none"):
        build(tiny("best_by=ap50"))
