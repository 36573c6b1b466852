"""Detection and subtasks in one trunk: scenes train where faces are and how large, pictures of single faces train the subtasks.

Detection is one more task beside the subtasks: the losses of a step are one vector [T + 1], the last the sum of the three of
`losses.centre`, which a balancer weighs. Rounds, steps, checkpoints and the evaluation of the subtasks are those of centralised training;
only the optimiser is another.
"""

import copy
from dataclasses import dataclass, replace
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
from mtl.federation.message import client_bytes
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
    """subtasks: pictures of single faces; images: float [B, c, H, W] in 0..1, scenes; boxes: [B, M, 4]; present: bool [B, M]."""

    subtasks: Batch
    images: Tensor
    boxes: Tensor
    present: Tensor

    @property
    def draw_key(self) -> Tensor:
        return self.subtasks.draw_key


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
        self.evaluation = SceneEvaluation(
            self.finder,
            self.model,
            self.objective,
            scenes=found,
            people=data.tasks[: data.num_exclusive],
            confidence=self.options.confidence,
        )
        self._scenes_held = Ragged.of([found.part(TRAIN)])
        self.account["bytes_up"] += len(found.part(TRAIN)) * found.images[0].numel()

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
        return (*self.federated_data.tasks, *TERMS)

    @property
    def balanced(self) -> tuple[str, ...]:
        return (*self.federated_data.tasks, "detection")

    @property
    def judged_by(self) -> str:
        return "named" if self.evaluation.names_faces else "ap50"

    @property
    def further_data(self) -> tuple[Tensor, ...]:
        return self.scenes.images, self.scenes.boxes, self.scenes.counts, self.scenes.identity

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.scenes = self.scenes.to(self.device)
        self._scenes_held = self._scenes_held.to(self.device)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        work = LocalWork(batch_size=self.options.batch_size, steps=len(self._batches.step))
        self._scene_batches = plan_batches(
            self._scenes_held, [0], work, seed=derive_seed(self.training_options.seed, "scenes"), round=self.current_epoch
        )
        self._scenes_filled = self._scene_batches.filled.tolist()

    def make_step(self) -> Step:
        return self.training_options.rule.step_of_losses(self.step_losses)

    def batch_of(self, step: int) -> JointBatch:
        """What a step of this round trains on."""
        return JointBatch(super().batch_of(step), *self._scene_batch(step))

    def step_losses(self, batch: JointBatch) -> Losses:
        """The losses [T + 1] of `balanced`; sums: [2, T + 3], of `loss_names`."""
        own = batch.subtasks
        self.model.set_step(own.keys, own.valid)
        subtasks = self.objective.losses(self.model, own.inputs, own.targets, own.mask, own.valid, own.counts)
        centres = self._centre_losses(self.model, self.finder, own.keys, batch.images, batch.boxes, batch.present)
        detection = torch.stack([centres.positive, centres.negative])
        return Losses(
            tasks=torch.cat([subtasks.tasks, detection.sum().view(1)]),
            active=torch.cat([own.active, own.active.new_ones(1)]),
            sums=torch.cat([self.objective.image_sums(subtasks, own.valid), detection.detach() * own.valid.sum()], 1),
        )

    def _centre_losses(
        self, model: MultiTaskModel, finder: FaceFinder, keys: Tensor, images: Tensor, boxes: Tensor, present: Tensor
    ) -> PairLosses:
        model.set_step(keys, torch.ones(len(images), dtype=torch.bool, device=images.device))
        maps = finder.maps(images.contiguous(memory_format=torch.channels_last))
        return centre_losses(maps, centre_targets(boxes, present, (maps.shape[2], maps.shape[3]), finder.stride))

    def training_cost(self) -> TrainingCost:
        """With the scenes of a step, and the two moments of AdamW."""
        images = torch.zeros(self.options.batch_size, *self.scenes.images.shape[1:])
        nowhere = torch.zeros(len(images), 1, 4)

        def beside(model: MultiTaskModel) -> Tensor:
            keys = torch.zeros(len(model.dropouts), 2, dtype=torch.int32)
            return self._centre_losses(model, self._finder(model), keys, images, nowhere, nowhere[..., 0] > 0).tasks.sum()

        cost = training_cost(self.model, self.objective, self.algorithm, self.work, self.federated_data, extra_loss=beside)
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

    def choices(self) -> list[str]:
        """Without precision, which a model that finds no face does not have."""
        return [*super().choices(), "ap50", "found", *["named"] * self.evaluation.names_faces]

    def _evaluate(self, index: Tensor) -> tuple[Metrics, Tensor]:
        metrics, scores = super()._evaluate(index)
        part = VAL if self.watched == "val" and not self.trainer.testing else TEST
        return metrics | self.evaluate_scenes(self.scenes.part(part)), scores

    def evaluate_scenes(self, index: Tensor) -> Metrics:
        """Metrics of the scenes `index`, see `SceneEvaluation.evaluate`."""
        return self.evaluation.evaluate(self.scenes, index)

    def write_results(self, run_dir: Path, data: FederatedData) -> None:
        """Beside the rest, the faces found in the test scenes."""
        super().write_results(run_dir, data)
        write_arrays(run_dir / "detection.npz", **self.detections())

    def detections(self) -> dict[str, Any]:
        """What a report shows of the scenes that were evaluated last, see `SceneEvaluation.arrays`."""
        return self.evaluation.arrays(self.scenes)
