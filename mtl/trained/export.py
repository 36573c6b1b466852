"""Export the model of a run to a file for a device, and check the file on the run's images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from mtl import __version__
from mtl.base.files import atomic_write
from mtl.base.seeding import generator
from mtl.data.federated_data import FederatedData
from mtl.data.ragged import Ragged
from mtl.edge import export
from mtl.edge.device_model import DeviceModel
from mtl.edge.export import ExportError, Parity
from mtl.edge.files import DeviceFacts, check_output
from mtl.edge.pictures import PictureRule
from mtl.edge.quantize import check_calibration, quantize_for_executorch, quantize_onnx
from mtl.learning.quantized import train_quantized
from mtl.metrics.scores import Metrics
from mtl.models.flops import count_forward
from mtl.models.multi_task_model import MultiTaskModel
from mtl.run.load import TrainedRun, load_run
from mtl.trained.export_faces import (
    SCENE,
    ExportedDetector,
    check_scene,
    detector_content,
    detector_flops,
    finder_facts,
    scene_shape,
)
from mtl.trained.scoring import calibrated_thresholds, load_data, measure_test_images, predict_eager

FORMATS = {"onnx": ".onnx", "executorch": ".pte"}
THRESHOLDS = ("zero", "calibrated")
CHECKED = 256  # images on which a file is compared with the model
LEAST_COSINE = 0.95  # of an int8 embedding with its float counterpart, on the worst image
QAT_RATE = 0.1  # of the learning rate that the model was trained with


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        to: onnx or executorch.
        int8: whether weights and activations have 8 bits, calibrated on at most `calibration` training images.
        qat_steps: optimiser steps with simulated quantisation before.
        client: whose model, where parts of it stay on the clients.
        thresholds: zero; or calibrated, the best balanced accuracy of each subtask on the validation images.
        calibration: number of images.
        mirror: whether to score the mirror image too, where the run does so.
        scene: (height, width) of the pictures in which a run of mode=detection finds faces.
    """

    to: str = "onnx"
    int8: bool = False
    qat_steps: int = 0
    client: int | None = None
    thresholds: str = "zero"
    calibration: int = 256
    mirror: bool = True
    scene: Sequence[int] = SCENE

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise ValueError(f"to must be one of {', '.join(FORMATS)}, got {self.to}")
        if self.thresholds not in THRESHOLDS:
            raise ValueError(f"thresholds must be one of {', '.join(THRESHOLDS)}, got {self.thresholds}")
        if self.qat_steps < 0:
            raise ValueError(f"qat_steps must be >= 0, got {self.qat_steps}")
        if self.qat_steps and not self.int8:
            raise ValueError(f"qat_steps={self.qat_steps} needs int8: simulated quantisation is for a quantised file")
        check_scene(self.scene)

    def path(self, run_dir: Path, out: Path | None) -> Path:
        """The file to write.

        Args:
            run_dir: the run.
            out: the file that the user named, None for one in the run directory.

        Raises:
            ValueError: nothing can be written there.
        """
        path = (out or run_dir / f"model{'_int8' if self.int8 else ''}{FORMATS[self.to]}").expanduser()
        if path.suffix != FORMATS[self.to]:
            raise ValueError(f"out must end in {FORMATS[self.to]} for {self.to}, got {path}")
        if out is not None:
            check_output("out", path)
        return path


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the file.
        num_bytes: its size.
        flops: of one image, see `models.flops`.
        parity: how far the file's scores are from the model's.
        eager: metrics of the test images by the model.
        file: metrics of the test images by the file.
        detector: the second file of a run that finds faces.
    """

    path: Path
    num_bytes: int
    flops: int
    parity: Parity
    eager: Metrics
    file: Metrics
    detector: ExportedDetector | None = None


def export_run(
    run_dir: Path, options: ExportOptions | None = None, *, out: Path | None = None, data_root: str | None = None
) -> Exported:
    """Write the model of a run as a file; a run that finds faces gets a second one, the detector, with `_detector` behind its name.

    Args:
        run_dir: the run.
        options: None for a float ONNX file.
        out: the file; None for one in the run directory.
        data_root: folder of the run's data, None for where they were when it was trained.

    Raises:
        ValueError: options contradict one another, nothing can be written to `out`, the run or its data cannot be used, or a library is
            missing.
        ExportError: the file does not compute what the model computes.
    """
    options = options or ExportOptions()
    path = options.path(run_dir, out)
    run = load_run(run_dir, client=options.client)
    if not options.mirror:
        run = replace(run, objective=replace(run.objective, mirror=False))
    if not run.trained_tasks:
        raise ValueError(f"client must be named: the heads of {run_dir} stay on the clients")
    finds = run.model.detector is not None
    if finds and options.int8:
        raise ValueError("int8 cannot be had for a run of mode=detection: its detector and recogniser are exported in float")
    data = load_data(run, data_root)
    test = data.images[data.split.test]
    expected = predict_eager(run, test)
    device = device_model(run, run.model)
    facts = _facts(run, data, options, run_dir, count_forward(device, run.image_shape, run.pixels))
    calibrating = None
    if options.int8:
        calibrating = _calibration_images(run, data, options)
        if options.qat_steps:
            device = device_model(run, _train_quantized(run, data, options.client, options.qat_steps))
    make = _onnx if options.to == "onnx" else _executorch
    content, predict = make(device, run, facts, calibrating)
    parity = _check_file(predict, [values[:CHECKED] for values in expected], test[:CHECKED], options.int8)
    files, detector = {path: content}, None
    if finds:
        detector_path = path.with_name(f"{path.stem}_detector{path.suffix}")
        files[detector_path], detector = _detector(run, facts, options, detector_path)
    for target, content_of in files.items():
        with atomic_write(target) as file:
            file.write(content_of)
    metrics = measure_test_images(run, data, expected[0]), measure_test_images(run, data, predict(test)[0])
    return Exported(path, len(content), facts.flops, parity, *metrics, detector)


def _detector(run: TrainedRun, facts: DeviceFacts, options: ExportOptions, path: Path) -> tuple[bytes, ExportedDetector]:
    """The file of the detector, to be written at `path`. facts: of the recogniser."""
    shape = scene_shape(run, options.scene)
    facts = replace(
        facts,
        tasks=[],
        thresholds=[],
        image_shape=shape,
        picture=asdict(PictureRule.of(shape)),
        flops=detector_flops(run, options.scene),
    )
    content, difference, num_scenes = detector_content(run, facts, options.scene, options.to)
    return content, ExportedDetector(path, len(content), difference, num_scenes)


def _facts(run: TrainedRun, data: FederatedData, options: ExportOptions, run_dir: Path, flops: int) -> DeviceFacts:
    pictures = run.pixels == torch.uint8 and run.image_shape[0] in (1, 3)
    return DeviceFacts(
        tasks=[run.tasks[t] for t in run.trained_tasks],
        thresholds=calibrated_thresholds(run, data) if options.thresholds == "calibrated" else [0.0] * len(run.trained_tasks),
        image_shape=run.image_shape,
        picture=asdict(PictureRule.of(run.image_shape, run.config.data.get("crop"))) if pictures else None,
        precision="int8" if options.int8 else "float32",
        mirror=run.objective.mirror,
        flops=flops,
        version=__version__,
        run=run_dir.resolve().name,
        round=run.round,
        client=options.client,
        finder=None if run.model.detector is None else finder_facts(run),
    )


def _calibration_images(run: TrainedRun, data: FederatedData, options: ExportOptions) -> Tensor:
    """Training images, or those of the client whose model it is."""
    index = data.split.train if options.client is None else data.clients[options.client]
    rng = generator(run.config.seed, "calibration")
    images = data.images[index[torch.randperm(len(index), generator=rng)[: options.calibration]]]
    check_calibration(images)
    return images


def _check_file(predict: export.Predict, expected: Sequence[Tensor], images: Tensor, int8: bool) -> Parity:
    """Raises `ExportError` where the file does not compute what the model computes."""
    parity = export.compare(predict, expected, images)
    if not int8:
        away = {"scores": parity.scores} | ({} if parity.embeddings is None else {"embeddings": parity.embeddings})
        export.check_float(away, expected, parity.images)
    elif not parity.cosine >= LEAST_COSINE:
        what = "scores" if parity.embeddings is None else "embeddings"
        raise ExportError(
            f"int8 {what} must have a cosine of at least {LEAST_COSINE} with the model's, got {parity.cosine:.3f} on the worst of "
            f"{parity.images} images; train with simulated quantisation (qat_steps), or calibrate on other images"
        )
    return parity


def device_model(run: TrainedRun, model: MultiTaskModel) -> DeviceModel:
    """The model as it runs on the device: the learned subtasks, with the run's preparation of images."""
    tasks = None if len(run.trained_tasks) == len(run.tasks) else run.trained_tasks
    unit = run.model.detector is not None  # as galleries hold embeddings
    return DeviceModel(model, run.objective.normalise, mirror=run.objective.mirror, tasks=tasks, unit=unit)


def _train_quantized(run: TrainedRun, data: FederatedData, client: int | None, steps: int) -> MultiTaskModel:
    """Train on all training images, or on those of the client whose model it is."""
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
