"""Detection and subtasks in one trunk: scenes train where faces are and how large, pictures of single faces train the subtasks.

Detection is one more task: a step has T + 1 losses, the last of which is the sum of the three of `losses.centre`, and a balancer weighs
all of them. Rounds, steps, checkpoints and the evaluation of the subtasks are those of centralised training.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mtl.base.files import write_arrays
from mtl.base.seeding import derive_seed, random_uniform
from mtl.data.client_batches import AUGMENTATION, LocalWork, part_of_key, plan_batches
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged
from mtl.data.scene_transforms import SCENE_DRAWS, SceneAugmentation
from mtl.data.scenes import TEST, TRAIN, VAL, SceneSet
from mtl.data.transforms import to_float
from mtl.faces.finder import DetectionOptions, FaceFinder
from mtl.federation.clients.batches import Batch
from mtl.federation.clients.contract import Training
from mtl.federation.clients.gradients import Losses, Step
from mtl.federation.layout import Frozen, never_frozen
from mtl.federation.schedule import Schedule
from mtl.federation.workload import TrainingCost, training_cost
from mtl.learning.centralised import CentralisedLearning
from mtl.learning.learner import DEFAULT, Reporting
from mtl.learning.scene_evaluation import SceneEvaluation
from mtl.losses.centre import TERMS, centre_losses, centre_targets
from mtl.losses.pairs import PairLosses
from mtl.metrics.scores import Metrics
from mtl.models.centre import map_layers
from mtl.models.flops import count_forward
from mtl.models.multi_task_model import MultiTaskModel


@dataclass(frozen=True)
class JointBatch:
    """The pictures of single faces and the scenes of one step.

    Attributes:
        subtasks: pictures of single faces.
        images: float [B, c, H, W] in 0..1, scenes.
        boxes: [B, M, 4], faces in the scenes.
        present: bool [B, M], whether a box is a face; else it is padding.
    """

    subtasks: Batch
    images: Tensor
    boxes: Tensor
    present: Tensor

    @property
    def draw_key(self) -> Tensor:
        """Key of the random numbers of the step."""
        return self.subtasks.draw_key


@dataclass(frozen=True)
class SceneTraining:
    """The scenes that train detection, their augmentation, and the options of detection."""

    scenes: SceneSet
    detection: DetectionOptions
    augmentation: SceneAugmentation


class DetectionLearning(CentralisedLearning):
    """Centralised training of the subtasks and of detection.

    Args:
        training: the local step, of a model with a detector.
        data: pictures of single faces with their subtasks, of one client, with as many channels as the scenes.
        schedule: factor of the learning rate, by round.
        scenes: the scenes; some of them are for validation where the data have validation images.
        num_rounds: length of the schedule.
        frozen: the names of the parameters that are frozen in a round.
        reporting: what is logged.

    Raises:
        ValueError: the scenes do not fit the data.
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
        scene_set, channels = scenes.scenes, data.image_shape[0]
        if scene_set.images.shape[1] != channels:
            raise ValueError(
                f"scenes must have as many channels as the pictures of data, got {scene_set.images.shape[1]} and {channels}"
            )
        for part, name, needed in ((TRAIN, "training", True), (VAL, "validation", len(data.split.val) > 0), (TEST, "test", True)):
            if needed and not len(scene_set.part(part)):
                raise ValueError(f"scenes must hold {name} scenes, as data do, got none in {scene_set.name}")
        super().__init__(training, data, schedule, num_rounds=num_rounds, frozen=frozen, reporting=reporting)
        self.scenes, self.options, self.augmentation = scene_set, scenes.detection, scenes.augmentation
        self.finder = self._finder(self.model)
        self.evaluation = SceneEvaluation(
            self.finder,
            self.model,
            self.objective,
            scenes=scene_set,
            people=data.tasks[: data.num_exclusive],
            confidence=self.options.confidence,
        )
        self._training_scenes = Ragged.of([scene_set.part(TRAIN)])
        self.account["bytes_up"] += len(scene_set.part(TRAIN)) * scene_set.images[0].numel()

    def _finder(self, model: MultiTaskModel) -> FaceFinder:
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
        """The subtasks, and the three terms of the detection loss."""
        return (*self.federated_data.tasks, *TERMS)

    @property
    def balanced(self) -> tuple[str, ...]:
        """The subtasks and detection."""
        return (*self.federated_data.tasks, "detection")

    @property
    def default_metric(self) -> str:
        """Share of faces that are found and named where the scenes know the people, else the average precision."""
        return "named" if self.evaluation.names_faces else "ap50"

    @property
    def further_data(self) -> tuple[Tensor, ...]:
        """The scenes, for the fingerprint of the run."""
        return self.scenes.images, self.scenes.boxes, self.scenes.counts, self.scenes.identity

    def setup(self, stage: str) -> None:
        """Move the data and the scenes to the compute device."""
        super().setup(stage)
        self.scenes = self.scenes.to(self.device)
        self._training_scenes = self._training_scenes.to(self.device)

    def on_train_epoch_start(self) -> None:
        """Plan the batches of pictures and of scenes of the round."""
        super().on_train_epoch_start()
        work = LocalWork(batch_size=self.options.batch_size, steps=len(self._batches.step))
        self._scene_batches = plan_batches(
            self._training_scenes, [0], work, seed=derive_seed(self.training_options.seed, "scenes"), round=self.current_epoch
        )
        self._scenes_filled = self._scene_batches.filled.tolist()

    def make_step(self) -> Step:
        """Build the local step on a `JointBatch`."""
        return self.training_options.rule.step_of_losses(self.step_losses)

    def batch_of(self, step: int) -> JointBatch:
        """Return the pictures and the scenes of a step of this round."""
        return JointBatch(super().batch_of(step), *self._scene_batch(step))

    def step_losses(self, batch: JointBatch) -> Losses:
        """Return the losses [T + 1] of `balanced`, and the sums [2, T + 3] of `loss_names`."""
        faces = batch.subtasks
        self.model.set_step(faces.keys, faces.valid)
        subtasks = self.objective.losses(self.model, faces.inputs, faces.targets, faces.mask, faces.valid, faces.counts)
        centres = self._centre_losses(self.model, self.finder, faces.keys, batch.images, batch.boxes, batch.present)
        detection = torch.stack([centres.positive, centres.negative])
        return Losses(
            tasks=torch.cat([subtasks.tasks, detection.sum().view(1)]),
            active=torch.cat([faces.active, faces.active.new_ones(1)]),
            sums=torch.cat([self.objective.image_sums(subtasks, faces.valid), detection.detach() * faces.valid.sum()], 1),
        )

    def _centre_losses(
        self, model: MultiTaskModel, finder: FaceFinder, keys: Tensor, images: Tensor, boxes: Tensor, present: Tensor
    ) -> PairLosses:
        model.set_step(keys, torch.ones(len(images), dtype=torch.bool, device=images.device))
        maps = finder.maps(images.contiguous(memory_format=torch.channels_last))
        return centre_losses(maps, centre_targets(boxes, present, (maps.shape[2], maps.shape[3]), finder.stride))

    def training_cost(self) -> TrainingCost:
        """See `Learner`; with the scenes of a step."""
        images = torch.zeros(self.options.batch_size, *self.scenes.images.shape[1:])
        no_boxes = torch.zeros(len(images), 1, 4)

        def scene_loss(model: MultiTaskModel) -> Tensor:
            keys = torch.zeros(len(model.dropouts), 2, dtype=torch.int32)
            return self._centre_losses(model, self._finder(model), keys, images, no_boxes, no_boxes[..., 0] > 0).tasks.sum()

        return training_cost(self.model, self.objective, self.optimizer, self.work, self.federated_data, extra_loss=scene_loss)

    def costs(self) -> dict[str, float]:
        """See `Learner`; flops_scene is of one search for faces in a scene of the run's size."""
        model = copy.deepcopy(self.model).cpu().eval()
        assert model.detector is not None
        layers = nn.Sequential(map_layers(model.trunk), model.detector)
        return super().costs() | {"flops_scene": count_forward(layers, self.scenes.images.shape[1:])}

    def _scene_batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """The augmented scenes of a step: images, boxes, and whether a box is a face."""
        batches, scenes = self._scene_batches, self.scenes
        # Cut off, not masked: a padding scene without boxes would teach that its faces are background.
        index = batches.index[step, : self._scenes_filled[step]]
        number = self.options.batch_size * SCENE_DRAWS
        places = batches.step[step] * number + torch.arange(len(index) * SCENE_DRAWS, dtype=torch.int32, device=index.device)
        draw = random_uniform(part_of_key(batches.key[0], AUGMENTATION), places).view(-1, SCENE_DRAWS)
        return self.augmentation(to_float(scenes.images[index]), scenes.boxes[index], scenes.valid[index], draw)

    def choices(self) -> list[str]:
        """Without precision, which is undefined where no face is found."""
        return [*super().choices(), "ap50", "found", *["named"] * self.evaluation.names_faces]

    def _evaluate(self, index: Tensor) -> tuple[Metrics, Tensor]:
        metrics, scores = super()._evaluate(index)
        part = VAL if self.monitor_stage == "val" and not self.trainer.testing else TEST
        return metrics | self.evaluate_scenes(self.scenes.part(part)), scores

    def evaluate_scenes(self, index: Tensor) -> Metrics:
        """Return the metrics of the scenes `index`, see `SceneEvaluation.evaluate`."""
        return self.evaluation.evaluate(self.scenes, index)

    def write_results(self, run_dir: Path, data: FederatedData) -> None:
        """Write the results of the subtasks, and the faces found in the test scenes."""
        super().write_results(run_dir, data)
        write_arrays(run_dir / "detection.npz", **self.detections())

    def detections(self) -> dict[str, Any]:
        """Return arrays of the scenes that were evaluated last, see `SceneEvaluation.arrays`."""
        return self.evaluation.arrays(self.scenes)
