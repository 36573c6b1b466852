"""Detection and subtasks in one trunk: scenes train where faces are and how large, pictures of single faces train the subtasks.

Detection is one more task beside the subtasks: the losses of a step are one vector [T + 1], the last the sum of the three of
`losses.centre`, which a balancer weighs. Rounds, steps, checkpoints and the evaluation of the subtasks are those of centralised training;
only the optimiser is another.
"""

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision

from mtl.base.seeding import derive_seed, random_uniform
from mtl.data.client_batches import AUGMENTATION, LocalWork, part_of_key, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged
from mtl.data.scene_transforms import SCENE_DRAWS, SceneAugmentation
from mtl.data.scenes import TEST, TRAIN, VAL, SceneSet
from mtl.data.transforms import to_float
from mtl.faces.finder import DetectionOptions, FaceFinder, Faces, match_faces
from mtl.federation.clients.balance import Balance
from mtl.federation.clients.balanced_step import BalancedLosses, Losses
from mtl.federation.clients.batches import Batch
from mtl.federation.clients.contract import Training
from mtl.federation.clients.gradients import PlainSum, Step
from mtl.federation.layout import Frozen, never_frozen
from mtl.federation.message import client_bytes
from mtl.federation.schedule import Schedule
from mtl.federation.workload import TrainingCost, training_cost
from mtl.learning.centralised import CentralisedLearning
from mtl.learning.learner import DEFAULT, Reporting
from mtl.losses.centre import TERMS, centre_losses, centre_targets
from mtl.losses.pairs import PairLosses
from mtl.metrics.scores import Metrics, share_of_highest
from mtl.models.centre import map_layers
from mtl.models.flops import count_forward
from mtl.models.hard_sharing import HardSharing

BATCH = 32  # scenes evaluated at once
NUM_SHOWN = 6  # of the test scenes, in a report


@dataclass(frozen=True)
class JointBatch:
    """subtasks: pictures of single faces; images: float [B, c, H, W] in 0..1, scenes; boxes: [B, M, 4]; present: bool [B, M]."""

    subtasks: Batch
    images: Tensor
    boxes: Tensor
    present: Tensor

    @property
    def draw_key(self) -> Tensor:
        return self.subtasks.draw_key


@dataclass(frozen=True)
class SeenScene:
    """index: of the scene; found: the faces found in it; truth: [m, 4], the true boxes; place: int64 [n], which of these each found one
    stands for, -1 for none; num_sure: how many of the found ones, the first, are surer than the confidence; names: of these, "" where they
    stand for no face or nobody is known; right: of the sure ones of known identity, how many have their own name, ties in parts as in
    `rank1`; true_names: [m], "" where not known.
    """

    index: int
    found: Faces
    truth: Tensor
    place: Tensor
    num_sure: int
    names: tuple[str, ...]
    right: float
    true_names: tuple[str, ...]


@dataclass(frozen=True)
class SceneTraining:
    """What detection trains on beside the pictures of single faces."""

    scenes: SceneSet
    detection: DetectionOptions
    augmentation: SceneAugmentation


class DetectionLearning(CentralisedLearning):
    """`model`: with a detector. `data`: pictures of single faces with their subtasks, of as many channels as the scenes have. Where the
    data have validation images, the scenes must have some too.
    """

    def __init__(
        self,
        training: Training,
        data: FederatedData,
        schedule: Schedule,
        *,
        scenes: SceneTraining,
        num_rounds: int,
        frozen: Frozen = never_frozen,
        reporting: Reporting = DEFAULT,
    ) -> None:
        found, channels = scenes.scenes, data.image_shape[0]
        if found.images.shape[1] != channels:
            raise ValueError(
                f"scenes must have as many channels as the pictures of data, got {found.images.shape[1]} and {channels}"
            )
        for part, name, needed in ((TRAIN, "training", True), (VAL, "validation", len(data.split.val) > 0), (TEST, "test", True)):
            if needed and not len(found.part(part)):
                raise ValueError(f"scenes must hold {name} scenes, as data do, got none in {found.name}")
        super().__init__(training, data, schedule, num_rounds=num_rounds, frozen=frozen, reporting=reporting)
        self.scenes, self.options, self.augmentation = found, scenes.detection, scenes.augmentation
        self.finder = self._finder(self.model)
        # Whether the subtasks can say whose a face is, and the scenes whether they are right.
        self._people = data.tasks[: data.num_exclusive]
        # Which subtask asks for each class of the scenes, -1 for none; the last is for a face of no known class, which is -1 too.
        place = {name: t for t, name in enumerate(self._people)}
        self._task_of_class = torch.tensor([*(place.get(name, -1) for name in found.class_names), -1])
        self._named = bool((found.identity >= 0).any()) and len(self._people) > 0 and set(self._people) <= set(found.class_names)
        self.seen: list[SeenScene] = []
        self._scenes_held = Ragged.of([found.part(TRAIN)])
        self.account["bytes_up"] += len(found.part(TRAIN)) * found.images[0].numel()

    def _finder(self, model: HardSharing) -> FaceFinder:
        assert model.detector is not None
        return FaceFinder(
            model.trunk,
            model.detector,
            self.objective.normalise,
            crop_shape=self.federated_data.image_shape,
            margin=self.options.margin,
            mirror=self.objective.mirror,
        )

    @property
    def loss_names(self) -> tuple[str, ...]:
        return (*self.federated_data.tasks, *TERMS)

    @property
    def balanced(self) -> tuple[str, ...]:
        return (*self.federated_data.tasks, "detection")

    @property
    def judged_by(self) -> str:
        return "named" if self._named else "ap50"

    @property
    def further_data(self) -> tuple[Tensor, ...]:
        return self.scenes.images, self.scenes.boxes, self.scenes.counts, self.scenes.identity

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW with `client.momentum` as its first beta: the focal loss of a map whose cells are nearly all empty starts too steep for
        plain SGD, and CenterNet's own optimiser is Adam.
        """
        return torch.optim.AdamW(groups, betas=(self.client.momentum, 0.999), weight_decay=self.client.weight_decay)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.scenes = self.scenes.to(self.device)
        self._scenes_held = self._scenes_held.to(self.device)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        work = LocalWork(batch_size=self.options.batch_size, steps=len(self._batches.step))
        self._scene_batches = plan_batches(
            self._scenes_held, [0], work, seed=derive_seed(self.seed, "scenes"), round=self.current_epoch
        )
        self._scenes_filled = self._scene_batches.filled.tolist()

    def training_step(self, step: Tensor, batch_idx: int) -> Tensor:
        batch = self.joint_batch(batch_idx)
        if not isinstance(self.rule, PlainSum):
            return self._balance(batch)
        losses = self.step_losses(batch)
        self._sums += losses.sums
        return losses.tasks.sum()

    def _make_step(self) -> Step:
        return BalancedLosses(self.rule, self.step_losses) if isinstance(self.rule, Balance) else super()._make_step()

    def joint_batch(self, step: int) -> JointBatch:
        """What a step of this round trains on."""
        return JointBatch(self._batch_of(step), *self._scene_batch(step))

    def step_losses(self, batch: JointBatch) -> Losses:
        """The losses [T + 1] of `balanced`; sums: [2, T + 3], of `loss_names`."""
        own = batch.subtasks
        self.model.set_step(own.keys, own.valid)
        subtasks = self.objective.losses(self.model, own.inputs, own.targets, own.mask, own.valid, self._counts)
        centres = self._centre_losses(self.model, self.finder, own.keys, batch.images, batch.boxes, batch.present)
        detection = torch.stack([centres.positive, centres.negative])
        return Losses(
            tasks=torch.cat([subtasks.tasks, detection.sum().view(1)]),
            active=torch.cat([own.active, own.active.new_ones(1)]),
            sums=torch.cat([self.objective.image_sums(subtasks, own.valid), detection.detach() * own.valid.sum()], 1),
        )

    def _centre_losses(
        self, model: HardSharing, finder: FaceFinder, keys: Tensor, images: Tensor, boxes: Tensor, present: Tensor
    ) -> PairLosses:
        model.set_step(keys, torch.ones(len(images), dtype=torch.bool, device=images.device))
        maps = finder.maps(images.contiguous(memory_format=torch.channels_last))
        return centre_losses(maps, centre_targets(boxes, present, (maps.shape[2], maps.shape[3]), finder.stride))

    def training_cost(self) -> TrainingCost:
        """With the scenes of a step, and the two moments of AdamW."""
        images = torch.zeros(self.options.batch_size, *self.scenes.images.shape[1:])
        nowhere = torch.zeros(len(images), 1, 4)

        def beside(model: HardSharing) -> Tensor:
            keys = torch.zeros(len(model.dropouts), 2, dtype=torch.int32)
            return self._centre_losses(model, self._finder(model), keys, images, nowhere, nowhere[..., 0] > 0).tasks.sum()

        cost = training_cost(self.model, self.objective, self.client, self.work, self.federated_data, extra_loss=beside)
        params = self.model.params()
        return replace(cost, state_bytes=lambda assignment: 4 * client_bytes(params, assignment))

    def costs(self) -> dict[str, float]:
        """flops_forward: of a face; flops_scene: of the faces' search in a scene of the run's size, looked at once."""
        model = copy.deepcopy(self.model).cpu().eval()
        assert model.detector is not None
        layers = nn.Sequential(map_layers(model.trunk), model.detector)
        return super().costs() | {"flops_scene": count_forward(layers, self.scenes.images.shape[1:])}

    def _scene_batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The scenes of a step, augmented: images, boxes and which boxes count."""
        batches, scenes = self._scene_batches, self.scenes
        # Cut off, not masked: a padding scene whose boxes do not count would teach that its faces are none.
        index = batches.index[step, : self._scenes_filled[step]]
        number = self.options.batch_size * SCENE_DRAWS
        places = batches.step[step] * number + torch.arange(len(index) * SCENE_DRAWS, dtype=torch.int32, device=index.device)
        draw = random_uniform(part_of_key(batches.key[0], AUGMENTATION), places).view(-1, SCENE_DRAWS)
        return self.augmentation(to_float(scenes.images[index]), scenes.boxes[index], scenes.valid[index], draw)

    def _choices(self) -> list[str]:
        """Without precision, which a model that finds no face does not have."""
        return [*super()._choices(), "ap50", "found", *["named"] * self._named]

    def _evaluate(self, index: Tensor) -> tuple[Metrics, Tensor]:
        metrics, scores = super()._evaluate(index)
        part = VAL if self.watched == "val" and not self.trainer.testing else TEST
        return metrics | self.evaluate_scenes(self.scenes.part(part)), scores

    @torch.no_grad()
    def evaluate_scenes(self, index: Tensor) -> Metrics:
        """ap50: COCO's average precision at an overlap of one half. Of the faces surer than `detection.confidence`, found: the share of
        true faces that one stands for; precision: the share that stands for a true face; named: the share of true faces of known
        identity that are found and named, by the highest score of the subtasks, where these are identities; equal ones count as in `rank1`.
        """
        seen = [scene for some in index.split(BATCH) for scene in self._see(some)]
        precision = MeanAveragePrecision(iou_thresholds=[0.5], backend="faster_coco_eval")
        for scene in seen:
            truth = scene.truth
            precision.update([_as_coco(scene.found)], [_as_coco(Faces(truth, truth.new_ones(len(truth))))])
        logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it says its numbers in a table of its own
        faces, counted = sum(len(scene.truth) for scene in seen), sum(scene.num_sure for scene in seen)
        matched = sum(int((scene.place[: scene.num_sure] >= 0).sum()) for scene in seen)
        self.seen = seen
        metrics: Metrics = {
            "ap50": float(precision.compute()["map_50"]),
            "found": matched / faces if faces else None,
            "precision": matched / counted if counted else None,
        }
        if self._named:
            known = sum(name != "" for scene in seen for name in scene.true_names)
            metrics["named"] = sum(scene.right for scene in seen) / max(known, 1)
        return metrics

    def _see(self, some: Tensor) -> Iterator[SeenScene]:
        scenes = self.scenes
        images = to_float(scenes.images[some])
        for image, found, i in zip(images, self.finder.find(images), some.tolist(), strict=True):
            truth = scenes.boxes[i, : scenes.counts[i]]
            # A match does not depend on those that are less sure: the first of all are those of the sure ones alone.
            place = match_faces(found.boxes, truth)
            num_sure = len(found.surer_than(self.options.confidence))
            hit = place[:num_sure] >= 0
            names, right = [""] * num_sure, 0.0
            identity = scenes.identity[i, : len(truth)].cpu()
            if self._named and bool(hit.any()):
                scores = self.objective.scores(self.model, self.finder.crops(image, found.boxes[:num_sure][hit.to(image.device)]))
                scores = scores[:, : len(self._people)].cpu()
                for at, t in zip(hit.nonzero().flatten().tolist(), scores.argmax(1).tolist(), strict=True):
                    names[at] = self._people[t]
                own = self._task_of_class[identity[place[:num_sure][hit]]]
                right = float(share_of_highest(scores[own >= 0], own[own >= 0]).sum())
            true_names = tuple(scenes.class_names[p] if p >= 0 else "" for p in identity.tolist())
            yield SeenScene(i, found, truth, place, num_sure, tuple(names), right, true_names)

    def detections(self) -> dict[str, Any]:
        """What a report shows of the scenes that were evaluated last, as arrays.

        scores, hits: [D], of every face that was found, and whether it stands for a true one; num_faces: of true ones; confidence: of the
        options; images: uint8 [S, c, H, W], `NUM_SHOWN` of the scenes. In these, surer than `confidence`: found_scene [F], of images;
        found_boxes [F, 4]; found_names [F], "" for none; found_place [F], which true box each stands for, or -1; and of the true boxes
        true_scene [M], true_boxes [M, 4], true_names [M].
        """
        every = np.unique(np.linspace(0, len(self.seen) - 1, NUM_SHOWN).round().astype(int))
        shown = [self.seen[place] for place in every]
        sure, true = [scene.num_sure for scene in shown], [len(scene.truth) for scene in shown]
        first = np.repeat(np.cumsum([0, *true[:-1]]), sure)
        place = torch.cat([scene.place[:n] for scene, n in zip(shown, sure, strict=True)]).numpy()
        return {
            "confidence": np.array(self.options.confidence),
            "num_faces": np.array(sum(len(scene.truth) for scene in self.seen)),
            "scores": torch.cat([scene.found.scores for scene in self.seen]).cpu().numpy(),
            "hits": torch.cat([scene.place >= 0 for scene in self.seen]).numpy(),
            "images": self.scenes.images[[scene.index for scene in shown]].cpu().numpy(),
            "found_scene": np.repeat(np.arange(len(shown)), sure),
            "found_boxes": torch.cat([scene.found.boxes[:n] for scene, n in zip(shown, sure, strict=True)]).cpu().numpy(),
            "found_names": np.array([name for scene in shown for name in scene.names], dtype=np.str_),
            "found_place": np.where(place >= 0, place + first, -1),
            "true_scene": np.repeat(np.arange(len(shown)), true),
            "true_boxes": torch.cat([scene.truth for scene in shown]).cpu().numpy(),
            "true_names": np.array([name for scene in shown for name in scene.true_names], dtype=np.str_),
        }


def _as_coco(faces: Faces) -> dict[str, Tensor]:
    return {
        "boxes": faces.boxes.cpu(),
        "scores": faces.scores.cpu(),
        "labels": torch.zeros(len(faces), dtype=torch.long),
    }
