"""The scores of a trained run on its data, and what they are worth."""

import torch
from hydra.errors import HydraException
from torch import Tensor

from mtl.data.federated_data import FederatedData
from mtl.data.transforms import to_float
from mtl.edge import export
from mtl.metrics.scores import Metrics, best_thresholds, evaluate_scores, worst_clients
from mtl.models.cnn import Trunk
from mtl.run.build import build_data, data_fingerprint
from mtl.run.load import TrainedRun
from mtl.trained.export_faces import face_finder


def load_data(run: TrainedRun, root: str | None = None) -> FederatedData:
    """Load the data that the run was trained on.

    Args:
        run: the run.
        root: folder of the data, None for where they were when it was trained.

    Raises:
        ValueError: the data are not there, or are others.
    """
    config = run.config.copy()
    if root is not None:
        config.data.root = root
    try:
        data = build_data(config)
    except HydraException as error:  # around the error of what was to be built
        raise ValueError(str(error.__cause__ or error)) from error
    if data_fingerprint(run.config, data) != run.fingerprint:
        raise ValueError(f"data.root must hold the images that the run was trained on, and {config.data.root!r} holds others")
    return data


@torch.no_grad()
def predict_eager(run: TrainedRun, images: Tensor) -> tuple[Tensor, ...]:
    """Score images by the model as it was trained.

    Args:
        run: the run.
        images: as they are stored, [N, c, H, W].

    Returns:
        Scores [N, T] of the learned subtasks, and embeddings [N, h] where the model has any.
    """
    size = export.at_once(run.image_shape)
    scores = run.objective.scores(run.model, images, batch_size=size)[:, list(run.trained_tasks)]
    if not isinstance(run.model.trunk, Trunk):
        return (scores,)
    if run.model.detector is None:
        return scores, run.objective.embed(run.model, images, batch_size=size)
    finder = face_finder(run)
    return scores, torch.cat([finder.embed(to_float(part)) for part in images.split(size)])


def calibrated_thresholds(run: TrainedRun, data: FederatedData) -> list[float]:
    """The threshold of each learned subtask with the best balanced accuracy on the validation images.

    Raises:
        ValueError: there are no validation images.
    """
    index = data.split.val
    if not len(index):
        raise ValueError("thresholds=calibrated needs validation images, and the run has none; train with split.val, or use zero")
    tasks = list(run.trained_tasks)
    scores = predict_eager(run, data.images[index])[0]
    thresholds: list[float] = best_thresholds(scores, data.targets[index][:, tasks], data.known[index][:, tasks]).tolist()
    return thresholds


def measure_test_images(run: TrainedRun, data: FederatedData, scores: Tensor) -> Metrics:
    """Metrics of the test images over the learned subtasks, and of the worst clients.

    Args:
        run: the run.
        data: its data.
        scores: [N, T] of the test images by the learned subtasks.
    """
    tasks, index = torch.tensor(run.trained_tasks), data.split.test
    place = torch.full((len(run.tasks) + 1,), -1)  # the last for an unknown identity, -1
    place[tasks] = torch.arange(len(tasks))
    names = tuple(run.tasks[t] for t in run.trained_tasks)
    truth = data.targets[index][:, tasks], data.known[index][:, tasks], place[data.identity[index]]
    metrics = evaluate_scores(scores, *truth, names, int((tasks < data.num_exclusive).sum()))
    return metrics | {"worst_clients_auroc": worst_clients(metrics, names, data.assignment[:, tasks])}
