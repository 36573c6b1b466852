"""Detection and subtasks in one trunk: scenes train where faces are and how large, pictures of single faces train the subtasks.

The losses of a step are one vector [T + 3], the subtasks' and the three of `losses.centre`, so that any balancer can weigh them; without
one they are summed, a detection term times `detection.weight`. The rest, rounds, steps, checkpoints and the evaluation of the subtasks, is
that of centralised training; only the optimiser is another.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from mtl.data.client_batches import AUGMENTATION, LocalWork, part_of_key, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged
from mtl.data.scene_transforms import SCENE_DRAWS, SceneAugmentation
from mtl.data.scenes import TEST, TRAIN, VAL, SceneSet
from mtl.data.transforms import to_float
from mtl.face.finder import DetectionOptions, FaceFinder, Faces, match_faces
from mtl.federation.for_each_client import prepare
from mtl.federation.local_sgd import LocalSGD
from mtl.federation.objective import Objective
from mtl.federation.schedule import Schedule
from mtl.learning.centralised import CentralisedLearning
from mtl.losses.centre import TERMS, centre_losses, centre_targets
from mtl.metrics import Metrics
from mtl.models.hard_sharing import HardSharing
from mtl.seeding import derive_seed, random_uniform

BATCH = 32  # scenes evaluated at once


class DetectionLearning(CentralisedLearning):
    """`detector`: a head on the map of the model's trunk; it becomes a part of the model. `data`: pictures of single faces with their
    subtasks, of as many channels as the scenes have. Where the data have validation images, the scenes must have some too.
    """

    def __init__(
        self,
        model: HardSharing,
        detector: torch.nn.Module,
        data: FederatedData,
        scenes: SceneSet,
        objective: Objective,
        client: LocalSGD,
        work: LocalWork,
        schedule: Schedule,
        options: DetectionOptions,
        augmentation: SceneAugmentation,
        *,
        num_rounds: int,
        seed: int,
        per_task: bool = True,
        log_every: int = 1,
    ) -> None:
        if scenes.images.shape[1] != data.image_shape[0]:
            raise ValueError(
                f"scenes must have as many channels as the pictures of data, got {scenes.images.shape[1]} and {data.image_shape[0]}"
            )
        for part, name, needed in ((TRAIN, "training", True), (VAL, "validation", len(data.split.val) > 0), (TEST, "test", True)):
            if needed and not len(scenes.part(part)):
                raise ValueError(f"scenes must hold {name} scenes, as data do, got none in {scenes.name}")
        model.add_module("detector", detector)
        super().__init__(
            model,
            data,
            objective,
            client,
            work,
            schedule,
            num_rounds=num_rounds,
            seed=seed,
            per_task=per_task,
            log_every=log_every,
        )
        self.scenes, self.options, self.augmentation = scenes, options, augmentation
        self.finder = FaceFinder(
            model.trunk,
            detector,
            objective.normalise,
            crop_shape=data.image_shape,
            margin=options.margin,
            mirror=objective.mirror,
        )
        # Whether the subtasks can say whose a face is, and the scenes whether they are right.
        self._named = bool((scenes.identity >= 0).any()) and set(data.tasks) <= set(scenes.class_names)
        self._scenes_held = Ragged.of([scenes.part(TRAIN)])
        self.account["bytes_up"] += len(scenes.part(TRAIN)) * scenes.images[0].numel()

    @property
    def loss_names(self) -> tuple[str, ...]:
        return (*self.federated_data.tasks, *TERMS)

    @property
    def chosen_by(self) -> str:
        return f"{self.watched}/named" if self._named else f"{self.watched}/ap50"

    def configure_optimizers(self) -> Any:
        """The groups and the schedule of centralised training, by AdamW with `client.momentum` as its first beta: the focal loss of a map
        whose cells are nearly all empty starts too steep for plain SGD, and CenterNet's own optimiser is Adam.
        """
        groups = super().configure_optimizers()["optimizer"].param_groups
        kept = [{"params": group["params"], "lr": group["initial_lr"]} for group in groups]
        optimizer = torch.optim.AdamW(kept, betas=(self.client.momentum, 0.999), weight_decay=self.client.weight_decay)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda round: self.schedule.factor(round, self.num_rounds))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*super().tensors, self.scenes.images, self.scenes.boxes, self.scenes.counts, self.scenes.identity)

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
        self._sums = torch.zeros(2, len(self.loss_names), device=self.device)

    def training_step(self, step: Tensor, batch_idx: int) -> Tensor:
        return self.step_losses(batch_idx).sum()

    def step_losses(self, batch_idx: int) -> Tensor:
        """The weighted losses of a step of this round, [T + 3], in the order of `loss_names`; also counted for the log."""
        data, row = self.federated_data, slice(batch_idx, batch_idx + 1)
        rows = prepare(self.objective, self.model, self._batches, row, data.assignment.to(self.device), data)
        inputs, valid = rows.inputs[0].contiguous(memory_format=torch.channels_last), rows.valid[0]
        self.model.set_step(rows.keys[0], valid)
        subtasks = self.objective.losses(self.model, inputs, rows.targets[0], rows.mask[0], valid, self._counts)
        images, boxes, present = self._scene_batch(batch_idx)
        self.model.set_step(rows.keys[0], torch.ones(len(images), dtype=torch.bool, device=self.device))
        maps = self.finder.maps(images.contiguous(memory_format=torch.channels_last))
        targets = centre_targets(boxes, present, (maps.shape[2], maps.shape[3]), self.finder.stride)
        centres = centre_losses(maps, targets)
        detection = self.options.weight * torch.stack([centres.positive, centres.negative])
        logged = torch.cat([self.objective.image_sums(subtasks, valid), detection.detach() * valid.sum()], 1)
        self._sums += logged
        return torch.cat([subtasks.tasks, detection.sum(0)])

    def _scene_batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The scenes of a step, augmented: images, boxes and which boxes count."""
        batches, scenes = self._scene_batches, self.scenes
        # Cut off, not masked: a padding scene whose boxes do not count would teach that its faces are none.
        index = batches.index[step, : self._scenes_filled[step]]
        number = self.options.batch_size * SCENE_DRAWS
        places = batches.step[step] * number + torch.arange(len(index) * SCENE_DRAWS, dtype=torch.int32, device=index.device)
        draw = random_uniform(part_of_key(batches.key[0], AUGMENTATION), places).view(-1, SCENE_DRAWS)
        return self.augmentation(to_float(scenes.images[index]), scenes.boxes[index], scenes.valid[index], draw)

    def finish_round(self, losses: Tensor, trained: Tensor, learning_rate: float, check: Callable[[], None]) -> None:
        super().finish_round(losses, torch.ones(losses.shape[1], dtype=torch.bool), learning_rate, check)

    def _evaluate(self, index: Tensor) -> tuple[Metrics, Tensor]:
        metrics, scores = super()._evaluate(index)
        part = VAL if self.watched == "val" and not self.trainer.testing else TEST
        return metrics | self.evaluate_scenes(self.scenes.part(part)), scores

    @torch.no_grad()
    def evaluate_scenes(self, index: Tensor) -> Metrics:
        """ap50: COCO's average precision at an overlap of one half. Of the faces surer than `detection.confidence`, found: the share of
        true faces that one stands for; precision: the share that stands for a true face; named: the share of true faces of known
        identity that are found and named, by the highest score of the subtasks, where these are identities.
        """
        scenes, precision = self.scenes, MeanAveragePrecision(iou_thresholds=[0.5], backend="faster_coco_eval")
        right = faces = known = matched = counted = 0
        for some in index.split(BATCH):
            images = to_float(scenes.images[some])
            for image, found, i in zip(images, self.finder.find(images), some.tolist(), strict=True):
                truth = scenes.boxes[i, : scenes.counts[i]]
                precision.update([_as_coco(found)], [_as_coco(Faces(truth, truth.new_ones(len(truth))))])
                sure = found.surer_than(self.options.confidence)
                place = match_faces(sure.boxes, truth)
                hit = place >= 0
                faces, matched, counted = faces + len(truth), matched + int(hit.sum()), counted + len(sure)
                identity = scenes.identity[i, : len(truth)].cpu()
                known += int((identity >= 0).sum())
                if self._named and bool(hit.any()):
                    scores = self.objective.scores(self.model, self.finder.crops(image, sure.boxes[hit.to(image.device)]))
                    who = [self.federated_data.tasks[t] for t in scores.argmax(1).tolist()]
                    truly = [scenes.class_names[p] if p >= 0 else None for p in identity[place[hit]].tolist()]
                    right += sum(one == other for one, other in zip(who, truly, strict=True))
        logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it says its numbers in a table of its own
        metrics: Metrics = {
            "ap50": float(precision.compute()["map_50"]),
            "found": matched / faces if faces else None,
            "precision": matched / counted if counted else None,
        }
        return metrics | ({"named": right / max(known, 1)} if self._named else {})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # What it takes to build the finder again without the data.
        checkpoint["faces"] = {"image_shape": list(self.federated_data.image_shape)}


def _as_coco(faces: Faces) -> dict[str, Tensor]:
    return {
        "boxes": faces.boxes.cpu(),
        "scores": faces.scores.cpu(),
        "labels": torch.zeros(len(faces), dtype=torch.long),
    }
