"""Average precision, recall and names of the faces that a model finds in scenes with known boxes."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from mtl.data.scenes import SceneSet
from mtl.data.transforms import to_float
from mtl.faces.finder import FaceFinder, Faces, match_faces
from mtl.federation.objective import Objective
from mtl.metrics.scores import Metrics, share_of_highest
from mtl.models.multi_task_model import MultiTaskModel

BATCH = 32  # scenes evaluated at once
NUM_SHOWN = 6  # of the test scenes, in a report


@dataclass(frozen=True)
class SeenScene:
    """The faces found in one scene, and the true ones.

    Attributes:
        index: number of the scene.
        found: the n faces found, highest score first.
        truth: [m, 4], the true boxes as (left, top, right, bottom) in pixels.
        place: int64 [n], the true box that each found face matches, -1 for none.
        num_sure: how many of the found faces, the first ones, have a score above the confidence.
        names: names given to these, "" where they match no true face or nobody is known.
        right: how many of these that match a face of known identity have its name; a tie of k highest scores counts 1/k, as in `rank1`.
        true_names: m names, "" where not known.
    """

    index: int
    found: Faces
    truth: Tensor
    place: Tensor
    num_sure: int
    names: tuple[str, ...]
    right: float
    true_names: tuple[str, ...]


class SceneEvaluation:
    """Finds the faces of scenes, names them by the subtasks, and compares both with the truth.

    Args:
        finder: finds boxes, with the trunk and the detector of `model`.
        model: scores the subtasks of a face.
        objective: turns logits into scores.
        scenes: the scenes to be evaluated, or others of the same identities.
        people: names of the subtasks that ask for an identity; they are the first ones.
        confidence: score from which a face counts as found.

    Attributes:
        names_faces: whether faces can be named: the subtasks are identities, all of which the scenes know.
        seen: the scenes that were evaluated last.
    """

    def __init__(
        self,
        finder: FaceFinder,
        model: MultiTaskModel,
        objective: Objective,
        *,
        scenes: SceneSet,
        people: Sequence[str],
        confidence: float,
    ) -> None:
        self._finder, self._model, self._objective, self._confidence = finder, model, objective, confidence
        self._people = people
        # Which subtask asks for each class of the scenes, -1 for none; the last is for a face of no known class, which is -1 too.
        place = {name: t for t, name in enumerate(people)}
        self._task_of_class = torch.tensor([*(place.get(name, -1) for name in scenes.class_names), -1])
        self.names_faces = bool((scenes.identity >= 0).any()) and len(people) > 0 and set(people) <= set(scenes.class_names)
        self.seen: list[SeenScene] = []

    @torch.no_grad()
    def evaluate(self, scenes: SceneSet, index: Tensor) -> Metrics:
        """Return metrics of the scenes `index`, in 0..1, None where undefined.

        ap50: COCO's average precision at an overlap of one half. Of the faces with a score above the confidence, found: the share of true
        faces that one of them matches; precision: the share of them that match a true face; named: the share of true faces of known
        identity that are found and named by the highest score of the subtasks; equal scores count as in `rank1`.

        Args:
            scenes: on the device of the model.
            index: int64 [n].
        """
        seen = [scene for part in index.split(BATCH) for scene in self._see(scenes, part)]
        precision = MeanAveragePrecision(iou_thresholds=[0.5], backend="faster_coco_eval")
        for scene in seen:
            truth = scene.truth
            precision.update([_as_coco(scene.found)], [_as_coco(Faces(truth, truth.new_ones(len(truth))))])
        logging.getLogger("faster_coco_eval").setLevel(logging.WARNING)  # it prints a table of its numbers otherwise
        num_faces, num_sure = sum(len(scene.truth) for scene in seen), sum(scene.num_sure for scene in seen)
        matched = sum(int((scene.place[: scene.num_sure] >= 0).sum()) for scene in seen)
        self.seen = seen
        metrics: Metrics = {
            "ap50": float(precision.compute()["map_50"]),
            "found": matched / num_faces if num_faces else None,
            "precision": matched / num_sure if num_sure else None,
        }
        if self.names_faces:
            known = sum(name != "" for scene in seen for name in scene.true_names)
            metrics["named"] = sum(scene.right for scene in seen) / max(known, 1)
        return metrics

    def _see(self, scenes: SceneSet, index: Tensor) -> Iterator[SeenScene]:
        images = to_float(scenes.images[index])
        for image, found, i in zip(images, self._finder.find(images), index.tolist(), strict=True):
            truth = scenes.boxes[i, : scenes.counts[i]]
            # A match does not depend on faces of a lower score: the first matches are those of the sure faces alone.
            place = match_faces(found.boxes, truth)
            num_sure = len(found.surer_than(self._confidence))
            hit = place[:num_sure] >= 0
            names, right = [""] * num_sure, 0.0
            identity = scenes.identity[i, : len(truth)].cpu()
            if self.names_faces and bool(hit.any()):
                crops = self._finder.crops(image, found.boxes[:num_sure][hit.to(image.device)])
                scores = self._objective.scores(self._model, crops)[:, : len(self._people)].cpu()
                for at, t in zip(hit.nonzero().flatten().tolist(), scores.argmax(1).tolist(), strict=True):
                    names[at] = self._people[t]
                task = self._task_of_class[identity[place[:num_sure][hit]]]
                right = float(share_of_highest(scores[task >= 0], task[task >= 0]).sum())
            true_names = tuple(scenes.class_names[p] if p >= 0 else "" for p in identity.tolist())
            yield SeenScene(i, found, truth, place, num_sure, tuple(names), right, true_names)

    def arrays(self, scenes: SceneSet) -> dict[str, Any]:
        """Return what a report shows of the scenes that were evaluated last, as arrays.

        scores, hits: [D], of every face found, and whether it matches a true one; num_faces: number of true ones; confidence: that of
        the options; images: uint8 [S, c, H, W], `NUM_SHOWN` of the scenes. Of the faces in these with a score above `confidence`:
        found_scene [F], which of the images; found_boxes [F, 4]; found_names [F], "" for none; found_place [F], the true box that each
        matches, or -1. Of their true faces: true_scene [M], true_boxes [M, 4], true_names [M].

        Args:
            scenes: those that were evaluated.
        """
        every = np.unique(np.linspace(0, len(self.seen) - 1, NUM_SHOWN).round().astype(int))
        shown = [self.seen[place] for place in every]
        sure, true = [scene.num_sure for scene in shown], [len(scene.truth) for scene in shown]
        first = np.repeat(np.cumsum([0, *true[:-1]]), sure)
        place = torch.cat([scene.place[:n] for scene, n in zip(shown, sure, strict=True)]).numpy()
        return {
            "confidence": np.array(self._confidence),
            "num_faces": np.array(sum(len(scene.truth) for scene in self.seen)),
            "scores": torch.cat([scene.found.scores for scene in self.seen]).cpu().numpy(),
            "hits": torch.cat([scene.place >= 0 for scene in self.seen]).numpy(),
            "images": scenes.images[[scene.index for scene in shown]].cpu().numpy(),
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
