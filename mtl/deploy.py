"""From a run directory to a file for a device, checked on the run's own images."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from hydra.errors import HydraException
from torch import Tensor, nn

from mtl import __version__
from mtl.build import build_data, data_fingerprint
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged
from mtl.edge import export
from mtl.edge.device_model import DeviceModel
from mtl.edge.export import ExportError, Parity
from mtl.edge.files import DeviceFacts
from mtl.edge.quantize import check_calibration, quantize_for_executorch, quantize_onnx
from mtl.files import atomic_write
from mtl.learning.quantized import train_quantized
from mtl.metrics import Metrics, best_thresholds, evaluate_scores, worst_clients
from mtl.models.hard_sharing import HardSharing
from mtl.seeding import generator
from mtl.trained import TrainedRun, load_run

FORMATS = {"onnx": ".onnx", "executorch": ".pte"}
THRESHOLDS = ("zero", "calibrated")
CHECKED = 256  # images on which a file is compared with the model
LEAST_COSINE = 0.95  # of an int8 embedding with its float counterpart, on the worst image
QAT_RATE = 0.1  # of the learning rate that the model was trained with


@dataclass(frozen=True)
class Exported:
    """eager, file: metrics of the test images, by the model as it was trained and by the file."""

    path: Path
    num_bytes: int
    parity: Parity
    eager: Metrics
    file: Metrics


def export_run(
    run_dir: Path,
    *,
    to: str = "onnx",
    int8: bool = False,
    qat_steps: int = 0,
    out: Path | None = None,
    client: int | None = None,
    thresholds: str = "zero",
    calibration: int = 256,
    data_root: str | None = None,
) -> Exported:
    """Write the model of a run as one file.

    int8: eight bits, calibrated on at most `calibration` training images; qat_steps: so many optimiser steps with simulated quantisation
    before; client: whose model, where parts of it stay on the clients; thresholds: `zero`, or `calibrated`: the best balanced accuracy
    of each subtask on the validation images; data_root: where the data lie now, if elsewhere. Raises ValueError where options contradict
    one another, where the run or its data cannot be used, where a library is missing, and where the file does not do what the model does.
    """
    path = _check(run_dir, to, int8, qat_steps, out, thresholds)
    run = load_run(run_dir, client=client)
    if run.model.detector is not None:
        raise ValueError(f"mode=detection has no exported form: the files take one face, and {run_dir} finds them in pictures")
    if not run.own:
        raise ValueError(f"client must be named: the heads of {run_dir} stay on the clients")
    data = load_data(run, data_root)
    test = data.images[data.split.test]
    expected = predict_eager(run, test)
    crop = run.config.data.get("crop")
    facts = DeviceFacts(
        tasks=[run.tasks[t] for t in run.own],
        thresholds=_thresholds(run, data) if thresholds == "calibrated" else [0.0] * len(run.own),
        image_shape=run.image_shape,
        crop=None if crop is None else list(crop),
        precision="int8" if int8 else "float32",
        mirror=run.objective.mirror,
        version=__version__,
        run=run_dir.resolve().name,
        round=run.round,
        client=client,
    )
    device = device_model(run, run.model)
    calibrating = None
    if int8:
        held = data.split.train if client is None else data.clients[client]
        rng = generator(run.config.seed, "calibration")
        calibrating = data.images[held[torch.randperm(len(held), generator=rng)[:calibration]]]
        check_calibration(calibrating)
        if qat_steps:
            device = device_model(run, _train_quantized(run, data, client, qat_steps))
    make = _onnx if to == "onnx" else _executorch
    content, predict = make(device, run, facts, calibrating)
    wanted = expected[0][:CHECKED], expected[1][:CHECKED]
    parity = export.compare(predict, wanted, test[:CHECKED])
    if not int8:
        export.check_float(parity, wanted)
    elif not parity.cosine >= LEAST_COSINE:
        raise ExportError(
            f"int8 embeddings must have a cosine of at least {LEAST_COSINE} with the model's, got {parity.cosine:.3f} on the worst of "
            f"{parity.images} images; train with simulated quantisation (qat_steps), or calibrate on other images"
        )
    with atomic_write(path) as file:
        file.write(content)
    return Exported(path, len(content), parity, _metrics(run, data, expected[0]), _metrics(run, data, predict(test)[0]))


def device_model(run: TrainedRun, model: HardSharing) -> DeviceModel:
    """What of the run goes to the device."""
    tasks = None if len(run.own) == len(run.tasks) else run.own
    return DeviceModel(model, run.objective.normalise, mirror=run.objective.mirror, tasks=tasks)


def load_data(run: TrainedRun, root: str | None = None) -> FederatedData:
    """The data that the run was trained on. Raises ValueError where they are not those."""
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
def predict_eager(run: TrainedRun, images: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [N, T] of the subtasks that the model has learned, and embeddings [N, h], by the model as it was trained."""
    return run.objective.scores(run.model, images)[:, list(run.own)], run.objective.embed(run.model, images)


def _train_quantized(run: TrainedRun, data: FederatedData, client: int | None, steps: int) -> HardSharing:
    """On all training images, or on those of the client whose model it is."""
    if client is None:
        data = data.pooled()
    else:
        parts = {name: getattr(data, name)[[client]] for name in ("assignment", "positives", "negatives")}
        data = replace(data, clients=Ragged.of([data.clients[client]]), **parts)
    return train_quantized(
        run.model,
        run.objective,
        data,
        steps=steps,
        batch_size=run.config.work.batch_size,
        learning_rate=QAT_RATE * run.config.client.learning_rate,
        seed=run.config.seed,
    )


def _onnx(device: DeviceModel, run: TrainedRun, facts: DeviceFacts, calibrating: Tensor | None) -> tuple[bytes, export.Predict]:
    content = export.to_onnx(device, run.image_shape, run.pixels, facts)
    if calibrating is not None:
        content = quantize_onnx(content, calibrating, facts)
    return content, export.onnx_predict(content)


def _executorch(
    device: DeviceModel, run: TrainedRun, facts: DeviceFacts, calibrating: Tensor | None
) -> tuple[bytes, export.Predict]:
    graph: nn.Module = device
    if calibrating is not None:
        graph = quantize_for_executorch(device, calibrating)
    content = export.to_executorch(graph, run.image_shape, run.pixels, facts)
    return content, export.executorch_predict(content)


def _check(run_dir: Path, to: str, int8: bool, qat_steps: int, out: Path | None, thresholds: str) -> Path:
    """The path to write to."""
    if to not in FORMATS:
        raise ValueError(f"to must be one of {', '.join(FORMATS)}, got {to}")
    if thresholds not in THRESHOLDS:
        raise ValueError(f"thresholds must be one of {', '.join(THRESHOLDS)}, got {thresholds}")
    if qat_steps < 0:
        raise ValueError(f"qat_steps must be >= 0, got {qat_steps}")
    if qat_steps and not int8:
        raise ValueError(f"qat_steps={qat_steps} needs int8: simulated quantisation is for a quantised file")
    path = out or run_dir / f"model{'_int8' if int8 else ''}{FORMATS[to]}"
    if path.suffix != FORMATS[to]:
        raise ValueError(f"out must end in {FORMATS[to]} for {to}, got {path}")
    return path


def _thresholds(run: TrainedRun, data: FederatedData) -> list[float]:
    index = data.split.val
    if not len(index):
        raise ValueError("thresholds=calibrated needs validation images, and the run has none; train with split.val, or use zero")
    own = list(run.own)
    scores = predict_eager(run, data.images[index])[0]
    found: list[float] = best_thresholds(scores, data.targets[index][:, own], data.known[index][:, own]).tolist()
    return found


def _metrics(run: TrainedRun, data: FederatedData, scores: Tensor) -> Metrics:
    """Of the test images, over the subtasks that the model has learned; and of the clients that are served worst."""
    own, index = torch.tensor(run.own), data.split.test
    place = torch.full((len(run.tasks) + 1,), -1)  # the last for an unknown identity, -1
    place[own] = torch.arange(len(own))
    names = tuple(run.tasks[t] for t in run.own)
    truth = data.targets[index][:, own], data.known[index][:, own], place[data.identity[index]]
    metrics = evaluate_scores(scores, *truth, names, int((own < data.num_exclusive).sum()))
    return metrics | {"worst_clients_auroc": worst_clients(metrics, names, data.assignment[:, own])}
