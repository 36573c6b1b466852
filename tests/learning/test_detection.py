"""Runs that find faces and train subtasks in one trunk."""

import csv
import json
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor

from mtl.configs import compose
from mtl.data.scenes import SceneSet
from mtl.launch import experiments_folder
from mtl.learning.detection import DetectionLearning
from mtl.learning.learner import Learner
from mtl.train import build_data, build_learner, train
from tests.test_train import kill_after, numbers, without_time

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


def tiny(*overrides: str) -> DictConfig:
    return compose([*TINY, *overrides], experiments=experiments_folder())


def build(config: DictConfig) -> DetectionLearning:
    learner, _ = build_learner(config, build_data(config), Path("unused"))
    assert isinstance(learner, DetectionLearning)
    return learner


def losses(learner: DetectionLearning, step: int = 0) -> Tensor:
    """Of a step of the first round."""
    learner.train()
    learner.on_train_epoch_start()
    return learner.step_losses(step)


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
    assert vector.shape == (7,)
    assert learner.loss_names[-3:] == ("heatmap", "offset", "size")
    trunk = [value for name, value in learner.model.named_parameters() if name.startswith("trunk.features.0")]
    for part in (vector[:4], vector[4:]):
        gradients = torch.autograd.grad(part.sum(), trunk, retain_graph=True)
        assert all(float(gradient.abs().sum()) > 0 for gradient in gradients)


def test_the_weight_scales_the_detection_terms_alone() -> None:
    once, thrice = (losses(build(tiny(f"detection.weight={weight}"))) for weight in (1, 3))
    assert torch.allclose(thrice[:4], once[:4])
    assert torch.allclose(thrice[4:], 3 * once[4:], rtol=1e-5)


def test_a_step_is_a_function_of_seed_round_and_step() -> None:
    first, again, other = (losses(build(tiny(f"seed={seed}")), step=1) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, losses(build(tiny()), step=2))


def test_true_boxes_found_score_full_marks() -> None:
    learner = build(tiny())
    scenes = learner.scenes

    def perfect(images: Tensor, **_: object) -> object:
        from mtl.face.finder import Faces

        start = next(i for i in range(len(scenes)) if torch.equal(images[0], scenes.images[i].float() / 255))
        truth = [scenes.boxes[i, : scenes.counts[i]] for i in range(start, start + len(images))]
        return [Faces(boxes, torch.ones(len(boxes))) for boxes in truth]

    learner.finder.find = perfect  # type: ignore[assignment, method-assign]
    metrics = learner.evaluate_scenes(scenes.part(2))
    assert (metrics["ap50"], metrics["found"], metrics["precision"]) == (1.0, 1.0, 1.0)


def test_average_precision_is_the_value_worked_out_by_hand() -> None:
    # Two true faces; found, by falling score: one right, one wrong, one right. Precision 1 up to recall 1/2, 2/3 from there to 1: of
    # COCO's 101 recalls 51 lie at or below one half.
    from torchmetrics.detection import MeanAveragePrecision

    from mtl.face.finder import Faces
    from mtl.learning.detection import _as_coco

    truth = torch.tensor([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
    found = torch.tensor([[0.0, 0, 10, 10], [40.0, 0, 50, 10], [20.0, 0, 30, 10]])
    metric = MeanAveragePrecision(iou_thresholds=[0.5], backend="faster_coco_eval")
    metric.update([_as_coco(Faces(found, torch.tensor([0.9, 0.8, 0.7])))], [_as_coco(Faces(truth, torch.ones(2)))])
    assert float(metric.compute()["map_50"]) == pytest.approx((51 + 50 * 2 / 3) / 101, abs=1e-6)


def test_scenes_that_do_not_fit_the_data_are_refused() -> None:
    with pytest.raises(ValueError, match="scenes must hold validation scenes, as data do, got none in orl_scenes"):
        build(tiny("split.val=0.2"))
    learner = build(tiny())
    colour = SceneSet(**{**learner.scenes.__dict__, "images": learner.scenes.images.expand(-1, 3, -1, -1)})
    parts = (learner.objective, learner.client, learner.work, learner.schedule, learner.options, learner.augmentation)
    with pytest.raises(ValueError, match="as many channels as the pictures of data, got 3 and 1"):
        DetectionLearning(learner.model, learner.finder.detector, learner.federated_data, colour, *parts, num_rounds=1, seed=0)


def test_the_best_round_is_chosen_by_the_faces_named_in_validation_scenes(tmp_path: Path) -> None:
    summary = train(tiny("scenes.scenes=[16,5,6]", "scenes.photographs=[5,2,3]"), tmp_path / "run")
    assert summary["fit/best_round"] in (2, 4)
    learner: Learner = build(tiny("scenes.scenes=[16,5,6]", "scenes.photographs=[5,2,3]"))
    assert learner.chosen_by == "val/named"
